"""Files of models: safetensors with a JSON header, no pickle, strict.

- The ``Structure`` of a cut model is in the header, so ``load`` can shape a freshly built dense model in a process that never
  saw the pruning.
- A tensor with many zeros is stored as a bit mask and its live values, where that is smaller. Only the bit pattern of +0.0
  counts as zero, so every tensor comes back bit by bit.
- Tensors that share memory are stored once.
- Equal weights give equal bytes; a file is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.masks import pack_bits, unpack_bits
from espalier.reshaping import take_shape
from espalier.structure import Structure
from espalier.surgery import structure_of
from espalier.wrappers import unwrap

FORMAT = "1"
MASK, VALUES = "\x1fmask", "\x1fvalues"  # suffixes that no module name can have
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write all parameters and persistent buffers of ``model`` to a safetensors file.

    Args:
        model: any module; of a wrapped one (torch.compile, DistributedDataParallel) the inner module is saved.
        path: the file to write or replace.

    Raises:
        EspalierError: if the file cannot be written (no folder, no space); an old file stays as it was.

    Example:
        >>> import tempfile, torch, espalier as es
        >>> model = torch.nn.Linear(64, 64)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     es.save(model, f"{folder}/m.safetensors")
        ...     again = es.load(f"{folder}/m.safetensors", torch.nn.Linear(64, 64))
        >>> torch.equal(again.weight, model.weight)
        True
    """
    model = unwrap(model)
    tensors: dict[str, Tensor] = {}
    sparse: dict[str, list[int]] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise EspalierError(f"The state {name!r} of the model is no tensor, so it cannot be saved.")
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        if identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        tensor = tensor.detach().cpu().contiguous()
        packed = _pack(tensor)
        if packed is None:
            tensors[name] = tensor
        else:
            sparse[name] = list(tensor.shape)
            tensors[name + MASK], tensors[name + VALUES] = packed
    content = {"format": FORMAT, "structure": structure_of(model).to_json(), "sparse": sparse, "aliases": aliases}
    # One key only: safetensors writes several metadata keys in no fixed order, and equal models must give equal bytes.
    _write(Path(path), to_bytes(tensors, metadata={"espalier": json.dumps(content, sort_keys=True)}))


def load_model(path: str | Path, model: nn.Module) -> nn.Module:
    """Fill a freshly built (dense) model from a file of ``save_model``; it is cut to the file's structure first.

    Args:
        path: the file.
        model: a model of the same constructor; its devices and memory formats stay.

    Returns:
        ``model``.

    Raises:
        EspalierError: if the file is missing, damaged, or belongs to another model; the sentence names both.
    """
    path = Path(path)
    inner = unwrap(model)
    tensors, content = _read(path)
    try:
        structure = Structure.from_json(content["structure"])
        take_shape(inner, structure)
        _fill(inner, tensors)
    except EspalierError as error:
        raise EspalierError(f"{str(path)!r} does not fit this {type(inner).__name__}: {error}") from error
    return model


# -- sparse tensors ------------------------------------------------------------------------------------------------


def _pack(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bit mask and live values, or None where that would not be smaller."""
    words = WORDS.get(tensor.element_size())
    if words is None or not tensor.is_floating_point() or tensor.dim() == 0:
        return None
    flat = tensor.reshape(-1)
    live = flat.view(words) != 0
    alive = int(live.sum())
    if alive * tensor.element_size() + (flat.numel() + 7) // 8 >= flat.numel() * tensor.element_size():
        return None
    return pack_bits(live), flat[live]


def _unpack(name: str, shape: list[int], bits: Tensor, values: Tensor) -> Tensor:
    size = 1
    for extent in shape:
        if isinstance(extent, bool) or not isinstance(extent, int) or extent < 0:
            raise EspalierError(f"the header gives {name} an impossible shape.")
        size *= extent
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != (size + 7) // 8:
        raise EspalierError(f"the mask of {name} does not have {size} bits.")
    live = unpack_bits(bits, (size,), bits.device)
    if values.dim() != 1 or int(live.sum()) != values.numel():
        raise EspalierError(f"the mask of {name} and its values do not belong together.")
    dense = torch.zeros(size, dtype=values.dtype)
    dense[live] = values
    return dense.view(shape)


# -- the file ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """All tensors, dense again, and the header."""
    if not path.is_file():
        raise EspalierError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise EspalierError(f"{str(path)!r} is damaged or no safetensors file ({error}).") from error
    try:
        content = json.loads(metadata["espalier"])
        if content["format"] != FORMAT:
            raise EspalierError(f"it has format {content['format']!r}; this espalier reads {FORMAT!r}.")
        for name, shape in content["sparse"].items():
            stored[name] = _unpack(name, shape, stored.pop(name + MASK), stored.pop(name + VALUES))
        for name, other in content["aliases"].items():
            stored[name] = stored[other]
        content["structure"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = error if isinstance(error, EspalierError) else f"its header is missing or malformed ({type(error).__name__})"
        raise EspalierError(f"{str(path)!r} was not written by espalier, or is damaged: {why}") from error
    return stored, content


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    missing, extra = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
    if missing or extra:
        what = f"the file lacks {missing[0]}" if missing else f"the file has {extra[0]}, which the model has not"
        raise EspalierError(f"{what} ({len(missing)} missing, {len(extra)} too many).")
    for name, mine in state.items():
        theirs = tensors[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise EspalierError(
                f"{name} is {theirs.dtype} {list(theirs.shape)} in the file and {mine.dtype} {list(mine.shape)} in the model."
            )
    with torch.no_grad():
        for name, mine in state.items():
            mine.copy_(tensors[name])


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise EspalierError(
            f"{str(path)!r} could not be written ({error.strerror}): free some space or choose a place."
        ) from error
