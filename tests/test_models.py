"""The network: its description, backbones, joint loss and initial weights."""

import dataclasses
import hashlib
import math
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from agr_lightning.checkpoints import read_weights
from agr_lightning.labels import MISSING, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.age import AGES
from agr_lightning.models.backbones import OURS, TORCHVISION, TwoBranchCNN, build_backbone
from agr_lightning.models.config import AgeLossName, NetworkConfig
from agr_lightning.models.initial_weights import load_pretrained, load_state
from agr_lightning.models.losses import JointLoss, LossWeights
from agr_lightning.models.network import AGRNetwork

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

# Of each of torchvision's families the smallest, and the side of the smallest images that fit where it is not 32.
FAMILIES = [
    *("mobilenet_v2", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
            *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "resnext50_32x4d"),
            *("swin_t", "swin_v2_t", "vgg11", "vgg16_bn", "vit_b_32", "wide_resnet50_2"),
        )
    ),
]
SIZES = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 224}

# The parts of these are of a size that is computed with tensors, which the meta device does not have. The largest, with
# up to 640 million weights, differ from the others in their numbers alone.
_COMPUTED = [name for name in TORCHVISION if name.startswith("regnet")]
_GIANTS = [name for name in _COMPUTED if name.endswith(("16gf", "32gf", "128gf"))]


def network(**options: Any) -> AGRNetwork:
    return AGRNetwork(NetworkConfig(**{"image_size": 64, **options}))


# ---------------------------------------------------------------------- description


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 8}, "--data.image_size 8 must be 16 to 1024"),
        ({"image_size": 20_000}, "--data.image_size 20000 must be 16 to 1024"),
        ({"dropout": 1.0}, "--model.dropout 1.0 must be at least 0 and below 1"),
        ({"dropout": math.nan}, "--model.dropout nan must be"),
        ({"tasks": ()}, r"--model.tasks \[\]: expected any of age, gender, race, each once"),
        ({"tasks": ("age", "age")}, "each once"),
        ({"tasks": ("age", "smile")}, r"--model.tasks \['age', 'smile'\]: expected any of age, gender, race"),
        (
            {"age_loss": "dlld"},
            "--model.age_loss dlld: expected any of l1, mse, smooth_l1, dldl, mean_variance, coral",
        ),
        ({"age_readout": "mode"}, "--model.age_readout mode: expected any of None, mean, median"),
    ],
)
def test_values_that_no_network_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkConfig(**options)


def test_a_description_survives_being_stored() -> None:
    config = NetworkConfig("resnet18", ("race", "age"), "coral", "median", 96, 0, True, True)
    assert config.tasks == ("age", "race") and NetworkConfig.from_dict(config.to_dict()) == config


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TASKS),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON, st.sampled_from([field.name for field in dataclasses.fields(NetworkConfig)]))
def test_a_stranger_s_description_is_a_network_s_or_refused_in_one_sentence(value: Any, name: str) -> None:
    good = NetworkConfig().to_dict()
    without = {key: kept for key, kept in good.items() if key != name}
    for stored in (value, {**good, name: value}, {**good, "more": value}, without):
        try:
            config = NetworkConfig.from_dict(stored)
        except UserError as error:
            assert len(str(error)) < 300 and str(error).endswith(".")
        else:
            assert isinstance(stored, dict) and set(stored) == set(good)
            for key, kept in config.to_dict().items():
                assert kept == stored[key] or (key == "tasks" and sorted(kept) == sorted(stored[key]))
                assert type(kept) is type(good[key]) or key in ("dropout", "age_readout")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": ["agr_cnn"]}, "its backbone cannot be"),
        ({"backbone": "x" * 10_000}, "its backbone cannot be 'x{40}'"),
        ({"image_size": "x"}, "its image_size cannot be 'x'"),
        ({"image_size": 64.0}, "its image_size cannot be"),
        ({"image_size": True}, "its image_size cannot be"),
        ({"tasks": [["age"]]}, "--model.tasks"),
        ({"tasks": {"age": 1}}, "its tasks cannot be"),
        ({"more": 1}, "does not describe a network of this version"),
    ],
)
def test_descriptions_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkConfig.from_dict(NetworkConfig().to_dict() | changes)


