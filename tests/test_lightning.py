"""Lightning's own things work: loggers, plugins, profilers, finders, strategies, barebones, subclasses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from agr_lightning.cli import main
from agr_lightning.module import AGRModule
from tests.conftest import FAST

Run = Callable[..., tuple[int, str, str]]

FIT = ("fit", *FAST, "--data.synthetic", "120", "--trainer.max_epochs", "1")
SHORT = (*FIT, "--test_after_fit", "false", "--trainer.max_steps", "2")


def _callback(name: str, **arguments: object) -> tuple[str, str]:
    return "--trainer.callbacks", json.dumps([{"class_path": name, "init_args": arguments}])


def test_the_csv_logger(run: Run, here: Path) -> None:
    logger = json.dumps({"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "csv"}})
    code, _, err = run(*FIT, "--trainer.logger", logger)
    assert code == 0, err
    folder = here / "runs" / "csv" / "version_0"
    found = {path.name for path in folder.rglob("*")}
    assert {"metrics.csv", "config.yaml", "results.json", "best.ckpt", "last.ckpt", "test.txt"} <= found


@pytest.mark.parametrize("many", [False, True])
def test_a_logger_without_a_folder(run: Run, here: Path, many: bool) -> None:
    dummy = {"class_path": "lightning.pytorch.loggers.logger.DummyLogger"}
    other = {"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere"}}
    code, _, err = run(*FIT, "--trainer.logger", json.dumps([dummy, other] if many else dummy))
    assert code == 0, err
    found = {str(path.relative_to(here / "lightning_logs/version_0")) for path in here.glob("lightning_logs/*/**/*")}
    assert {"config.yaml", "results.json", "checkpoints/best.ckpt", "splits/test.txt"} <= found
    assert {path.name for path in here.iterdir()} <= {"lightning_logs", "elsewhere"}


_HERE = """
from lightning.pytorch.loggers import CSVLogger


class Here(CSVLogger):
    '''As Weights and Biases' logger: its runs lie below a folder, and have a name each.'''

    def __init__(self):
        super().__init__(".", "project", "run-a1")
