"""Training through the Trainer: it learns, repeats, resumes, and agrees over precisions and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agr_lightning.callbacks import training_callbacks
from agr_lightning.datamodule import UTKFaceDataModule
from agr_lightning.messages import UserError
from agr_lightning.module import AGRModule
from tests.conftest import FAST

ROOT = Path(__file__).parents[1]


def _results(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "results.json").read_text())
    return found


def test_a_network_learns_the_cards(trained: Path) -> None:
    metrics = _results(trained)["metrics"]
    assert isinstance(metrics, dict)
    # Chance: 29 years, 50 % and 20 %.
    assert metrics["age_mae"] < 12 and metrics["gender_acc"] > 0.8 and metrics["race_acc"] > 0.7


def test_a_run_folder_is_complete(trained: Path) -> None:
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        *("config.yaml", "results.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("splits/train.txt", "splits/val.txt", "splits/test.txt"),
        *("figures/confusion_gender.png", "figures/confusion_race.png", "figures/sample_faces.png"),
        *("figures/age_predicted_vs_actual.png", "figures/age_error_by_age.png"),
        *(
            "figures/training_curves.png",
            "figures/worst_mistakes.png",
            "figures/reliability.png",
            "figures/error_by_group.png",
        ),
    } <= found
    assert not [name for name in found if "partial" in name]
    results = _results(trained)
    assert {"metrics", "groups", "n", "checkpoint", "backbone", "parameters"} <= set(results)
    # From the run's first files to its last checkpoint, and no longer.
    written = [(trained / name).stat().st_mtime for name in ("splits/test.txt", "checkpoints/last.ckpt")]
    assert results["training_seconds"] == pytest.approx(written[1] - written[0], rel=0.3)
    assert results["n"] == len((trained / "splits" / "test.txt").read_text().splitlines())


def test_tensorboard_has_every_curve_and_figure(trained: Path) -> None:
    events = EventAccumulator(str(trained))
    scalars: dict[str, list[float]] = {}
    images: set[str] = set()
    plugins: set[str] = set()
    for file in trained.glob("events.*"):
        events = EventAccumulator(str(file), {"images": 0, "scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
        images |= set(events.Tags()["images"])
        plugins |= set(events.summary_metadata)
    for stage in ("train", "val", "test"):
        for name in ("loss", "loss_age", "loss_gender", "loss_race", "age_mae", "gender_acc", "race_acc"):
            assert f"{stage}/{name}" in scalars, f"{stage}/{name}"
    assert len(scalars["val/loss"]) == 5 and scalars["val/loss"][-1] < scalars["val/loss"][0]
    rates = scalars["lr-AdamW/heads"]
    assert max(rates) > 5 * rates[0] and rates[-1] < 0.1 * max(rates)
    names = {figure.stem for figure in (trained / "figures").iterdir()}
    assert {f"{'fit' if name == 'training_curves' else 'test'}/{name}" for name in names} == images
    assert "_hparams_/session_start_info" in plugins and "_hparams_/experiment" in plugins


def test_a_reloaded_checkpoint_repeats_the_figures(trained: Path, here: Path, run) -> None:
    code, _, _ = run("test", *FAST, "--data.image_size", "48", "--data.batch_size", "32", "--ckpt_path", str(trained))
    assert code == 0
    again = _results(here / "lightning_logs" / "version_0")
    first = _results(trained)
    assert again["metrics"] == first["metrics"] and again["groups"] == first["groups"]
    assert again["test_set"] == first["test_set"] and again["age_interval"] == first["age_interval"]


def test_validation_reproduces_what_was_logged(trained: Path, here: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    logged = next(state for name, state in checkpoint["callbacks"].items() if "val/loss" in name)
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True)
    data = UTKFaceDataModule(**checkpoint["datamodule_hyper_parameters"])
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (figures,) = trainer.validate(module, data, verbose=False)
    assert figures["val/loss"] == pytest.approx(logged["best_model_score"].item(), abs=1e-6)


def test_checkpoints_hold_plain_values_only(trained: Path) -> None:
    for name in ("best", "last"):
        torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)


# ---------------------------------------------------------------------- repeating and resuming


class _Stop(lightning.Callback):
    """Ends training after so many batches, as a kill would, the last checkpoint being that of the epoch before."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: object) -> None:
        if trainer.global_step >= self.batches:
            raise KeyboardInterrupt


