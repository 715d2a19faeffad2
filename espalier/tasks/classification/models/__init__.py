"""Models by name. A new family is one file and its lines in ``MODELS``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from espalier.errors import EspalierError
from espalier.tasks.classification.models.convnet import ConvNet4
from espalier.tasks.classification.models.resnet import Basic, Bottleneck, CifarResNet, ResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 56, 110)},
    "resnet18": partial(ResNet, (2, 2, 2, 2), Basic),
    "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
    "convnet4": ConvNet4,
}


def model_names() -> list[str]:
    """Names that ``build_model`` knows."""
    return sorted(MODELS)


def build_model(name: str, *, num_classes: int, in_channels: int = 3, weights: str | None = None, **args: Any) -> nn.Module:
    """A freshly initialised model."""
    if name not in MODELS:
        raise EspalierError(f"There is no model {name!r}; known are {', '.join(model_names())}.")
    return MODELS[name](num_classes=num_classes, in_channels=in_channels, **args)
