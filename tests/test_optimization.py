"""How a network learns: frozen backbones, averaged weights, other optimizers and schedules, as users ask for them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agr_lightning.models.network import AGRNetwork
from tests.conftest import FAST

Run = Callable[..., tuple[int, str, str]]

SMALL = (*FAST, "--data.synthetic", "120", "--test_after_fit", "false")
EVERY_EPOCH = (
    "--trainer.callbacks",
    "[{class_path: ModelCheckpoint, init_args: {filename: '{epoch}', save_top_k: -1}}]",
)
SCHEDULERS = "torch.optim.lr_scheduler"
STEPS = ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1")
VERSION = Path("lightning_logs/version_0")


def _checkpoint(name: str, run: Path = VERSION) -> dict[str, object]:
    found: dict[str, object] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def _curve(tag: str, run: Path = VERSION) -> list[float]:
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


@pytest.fixture
def start(tmp_path: Path) -> str:
    """A file of weights to start from."""
    torch.manual_seed(0)
    torch.save(AGRNetwork().state_dict(), tmp_path / "start.pth")
    return str(tmp_path / "start.pth")


# ---------------------------------------------------------------------- freezing


def test_a_frozen_backbone_learns_later_and_slower(run: Run, here: Path, start: str) -> None:
    freeze = (
        "{class_path: BackboneFinetuning, init_args: {unfreeze_backbone_at_epoch: 1}}, {class_path: ModelCheckpoint"
    )
    options = (EVERY_EPOCH[0], EVERY_EPOCH[1].replace("{class_path: ModelCheckpoint", freeze))
    options += ("--model.weights", start, "--model.learning_rate", "2e-3", "--model.backbone_learning_rate", "1e-4")
    options += ("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1")
    code, _, err = run("fit", *SMALL, *options)
    assert code == 0, err
    before = torch.load(start, weights_only=True)
    for file, moved in (("epoch=0", False), ("last", True)):
        state = _checkpoint(file)["state_dict"]
        assert isinstance(state, dict)
        name = "backbone.stem.0.weight"
        assert torch.equal(state[f"network.{name}"], before[name]) != moved
        assert not torch.equal(state["network.heads.age.weight"], before["heads.age.weight"])
    heads, backbone = _curve("lr-AdamW/heads"), _curve("lr-AdamW/backbone")
    assert [b / h for b, h in zip(backbone, heads, strict=True)] == pytest.approx([0.05] * 12, rel=1e-3)


# ---------------------------------------------------------------------- averaged weights


def test_averaged_weights_are_measured_saved_and_tested(run: Run, here: Path) -> None:
    options = ("--trainer.callbacks", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9")
    code, _, err = run("fit", *FAST, "--data.synthetic", "120", "--trainer.max_epochs", "2", *options)
    assert code == 0, err
    best = _checkpoint("best")
    averaged, current = best["state_dict"], best["current_model_state"]
    assert isinstance(averaged, dict) and isinstance(current, dict)
    assert not torch.equal(averaged["network.heads.age.weight"], current["network.heads.age.weight"])
    assert run("validate", *FAST, "--ckpt_path", "best")[0] == 0
    logged = _curve("val/loss", VERSION)
    assert _curve("val/loss", Path("lightning_logs/version_1"))[0] == pytest.approx(min(logged), abs=1e-5)
    results = json.loads((VERSION / "results.json").read_text())
    assert run("test", *FAST, "--ckpt_path", "best")[0] == 0
    again = json.loads(Path("lightning_logs/version_2/results.json").read_text())
    assert again["metrics"] == results["metrics"]


# ---------------------------------------------------------------------- optimizers and schedules


def test_optimizer_and_schedule_come_from_a_file(run: Run, here: Path) -> None:
    (here / "sgd.yaml").write_text(
        "model:\n"
        "  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01, momentum: 0.8, weight_decay: 0.001}}\n"
        "  lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.5}}\n"
    )
    options = ("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "6")
    code, _, err = run("fit", "--config", "sgd.yaml", *SMALL, *options)
    assert code == 0, err
    assert _curve("lr-SGD/heads") == pytest.approx([0.01, 0.005, 0.0025])
    (state,) = _checkpoint("last")["optimizer_states"]  # type: ignore[misc,attr-defined]
    groups = state["param_groups"]
    assert {group["momentum"] for group in groups} == {0.8}
    assert [group["weight_decay"] for group in groups] == [0.001, 0, 0.001, 0]  # not on biases and normalisation
    # The run is repeated, and resumed, from its own file.
    config = str(VERSION / "config.yaml")
    code, _, err = run("fit", "--config", config, "--trainer.max_epochs", "4", "--ckpt_path", "last")
    assert code == 0, err
    assert _curve("lr-SGD/heads")[-1] == pytest.approx(0.00125)


def test_a_schedule_may_look_at_validation(run: Run, here: Path) -> None:
    schedule = (
        "{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, "
        "init_args: {patience: 0, factor: 0.1, threshold: 1e9, threshold_mode: abs}}"
    )
    options = ("--model.lr_scheduler", schedule, "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "6")
    code, _, err = run("fit", *SMALL, *options, "--model.learning_rate", "1e-3")
    assert code == 0, err
    assert _curve("lr-AdamW/heads") == pytest.approx([1e-3, 1e-3, 1e-4])


def test_the_one_cycle_peak_is_the_optimizer_s_own_rate(run: Run, here: Path) -> None:
    options = (
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.lr",
        "0.04",
        "--model.optimizer.momentum",
        "0.7",
    )
    code, _, err = run("fit", *SMALL, *options, "--trainer.max_steps", "12", "--trainer.log_every_n_steps", "1")
    assert code == 0, err
    assert max(_curve("lr-SGD/heads")) == pytest.approx(0.04, rel=0.02)
    (state,) = _checkpoint("last")["optimizer_states"]  # type: ignore[misc,attr-defined]
    assert {group["momentum"] for group in state["param_groups"]} == {0.7}


def test_training_stops_early(run: Run, here: Path) -> None:
    stop = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss")
    stop += ("--trainer.callbacks.patience", "1", "--trainer.callbacks.min_delta", "1000")
    code, _, err = run("fit", *SMALL, *stop, "--trainer.max_epochs", "9")
    assert code == 0, err
    assert len(_curve("val/loss")) == 2 and (VERSION / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (
            (),
            ("--model.optimizer", "torch.optim.SGD"),
            "a run with AdamW and OneCycleLR over 12 training steps, this one has SGD and OneCycleLR",
        ),
        (
            ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
            (),
            "a run with AdamW and StepLR, this one has AdamW and OneCycleLR",
        ),
        (
            (),
            ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "1"),
            "this one has AdamW and StepLR: resume it with its own",
        ),
        ((), ("--trainer.max_epochs", "3"), "over 12 training steps, this one has AdamW and OneCycleLR over 18"),
    ],
)
def test_a_run_is_resumed_as_it_was_begun(
    run: Run, here: Path, first: tuple[str, ...], then: tuple[str, ...], message: str
) -> None:
    assert run("fit", *SMALL, "--trainer.max_epochs", "2", *first)[0] == 0
    files = [VERSION / "config.yaml", *(VERSION / "splits").iterdir()]
    before = [file.read_bytes() for file in files]
    code, _, err = run("fit", *SMALL, "--trainer.max_epochs", "2", *then, "--ckpt_path", "last")
    assert code == 1 and message in err and len(err.strip().splitlines()) == 1
    assert [file.read_bytes() for file in files] == before


def test_a_resumed_run_does_not_need_its_initial_weights(run: Run, here: Path, start: str) -> None:
    assert run("fit", *SMALL, "--trainer.max_epochs", "2", "--model.weights", start)[0] == 0
    Path(start).unlink()
    code, _, err = run("fit", "--config", str(VERSION / "config.yaml"), "--ckpt_path", "best")
    assert code == 0, err


def test_the_learning_rate_is_that_of_any_optimizer(run: Run, here: Path) -> None:
    options = ("--model.optimizer", "SGD", "--model.learning_rate", "0.02", "--model.weight_decay", "0.1")
    code, _, err = run("fit", *SMALL, *options, "--trainer.max_steps", "12", "--trainer.log_every_n_steps", "1")
    assert code == 0, err
    assert max(_curve("lr-SGD/heads")) == pytest.approx(0.02, rel=0.02)
    (state,) = _checkpoint("last")["optimizer_states"]  # type: ignore[misc,attr-defined]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.1, 0, 0.1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.optimizer", "Nope"), "model.optimizer"),
        (("--model.optimizer", "torch.nn.Linear"), "to be a subclass of <class 'Optimizer'>"),
        (("--model.optimizer", "LBFGS"), "LBFGS doesn't support per-parameter options"),
        (("--model.optimizer", "SGD", "--model.optimizer.lr", "-1"), "Invalid learning rate"),
        (("--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1"), "You must define either"),
        (("--model.optimizer", "SGD", "--model.optimizer.momentm", "1"), "momentm"),
        (("--model.lr_scheduler", "ReduceLROnPlateau"), "Give the full class path"),
        (("--model.backbone_learning_rate", "0"), "--model.backbone_learning_rate 0.0 must be above 0"),
        (("--model.age_readout", "median"), "is for distributions"),
        (("--model.label_smoothing", "1"), "--model.label_smoothing 1.0"),
        (("--trainer.check_val_every_n_epoch", "0"), "error: "),
    ],
)
def test_a_mistake_is_one_line(run: Run, here: Path, options: tuple[str, ...], message: str) -> None:
    code, _, err = run("fit", *SMALL, *options)
    assert code != 0 and message in err and len(err.strip().splitlines()) == 1
