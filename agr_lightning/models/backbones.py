"""Backbones by name: what turns normalised images into features. To add one, give it a line in ``OURS``."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision import models

from agr_lightning.labels import Task
from agr_lightning.messages import UserError, did_you_mean, needs
from agr_lightning.models.agr_cnn import AGRCNN, SMALL_WIDTHS, WIDTHS
from agr_lightning.models.textbook_cnns import PlainCNN, TwoBranchCNN

# From the tasks and the side of the images, pixels.
OURS: dict[str, Callable[[tuple[Task, ...], int], nn.Module]] = {
    "agr_cnn": lambda tasks, size: AGRCNN(WIDTHS),
    "agr_cnn_small": lambda tasks, size: AGRCNN(SMALL_WIDTHS),
    "plain_cnn": lambda tasks, size: PlainCNN(size),
    "two_branch_cnn": lambda tasks, size: TwoBranchCNN(tasks),
}
TORCHVISION: tuple[str, ...] = tuple(models.list_models(module=models))
TIMM = "timm/"  # how the names of timm's networks begin


def build_backbone(name: str, tasks: tuple[Task, ...], image_size: int) -> tuple[nn.Module, int]:
    """Builds a backbone with random weights; raises UserError for an unknown name, or images that do not fit it.

    Args:
        name: one of ``OURS``; one of ``TORCHVISION``, of which vgg* and alexnet are their convolutions and global
            average pooling alone, since their dense layers need images of 224 pixels; or ``timm/NAME``.
        tasks: what the features are for.
        image_size: side of the images, pixels.

    Returns:
        A module, ``(batch, 3, image_size, image_size)`` float to ``(batch, features)`` or to one of these for each
        task; and how many features there are.
    """
    try:
        if name in OURS:
            network = OURS[name](tasks, image_size)
        elif name in TORCHVISION:
            network = _from_torchvision(name, image_size)
        elif name.startswith(TIMM):
            network = timm_backbone(name, image_size)
        else:
            raise UserError(
                f"no backbone is called '{name}'{did_you_mean(name, (*OURS, *TORCHVISION))}; known: {', '.join(OURS)}, "
                f"torchvision's classification networks, and {TIMM}NAME for timm's."
            )
        # On the meta device nothing is computed but shapes.
        images = torch.empty(2, 3, image_size, image_size, device="meta")
        with torch.no_grad():
            found = copy.deepcopy(network).to("meta").eval()(images)
    except (AssertionError, RuntimeError, ValueError) as error:  # as the libraries refuse a size
        reason = str(error).partition("\n")[0].rstrip(".!")
        raise UserError(f"--data.image_size {image_size} does not fit {name}: {reason}.") from None
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the heads have theirs
        elif isinstance(layer, nn.BatchNorm2d):
            # MobileNetV3's is a tenth, for half a million steps: after some hundreds, its statistics would still lag
            # so far behind the weights that evaluation is at chance.
            layer.momentum = 0.1
    return network, (next(iter(found.values())) if isinstance(found, dict) else found).shape[1]


def _from_torchvision(name: str, image_size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name == "maxvit_t":
        options = {"input_size": (image_size, image_size)}
    elif name in ("googlenet", "inception_v3"):
        # Their published weights take pixels of -1 to 1.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    network: nn.Module = models.get_model(name, **options)
    if name.startswith(("vgg", "alexnet")):
        network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    else:
        # The classifier is a linear layer, or in squeezenet a convolution.
        last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
        network.set_submodule(last, nn.Identity())
    return network


def timm_backbone(name: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """One of timm's networks, ``timm/NAME``, with random weights or with those that timm downloads.

    Raises UserError when timm is not installed, or has no network of this name.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"--model.backbone {name} {needs('timm', 'timm')}.") from None
    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        raise UserError(f"timm has no network called '{plain}'{did_you_mean(plain, timm.list_models())}.")
    network: nn.Module = timm.create_model(plain, pretrained=pretrained, num_classes=0)
    if hasattr(network, "set_input_size"):
        network.set_input_size(image_size)  # type: ignore[operator]
    return network
