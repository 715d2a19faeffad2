"""VGG with batch norm for small images.

Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv 1409.1556:
table 1, columns D (VGG-16) and E (VGG-19). For CIFAR the three large linear layers give way to one, and each convolution is
followed by batch norm, as is common since Zagoruyko's "92.45 % on CIFAR-10 in Torch" (2015).
"""

from __future__ import annotations

from torch import Tensor, nn

from espalier.errors import EspalierError

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions between poolings


class VGG(nn.Module):
    """VGG-16 or -19 with batch norm: 14.7 M or 20.0 M parameters at 10 classes.

    Args:
        depth: layers with weights by the paper's count (it includes its three linear layers): 11, 13, 16 or 19.
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first stage; the next have 2, 4, 8 and 8 times as many.
    """

    def __init__(self, depth: int = 16, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in STAGES:
            raise EspalierError(f"A VGG has a depth of {', '.join(map(str, STAGES))}; got {depth}.")
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage, count in enumerate(STAGES[depth]):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), at least 32 x 32 -> logits (B, num_classes)."""
        if min(x.shape[-2:]) < 32:
            raise EspalierError(
                f"VGG halves its images five times and needs 32 x 32 pixels, not {x.shape[-2]} x {x.shape[-1]}: "
                f"set data.image_size=32, or choose another model."
            )
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]
