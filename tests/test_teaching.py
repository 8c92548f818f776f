"""Learning from trained networks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agr_lightning.files import name_digests
from agr_lightning.labels import Task
from agr_lightning.messages import UserError
from agr_lightning.models.network import AGRNetwork
from agr_lightning.models.packed import read_packed
from agr_lightning.models.teaching import Teachers
from tests.conftest import copy_run

Run = Callable[..., tuple[int, str, str]]

SMALL = (
    *("--data.synthetic", "1200", "--data.image_size", "48", "--data.num_workers", "0", "--data.batch_size", "32"),
    *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
)


def _network(**options: object) -> AGRNetwork:
    network = AGRNetwork(image_size=32, **options)  # type: ignore[arg-type]
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.5)  # type: ignore[arg-type]
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_network_has_nothing_to_learn_from_itself(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network, other = (_network(age_head="distribution").eval() for _ in range(2))
    outputs = network(images)
    for loss in Teachers([network], 0.5).losses(images, outputs, network).values():
        assert float(loss) == pytest.approx(0, abs=1e-4)
    for loss in Teachers([other], 0.5).losses(images, outputs, network).values():
        assert float(loss) > 0.01


def test_the_losses_are_those_of_the_teachers_mean(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    student, one, other = (_network(age_head="distribution").eval() for _ in range(3))
    outputs, answers = student(images), [one(images), other(images)]
    losses = Teachers([one, other], 0.5).losses(images, outputs, student)
    for task in ("gender", "race"):
        target = sum(answer[task].softmax(1) for answer in answers) / 2
        expected = (target * (target.log() - outputs[task].log_softmax(1))).sum(1).mean()
        assert float(losses[task]) == pytest.approx(float(expected), rel=1e-4)
    target = sum(answer["age"].softmax(1) for answer in answers) / 2
    ages, found = torch.arange(117.0), outputs["age"].softmax(1)
    expected = (target * (target.log() - found.log())).sum(1).mean() + ((found - target) @ ages).abs().mean()
    assert float(losses["age"]) == pytest.approx(float(expected), rel=1e-3)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for teacher in (one, other) for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.heads.parameters())


def test_other_heads_learn_years_and_other_tasks_nothing(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    student, teacher = _network().eval(), _network(age_head="ordinal", tasks=("age", "race")).eval()
    outputs = student(images)
    losses: dict[Task, torch.Tensor] = Teachers([teacher], 0.5).losses(images, outputs, student)
    assert set(losses) == {"age", "race"}
    years = teacher.predict(images).age
    assert years is not None
    assert float(losses["age"]) == pytest.approx(float((outputs["age"] - years).abs().mean()), rel=1e-4)


def test_a_teacher_sees_images_of_its_own_size(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    student, teacher = _network().eval(), AGRNetwork(image_size=48).eval()
    seen = []
    monkeypatch.setattr(
        teacher.backbone, "forward", lambda x, run=teacher.backbone.forward: (seen.append(x.shape), run(x))[1]
    )
    Teachers([teacher], 0.5).losses(images, student(images), student)
    assert seen == [(6, 3, 48, 48)]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_shares_that_cannot_be(share: float) -> None:
    with pytest.raises(UserError, match=r"--model\.teaching .* must be above 0, and 1 at most"):
        Teachers([AGRNetwork()], share)


def test_a_short_training_gains_from_a_teacher_alone(trained: Path, here: Path, run: Run) -> None:
    """Without any weight on the labels, all that is learnt comes from the teacher."""
    fit = ("fit", *SMALL, "--trainer.max_epochs", "8", "--data.augmentation", "none", "--model.teaching", "1")
    code, out, err = run(*fit, "--model.teachers", f"[{trained}]")
    assert code == 0 and f"learns from {trained} beside the labels" in out, err
    results = json.loads((here / "lightning_logs" / "version_0" / "results.json").read_text())
    assert results["metrics"]["gender_acc"] > 0.9 and results["metrics"]["age_mae"] < 15
    checkpoint = here / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any("teacher" in name for name in state)
    # It is gone on with, with the same teacher.
    code, _, err = run("fit", "--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(checkpoint))
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.teaching", "0.7"), "--model.teaching 0.7 is about --model.teachers, and none are named."),
        (("--model.tasks", "[gender]", "--model.teachers", "[ages]"), "--model.teachers ages knows age alone"),
    ],
)
def test_teaching_that_would_teach_nothing(
    trained: Path, here: Path, run: Run, options: tuple[str, ...], message: str
) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["tasks"] = ["age"]
    checkpoint["state_dict"] = {
        name: value
        for name, value in checkpoint["state_dict"].items()
        if not name.startswith(("network.heads.gender", "network.heads.race"))
    }
    (here / "ages" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, here / "ages" / "checkpoints" / "best.ckpt")
    shutil.copytree(trained / "splits", here / "ages" / "splits")
    code, _, err = run("fit", *SMALL, *options)
    assert code == 1 and message in err, err
    assert not (here / "lightning_logs").exists()


def test_nothing_is_tested_on_what_a_teacher_has_seen(trained: Path, here: Path, run: Run) -> None:
    copy_run(trained, here)
    assert run("export", "--ckpt_path", "best", "--output", "teacher.safetensors")[0] == 0
    options = ("--data.seed", "3", "--trainer.max_steps", "1", "--data.max_samples", "300")
    for teacher in ("teacher.safetensors", "lightning_logs/version_0"):
        # Other cards, some of them called like those that the teacher knows.
        code, _, err = run("fit", *SMALL, *options, "--model.teachers", f"[{teacher}]", "--test_after_fit=false")
        assert code == 0 or "have seen all images" in err, err
    folder = max((here / "lightning_logs").glob("version_*"))
    last = str(folder / "checkpoints" / "last.ckpt")
    code, _, err = run("export", "--ckpt_path", last, "--output", "next.safetensors")
    assert code == 0, err
    before, after = (set(read_packed(here / f"{name}.safetensors", "").seen.tolist()) for name in ("teacher", "next"))
    own = (folder / "splits" / "train.txt").read_text().split()
    assert before < after and set(name_digests(own).tolist()) <= after
    shutil.rmtree(here / "lightning_logs" / "version_0")
    code, _, err = run("export", "--ckpt_path", last, "--output", "x.safetensors")
    assert code == 1 and "which is gone: it says whom that has seen" in err


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ("[nowhere.ckpt]", "--model.teachers nowhere.ckpt does not exist"),
        ("[best]", "--model.teachers best: name a file or a run folder"),
        ("[alone.ckpt]", "lies in no run folder with splits/"),
        ("nowhere", "--model.teachers"),
    ],
)
def test_teachers_that_cannot_be(trained: Path, here: Path, run: Run, teachers: str, message: str) -> None:
    shutil.copy(trained / "checkpoints" / "best.ckpt", "alone.ckpt")
    code, _, err = run("fit", *SMALL, "--model.teachers", teachers)
    assert code in (1, 2) and message in err and err.count("\n") == 1 and not Path("lightning_logs").exists()