def _fit(
    folder: Path,
    workers: int,
    resume: Path | None = None,
    stop: int | None = None,
    every: int | None = None,
    averaged: bool = False,
    **options: object,
) -> AGRModule:
    lightning.seed_everything(1)
    settings: dict[str, object] = {"synthetic": 120, "image_size": 32, "batch_size": 16, "augmentation": "strong"}
    data = UTKFaceDataModule(num_workers=workers, **settings)  # type: ignore[arg-type]
    module = AGRModule(image_size=32, **options)  # type: ignore[arg-type]
    callbacks: list[lightning.Callback] = [ModelCheckpoint(folder, save_last=True, every_n_train_steps=every)]
    if averaged:
        callbacks.append(EMAWeightAveraging(decay=0.9))
    if stop is not None:
        callbacks.append(_Stop(stop))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=None if resume is None else str(resume))
    except (KeyboardInterrupt, SystemExit):
        assert stop is not None
    return module


def _weights(module: AGRModule) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in module.network.state_dict().values()]).nan_to_num()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return _weights(_fit(tmp_path_factory.mktemp("whole"), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_the_same_weights(tmp_path: Path, never_killed: torch.Tensor, workers: int) -> None:
    again = _weights(_fit(tmp_path, workers))
    assert torch.equal(never_killed, again), f"one seed does not repeat: {(never_killed - again).abs().max()}"


@pytest.mark.parametrize(("workers", "every"), [(0, None), (2, None), (0, 7), (2, 7)])
def test_a_killed_run_resumes_as_if_never_killed(
    tmp_path: Path, never_killed: torch.Tensor, workers: int, every: int | None
) -> None:
    # 6 batches an epoch: killed in the third, the last checkpoint being that of the second epoch or of batch 14.
    _fit(tmp_path / "killed", workers, stop=15, every=every)
    resumed = _fit(tmp_path / "resumed", workers, resume=tmp_path / "killed" / "last.ckpt")
    found = _weights(resumed)
    assert torch.equal(never_killed, found), f"another outcome after the kill: {(never_killed - found).abs().max()}"


@pytest.mark.parametrize("every", [None, 7])
def test_averaged_weights_resume_as_well(tmp_path: Path, every: int | None) -> None:
    whole = _weights(_fit(tmp_path / "whole", 0, averaged=True))
    _fit(tmp_path / "killed", 0, stop=15, every=every, averaged=True)
    resumed = _fit(tmp_path / "resumed", 0, resume=tmp_path / "killed" / "last.ckpt", averaged=True)
    assert torch.equal(whole, _weights(resumed))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6])
