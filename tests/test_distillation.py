"""Learning from trained networks."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agr_lightning.checkpoints import KEY, SEEN, TrainedNetwork, describe, load_trained, write_safetensors
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.duplicates import of_samples
from agr_lightning.data.index import Index, build_index
from agr_lightning.data.loading import Batch
from agr_lightning.distillation import Distillation
from agr_lightning.labels import MISSING, Task
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from agr_lightning.module import AGRModule
from tests.conftest import FAST, copy_run

Run = Callable[..., tuple[int, str, str]]

SMALL = (
    *("--data.synthetic", "1200", "--data.image_size", "48", "--data.num_workers", "0", "--data.batch_size", "32"),
    *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
)


def _network(**options: object) -> AGRNetwork:
    network = AGRNetwork(NetworkConfig(**{"image_size": 32, **options}))  # type: ignore[arg-type]
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight, std=0.5)  # type: ignore[arg-type]
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_network_has_nothing_to_learn_from_itself(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network, other = (_network(age_loss="dldl").eval() for _ in range(2))
    outputs = network(images)
    for loss in Distillation([network], 0.5).losses(images, outputs, network).values():
        assert float(loss) == pytest.approx(0, abs=1e-4)
    for loss in Distillation([other], 0.5).losses(images, outputs, network).values():
        assert float(loss) > 0.01


def test_the_losses_are_those_of_the_teachers_mean(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    student, one, other = (_network(age_loss="dldl").eval() for _ in range(3))
    outputs, answers = student(images), [one(images), other(images)]
    losses = Distillation([one, other], 0.5).losses(images, outputs, student)
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
    student, teacher = _network().eval(), _network(age_loss="coral", tasks=("age", "race")).eval()
    outputs = student(images)
    losses: dict[Task, torch.Tensor] = Distillation([teacher], 0.5).losses(images, outputs, student)
    assert set(losses) == {"age", "race"}
    years = teacher.predict(images).age
    assert years is not None
    assert float(losses["age"]) == pytest.approx(float((outputs["age"] - years).abs().mean()), rel=1e-4)


def test_a_teacher_sees_images_of_its_own_size(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    student, teacher = _network().eval(), _network(image_size=48).eval()
    seen = []
    monkeypatch.setattr(
        teacher.backbone, "forward", lambda x, run=teacher.backbone.forward: (seen.append(x.shape), run(x))[1]
    )
    Distillation([teacher], 0.5).losses(images, student(images), student)
    assert seen == [(6, 3, 48, 48)]


def test_a_grey_teacher_sees_grey_images(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    student, teacher = _network(), _network(grayscale=True).eval()
    grey = (images.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    losses = [
        Distillation([teacher], 0.5).losses(each, student.eval()(images), student)["race"].item()
        for each in (images, grey.expand_as(images), images.flip(1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize("loss", ["l1", "dldl"])
def test_images_without_labels_learn_from_teachers(images: torch.Tensor, loss: str) -> None:
    torch.manual_seed(0)
    module = AGRModule(image_size=32, age_loss=loss, dropout=0.0)  # type: ignore[arg-type]
    unknown = torch.full((6,), MISSING)
    batch = Batch(images, unknown.float(), unknown, unknown, torch.arange(6))
    learned = []
    for module.distillation in (None, Distillation([_network(age_loss=loss).eval()], 0.5)):
        module.zero_grad()
        module.training_step(batch, 0).backward()
        learned.append({name for name, head in module.network.heads.items() if head.weight.grad.any()})
    assert learned == [set(), {"age", "gender", "race"}]


@pytest.mark.parametrize("weight", [0, -1, 1.5, float("nan")])
def test_weights_that_cannot_be(weight: float) -> None:
    with pytest.raises(UserError, match=r"--model\.distillation_weight .* must be above 0, and 1 at most"):
        Distillation([AGRNetwork()], weight)


def _teacher(path: Path, tasks: tuple[Task, ...], *images: list[int]) -> str:
    network = _network(tasks=tasks)
    bits = [np.repeat(np.array(each, np.uint8), 32).reshape(-1, 32) for each in images]
    seen = dict(zip(SEEN, bits, strict=True))
    write_safetensors(path, TrainedNetwork(network.config, network.state_dict(), seen, {}, 0))
    return str(path)


def test_teachers_are_read_with_what_they_have_seen(here: Path, images: torch.Tensor) -> None:
    teachers = [
        _teacher(here / "a.safetensors", ("age", "race"), [1, 5], [3]),
        _teacher(here / "b.safetensors", ("gender",), [5, 7], []),
    ]
    distillation = Distillation.load(teachers, ("age", "gender"), 0.3)
    assert distillation.weight == 0.3
    assert [teacher.seen is not None for teacher in distillation.trained] == [True, True]
    # One that does not say what it has seen.
    state = {f"network.{name}": value for name, value in _network().state_dict().items()}
    torch.save({"state_dict": state, KEY: describe(NetworkConfig(image_size=32), {}, 0)}, here / "c.ckpt")
    assert Distillation.load([*teachers, "c.ckpt"], ("age", "gender"), 0.3).trained[2].seen is None
    student = _network().eval()
    assert set(distillation.losses(images, student(images), student)) == {"age", "gender", "race"}
    for named, tasks, message in (
        (
            teachers[1:],
            ("age", "race"),
            r"b\.safetensors knows gender alone",
        ),
        (["nowhere.ckpt"], ("age",), r"nowhere\.ckpt does not exist"),
    ):
        with pytest.raises(UserError, match=rf"^--model\.teachers \S*{message}"):
            Distillation.load(named, tasks, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("knows", "code"), [(("age", "gender"), 0), (("gender", "race"), 1)])
def test_a_task_without_labels_needs_a_teacher_that_knows_it(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, knows: tuple[Task, ...], code: int
) -> None:
    def build(*args: str) -> Index:
        index = build_index(*args)
        return replace(index, samples=index.samples.assign(age=MISSING))

    monkeypatch.setattr("agr_lightning.datamodule.build_index", build)
    options = ("--data.synthetic", "120", "--trainer.max_epochs", "1", "--test_after_fit", "false")
    teacher = _teacher(here / "teacher.safetensors", knows, [], [])
    found, _, err = run("fit", *FAST, *options, "--model.teachers", f"[{teacher}]")
    assert found == code and ("no training image has a label for age" in err) == (code == 1), err


def test_a_short_training_gains_from_a_teacher_alone(trained: Path, here: Path, run: Run) -> None:
    """Without any weight on the labels, all that is learnt comes from the teacher."""
    options = ("--trainer.max_epochs", "4", "--model.learning_rate", "6e-3", "--data.augmentation", "none")
    options += ("--model.distillation_weight", "1", "--model.teachers", f"[{trained}]")
    code, _, err = run("fit", *SMALL, *options)
    assert code == 0, err
    results = json.loads((here / "lightning_logs" / "version_0" / "results.json").read_text())
    assert results["metrics"]["gender_acc"] > 0.7 and results["metrics"]["age_mae"] < 12
    checkpoint = here / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any("teacher" in name or "distillation" in name for name in state)
    # It is resumed with the same teacher.
    again = ("--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(checkpoint))
    code, _, err = run("fit", *again, "--test_after_fit", "false")
    assert code == 0, err


def test_nothing_is_tested_on_what_a_teacher_has_seen(trained: Path, here: Path, run: Run) -> None:
    def seen(path: Path) -> set[bytes]:
        found = load_trained(str(path))
        assert found.seen is not None
        return set(map(bytes, np.concatenate([*found.seen.values()])))

    copy_run(trained, here)
    assert run("export", "--ckpt_path", "best", "--output", "teacher.safetensors")[0] == 0
    options = ("--data.seed", "3", "--trainer.max_steps", "1", "--data.max_samples", "300")
    for teacher in ("teacher.safetensors", "lightning_logs/version_0"):
        # Other cards, some of them called like those that the teacher knows.
        code, _, err = run("fit", *SMALL, *options, "--model.teachers", f"[{teacher}]", "--test_after_fit=false")
        assert code == 0, err
    teacher_seen = seen(here / "teacher.safetensors")
    folder = max((here / "lightning_logs").glob("version_*"))
    # The teacher is not needed to know what it had seen.
    shutil.rmtree(here / "lightning_logs" / "version_0")
    cards = build_index(str(draw_cards(1200, 3))).samples.set_index("name")
    own = cards.loc[(folder / "splits" / "train.txt").read_text().split()]
    assert seen(folder / "checkpoints" / "last.ckpt") >= teacher_seen | set(map(bytes, of_samples(own)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.teachers", "[nowhere.ckpt]"), "--model.teachers nowhere.ckpt does not exist"),
        (("--model.teachers", "nowhere"), "model.teachers"),
        (("--model.teachers", "[agr]", "--model.distillation_weight", "2"), "--model.distillation_weight 2.0 must be"),
    ],
)
def test_teachers_that_cannot_be(here: Path, run: Run, options: tuple[str, ...], message: str) -> None:
    code, _, err = run("fit", *SMALL, *options)
    assert code in (1, 2) and message in err.splitlines()[-1]
