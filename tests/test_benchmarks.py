"""Every benchmark runs, on cards and with the smallest settings, and prints its table; the figures are not judged."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SMALLEST = {
    "input": ("--size", "32", "--repeats", "1"),
    "fit_overhead": ("--size", "32", "--batch_size", "8", "--steps", "12", "--repeats", "1"),
    "test_overhead": ("--images", "400", "--repeats", "1"),
    "predict": ("--images", "100", "--many", "200", "--repeats", "1"),
    "crop_sensitivity": ("--images", "20", "--detector_images", "3"),
    "exported": ("--images", "20"),
    "startup": ("--images", "100", "--repeats", "1"),
    "memory": ("--sizes", "100", "--steps", "2"),
    "time_to_accuracy": ("--seeds", "1"),
    "ablation": ("--seeds", "1", "--epochs", "1", "--only", "2", "8", "--output", "runs"),
    "average_weights": ("small", "small", "--output", "mean.safetensors"),
}


def test_every_benchmark_is_tried() -> None:
    assert {script.stem for script in BENCHMARKS.glob("*.py")} - {"measure", "score"} == set(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_prints_its_table(name: str, cards: Path, tmp_path: Path) -> None:
    options = SMALLEST[name]
    if name in ("time_to_accuracy", "ablation"):
        config = tmp_path / "short.yaml"
        config.write_text("{data: {image_size: 32, num_workers: 0}, trainer: {max_epochs: 1, accelerator: cpu}}")
        options = (*options, "--root", str(cards), "--config", str(config))
    if name in ("crop_sensitivity", "exported"):
        options = (*options, "--root", str(cards))
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    tables = [block.splitlines() for block in done.stdout.split("\n\n") if block.startswith("|")]
    assert tables and all(len(table) >= 3 and len({row.count("|") for row in table}) == 1 for table in tables)
