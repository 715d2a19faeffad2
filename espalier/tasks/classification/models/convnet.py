"""A small plain network: four convolutions with batch norm, for quick experiments and tests."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet4(nn.Module):
    """conv-bn-relu x 4 with strides 1, 2, 2, 2, mean pooling, linear: 61 k parameters and 3.4 M MACs at 32 x 32.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first convolution; the others have 2, 4 and 4 times as many.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]