# ---------------------------------------------------------------------- backbones


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("size", [16, 61, 128])
def test_each_of_our_backbones_gives_its_features(name: str, size: int) -> None:
    if (name, size) == ("two_branch_cnn", 16):
        with pytest.raises(UserError, match=r"--data\.image_size 16 does not fit two_branch_cnn: .* too small\."):
            build_backbone(name, ("age",), size)
        return
    backbone, features = build_backbone(name, ("age", "race"), size)
    found = backbone.eval()(torch.zeros(2, 3, size, size))
    for each in found.values() if isinstance(found, dict) else [found]:
        assert each.shape == (2, features)


@pytest.mark.parametrize("name", [name for name in TORCHVISION if name not in _GIANTS])
def test_all_of_torchvision_s_networks_build_without_their_classes(name: str) -> None:
    with torch.device("cpu" if name in _COMPUTED else "meta"):
        backbone, features = build_backbone(name, ("age",), 224)
    assert features != 1000 and backbone.training
    assert all(layer.p == 0 for layer in backbone.modules() if isinstance(layer, torch.nn.Dropout))
    # MobileNetV3's own statistics would not follow the weights within a short run.
    assert {layer.momentum for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)} <= {0.1}


@pytest.mark.parametrize(
    "name",
    [*OURS, *FAMILIES],
)
def test_every_family_learns(name: str) -> None:
    size = SIZES.get(name, 32)
    grown = network(backbone=name, image_size=size)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    outputs = grown(images)
    torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    gradients = [parameter.grad for parameter in grown.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg11_bn", 31, "does not fit vgg11_bn: .* too"),
        ("inception_v3", 74, "does not fit inception_v3: .*input size"),
        ("maxvit_t", 128, "does not fit maxvit_t: .* not divisible by partition size 7"),
        ("vit_b_16", 100, "does not fit vit_b_16: Input shape indivisible by patch"),
        ("timm/hiera_tiny_224", 64, "does not fit timm/hiera_tiny_224: "),
    ],
)
def test_images_that_do_not_fit(name: str, size: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=rf"^--data\.image_size {size} {message}.*[^.]\.$"):
        build_backbone(name, ("age",), size)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_networks_of_timm_give_features_at_any_size(name: str) -> None:
    grown = network(backbone=f"timm/{name}", image_size=64).eval()
    assert not [layer for layer in grown.backbone.modules() if getattr(layer, "out_features", 0) == 1000]
    assert grown(IMAGES)["race"].shape == (4, 5)


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"--model\.backbone timm/resnet18 needs timm: .*\[timm\]"):
        build_backbone("timm/resnet18", ("age",), 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet81",
            r"'resnet81' \(did you mean 'resnet18'\?\); known: agr_cnn, agr_cnn_small, plain_cnn, two_branch_cnn",
        ),
        ("agr_cn", r"did you mean 'agr_cnn'"),
        ("timm/resnett18", r"timm has no network called 'resnett18' \(did you mean 'resnet18'\?\)"),
        # Which would ask the network for a file.
        ("timm/hf-hub:somebody/something", "timm has no network called 'hf-hub:somebody/something'"),
    ],
)
def test_names_of_no_backbone(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name, ("age",), 64)


def test_two_branches_share_the_trunk_alone_and_exist_for_the_tasks_alone() -> None:
    grown = network(backbone="two_branch_cnn", tasks=("age", "gender")).eval()
    assert isinstance(grown.backbone, TwoBranchCNN) and list(grown.backbone.branches) == ["age", "gender"]
    grown(IMAGES)["age"].sum().backward()
    branches = grown.backbone.branches
    assert all(p.grad is None for p in branches["gender"].parameters())
    assert all(p.grad is not None for part in (branches["age"], grown.backbone.trunk) for p in part.parameters())


