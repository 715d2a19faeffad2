"""MobileNet V1 and V2 with strides for small images.

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", arXiv 1704.04861, table 1.
Sandler et al.: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv 1801.04381, table 2.
For images of 32 x 32 the first convolution (V2: also the second stage) keeps the resolution that the papers halve; what
reaches the mean pooling is 2 x 2 (V2: 4 x 4).
"""

from __future__ import annotations

from torch import Tensor, nn

# Output channels and stride of each depthwise separable block.
V1_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
# t, c, n, s of the paper: expansion, output channels, blocks, stride of the first block.
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV1(nn.Module):
    """Thirteen depthwise separable blocks: 3.2 M parameters at 10 classes.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        width: the paper's width multiplier.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs = _channels(32, width)
        layers = [_unit(in_channels, inputs, 3, 1, 1, nn.ReLU)]
        for channels, stride in V1_BLOCKS:
            outputs = _channels(channels, width)
            layers += [_unit(inputs, inputs, 3, stride, inputs, nn.ReLU), _unit(inputs, outputs, 1, 1, 1, nn.ReLU)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """1 x 1 to ``expansion`` times the channels, 3 x 3 depthwise, linear 1 x 1; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [] if expansion == 1 else [_unit(inputs, hidden, 1, 1, 1, nn.ReLU6)]
        self.block = nn.Sequential(
            *widen,
            _unit(hidden, hidden, 3, stride, hidden, nn.ReLU6),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks: 2.2 M parameters at 10 classes.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        width: the paper's width multiplier; the last convolution keeps 1,280 channels below 1.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs, last = _channels(32, width), _channels(1280, max(1.0, width))
        layers: list[nn.Module] = [_unit(in_channels, inputs, 3, 1, 1, nn.ReLU6)]
        for expansion, channels, count, stride in V2_STAGES:
            outputs = _channels(channels, width)
            for step in [stride] + [1] * (count - 1):
                layers.append(InvertedResidual(inputs, outputs, step, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _unit(inputs, last, 1, 1, 1, nn.ReLU6))
        self.classifier = nn.Linear(last, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _channels(channels: int, width: float) -> int:
    """Channels times the width multiplier, as the nearest multiple of 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


def _unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int, active: type[nn.Module]) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), active())


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
