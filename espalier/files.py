"""Files of models: safetensors with a JSON header, no pickle, strict.

- The ``Structure`` of a cut model is in the header, so ``load`` can shape a freshly built dense model in a process that never
  saw the pruning.
- A tensor with many zeros is stored as a bit mask and its live values, where that is smaller. Only the bit pattern of +0.0
  counts as zero, so every tensor comes back bit by bit.
- Tensors that share memory are stored once.
- How the model was built can be recorded (``builder``), as names and plain values only.
- Equal weights give equal bytes; a file is written beside its place and renamed into it.
- A file is compared with the model before anything is unpacked, and the model is touched only when all of it is right.
"""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from espalier.atomic import replacing
from espalier.builder import Builder
from espalier.errors import EspalierError
from espalier.masks import pack_bits, unpack_bits
from espalier.structure import Structure
from espalier.surgery import structure_of, target_shapes
from espalier.surgery.reshaping import take_shape
from espalier.wrappers import unwrap

FORMAT = "1"
MASK, VALUES = "\x1fmask", "\x1fvalues"  # suffixes that no module name can have
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Content = Mapping[str, Any]


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    builder: Builder | Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write all parameters and persistent buffers of ``model`` to a safetensors file.

    Args:
        model: any module; of a wrapped one (torch.compile, DistributedDataParallel) the inner module is saved.
        path: the file to write or replace.
        builder: how the model was built, so that ``es.load(path)`` can build it again:
            ``{"library": "timm", "name": "resnet18", "arguments": {"num_classes": 10}}``. The library is "timm",
            "torchvision" or "espalier", the name one that it lists, the arguments plain values.
        metadata: anything of your own that JSON can hold; ``read_metadata`` gives it back.

    Raises:
        EspalierError: if the model cannot be stored exactly, the builder is more than a name with plain values, or the file
            cannot be written (no folder, no space); an old file stays as it was.

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
    recorded = None if builder is None else Builder.read(builder)
    _check_savable(model)
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
    if recorded is not None:
        content["builder"] = recorded.content()
    if metadata is not None:
        content["metadata"] = dict(metadata)
    _write(Path(path), _bytes(tensors, content))


def load_model(path: str | Path, model: nn.Module) -> nn.Module:
    """Fill a freshly built (dense) model from a file of ``save_model``; it is cut to the file's structure first.

    Args:
        path: the file.
        model: a model of the same constructor; its devices and memory formats stay. If it is in training with a Pruner
            that cuts, its optimizers and followers take the shapes too.

    Returns:
        ``model``.

    Raises:
        EspalierError: if the file is missing, damaged, or belongs to another model; the sentence names both. The model is as
            it was then.
    """
    inner = unwrap(model)
    if any(tensor.is_meta for tensor in inner.state_dict().values() if isinstance(tensor, Tensor)):
        raise EspalierError("The model is on the meta device and cannot take weights: call model.to_empty(device='cpu') first.")

    with _opened(Path(path)) as (file, content):
        try:
            structure = Structure.from_json(content["structure"])
            _check_fit(inner, structure, _stored_shapes(file, content))
            tensors = _tensors(file, content, inner.state_dict())
            take_shape(inner, structure)
        except EspalierError as error:
            raise EspalierError(f"{str(path)!r} does not fit this {type(inner).__name__}: {error}") from error
    state = inner.state_dict()
    state.update(tensors)  # the state dict of the model itself brings the versions that its modules want to see
    inner.load_state_dict(state)
    return model


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What was given to ``save_model`` as ``metadata``; empty if nothing was.

    Raises:
        EspalierError: if the file is missing, damaged or none of espalier's.
    """
    with _opened(Path(path)) as (_, content):
        return dict(content.get("metadata", {}))


def read_builder(path: str | Path) -> Builder | None:
    """How the model in a file was built; None if that was not recorded.

    Raises:
        EspalierError: if the file is missing, damaged or none of espalier's, or its record is more than a name with plain
            values.
    """
    with _opened(Path(path)) as (_, content):
        if "builder" not in content:
            return None
        try:
            return Builder.read(content["builder"])
        except EspalierError as error:
            raise EspalierError(f"{str(path)!r} is not to be trusted with building its model: {error}") from error


# -- what fits what ------------------------------------------------------------------------------------------------


def _check_savable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name and not structure_of(module).is_dense:
            raise EspalierError(f"{name!r} was cut on its own, and its record would be lost in a file of the whole: save it.")
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise EspalierError(f"{name} is on the meta device and has no values to save.")


def _stored_shapes(file: Any, content: Content) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the file by its name in the model; nothing is read but headers."""
    parts = {name + suffix for name in content["sparse"] for suffix in (MASK, VALUES)}
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if name not in parts}  # noqa: SIM118
    shapes |= {name: tuple(shape) for name, shape in content["sparse"].items()}
    return shapes | {name: shapes[first] for name, first in content["aliases"].items()}


