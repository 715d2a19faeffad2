"""How the verbs name a model: one of ours, one of timm or torchvision, or a file of weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.names import unknown

if TYPE_CHECKING:
    from espalier.builder import Builder

MODEL_HELP = "A name of `espalier list models`, timm/NAME, torchvision/NAME, or a model.safetensors."
INPUT_HELP = "Channels, height and width of one image; default: what the file records, or 3,224,224."
CLASSES_HELP = "Outputs of a model that is named; a file knows its own."
INPUT = (3, 224, 224)
ZOOS = ("timm", "torchvision")


def model_named(text: str, *, classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build the model that a command line names, in evaluation mode.

    Args:
        text: a name of ours, ``timm/NAME`` or ``torchvision/NAME`` (a colon will do), or a file of `es.save` that records how
            its model is built.
        classes: outputs; a file knows its own.
        in_channels: channels of the images; a file knows its own.

    Raises:
        EspalierError: nothing has this name, or the model is not built with these arguments.

    Example:
        >>> sum(p.numel() for p in model_named("resnet20", classes=10).parameters())
        269722
    """
    import espalier as es
    from espalier.rebuild import build

    if (path := _file(text)) is not None:
        builder_named(text)  # refuses a file that does not say
        return es.load(path).eval()
    return build(builder_named(text, classes=classes, in_channels=in_channels)).eval()


def builder_named(text: str, *, classes: int = 1000, in_channels: int = 3) -> Builder:
    """The constructor and arguments that a name, or a file's record, means.

    Raises:
        EspalierError: nothing has this name, or the file does not say how its model is built.

    Example:
        >>> print(builder_named("timm/resnet18", classes=10))
        timm/resnet18
    """
    from espalier.files import read_builder
    from espalier.tasks.classification.models import MODELS, builder_of

    if (path := _file(text)) is not None:
        recorded = read_builder(path)
        if recorded is None:
            raise EspalierError(f"{text!r} does not say how its model is built: save it by es.save(model, path, builder=...).")
        return recorded
    zoo, _, name = text.replace(":", "/", 1).partition("/")
    if not (zoo in ZOOS and name) and text not in MODELS:
        raise unknown("model", text, [*MODELS, *(f"{zoo}/NAME" for zoo in ZOOS)])
    found = builder_of(f"{zoo}:{name}" if name else text, num_classes=classes, in_channels=in_channels)
    if found is None:
        raise EspalierError(f"{text!r} is no name of a {zoo} model: give the architecture alone, without tag or folder.")
    return found


def input_shape(model: str, given: str | None) -> tuple[int, ...]:
    """The shape of one input: as given on the command line, else as the model's file records it, else 3,224,224.

    Raises:
        EspalierError: ``given`` is no list of positive whole numbers.
    """
    if given is not None:
        return read_shape(given)
    if (path := _file(model)) is not None:
        from espalier.files import read_metadata

        recorded = read_metadata(path).get("input")
        if isinstance(recorded, list) and recorded and all(type(size) is int and size > 0 for size in recorded):
            return tuple(recorded)
    return INPUT


def read_shape(text: str, option: str = "--input") -> tuple[int, ...]:
    """Read ``3,224,224``.

    Raises:
        EspalierError: it is no list of positive whole numbers.
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise EspalierError(f"{option} takes whole numbers of at least 1 separated by commas, say 3,224,224, not {text!r}.")
    return shape


def example_input(shape: tuple[int, ...], batch: int = 1, seed: int = 0) -> Tensor:
    """Random inputs (batch, *shape), the same ones in every run."""
    try:
        numbers = torch.rand(batch * math.prod(shape), generator=torch.Generator().manual_seed(seed))
    except RuntimeError:
        size = " x ".join(map(str, (batch, *shape)))
        raise EspalierError(f"Inputs of {size} do not fit into memory: give a smaller --input or batch.") from None
    return numbers.view(batch, *shape)


def _file(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path if path.suffix == ".safetensors" or path.is_file() else None
