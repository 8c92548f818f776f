import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from agr_lightning.labels import MISSING, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AGES
from agr_lightning.models.backbones import BACKBONES, IMAGENET_WEIGHTS, BackboneName, build_backbone, plan_of
from agr_lightning.models.losses import JointLoss, LossWeights, balanced_weights
from agr_lightning.models.network import AGRNetwork
from agr_lightning.models.plain_cnns import TwoBranchCNN
from agr_lightning.models.weights import fetch_imagenet, load_imagenet, load_weights, read_torch_file

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [32, 61, 128])
def test_every_backbone_gives_its_features(name: BackboneName, size: int) -> None:
    backbone, features = build_backbone(name, ("age", "race"), size)
    found = backbone.eval()(torch.zeros(2, 3, size, size))
    for each in found.values() if isinstance(found, dict) else [found]:
        assert each.shape == (2, features)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_from_the_smallest_image_it_names(name: BackboneName) -> None:
    smallest = plan_of(name).smallest
    network = AGRNetwork(name, image_size=smallest)
    outputs = network(IMAGES[..., :smallest, :smallest])
    torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    with pytest.raises(
        UserError, match=rf"--data\.image_size {smallest - 1} is too small for {name}.* {smallest} pixels"
    ):
        AGRNetwork(name, image_size=smallest - 1)


