"""Masks in files: safetensors, eight entries a byte, no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from espalier.atomic import replacing
from espalier.errors import EspalierError
from espalier.lottery.tickets import Tickets
from espalier.masks import pack_bits, unpack_bits

KIND = "espalier masks 1"


def save_masks(masks: Tickets, path: str | Path) -> None:
    """Write the masks of a ticket; equal masks give equal bytes.

    Args:
        masks: name of a weight -> bool tensor, True where it stays.
        path: the file to write or replace.

    Raises:
        EspalierError: something is no bool tensor, or the file cannot be written; an old one stays as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_masks({"w": torch.tensor([[True, False, True]])}, f"{folder}/m.safetensors")
        ...     load_masks(f"{folder}/m.safetensors")
        {'w': tensor([[ True, False,  True]])}
    """
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise EspalierError(f"A mask is a bool tensor, True where the weight stays; that of {name} is {_kind(mask)}.")
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    content = save(
        {name: pack_bits(mask.detach().cpu()) for name, mask in masks.items()},
        metadata={KIND: json.dumps(shapes, sort_keys=True)},  # one entry: several stand in any order
    )
    try:
        with replacing(Path(path)) as file:
            file.write(content)
    except OSError as error:
        raise EspalierError(f"The masks {str(path)!r} could not be written ({error.strerror or error}).") from None


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """Read the masks of a ticket, as bool tensors on the CPU.

    Raises:
        EspalierError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in list(file.keys())}
    except FileNotFoundError:
        raise EspalierError(f"There are no masks {str(path)!r}: es.lottery.save_masks writes such a file.") from None
    except (OSError, SafetensorError) as error:
        raise EspalierError(f"The masks {str(path)!r} cannot be read ({error}).") from None
    if KIND not in about:
        raise EspalierError(f"{str(path)!r} holds no masks of a ticket: es.lottery.save_masks writes such a file.")
    try:
        shapes: dict[str, list[int]] = json.loads(about[KIND])
        return {name: unpack_bits(packed[name], shape, torch.device("cpu")) for name, shape in sorted(shapes.items())}
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise EspalierError(f"The masks {str(path)!r} are damaged: their shapes do not fit their bits.") from None


def _kind(value: object) -> str:
    return f"of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
