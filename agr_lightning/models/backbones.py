"""Backbones: what turns normalised images into features. Ours, two textbook networks, torchvision's and timm's."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from agr_lightning.labels import Task
from agr_lightning.messages import UserError, did_you_mean, needs

# Channels of the stem and of the four stages.
WIDTHS = (32, 48, 96, 192, 384)
SMALL_WIDTHS = (24, 32, 64, 128, 224)
_BLOCKS = (1, 1, 2, 1)

# Channels of the textbook networks' convolutions, and features of their dense layers.
_PLAIN, _TRUNK, _BRANCH, _DENSE = (32, 64, 128, 256), (32, 64), (128, 256, 256), 256


class SqueezeExcite(nn.Module):
    """Channel attention: each channel is scaled by a gate computed from all channel means.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 8, 1)
        self.excite = nn.Conv2d(channels // 8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(gate))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and channel attention, plus a shortcut.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the shortcut of a
    halving block averages before its 1x1 convolution, as in ResNet-D (He et al., CVPR 2019).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.attention = SqueezeExcite(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        # Each block starts as its shortcut, which lets a fresh network take large steps
        # (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.attention(self.norm2(self.conv2(y)))
        return torch.relu(y + self.shortcut(x))


class AGRCNN(nn.Module):
    """Residual trunk for face crops of about 64 to 224 pixels; made for 128.

    A strided stem and four stages, each halving the resolution. With ``WIDTHS`` 3.5 million parameters and 182 million
    multiply-adds at 128x128; with ``SMALL_WIDTHS`` 1.4 and 80 million.

    Shape: ``(batch, 3, height, width)`` float to ``(batch, widths[-1])``.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks = []
        for inputs, outputs, depth in zip(widths, widths[1:], _BLOCKS, strict=False):
            blocks.append(ResidualBlock(inputs, outputs, stride=2))
            blocks.extend(ResidualBlock(outputs, outputs, stride=1) for _ in range(depth - 1))
        self.stages = nn.Sequential(*blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.stages(self.stem(x)).mean((2, 3))
        return pooled


class PlainCNN(nn.Sequential):
    """Four times convolution and pooling, then flattened into a dense layer: it fits one image size only.

    0.4 million parameters in the convolutions and, at 128x128, 4.2 million in the dense layer.

    Shape: ``(batch, 3, image_size, image_size)`` float to ``(batch, features)``.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.convolutions = _blocks(3, _PLAIN, normalised=False)
        side = image_size // 2 ** len(_PLAIN)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(_PLAIN[-1] * side * side, _DENSE), nn.ReLU())
        _initialise(self)


class TwoBranchCNN(nn.Module):
    """A short shared trunk, then convolutions and a dense layer for each task alone.

    Each block is convolution, ReLU, pooling and batch normalisation; a branch ends in its own dense layer over the
    averaged map. 20 thousand shared parameters, and a million for each task.

    Shape: ``(batch, 3, height, width)`` float to a ``(batch, features)`` for each task.
    """

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.trunk = _blocks(3, _TRUNK)
        self.branches = nn.ModuleDict()
        for task in tasks:
            convolutions = (_blocks(_TRUNK[-1], _BRANCH), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.branches[task] = nn.Sequential(*convolutions, nn.Linear(_BRANCH[-1], _DENSE), nn.ReLU())
        _initialise(self)

    def forward(self, x: Tensor) -> dict[Task, Tensor]:
        shared = self.trunk(x)
        return {task: branch(shared) for task, branch in self.branches.items()}  # type: ignore[misc]


def _blocks(inputs: int, widths: tuple[int, ...], normalised: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for outputs in widths:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(outputs)] if normalised else []
        inputs = outputs
    return nn.Sequential(*layers)


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


# To add a backbone, give it a line here: from the tasks and the side of the images, pixels.
OURS: dict[str, Callable[[tuple[Task, ...], int], nn.Module]] = {
    "agr_cnn": lambda tasks, size: AGRCNN(WIDTHS),
    "agr_cnn_small": lambda tasks, size: AGRCNN(SMALL_WIDTHS),
    "plain_cnn": lambda tasks, size: PlainCNN(size),
    "two_branch_cnn": lambda tasks, size: TwoBranchCNN(tasks),
}
TORCHVISION: tuple[str, ...] = tuple(models.list_models(module=models))
TIMM = "timm/"  # how the names of timm's networks begin


def build_backbone(name: str, tasks: tuple[Task, ...], image_size: int) -> tuple[nn.Module, int]:
    """A backbone with random weights, and its number of features; raises UserError for an unknown name or unfit images.

    Those of torchvision's vgg* and alexnet are their convolutions and global average pooling alone, since their dense
    layers need images of 224 pixels.

    Shape: ``(batch, 3, image_size, image_size)`` float to ``(batch, features)``, or to one of these for each task.
    """
    try:
        if name in OURS:
            network = OURS[name](tasks, image_size)
        elif name in TORCHVISION:
            network = _from_torchvision(name, image_size)
        elif name.startswith(TIMM):
            network = timm_backbone(name, image_size)
        else:
            known = f"{', '.join(OURS)}, torchvision's classification networks, {TIMM}NAME"
            nearest = did_you_mean(name, (*OURS, *TORCHVISION))
            raise UserError(f"no backbone is called '{name}'{nearest}; known: {known}.")
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
    """One of timm's networks, by ``timm/NAME``, with random weights or with those that timm downloads."""
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