def test_two_branches_share_the_trunk_alone_and_exist_for_the_tasks_alone() -> None:
    network = AGRNetwork("two_branch_cnn", ("age", "gender")).eval()
    assert isinstance(network.backbone, TwoBranchCNN) and list(network.backbone.branches) == ["age", "gender"]
    network(IMAGES)["age"].sum().backward()
    branches = network.backbone.branches
    assert all(p.grad is None for p in branches["gender"].parameters())
    assert all(p.grad is not None for part in (branches["age"], network.backbone.trunk) for p in part.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_statistics_follow_the_weights_within_a_short_run(name: BackboneName) -> None:
    layers = [m for m in build_backbone(name, ("age",), 64).module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {layer.momentum for layer in layers} <= {0.1}


def test_dropout_is_the_heads_alone() -> None:
    for name in BACKBONES:
        backbone = build_backbone(name, ("age",), 64).module
        assert all(layer.p == 0 for layer in backbone.modules() if isinstance(layer, torch.nn.Dropout)), name


def test_colour_does_not_matter_to_a_grey_network() -> None:
    network = AGRNetwork(grayscale=True).eval()
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    # The same brightness as (g, g, g), by ITU-R BT.601: 0.299 x 50 = 14.95, about 0.114 x 131.
    tinted = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    other = tinted.clone()
    other[:, 0], other[:, 2] = 150, 0
    other[:, 1] = 94
    assert torch.allclose(network(tinted)["race"], network(other)["race"], atol=1e-2)
    coloured = AGRNetwork().eval()
    coloured.load_state_dict(network.state_dict())
    assert torch.allclose(coloured(grey)["race"], network(grey)["race"], atol=1e-5)
    assert not torch.allclose(coloured(IMAGES)["race"], network(IMAGES)["race"], atol=1e-4)


@pytest.mark.parametrize("name", ["agr_cnn", "two_branch_cnn"])
def test_a_mirrored_network_averages_an_image_and_its_mirror_image(name: BackboneName) -> None:
    once, twice = (
        AGRNetwork(name, age_head="distribution").eval(),
        AGRNetwork(name, age_head="distribution", mirror=True),
    )
    twice.load_state_dict(once.state_dict())
    left, right, both = once(IMAGES), once(IMAGES.flip(3)), twice.eval()(IMAGES)
    for task in TASKS:
        assert torch.allclose(both[task], (left[task] + right[task]) / 2, atol=1e-4)
    assert not torch.allclose(left["race"], right["race"], atol=1e-4)
    assert torch.allclose(twice.predict(IMAGES.flip(3)).age, twice.predict(IMAGES).age, atol=1e-3)
    assert twice.train()(IMAGES)["age"].shape == both["age"].shape


def test_a_frozen_backbone_keeps_weights_and_statistics() -> None:
    network = AGRNetwork().train()
    network.freeze(True)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    network.train()
    network(IMAGES)["gender"].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())
    assert all(p.grad is None for p in network.backbone.parameters())
    assert network.heads["gender"].weight.grad is not None
    network.freeze(False)
    network(IMAGES)["gender"].sum().backward()
    assert network.backbone.training and all(p.grad is not None for p in network.backbone.parameters())
    assert not torch.equal(network.backbone.stem[1].running_mean, before["stem.1.running_mean"])


def test_the_trunk_is_as_large_as_its_docstring_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    backbone, _ = build_backbone("agr_cnn", ("age",), 128)
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
    with pytest.raises(
        UserError, match=r"'resnet81' \(did you mean 'resnet18'\?\); known: agr_cnn, agr_cnn_small, plain_cnn"
    ):
        build_backbone("resnet81", ("age",), 64)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- losses

YEARS, TARGET = torch.tensor([10.0, 22.0, 35.0]), torch.tensor([12.0, 22.0, 30.0])


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


def test_uncertainty_starts_from_the_fixed_weights_and_learns() -> None:
    weights = LossWeights(age=0.25, gender=2.0, race=0.5)
    loss = JointLoss("l1", weights, weighting="uncertainty")
    losses: dict[Task, torch.Tensor] = {
        "age": torch.tensor(6.0),
        "gender": torch.tensor(0.3),
        "race": torch.tensor(1.0),
    }
    s = {"age": -math.log(0.25), "gender": -math.log(2.0), "race": -math.log(0.5)}
    expected = 0.25 * 6.0 + 2.0 * 0.3 + 0.5 * 1.0 + sum(s.values()) / 2
    assert loss.total(losses).item() == pytest.approx(expected)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss.total(losses).backward()
        optimizer.step()
    # The minimum of exp(-s) L + s / 2 is at exp(-s) = 1 / (2 L).
    learned = {task: (-value).exp().item() for task, value in loss.total.log_variance.items()}
    assert learned == pytest.approx({"age": 1 / 12, "gender": 1 / 0.6, "race": 0.5}, rel=0.02)


def test_uncertainty_cannot_learn_from_a_weight_of_zero() -> None:
    with pytest.raises(UserError, match=r"loss_weights\.race 0 .*--model\.tasks"):
        JointLoss("l1", LossWeights(race=0), weighting="uncertainty")
    JointLoss("l1", LossWeights(race=0), weighting="uncertainty", tasks=("age", "gender"))


def test_mixed_precision_does_not_coarsen_the_age_loss() -> None:
    logits = torch.full((1, AGES), -50.0)
    logits[0, 80], logits[0, 81] = math.log(0.8), math.log(0.2)
    labels: dict[Task, torch.Tensor] = {"age": torch.tensor([80.0])}
    for name in ("dldl", "mean_variance"):
        loss = JointLoss(name, LossWeights())  # type: ignore[arg-type]
        exact = loss({"age": logits}, labels)["age"]
        with torch.autocast("cpu", torch.bfloat16):
            assert loss({"age": logits}, labels)["age"].item() == pytest.approx(exact.item(), rel=1e-6), name


def test_a_task_without_labels_does_not_change_its_learned_weight() -> None:
    loss = JointLoss("l1", LossWeights(), weighting="uncertainty")
    outputs: dict[Task, torch.Tensor] = {"age": YEARS.clone().requires_grad_(), "race": torch.randn(3, 5)}
    outputs["gender"] = torch.randn(3, 2)
    loss.total(loss(outputs, _labels([MISSING] * 3))).backward()
    learned = loss.total.log_variance
    assert learned["race"].grad.item() == 0 and learned["age"].grad.item() != 0


def test_race_weights_multiply_each_sample_by_its_label() -> None:
    loss = JointLoss("l1", LossWeights(), label_smoothing=0.1)
    race, labels = torch.randn(3, 5), _labels([1, 4, MISSING])
    loss.race_weights.copy_(torch.tensor([1.0, 3.0, 1.0, 1.0, 0.5]))
    each = F.cross_entropy(race[:2], torch.tensor([1, 4]), reduction="none", label_smoothing=0.1)
    assert loss({"race": race}, labels)["race"].item() == pytest.approx(((3 * each[0] + 0.5 * each[1]) / 2).item())


def test_balanced_weights_let_each_class_count_the_same() -> None:
    counts = [100, 50, 0, 25, 25]
    weights = balanced_weights(counts)
    totals = {round(n * w, 9) for n, w in zip(counts, weights, strict=True) if n}
    assert totals == {50.0} and sum(n * w for n, w in zip(counts, weights, strict=True)) == pytest.approx(200)


# ---------------------------------------------------------------------- weights


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", IMAGENET_WEIGHTS)
def test_torchvision_s_own_state_dict_is_taken(tmp_path: Path, name: BackboneName) -> None:
    import torchvision

    original = torchvision.models.get_model(name)
    torch.save(original.state_dict(), tmp_path / "net.pth")
    network = AGRNetwork(name).eval()
    said = load_weights(network, tmp_path / "net.pth")
    assert "loaded the backbone; fresh heads for age, gender, race; left out" in said and "(no such part here)" in said
    # The features are those that ImageNet's classes were read from; of vgg16_bn, averaged maps before the dense ones.
    inside: list[torch.Tensor] = []
    vgg = name == "vgg16_bn"
    layer = original.avgpool if vgg else [m for m in original.modules() if isinstance(m, torch.nn.Linear)][-1]
    layer.register_forward_hook(lambda module, inputs, output: inside.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        original.eval()(images)
        expected = inside[0].mean((2, 3)) if vgg else inside[0]
        assert torch.allclose(network.backbone(images), expected, atol=1e-4)


def test_safetensors_are_taken_and_damaged_ones_refused(tmp_path: Path) -> None:
    source, network = AGRNetwork(tasks=("age",)), AGRNetwork(tasks=("age",))
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "net.safetensors")
    assert "loaded the backbone and the heads for age" in load_weights(network, tmp_path / "net.safetensors")
    assert _same(network.backbone, source.backbone) and _same(network.heads, source.heads)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.safetensors is no safetensors file, or is damaged"):
        load_weights(network, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        load_weights(network, tmp_path / "gone.safetensors")


def test_of_several_files_the_mean_is_taken(tmp_path: Path) -> None:
    sources = [AGRNetwork(tasks=("age", "race")) for _ in range(3)]
    for number, source in enumerate(sources):
        source.backbone(torch.rand(4, 3, 64, 64))  # which moves the batch statistics and counts the batch
        torch.save(source.state_dict(), tmp_path / f"{number}.pth")
    network = AGRNetwork(tasks=("age", "race"))
    said = load_weights(network, *(tmp_path / f"{number}.pth" for number in range(3)))
    assert "2.pth: loaded the backbone and the heads for age, race" in said
    for name, value in network.state_dict().items():
        if not name.startswith("calibration."):
            states = [source.state_dict()[name] for source in sources]
            mean = torch.stack([state.double() for state in states]).mean(0)
            assert value.dtype == states[0].dtype and torch.allclose(value.double(), mean, atol=1e-6), name
    torch.save(AGRNetwork(tasks=("age",)).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"0\.pth and .*other\.pth are not of one network: they have no mean\."):
        load_weights(network, tmp_path / "0.pth", tmp_path / "other.pth")


def test_a_network_s_state_dict_is_taken_with_the_heads_that_fit(tmp_path: Path) -> None:
    source = AGRNetwork(tasks=("age", "race"))
    torch.save(source.state_dict(), tmp_path / "net.pth")
    network = AGRNetwork(tasks=("race", "gender"))
    said = load_weights(network, tmp_path / "net.pth")
    assert _same(network.backbone, source.backbone) and _same(network.heads["race"], source.heads["race"])
    assert "heads for race; fresh heads for gender; left out its head for age (not among --model.tasks)" in said


def test_a_head_of_another_age_loss_is_left_out(tmp_path: Path) -> None:
    torch.save(AGRNetwork(tasks=("age", "race")).state_dict(), tmp_path / "net.pth")
    network = AGRNetwork(tasks=("age", "race"), age_head="distribution")
    before = network.heads["age"].weight.clone()
    said = load_weights(network, tmp_path / "net.pth")
    assert "heads for race; fresh heads for age" in said
    assert "left out its head for age (another kind of head: 1x384 there, 117x384 here)" in said
    assert torch.equal(network.heads["age"].weight, before)


@pytest.mark.parametrize("wrap", ["network.{}", "module.{}", "{}"])
def test_weights_are_found_under_the_names_that_wrappers_give(tmp_path: Path, wrap: str) -> None:
    source, network = AGRNetwork(), AGRNetwork()
    state = {wrap.format(name): v for name, v in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    assert "and the heads for age, gender, race" in load_weights(network, tmp_path / "net.pth")
    assert _same(network.backbone, source.backbone)


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (("resnet18", 64), ("agr_cnn", 64), "does not fit: .* is not there"),
        (("resnet18", 64), ("resnet34", 64), r"does not fit: layer1\.2\.conv1\.weight is not there"),
        (
            ("plain_cnn", 64),
            ("plain_cnn", 96),
            r"256x4096 there and 256x9216 here.*--data\.image_size",
        ),
    ],
)
def test_weights_of_another_backbone_are_refused(
    tmp_path: Path, made: tuple[BackboneName, int], wanted: tuple[BackboneName, int], message: str
) -> None:
    torch.save(AGRNetwork(made[0], image_size=made[1]).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=message):
        load_weights(AGRNetwork(wanted[0], image_size=wanted[1]), tmp_path / "net.pth")


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
