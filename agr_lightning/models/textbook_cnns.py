"""`plain_cnn` and `two_branch_cnn`: textbook networks, as student projects build them."""

from torch import Tensor, nn

from agr_lightning.labels import Task

# Channels of the convolutions, and features of the dense layers.
_WIDTHS, _TRUNK, _BRANCH, _DENSE = (32, 64, 128, 256), (32, 64), (128, 256, 256), 256


class PlainCNN(nn.Sequential):
    """Four times convolution and pooling, then flattened into a dense layer: it fits one image size only.

    0.4 million parameters in the convolutions and, at 128x128, 4.2 million in the dense layer.

    Shape: ``(batch, 3, image_size, image_size)`` float to ``(batch, features)``.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.convolutions = _blocks(3, _WIDTHS, normalised=False)
        side = image_size // 2 ** len(_WIDTHS)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(_WIDTHS[-1] * side * side, _DENSE), nn.ReLU())
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
