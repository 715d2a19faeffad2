"""Models built again from the record in a file, and so loaded without a constructor at hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.builder import Builder
from espalier.errors import EspalierError
from espalier.files import load_model, read_builder
from espalier.names import unknown

# The tasks, timm and torchvision are imported when a model of theirs is built: `import espalier` needs none of them.


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a file of ``es.save``: into a freshly built (dense) model, or into one that is built as the file records.

    Args:
        path: the file.
        model: a model of the same constructor; its devices and memory formats stay. If it is in training with a Pruner
            that cuts, its optimizers and followers take the shapes too. None builds it from the file's ``builder``: only
            models that timm, torchvision or espalier list by name, never with weights of theirs, and nothing is fetched.

    Returns:
        ``model``, or the one that was built: on the CPU, in training mode.

    Raises:
        EspalierError: if the file is missing, damaged, belongs to another model, or does not record a builder that can be
            followed; the sentence says which. A given model is as it was then.

    Example:
        >>> import tempfile, espalier as es
        >>> from espalier.tasks.classification.models import build_model
        >>> model = build_model("convnet4", num_classes=10, width=4)
        >>> builder = {"library": "espalier", "name": "convnet4", "arguments": {"num_classes": 10, "width": 4}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     es.save(model, f"{folder}/m.safetensors", builder=builder)
        ...     type(es.load(f"{folder}/m.safetensors")).__name__
        'ConvNet4'
    """
    if model is not None:
        return load_model(path, model)
    builder = read_builder(path)
    if builder is None:
        raise EspalierError(
            f"{str(path)!r} does not say how its model is built: pass the model, es.load(path, model), or save with builder=..."
        )
    try:
        built = build(builder)
    except EspalierError as error:
        raise EspalierError(f"The model of {str(path)!r} cannot be built: {error}") from error
    return load_model(path, built)


def build(builder: Builder) -> nn.Module:
    """The model of a record, freshly initialised; torch's random state is left as it was.

    Raises:
        EspalierError: the library is not installed, does not list the name, or refuses the arguments.

    Example:
        >>> build(Builder("espalier", "resnet20", {"num_classes": 10})).fc.out_features
        10
    """
    construct = CONSTRUCTORS[builder.library](builder.name)
    try:
        with torch.random.fork_rng(devices=()):
            return construct(**builder.arguments)
    except EspalierError:
        raise
    except Exception as error:  # constructors complain in many ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EspalierError(f"{builder} does not take the arguments {builder.arguments} ({reason}).") from error


def _espalier(name: str) -> Callable[..., nn.Module]:
    from espalier.tasks.classification.models import MODELS

    if name not in MODELS:
        raise unknown("espalier model", name, MODELS)
    return MODELS[name]


def _timm(name: str) -> Callable[..., nn.Module]:
    from espalier.tasks.vision import timm

    library = timm()
    if name not in library.list_models():
        raise unknown("timm model", name, library.list_models(), show_all=False)
    return lambda **arguments: library.create_model(name, pretrained=False, **arguments)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from espalier.tasks.vision import torchvision

    models = torchvision().models
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models(), show_all=False)
    # Detectors and segmentation models fetch a backbone's weights unless they are told not to.
    known = inspect.signature(models.get_model_builder(name)).parameters
    without: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in known}
    return lambda **arguments: models.get_model(name, **without, **arguments)


CONSTRUCTORS: dict[str, Callable[[str], Callable[..., nn.Module]]] = {
    "espalier": _espalier,
    "timm": _timm,
    "torchvision": _torchvision,
}
