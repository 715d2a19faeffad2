"""Models of torchvision and timm by name: ``torchvision:resnet18``, ``timm:vit_tiny_patch16_224``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from espalier.errors import EspalierError
from espalier.names import unknown
from espalier.tasks.vision import timm, torchvision

WITH_AUXILIARY = ("googlenet", "inception_v3")  # have further outputs while they train, which our loss does not read


def torchvision_model(name: str, *, num_classes: int, in_channels: int, pretrained: bool, **args: Any) -> nn.Module:
    """A classification model of torchvision, freshly initialised or with its ImageNet weights.

    Pretrained weights of the last layer are left out where the number of classes is not theirs.
    """
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision model", name, known, show_all=False)
    if in_channels != 3:
        raise EspalierError(
            f"torchvision:{name} takes images of 3 channels and the data has {in_channels}: take a model of timm instead."
        )
    model: nn.Module = models.get_model(name, weights=None, **torchvision_arguments(name, num_classes, in_channels, args))
    if pretrained:
        held = _fetched(
            f"torchvision:{name}",
            lambda: models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True),
        )
        own = model.state_dict()
        # What differs in shape is the last layer; what the model does not know are auxiliary outputs.
        fitting = {key: value for key, value in held.items() if key in own and own[key].shape == value.shape}
        model.load_state_dict({**own, **fitting})
    return model


def timm_model(name: str, *, num_classes: int, in_channels: int, pretrained: bool, **args: Any) -> nn.Module:
    """A model of timm, freshly initialised or with its published weights; timm fits first and last layer to the data."""
    library = timm()
    if not library.is_model(name):
        raise unknown("timm model", name, library.list_models(), show_all=False)
    options = timm_arguments(name, num_classes, in_channels, args)
    model: nn.Module = library.create_model(name, pretrained=False, **options)
    if pretrained:
        model = _fetched(f"timm:{name}", lambda: library.create_model(name, pretrained=True, **options))
    return model


def torchvision_arguments(name: str, num_classes: int, in_channels: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """What torchvision's constructor is given; its models take images of 3 channels only."""
    silent = {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY else {}
    return {"num_classes": num_classes, **silent, **args}


def timm_arguments(name: str, num_classes: int, in_channels: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's constructor is given."""
    return {"num_classes": num_classes, "in_chans": in_channels, **args}


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # each library that fetches has exceptions of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EspalierError(f"The pretrained weights of {name} could not be fetched ({reason}).") from error


ZOOS: dict[str, Callable[..., nn.Module]] = {"torchvision": torchvision_model, "timm": timm_model}
ARGUMENTS: dict[str, Callable[..., dict[str, Any]]] = {"torchvision": torchvision_arguments, "timm": timm_arguments}
