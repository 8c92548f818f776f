"""`agr_cnn` and `agr_cnn_small`: the project's own convolutional trunk, trained from scratch."""

import torch
from torch import Tensor, nn

# Channels of the stem and of the four stages.
WIDTHS = (32, 48, 96, 192, 384)
SMALL_WIDTHS = (24, 32, 64, 128, 224)
_BLOCKS = (1, 1, 2, 1)


class SqueezeExcite(nn.Module):
    """Channel attention: each channel is scaled by a gate computed from all channel means.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

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

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
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
