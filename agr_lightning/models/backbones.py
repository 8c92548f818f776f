"""Backbones by name: what turns a normalised image into features. To add one, give it a name and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from agr_lightning.labels import Task
from agr_lightning.messages import UserError, did_you_mean
from agr_lightning.models.agr_cnn import AGRCNN, SMALL_WIDTHS, WIDTHS
from agr_lightning.models.plain_cnns import PlainCNN, TwoBranchCNN

BackboneName = Literal[
    "agr_cnn",
    "agr_cnn_small",
    "plain_cnn",
    "two_branch_cnn",
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b3",
    "vgg16_bn",
    "convnext_tiny",
]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)

# torchvision's ImageNet weights for the backbones that have them.
IMAGENET_WEIGHTS: dict[BackboneName, WeightsEnum] = {
    "resnet18": models.ResNet18_Weights.DEFAULT,
    "resnet34": models.ResNet34_Weights.DEFAULT,
    "resnet50": models.ResNet50_Weights.DEFAULT,
    "mobilenet_v2": models.MobileNet_V2_Weights.DEFAULT,
    "mobilenet_v3_small": models.MobileNet_V3_Small_Weights.DEFAULT,
    "mobilenet_v3_large": models.MobileNet_V3_Large_Weights.DEFAULT,
    "efficientnet_b0": models.EfficientNet_B0_Weights.DEFAULT,
    "efficientnet_b1": models.EfficientNet_B1_Weights.DEFAULT,
    "efficientnet_b3": models.EfficientNet_B3_Weights.DEFAULT,
    "vgg16_bn": models.VGG16_BN_Weights.DEFAULT,
    "convnext_tiny": models.ConvNeXt_Tiny_Weights.DEFAULT,
}


class Backbone(NamedTuple):
    """A feature extractor.

    Attributes:
        module: ``(batch, 3, height, width)`` float to ``(batch, features)``, or to one of these for each task.
        features: how many there are.
    """

    module: nn.Module
    features: int


@dataclass(frozen=True)
class Plan:
    """How a backbone is built.

    Attributes:
        build: from the tasks and the side of the images in pixels.
        smallest: side of the smallest images that leave something after the last halving, pixels.
        one_size: whether the weights fit images of one size only.
    """

    build: Callable[[tuple[Task, ...], int], Backbone]
    smallest: int = 32
    one_size: bool = False


def build_backbone(name: BackboneName, tasks: tuple[Task, ...], image_size: int) -> Backbone:
    """Builds a backbone with random weights.

    Args:
        name: one of ``BACKBONES``.
        tasks: what the features are for.
        image_size: side of the images, pixels.

    Raises:
        UserError: when no backbone has this name, or the images are too small for it.
    """
    plan = plan_of(name)
    if image_size < plan.smallest:
        raise UserError(
            f"--data.image_size {image_size} is too small for {name}, whose smallest is {plan.smallest} pixels."
        )
    return plan.build(tasks, image_size)


def plan_of(name: BackboneName) -> Plan:
    """How the backbone called ``name`` is built; raises UserError with the known names otherwise."""
    if name not in _PLANS:
        raise UserError(
            f"no backbone is called '{name}'{did_you_mean(name, BACKBONES)}; known: {', '.join(BACKBONES)}."
        )
    return _PLANS[name]


def _from_torchvision(build: Callable[[], nn.Module]) -> Plan:
    return Plan(lambda tasks, image_size: _without_classes(build()))


def _without_classes(network: nn.Module) -> Backbone:
    """Takes the last linear layer, that of ImageNet's classes, away."""
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the heads have theirs
        elif isinstance(layer, nn.BatchNorm2d):
            # MobileNetV3's is a tenth, for half a million steps: after some hundreds, its statistics would still lag
            # so far behind the weights that evaluation is at chance.
            layer.momentum = 0.1
    name, last = [pair for pair in network.named_modules() if isinstance(pair[1], nn.Linear)][-1]
    assert isinstance(last, nn.Linear)
    network.set_submodule(name, nn.Identity())
    return Backbone(network, last.in_features)


def _agr_cnn(widths: tuple[int, ...]) -> Plan:
    return Plan(lambda tasks, image_size: Backbone(AGRCNN(widths), widths[-1]))


def _vgg16_bn(tasks: tuple[Task, ...], image_size: int) -> Backbone:
    # The convolutions alone: 124 of its 138 million parameters are dense layers, for maps of 224-pixel images.
    network = models.vgg16_bn()
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential()
    return Backbone(network, 512)


_PLANS: dict[BackboneName, Plan] = {
    "agr_cnn": _agr_cnn(WIDTHS),
    "agr_cnn_small": _agr_cnn(SMALL_WIDTHS),
    "plain_cnn": Plan(
        lambda tasks, image_size: Backbone(PlainCNN(image_size), PlainCNN.features), smallest=16, one_size=True
    ),
    "two_branch_cnn": Plan(lambda tasks, image_size: Backbone(TwoBranchCNN(tasks), TwoBranchCNN.features)),
    "resnet18": _from_torchvision(models.resnet18),
    "resnet34": _from_torchvision(models.resnet34),
    "resnet50": _from_torchvision(models.resnet50),
    "mobilenet_v2": _from_torchvision(models.mobilenet_v2),
    "mobilenet_v3_small": _from_torchvision(models.mobilenet_v3_small),
    "mobilenet_v3_large": _from_torchvision(models.mobilenet_v3_large),
    "efficientnet_b0": _from_torchvision(models.efficientnet_b0),
    "efficientnet_b1": _from_torchvision(models.efficientnet_b1),
    "efficientnet_b3": _from_torchvision(models.efficientnet_b3),
    "vgg16_bn": Plan(_vgg16_bn),
    "convnext_tiny": _from_torchvision(models.convnext_tiny),
}
