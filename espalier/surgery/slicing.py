"""New tensors for a change of shape: kept slices or zeros, in the memory format and strides that the optimizer expects.

Fused optimizers compute wrong updates, without an error, where strides of state and parameter differ: both get the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.structure import Shape
from espalier.surgery.optimizer_states import Axes

Dims = Mapping[int, tuple[int, ...]]  # dimension -> kept indices


@functools.lru_cache(256)
def _on(device: torch.device, indices: tuple[int, ...]) -> Tensor:
    """Indices as a tensor: weights, gradients and moments of several layers keep the same ones."""
    return torch.tensor(indices, device=device)


def sliced(tensor: Tensor, dims: Dims) -> Tensor:
    """The kept part, in the memory format of the whole, which ``index_select`` forgets."""
    part = tensor.detach()
    for dim, indices in dims.items():
        part = part.index_select(dim, _on(part.device, indices))
    return _empty(tensor, part.shape).copy_(part)


def sliced_gradient(tensor: Tensor, dims: Dims, new: Tensor) -> Tensor | None:
    """Whoever accumulates gradients over several batches may cut between two of them."""
    gradient = tensor.grad
    if gradient is None or gradient.layout == torch.strided:
        return None if gradient is None else _with_strides_of(new, sliced(gradient, dims))
    for dim, indices in dims.items():
        gradient = gradient.index_select(dim, _on(gradient.device, indices))
    return gradient


def zeros(tensor: Tensor, shape: Shape) -> Tensor:
    return _empty(tensor, shape).zero_()


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=_memory_format(like))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """By the strides: where dimensions have size 1, a tensor is contiguous in both formats but strides still tell which."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last):
        plain = torch.empty(tensor.shape, device="meta").stride()
        exact = torch.empty(tensor.shape, device="meta", memory_format=last).stride()
        if not tensor.is_contiguous() or (tensor.stride() == exact and exact != plain):
            return last
    return torch.contiguous_format


def _with_strides_of(parameter: Tensor, state: Tensor) -> Tensor:
    if state.shape != parameter.shape or state.stride() == parameter.stride():
        return state
    return torch.empty_like(parameter, dtype=state.dtype, device=state.device).copy_(state)


def sliced_state(parameter: Tensor, state: Tensor, axes: Axes, change: tuple[Dims, Tensor]) -> Tensor:
    dims, new = change
    own = {place: dims[axis] for place, axis in enumerate(axes) if axis is not None and axis in dims}
    return _with_strides_of(new, sliced(state, own))


def zeros_state(parameter: Tensor, state: Tensor, axes: Axes, new: Tensor) -> Tensor:
    return _with_strides_of(new, zeros(state, tuple(1 if axis is None else new.shape[axis] for axis in axes)))


def sliced_mask(name: str, mask: Tensor, shape: Shape, dims: Dims, new: Tensor) -> Tensor:
    if tuple(mask.shape) != shape:
        raise EspalierError(f"The mask of {name} has shape {list(mask.shape)}, but {name} has {list(shape)}.")
    return _with_strides_of(new, sliced(mask, dims))
