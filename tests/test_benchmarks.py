"""Every benchmark runs, on cards and with the smallest settings, and prints its table; the figures are not judged."""

import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SMALLEST = {
    "input": ("--images", "100", "--size", "32", "--seconds", "0.1", "--repeats", "1"),
    "fit_overhead": ("--size", "32", "--batch_size", "8", "--steps", "7", "--repeats", "1", "--root", "{cards}"),
    "test_overhead": ("--images", "96", "--batch_size", "8", "--repeats", "1", "--root", "{cards}"),
    "predict": ("--images", "64", "--many", "100", "--repeats", "1"),
    "crop_sensitivity": ("--images", "20", "--detector_images", "3", "--root", "{cards}"),
    "degradation": ("--images", "20", "--root", "{cards}"),
    "faces": ("--faces", "9", "--megapixels", "2", "--root", "{cards}", "--backgrounds", "{cards}"),
    "exported": ("--images", "20", "--networks", "small", "--root", "{cards}"),
    "startup": ("--images", "100", "--repeats", "1"),
    "scale": ("--sizes", "100", "--root", "{cards}"),
    "identity": ("--images", "5", "--root", "{cards}"),
    "memory": ("--sizes", "100", "--steps", "2"),
    "time_to_accuracy": ("--seeds", "1", "--root", "{cards}", "--config", "short.yaml"),
    "ablation": (
        *("--seeds", "1", "--epochs", "1", "--only", "8", "--output", "runs"),
        *("--root", "{cards}", "--config", "short.yaml"),
    ),
    "finetune": (
        *("--images", "40", "--draws", "1", "--only", "0", "--root", "{cards}"),
        *("--", "--data.image_size=32", "--trainer.max_epochs=1"),
    ),
    "average_weights": ("small", "small", "--output", "mean.safetensors"),
}


def test_every_benchmark_is_tried() -> None:
    assert {script.stem for script in BENCHMARKS.glob("*.py")} - {"measure", "score"} == set(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_prints_its_table(
    name: str,
    cards: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "short.yaml").write_text(
        "{data: {image_size: 32, num_workers: 0}, trainer: {max_epochs: 1, accelerator: cpu}}"
    )
    script = str(BENCHMARKS / f"{name}.py")
    options = [option.format(cards=cards) for option in SMALLEST[name]]
    if name == "input":  # which keeps its process to one core
        done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    else:
        # What the benchmarks change in their process is put back.
        monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        caplog.set_level("INFO", "lightning.pytorch")
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", [script, *options])
        runpy.run_path(script, run_name="__main__")
        output = capsys.readouterr().out
    tables = [block.splitlines() for block in output.split("\n\n") if block.startswith("|")]
    assert tables and all(len(table) >= 3 and len({row.count("|") for row in table}) == 1 for table in tables)


def test_the_changes_of_the_ablation_are_options(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    ablation = importlib.import_module("ablation")
    for options in (*ablation.TRAINING.values(), *ablation.EVALUATION.values()):
        code, _, err = run("fit", *options, "--print_config")
        assert code == 0, err