def test_colour_does_not_matter_to_a_grey_network() -> None:
    grown = network(grayscale=True).eval()
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    # The same brightness as (g, g, g), by ITU-R BT.601: 0.299 x 50 = 14.95, about 0.114 x 131.
    tinted = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    other = tinted.clone()
    other[:, 0], other[:, 2] = 150, 0
    other[:, 1] = 94
    assert torch.allclose(grown(tinted)["race"], grown(other)["race"], atol=1e-2)
    coloured = network().eval()
    coloured.load_state_dict(grown.state_dict())
    assert torch.allclose(coloured(grey)["race"], grown(grey)["race"], atol=1e-5)
    assert not torch.allclose(coloured(IMAGES)["race"], grown(IMAGES)["race"], atol=1e-4)


@pytest.mark.parametrize("name", ["agr_cnn", "two_branch_cnn"])
def test_flip_augmentation_averages_an_image_and_its_mirror_image(name: str) -> None:
    once, twice = (network(backbone=name, age_loss="dldl", tta_flip=flip) for flip in (False, True))
    once.eval()
    twice.load_state_dict(once.state_dict())
    left, right, both = once(IMAGES), once(IMAGES.flip(3)), twice.eval()(IMAGES)
    for task in TASKS:
        assert torch.allclose(both[task], (left[task] + right[task]) / 2, atol=1e-4)
    assert not torch.allclose(left["race"], right["race"], atol=1e-4)
    assert torch.allclose(twice.predict(IMAGES.flip(3)).age, twice.predict(IMAGES).age, atol=1e-3)
    assert twice.train()(IMAGES)["age"].shape == both["age"].shape


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
    grown = network().eval()
    outputs = grown(IMAGES)
    assert outputs["age"].shape == (4,) and outputs["gender"].shape == (4, 2) and outputs["race"].shape == (4, 5)
    predictions = grown.predict(IMAGES)
    assert predictions.age is not None and predictions.gender is not None and predictions.race is not None
    assert (predictions.age >= 0).all() and (predictions.age - 33).abs().max() < 15
    for probabilities in (predictions.gender, predictions.race):
        assert torch.allclose(probabilities.sum(1), torch.ones(4)) and (probabilities >= 0).all()


def test_age_is_never_negative() -> None:
    grown = network().eval()
    with torch.no_grad():
        grown.heads["age"].bias.fill_(-1000.0)
        assert (grown(IMAGES)["age"] >= 0).all()


def test_a_subset_of_tasks_builds_those_heads_alone() -> None:
    grown = network(tasks=("race",)).eval()
    assert list(grown.heads) == ["race"] and list(grown(IMAGES)) == ["race"]
    assert grown.predict(IMAGES).age is None


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


@pytest.mark.parametrize("name", get_args(AgeLossName))
def test_samples_without_age_train_the_other_tasks(name: AgeLossName) -> None:
    torch.manual_seed(0)
    loss, head = JointLoss(name, LossWeights()), network(tasks=("age",), age_loss=name).heads["age"]
    age = head(torch.randn(3, head.weight.shape[1])).detach().requires_grad_()
    outputs: dict[Task, torch.Tensor] = {"age": age, "gender": torch.randn(3, 2)}
    ages, gender = torch.tensor([MISSING, 29.5, MISSING]), torch.tensor([0, MISSING, 1])
    some = loss(outputs, {"age": ages, "gender": gender})
    assert some["age"].item() == pytest.approx(loss({"age": age[1:2]}, {"age": ages[1:2]})["age"].item())
    assert some["gender"].item() == pytest.approx(F.cross_entropy(outputs["gender"][::2], gender[::2]).item())
    some["age"].backward()
    assert age.grad is not None and (age.grad[::2] == 0).all() and (age.grad[1] != 0).any()
    age.grad = None
    none = loss(outputs, {"age": torch.full((3,), float(MISSING)), "gender": gender})
    none["age"].backward()
    assert none["age"].item() == 0 and (age.grad == 0).all() and none["gender"] == some["gender"]


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_loss_weights_that_cannot_work(weight: float) -> None:
    with pytest.raises(UserError, match=r"--model\.loss_weights\.gender"):
        LossWeights(gender=weight)


