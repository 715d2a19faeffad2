"""Models by name. A new family is one file and its lines in ``MODELS``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from espalier.builder import Builder
from espalier.errors import EspalierError
from espalier.names import unknown
from espalier.tasks.classification.models.convnet import ConvNet4
from espalier.tasks.classification.models.mobilenet import MobileNetV1, MobileNetV2
from espalier.tasks.classification.models.resnet import Basic, Bottleneck, CifarResNet, ResNet
from espalier.tasks.classification.models.vgg import VGG
from espalier.tasks.classification.models.weights import load_weights
from espalier.tasks.classification.models.zoo import ARGUMENTS, ZOOS

__all__ = ["MODELS", "build_model", "builder_of", "load_weights", "model_names"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 56, 110)},
    "resnet": CifarResNet,  # any depth of 6n + 2: {name: resnet, depth: 44, width: 32}
    "resnet18": partial(ResNet, (2, 2, 2, 2), Basic),
    "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
    "vgg16_bn": partial(VGG, 16),
    "vgg19_bn": partial(VGG, 19),
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "convnet4": ConvNet4,
}
PRETRAINED = "pretrained"


def model_names() -> list[str]:
    """Names that ``build_model`` knows, besides ``torchvision:NAME`` and ``timm:NAME``."""
    return sorted(MODELS)


def build_model(name: str, *, num_classes: int, in_channels: int = 3, weights: str | None = None, **args: Any) -> nn.Module:
    """A model, freshly initialised from torch's global generator or with start weights.

    Args:
        name: one of ``model_names()``, ``torchvision:NAME`` or ``timm:NAME``.
        num_classes: outputs.
        in_channels: channels of the images.
        weights: a ``.safetensors`` or ``.pt`` file, which must fit to the last tensor; or "pretrained", which fetches the
            weights that torchvision or timm publish. Nothing else uses the network.
        args: further arguments of the model, ``width=8`` say.

    Raises:
        EspalierError: an unknown name, or weights that are missing or do not fit.
        TypeError: an argument that the model does not know.

    Example:
        >>> sum(p.numel() for p in build_model("resnet20", num_classes=10).parameters())
        269722
    """
    zoo, _, inner = name.partition(":")
    if zoo in ZOOS and inner:
        options = {"num_classes": num_classes, "in_channels": in_channels, "pretrained": weights == PRETRAINED}
        model = ZOOS[zoo](inner, **options, **args)
    elif name not in MODELS:
        raise unknown("model", name, [*MODELS, *(f"{zoo}:NAME" for zoo in ZOOS)])
    elif weights == PRETRAINED:
        raise EspalierError(f"There are no pretrained weights for {name!r}: give a file, or a torchvision: or timm: model.")
    else:
        model = MODELS[name](num_classes=num_classes, in_channels=in_channels, **args)
    return model if weights in (None, PRETRAINED) else load_weights(model, str(weights), name)


def builder_of(name: str, *, num_classes: int, in_channels: int = 3, **args: Any) -> Builder | None:
    """The record with which ``es.load`` builds the model of ``build_model`` again; None if its arguments are no plain values.

    Example:
        >>> builder_of("timm:resnet18", num_classes=10).content()
        {'library': 'timm', 'name': 'resnet18', 'arguments': {'num_classes': 10, 'in_chans': 3}}
    """
    zoo, _, inner = name.partition(":")
    try:
        if zoo in ARGUMENTS and inner:
            return Builder(zoo, inner, ARGUMENTS[zoo](inner, num_classes, in_channels, args))
        return Builder("espalier", name, {"num_classes": num_classes, "in_channels": in_channels, **args})
    except EspalierError:
        return None