def test_the_shortest_runs_have_a_schedule(here: Path, run, steps: int) -> None:
    options = ("--data.synthetic", "120", "--trainer.max_steps", str(steps), "--test_after_fit", "false")
    code, _, err = run("fit", *FAST, *options)
    assert code == 0, err
    checkpoint = torch.load(here / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps


def test_the_last_epoch_is_kept_where_an_earlier_one_is_the_best(tmp_path: Path) -> None:
    class Worsening(BoringModel):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.log("val/loss", float(self.current_epoch))

    checkpoints = [callback for callback in training_callbacks(logger=False) if isinstance(callback, ModelCheckpoint)]
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, max_epochs=3, limit_train_batches=2, limit_val_batches=1, callbacks=checkpoints,
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Worsening())
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    epochs = {name: torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")}
    assert epochs == {"best": 0, "last": 2}
    assert Path(trainer.checkpoint_callback.best_model_path).name == "best.ckpt"


def test_starting_weights_are_loaded_for_training(tmp_path: Path) -> None:
    source = AGRModule()
    torch.save(source.network.state_dict(), tmp_path / "net.pth")
    module = _fit(tmp_path, 0, weights=str(tmp_path / "net.pth"), learning_rate=1e-12, weight_decay=0.0)
    for ours, theirs in zip(module.network.parameters(), source.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


# ---------------------------------------------------------------------- precision, accumulation, processes


def test_a_few_batches_can_be_overfitted(here: Path, run) -> None:
    options = ("--data.synthetic", "120", "--trainer.max_epochs", "1", "--trainer.overfit_batches", "2")
    code, _, err = run("fit", *FAST, *options, "--test_after_fit", "false")
    assert code == 0, err


def test_only_training_steps_are_compiled(here: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def compiling(forward, **options: object):
        def compiled(images: torch.Tensor) -> object:
            sizes.append(tuple(images.shape))
            return forward(images)

        return compiled

    monkeypatch.setattr("torch.compile", compiling)
    code, _, err = run(
        *("fit", *FAST, "--data.synthetic", "120"),
        *("--model.compile", "true", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"),
    )
    assert code == 0, err
    assert sizes == [(16, 3, 32, 32)] * 4


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(tmp_path: Path) -> None:
    # Without dropout, for which compiled code draws other numbers, and with a network that compiles quickly.
    options = {"backbone": "plain_cnn", "dropout": 0.0, "weight_decay": 0.0}
    start, plain, compiled = (
        _weights(_fit(tmp_path, 0, stop=2, learning_rate=rate, compile=chosen, **options))
        for rate, chosen in ((1e-12, False), (2e-3, False), (2e-3, True))
    )
    assert (plain - compiled).abs().mean() < 0.1 * (plain - start).abs().mean()


def test_a_network_that_cannot_be_compiled_is_one_line(here: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(images: torch.Tensor) -> object:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

    monkeypatch.setattr("torch.compile", lambda forward, **options: failing)
    code, _, err = run("fit", *FAST, "--data.synthetic", "120", "--model.compile", "true")
    assert code == 1 and err.startswith("error: no C++ compiler") and len(err.splitlines()) == 1


def test_mixed_precision_accumulation_and_clipping_train(here: Path, run) -> None:
    code, _, err = run(
        *("fit", *FAST, "--data.synthetic", "120", "--trainer.max_epochs", "2", "--trainer.precision", "bf16-mixed"),
        *("--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "1"),
    )
    assert code == 0, err
    checkpoint = torch.load(here / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6  # 2 epochs of 6 batches, two a step
    assert checkpoint["state_dict"]["network.heads.age.weight"].dtype == torch.float32


def test_ages_keep_their_fractions_under_mixed_precision(trained: Path) -> None:
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt").eval()
    images = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ages = module.network(images)["age"]
    assert ages.dtype == torch.float32
    assert not torch.equal(ages, ages.bfloat16().float())


def _command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # One thread each: more of them than cores wait for each other most of the time.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "agr_lightning", *args], cwd=folder, env=environment, capture_output=True, text=True
    )


TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def test_two_processes_measure_what_one_measures(trained: Path, here: Path, run) -> None:
    """On an odd number of images: nothing is padded."""
    for name in ("lists", "two"):
        (here / name).mkdir()
    lists = here / "lists"
    names = (trained / "splits" / "test.txt").read_text().splitlines()
    (lists / "test.txt").write_text("\n".join(names[:-1]))
    options = ["test", "--ckpt_path", str(trained), "--data.split", str(lists), "--trainer.accelerator", "cpu"]
    two = _command(here / "two", *options, *TWO)
    assert two.returncode == 0, two.stderr
    code, _, err = run(*options, "--trainer.devices", "1", "--trainer.default_root_dir", "one")
    assert code == 0, err
    first, second = (_results(here / name / "lightning_logs" / "version_0") for name in ("one", "two"))
    assert first["n"] == second["n"] == len(names) - 1
    for kind in (float, int, str):
        numbers = [{k: v for k, v in _flat(found).items() if type(v) is kind} for found in (first, second)]
        assert numbers[1] == (pytest.approx(numbers[0], rel=1e-5, abs=1e-5) if kind is float else numbers[0])


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{prefix}/{i}").items()}
    return {prefix: value}


def test_two_processes_train_and_balance(here: Path) -> None:
    options = ("--data.balance", "race", "--trainer.max_epochs", "1")
    done = _command(here, "fit", *FAST, "--data.synthetic", "120", *options, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder") == 1
    run = here / "lightning_logs" / "version_0"
    assert _results(run)["n"] == len((run / "splits" / "test.txt").read_text().splitlines())


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_refuse_fewer_images_than_processes(cards: Path, here: Path, rank: int) -> None:
    """One that did alone would leave the others waiting."""
    card = next(cards.iterdir())
    (here / card.name).symlink_to(card)
    data = UTKFaceDataModule(test_root=str(here), image_size=32)
    data.setup("test")
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2, lightning_module=None)  # type: ignore[assignment]
    with pytest.raises(UserError, match="1 images are too few for 2 devices"):
        data.test_dataloader()


def test_two_processes_fail_with_one_line(here: Path) -> None:
    done = _command(here, "fit", *FAST, "--data.root", "nowhere", *TWO)
    assert done.returncode == 1
    assert "error: --data.root nowhere does not exist" in done.stderr and "Traceback" not in done.stderr
