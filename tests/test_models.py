import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from agr_lightning.errors import UserError
from agr_lightning.labels import MISSING, Task
from agr_lightning.models.backbones import BACKBONES, BackboneName, build_backbone
from agr_lightning.models.losses import AGE_LOSSES, AgeLossName, JointLoss, LossWeights, build_age_loss
from agr_lightning.models.network import AGRNetwork
from agr_lightning.models.weights import fetch_imagenet, load_imagenet, load_weights, read_torch_file

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [32, 61, 128])
def test_every_backbone_gives_its_features(name: BackboneName, size: int) -> None:
    backbone, features = build_backbone(name)
    assert backbone.eval()(torch.zeros(2, 3, size, size)).shape == (2, features)


def test_the_trunk_is_as_large_as_its_docstring_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone, _ = build_backbone("agr_cnn")
    with FlopCounterMode(display=False) as counter:
        backbone.eval()(torch.zeros(1, 3, 128, 128))
    multiply_adds = counter.get_total_flops() / 2e6
    parameters = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert f"{parameters:.1f} million parameters and {multiply_adds:.0f} million" in " ".join(
        str(type(backbone).__doc__).split()
    )


def test_the_network_takes_bytes_and_gives_years_and_probabilities() -> None:
    network = AGRNetwork().eval()
    outputs = network(IMAGES)
    assert outputs["age"].shape == (4,) and outputs["gender"].shape == (4, 2) and outputs["race"].shape == (4, 5)
    predictions = network.predict(IMAGES)
    assert predictions.age is not None and predictions.gender is not None and predictions.race is not None
    assert (predictions.age >= 0).all() and (predictions.age - 33).abs().max() < 15
    for probabilities in (predictions.gender, predictions.race):
        assert torch.allclose(probabilities.sum(1), torch.ones(4)) and (probabilities >= 0).all()


def test_age_is_never_negative() -> None:
    network = AGRNetwork().eval()
    with torch.no_grad():
        network.heads["age"].bias.fill_(-1000.0)
        assert (network(IMAGES)["age"] >= 0).all()


def test_a_subset_of_tasks_builds_those_heads_alone() -> None:
    network = AGRNetwork(tasks=("race",)).eval()
    assert list(network.heads) == ["race"] and list(network(IMAGES)) == ["race"]
    assert network.predict(IMAGES).age is None


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"'resnet81' \(did you mean 'resnet18'\?\); known: agr_cnn, resnet18"):
        build_backbone("resnet81")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="known: l1, mse, smooth_l1"):
        build_age_loss("huber")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- losses

YEARS, TARGET = torch.tensor([10.0, 22.0, 35.0]), torch.tensor([12.0, 22.0, 30.0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("l1", (2 + 0 + 5) / 3), ("mse", (4 + 0 + 25) / 3), ("smooth_l1", (4 / 6 + 0 + 3.5) / 3)],
)
def test_age_losses_follow_their_formula(name: AgeLossName, value: float) -> None:
    assert build_age_loss(name)(YEARS, TARGET).item() == pytest.approx(value)


def _labels(race: list[int]) -> dict[Task, torch.Tensor]:
    return {"age": TARGET, "gender": torch.tensor([0, 1, 1]), "race": torch.tensor(race)}


def test_the_joint_loss_is_the_weighted_sum() -> None:
    loss = JointLoss("l1", LossWeights(age=0.1, gender=2.0, race=0.5))
    outputs: dict[Task, torch.Tensor] = {"age": YEARS, "gender": torch.randn(3, 2), "race": torch.randn(3, 5)}
    labels = _labels([0, 4, 2])
    losses = loss(outputs, labels)
    expected = 0.1 * 7 / 3
    expected += 2.0 * F.cross_entropy(outputs["gender"], labels["gender"]).item()
    expected += 0.5 * F.cross_entropy(outputs["race"], labels["race"]).item()
    assert loss.total(losses).item() == pytest.approx(expected)


def test_labels_are_smoothed_in_training_alone() -> None:
    loss = JointLoss("l1", LossWeights(), label_smoothing=0.2)
    race, labels = torch.randn(3, 5), _labels([1, 4, MISSING])
    trained = loss({"race": race}, labels)["race"]
    spread = -race[:2].log_softmax(1)
    expected = (0.8 * spread[[0, 1], [1, 4]] + 0.2 * spread.mean(1)).mean()
    assert trained.item() == pytest.approx(expected.item())
    measured = loss.eval()({"race": race}, labels)["race"]
    assert measured.item() == pytest.approx(F.cross_entropy(race[:2], torch.tensor([1, 4])).item())