def test_mixed_precision_does_not_coarsen_the_age_loss() -> None:
    logits = torch.full((1, AGES), -50.0)
    logits[0, 80], logits[0, 81] = math.log(0.8), math.log(0.2)
    labels: dict[Task, torch.Tensor] = {"age": torch.tensor([80.0])}
    for name in ("dldl", "mean_variance"):
        loss = JointLoss(name, LossWeights())  # type: ignore[arg-type]
        exact = loss({"age": logits}, labels)["age"]
        with torch.autocast("cpu", torch.bfloat16):
            assert loss({"age": logits}, labels)["age"].item() == pytest.approx(exact.item(), rel=1e-6), name


# ---------------------------------------------------------------------- initial weights


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        *((name, "") for name in ("resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "mnasnet0_5")),
        *((name, "avgpool") for name in ("alexnet", "vgg11_bn")),
        ("squeezenet1_1", "classifier.1"),
    ],
)
def test_torchvision_s_own_state_dict_is_taken(name: str, features: str) -> None:
    original = torchvision.models.get_model(name)
    grown = network(backbone=name).eval()
    message = load_state(grown, original.state_dict(), "--model.weights net.pth")
    assert re.match(
        r".*net\.pth: loaded the backbone; fresh heads for age, gender, race; left out \d+ tensors that", message
    )
    # The features are those that ImageNet's classes were read from; of vgg and alexnet, averaged maps.
    inside: list[torch.Tensor] = []
    layers = dict(original.named_modules())
    layer = layers[features or [key for key, each in layers.items() if isinstance(each, torch.nn.Linear)][-1]]
    layer.register_forward_hook(lambda module, inputs, output: inside.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        original.eval()(images)
        expected = inside[0].relu() if name == "squeezenet1_1" else inside[0]
        expected = expected.mean((2, 3)) if expected.ndim == 4 else expected
        assert torch.allclose(grown.backbone(images), expected, atol=1e-4)


def test_a_state_dict_of_timm_is_taken() -> None:
    original = timm.create_model("resnet18")
    grown = network(backbone="timm/resnet18").eval()
    message = load_state(grown, original.state_dict(), "--model.weights net.pth")
    assert message.endswith(
        "fresh heads for age, gender, race; left out 2 tensors that this network lacks or has in another shape"
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(grown.backbone(images), original.eval().forward_features(images).mean((2, 3)), atol=1e-5)


def test_the_heads_that_fit_are_taken() -> None:
    source, grown = network(tasks=("age", "race")), network(tasks=("race", "gender"))
    message = load_state(grown, source.state_dict(), "net.pth")
    assert _same(grown.backbone, source.backbone) and _same(grown.heads["race"], source.heads["race"])
    assert message == (
        "net.pth: loaded the backbone and the heads for race; fresh heads for gender; "
        "left out 2 tensors that this network lacks or has in another shape"
    )


def test_a_head_of_another_age_loss_is_left_out() -> None:
    grown = network(tasks=("age", "race"), age_loss="dldl")
    before = grown.heads["age"].weight.clone()
    message = load_state(grown, network(tasks=("age", "race")).state_dict(), "net.pth")
    assert message == (
        "net.pth: loaded the backbone and the heads for race; fresh heads for age; "
        "left out 2 tensors that this network lacks or has in another shape"
    )
    assert torch.equal(grown.heads["age"].weight, before)


def test_a_head_is_taken_whole_or_not_at_all() -> None:
    """The weights of these two heads are of one shape, their biases are not."""
    source, grown = network(tasks=("age",), age_loss="l1"), network(tasks=("age",), age_loss="coral")
    before = grown.heads["age"].weight.clone()
    assert "loaded the backbone; fresh heads for age" in load_state(grown, source.state_dict(), "net.pth")
    assert torch.equal(grown.heads["age"].weight, before)


@pytest.mark.parametrize("wrap", ["network.{}", "module.{}", "{}"])
def test_weights_are_found_under_the_names_that_wrappers_give(wrap: str) -> None:
    source, grown = network(), network()
    state = {wrap.format(name): value for name, value in source.state_dict().items()}
    state |= {"loss.race_weights": torch.ones(5)} if wrap.startswith("network") else {}
    assert load_state(grown, state, "net.pth") == "net.pth: loaded the backbone and the heads for age, gender, race"
    assert _same(grown.backbone, source.backbone) and _same(grown.heads, source.heads)


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        (("resnet18", 64), ("agr_cnn", 64), r"net\.pth has no stem\.0\.weight of"),
        (("resnet18", 64), ("resnet34", 64), r"has no layer1\.2\.conv1\.weight of"),
        (("plain_cnn", 64), ("plain_cnn", 96), r"no dense\.1\.weight of the shape \(256, 9216\).*--data\.image_size"),
    ],
)
def test_weights_of_another_backbone_are_refused(made: tuple[str, int], wanted: tuple[str, int], message: str) -> None:
    source, grown = (network(backbone=name, image_size=size) for name, size in (made, wanted))
    with pytest.raises(UserError, match=message):
        load_state(grown, source.state_dict(), "net.pth")