def _check_fit(model: nn.Module, structure: Structure, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Names and shapes, before anything is unpacked: a header can claim any size."""
    state = model.state_dict()
    missing, extra = sorted(state.keys() - stored.keys()), sorted(stored.keys() - state.keys())
    if missing or extra:
        what = f"the file lacks {missing[0]}" if missing else f"the file has {extra[0]}, which the model has not"
        raise EspalierError(f"{what} ({len(missing)} missing, {len(extra)} too many).")
    shapes = target_shapes(model, structure)
    for name in state:
        wanted = shapes.get(name, stored[name])  # the extra state of a module may have any shape
        if stored[name] != wanted:
            raise EspalierError(f"{name} is {reprlib.repr(list(stored[name]))} in the file and {list(wanted)} in the model.")


def _tensors(file: Any, content: Content, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in state.keys() - content["aliases"].keys():
        if name in content["sparse"]:
            shape = torch.Size(content["sparse"][name])
            tensors[name] = _unpack(name, shape, file.get_tensor(name + MASK), file.get_tensor(name + VALUES))
        else:
            tensors[name] = file.get_tensor(name)
    tensors |= {name: tensors[first] for name, first in content["aliases"].items()}
    for name, mine in state.items():
        if tensors[name].dtype != mine.dtype:
            raise EspalierError(f"{name} is {tensors[name].dtype} in the file and {mine.dtype} in the model.")
    return tensors


# -- sparse tensors ------------------------------------------------------------------------------------------------


def _pack(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Bit mask and live values, or None where that would not be smaller."""
    words = WORDS.get(tensor.element_size())
    if words is None or not tensor.is_floating_point() or tensor.dim() == 0:
        return None
    flat = tensor.reshape(-1).view(words)  # as integers: indexing bfloat16 changes the bits of NaN
    live = flat != 0
    alive = int(live.sum())
    if alive * tensor.element_size() + (flat.numel() + 7) // 8 >= flat.numel() * tensor.element_size():
        return None
    return pack_bits(live), flat[live].view(tensor.dtype)


def _unpack(name: str, shape: torch.Size, bits: Tensor, values: Tensor) -> Tensor:
    size = shape.numel()
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != (size + 7) // 8:
        raise EspalierError(f"the mask of {name} does not have {size} bits.")
    live = unpack_bits(bits, (size,), bits.device)
    words = WORDS.get(values.element_size())
    if words is None or values.dim() != 1 or int(live.sum()) != values.numel():
        raise EspalierError(f"the mask of {name} and its values do not belong together.")
    dense = torch.zeros(size, dtype=words)
    dense[live] = values.view(words)
    return dense.view(values.dtype).view(shape)


# -- the file ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Content]]:
    """A file of espalier's and its header; whatever is wrong with it, while it is read too, becomes one sentence."""
    if not path.is_file():
        raise EspalierError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["espalier"])
            if content["format"] != FORMAT:
                raise EspalierError(f"{str(path)!r} has format {content['format']!r}; this espalier reads {FORMAT!r}.")
            yield file, content
    except EspalierError:
        raise
    except (SafetensorError, OSError) as error:
        raise EspalierError(f"{str(path)!r} is damaged or no safetensors file ({error}).") from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        why = f"its header is missing or malformed ({type(error).__name__})"
        raise EspalierError(f"{str(path)!r} was not written by espalier, or is damaged: {why}.") from error


def _bytes(tensors: Mapping[str, Tensor], content: Content) -> bytes:
    try:
        # One key only: safetensors writes several metadata keys in no fixed order, and equal models must give equal bytes.
        return to_bytes(dict(tensors), metadata={"espalier": json.dumps(content, sort_keys=True)})
    except (TypeError, ValueError, RecursionError) as error:
        raise EspalierError(f"metadata must be something that JSON can hold ({error}).") from error
    except (SafetensorError, KeyError) as error:
        raise EspalierError(f"The model has tensors that safetensors cannot hold ({error}): convert them first.") from error


def _write(path: Path, data: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise EspalierError(
            f"{str(path)!r} could not be written ({error.strerror}): free some space or choose another place."
        ) from error
