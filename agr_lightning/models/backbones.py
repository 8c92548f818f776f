"""Backbones by name: what turns a normalised image into a feature vector."""

from collections.abc import Callable
from typing import Literal, cast, get_args

import torchvision
from torch import nn

from agr_lightning.errors import UserError, did_you_mean
from agr_lightning.models.agr_cnn import AGRCNN

BackboneName = Literal["agr_cnn", "resnet18"]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)

# torchvision's ImageNet weights for the backbones that have them.
IMAGENET_WEIGHTS = {"resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1}


def build_backbone(name: BackboneName) -> tuple[nn.Module, int]:
    """Builds a backbone with random weights.

    Args:
        name: one of ``BACKBONES``.

    Returns:
        The module, ``(batch, 3, height, width)`` float to ``(batch, features)``, and ``features``.

    Raises:
        UserError: when no backbone has this name.
    """
    if name not in _BUILDERS:
        raise UserError(
            f"no backbone is called '{name}'{did_you_mean(name, BACKBONES)}; known: {', '.join(BACKBONES)}."
        )
    return _BUILDERS[name]()


def _agr_cnn() -> tuple[nn.Module, int]:
    return AGRCNN(), AGRCNN.features


def _resnet18() -> tuple[nn.Module, int]:
    network = torchvision.models.resnet18()
    features = network.fc.in_features
    network.fc = cast(nn.Linear, nn.Identity())
    return network, features


_BUILDERS: dict[BackboneName, Callable[[], tuple[nn.Module, int]]] = {
    "agr_cnn": _agr_cnn,
    "resnet18": _resnet18,
}