def test_samples_without_race_train_the_other_tasks() -> None:
    loss = JointLoss("l1", LossWeights())
    race = torch.randn(3, 5, requires_grad=True)
    outputs: dict[Task, torch.Tensor] = {"age": YEARS, "gender": torch.randn(3, 2), "race": race}
    some = loss(outputs, _labels([1, MISSING, MISSING]))["race"]
    assert some.item() == pytest.approx(F.cross_entropy(race[:1], torch.tensor([1])).item())
    some.backward()
    assert race.grad is not None and (race.grad[1:] == 0).all() and (race.grad[0] != 0).any()
    none = loss(outputs, _labels([MISSING] * 3))
    assert none["race"].item() == 0 and none["age"].item() == pytest.approx(7 / 3)
    assert math.isfinite(loss.total(none).item())


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_loss_weights_that_cannot_work(weight: float) -> None:
    with pytest.raises(UserError, match=r"--model\.loss_weights\.gender"):
        LossWeights(gender=weight)


@pytest.mark.parametrize("name", AGE_LOSSES)
def test_every_age_loss_falls_when_trained(name: AgeLossName) -> None:
    torch.manual_seed(0)
    network, loss = AGRNetwork(tasks=("age",), dropout=0.0), JointLoss(name, LossWeights())
    labels: dict[Task, torch.Tensor] = {"age": torch.tensor([5.0, 80.0, 30.0, 50.0])}
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    values = []
    for _ in range(30):
        value = loss(network(IMAGES), labels)["age"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]


# ---------------------------------------------------------------------- weights


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_backbone_s_own_state_dict_is_taken(tmp_path: Path) -> None:
    import torchvision

    torchvision_net = torchvision.models.resnet18()
    torch.save(torchvision_net.state_dict(), tmp_path / "resnet18.pth")
    network = AGRNetwork("resnet18")
    said = load_weights(network, tmp_path / "resnet18.pth")
    assert torch.equal(network.backbone.conv1.weight, torchvision_net.conv1.weight)
    assert "loaded the backbone; fresh heads for age, gender, race; left out fc" in said


def test_a_network_s_state_dict_is_taken_with_the_heads_that_fit(tmp_path: Path) -> None:
    source = AGRNetwork(tasks=("age", "race"))
    torch.save(source.state_dict(), tmp_path / "net.pth")
    network = AGRNetwork(tasks=("race", "gender"))
    said = load_weights(network, tmp_path / "net.pth")
    assert _same(network.backbone, source.backbone) and _same(network.heads["race"], source.heads["race"])
    assert "heads for race; fresh heads for gender; left out heads.age" in said


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(AGRNetwork("resnet18").state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="does not fit this backbone"):
        load_weights(AGRNetwork("agr_cnn"), tmp_path / "net.pth")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo run > evil.txt",)


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save(AGRNetwork().state_dict(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:10_000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth")
    for name, message in (
        ("cut", "damaged or cut short"),
        ("text", "not a checkpoint"),
        ("empty", "not a checkpoint"),
        ("list", "holds a list"),
        ("gone", "does not exist"),
        ("evil", "refused: it holds more than weights"),
    ):
        with pytest.raises(UserError, match=message):
            read_torch_file(tmp_path / f"{name}.pth", "--ckpt_path")
    assert not (tmp_path / "evil.txt").exists()


def test_pretrained_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    import torchvision

    from agr_lightning.models import backbones

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torchvision_net = torchvision.models.resnet18()
    torch.save(torchvision_net.state_dict(), folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()[:8]
    (folder / "net.pth").rename(folder / f"net-{digest}.pth")

    class Weights:
        url = f"http://localhost:9/net-{digest}.pth"

        @staticmethod
        def get_state_dict(progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
            return torch.hub.load_state_dict_from_url(Weights.url, progress=progress, check_hash=check_hash)

    monkeypatch.setitem(backbones.IMAGENET_WEIGHTS, "resnet18", Weights)
    network = AGRNetwork("resnet18")
    assert "loaded the backbone" in load_imagenet(network, "resnet18")
    assert torch.equal(network.backbone.layer4[1].conv2.weight, torchvision_net.layer4[1].conv2.weight)
    (folder / f"net-{digest}.pth").unlink()
    with pytest.raises(UserError, match=rf"Put {Weights.url} at .*net-{digest}\.pth, or name a file"):
        fetch_imagenet("resnet18")
    with pytest.raises(UserError, match="no ImageNet weights for agr_cnn"):
        fetch_imagenet("agr_cnn")