def test_pretrained_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    original = torchvision.models.resnet18()
    torch.save(original.state_dict(), folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()[:8]
    (folder / "net.pth").rename(folder / f"net-{digest}.pth")
    weights = torchvision.models.ResNet18_Weights.DEFAULT.value
    url = f"http://localhost:9/net-{digest}.pth"
    monkeypatch.setattr(type(weights), "url", property(lambda self: url), raising=False)
    grown = network(backbone="resnet18")
    assert load_pretrained(grown) == (
        "--model.pretrained true: loaded the backbone; fresh heads for age, gender, race; "
        "left out 2 tensors that this network lacks or has in another shape"
    )
    assert torch.equal(grown.backbone.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    (folder / f"net-{digest}.pth").unlink()
    with pytest.raises(UserError, match=rf"Put {url} at .*net-{digest}\.pth, or name a file with --model\.weights"):
        load_pretrained(grown)
    with pytest.raises(UserError, match="no ImageNet weights for agr_cnn"):
        load_pretrained(network())


def test_pretrained_weights_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model("vit_tiny_patch16_224")
    torch.save(original.state_dict(), tmp_path / "net.pth")
    create, grown = timm.create_model, network(backbone="timm/vit_tiny_patch16_224")

    def from_file(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        return create(name, pretrained, pretrained_cfg_overlay={"file": str(tmp_path / "net.pth")}, **options)

    monkeypatch.setattr(timm, "create_model", from_file)
    assert load_pretrained(grown) == "--model.pretrained true: loaded the backbone; fresh heads for age, gender, race"
    assert torch.equal(grown.backbone.blocks[3].mlp.fc1.weight, original.blocks[3].mlp.fc1.weight)
    (tmp_path / "net.pth").unlink()
    with pytest.raises(UserError, match=r"no ImageNet weights for timm/vit_tiny_patch16_224 .* --model\.weights"):
        load_pretrained(grown)


def test_a_file_that_another_program_wrote_is_taken(tmp_path: Path) -> None:
    original = torchvision.models.resnet18()
    torch.save(
        {"state_dict": {f"module.{n}": v for n, v in original.state_dict().items()}, "epoch": 3}, tmp_path / "n.pt"
    )
    grown = network(backbone="resnet18")
    tensors, trained = read_weights(tmp_path / "n.pt", "--model.weights")
    assert trained is None and "loaded the backbone" in load_state(grown, tensors, "n.pt")
    assert torch.equal(grown.backbone.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