"""


def test_a_logger_of_the_current_folder(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "config.yaml").write_text("mine")
    (here / "here_logger.py").write_text(_HERE)
    monkeypatch.syspath_prepend(str(here))
    code, _, err = run(*FIT, "--trainer.logger", "here_logger.Here")
    assert code == 0, err
    assert (here / "config.yaml").read_text() == "mine" and not (here / "results.json").exists()
    assert (here / "project" / "run-a1" / "results.json").is_file()


def test_without_a_logger_checkpoints_are_kept_as_lightning_keeps_them(run: Run, here: Path) -> None:
    code, _, err = run(*FIT, "--trainer.logger", "false")
    assert code == 0, err
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert [path.name for path in here.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_plugins_beside_our_checkpoints(run: Run, here: Path, form: str) -> None:
    plugin = json.dumps({"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"})
    code, _, err = run(*SHORT, "--trainer.plugins", form.format(plugin))
    assert code == 0, err
    assert list(here.rglob("last.ckpt"))


def test_a_checkpoint_writer_of_ones_own(run: Run, here: Path) -> None:
    plugin = json.dumps([{"class_path": "lightning.pytorch.plugins.io.TorchCheckpointIO"}])
    code, _, err = run(*SHORT, "--trainer.plugins", plugin)
    assert code == 0, err
    assert list(here.rglob("last.ckpt"))


def _command(here: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agr_lightning", *args], cwd=here, capture_output=True, text=True,
        env={**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_profiler_summary_and_early_stopping_print(here: Path) -> None:
    stop = _callback("EarlyStopping", monitor="val/loss", verbose=True)
    done = _command(here, *FIT, "--test_after_fit", "false", "--trainer.profiler", "simple", *stop)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "run_training_epoch" in text and "Params" in text and "Metric val/loss improved" in text


def test_the_batch_size_finder_changes_what_is_used(run: Run, here: Path) -> None:
    finder = _callback("BatchSizeFinder", mode="power", steps_per_trial=1, init_val=4, max_trials=2)
    code, _, err = run(*SHORT, *finder)
    assert code == 0, err
    checkpoint = torch.load(next(here.rglob("last.ckpt")), weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 8  # tried with 4 and 8
    epoch = _callback("BatchSizeFinder", mode="power", steps_per_trial=1, init_val=32, max_trials=1)
    code, _, err = run(*FIT, "--test_after_fit", "false", *epoch)
    assert code == 0, err
    checkpoint = torch.load(here / "lightning_logs/version_1/checkpoints/last.ckpt", weights_only=True)
    size = checkpoint["datamodule_hyper_parameters"]["batch_size"]
    assert size == 32 and checkpoint["global_step"] == 96 // size


def test_the_learning_rate_finder_changes_what_is_used(run: Run, here: Path) -> None:
    finder = _callback("LearningRateFinder", num_training_steps=20, min_lr=1e-5, max_lr=1e-2, early_stop_threshold=None)
    code, _, err = run(*FIT, "--trainer.max_epochs", "5", "--test_after_fit", "false", *finder)
    assert code == 0, err
    checkpoint = torch.load(next(here.rglob("last.ckpt")), weights_only=True)
    found = checkpoint["hyper_parameters"]["learning_rate"]
    assert 1e-5 <= found <= 1e-2
    assert max(group["max_lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]) == pytest.approx(found)


def test_barebones(run: Run, here: Path) -> None:
    args = [word for word in SHORT if word not in ("--trainer.enable_progress_bar", "false")]
    args = [word for word in args if word != "--test_after_fit"]
    code, _, err = run(*args, "--trainer.barebones", "true", "--test_after_fit", "false")
    assert code == 0, err
    assert not list(here.rglob("*.ckpt"))


def test_deterministic(run: Run, here: Path) -> None:
    code, _, err = run(*FIT, "--test_after_fit", "false", "--trainer.deterministic", "true")
    assert code == 0, err


def test_spawned_processes_are_refused_in_a_line(run: Run, here: Path) -> None:
    code, _, err = run(*FIT, "--trainer.strategy", "ddp_spawn", "--trainer.devices", "2")
    assert code == 1 and "use ddp" in err and len(err.strip().splitlines()) == 1


def test_a_left_over_of_slurm_does_not_replace_named_weights(
    run: Run, here: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*SHORT)[0] == 0
    (here / "lightning_logs/version_0/checkpoints/last.ckpt").rename(here / "hpc_ckpt_1.ckpt")
    for name, value in (("NTASKS", "1"), ("JOB_NAME", "job"), ("PROCID", "0"), ("LOCALID", "0"), ("NODEID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = ("--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    code, _, err = run("test", "--ckpt_path", str(trained), *options)
    assert code == 0, err
    found, expected = (
        json.loads((run_folder / "results.json").read_text())
        for run_folder in (here / "lightning_logs/version_1", trained)
    )
    assert found["metrics"] == expected["metrics"]


class Larger(AGRModule):
    """A subclass with one more argument.

    Args:
        scale: what the training loss is multiplied by.
        **kwargs: those of AGRModule.
    """

    def __init__(self, scale: float = 1.0, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.scale = scale

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


def test_a_subclass_with_one_more_argument(here: Path) -> None:
    options = ("--model.scale", "2.0", "--model.dropout", "0.1", "--test_after_fit", "false")
    assert main([*FIT, *options], model_class=Larger) == 0
    folder = here / "lightning_logs" / "version_0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["scale"] == 2.0 and config["model"]["dropout"] == 0.1
    module = Larger.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert module.scale == 2.0 and module.hparams.dropout == 0.1
    assert main(["test", *FAST[2:], "--ckpt_path", "best"], model_class=Larger) == 0
