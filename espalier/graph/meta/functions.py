"""What functions return on the meta device, said at once.

Each returns empty results as its function does, or None for whatever is unusual: then the function is taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from espalier.graph.integers import plain
from espalier.graph.meta import operations


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``torch.nn.functional.linear`` of vectors that lie in one more dimension or in several."""
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not _all_meta(x, weight, bias):
        return None
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        return None
    return operations.empty((*x.shape[:-1], weight.shape[0]), x)


def matmul(one: Tensor, two: Tensor) -> Tensor | None:
    """``torch.matmul`` of equally many matrices."""
    if one.dim() < 3 or one.shape[:-2] != two.shape[:-2] or one.shape[-1] != two.shape[-2] or not _all_meta(one, two):
        return None
    return operations.empty((*one.shape[:-1], two.shape[-1]), one)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, dropout: Any, *settings: Any) -> Tensor | None:
    """``torch.nn.functional.scaled_dot_product_attention`` without a mask, of equally many queries, keys and values."""
    causal, _, grouped = settings
    if mask is not None or causal or grouped or query.dim() < 3 or query.shape[:-2] != key.shape[:-2]:
        return None
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1] or not _all_meta(query, key, value):
        return None
    return operations.empty((*query.shape[:-1], value.shape[-1]), query)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor | None:
    """``torch.nn.functional.conv2d`` and its like."""
    return operations.convolution(x, weight, bias, *settings) if _all_meta(x, weight, bias) else None


def batch_norm(x: Tensor, *rest: Any) -> Tensor | None:
    """``torch.nn.functional.batch_norm``, of (x, weight, bias, mean, variance)."""
    fits = _all_meta(x, *rest[:4]) and operations.have_length(x.shape[1], *rest[:4])
    return operations.like(x) if fits else None


def layer_norm(x: Tensor, shape: Any, *learned: Any) -> Tensor | None:
    """``torch.nn.functional.layer_norm``."""
    fits = _all_meta(x, *learned[:2]) and operations.is_normalised(x, shape, *learned[:2])
    return operations.empty(x.shape, x) if fits else None


def rms_norm(x: Tensor, shape: Any, weight: Any, *_: Any) -> Tensor | None:
    """``torch.nn.functional.rms_norm``."""
    return layer_norm(x, shape, weight)


def recurrent(
    x: Tensor,
    hidden: Any,
    weights: Any,
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    two_ways: bool,
    batch_first: bool,
) -> tuple[Tensor, ...] | None:
    """``torch.lstm`` and its like, of sequences of equal length or packed ones."""
    states = tuple(hidden) if isinstance(hidden, tuple | list) else (hidden,)
    if x.dim() not in (2, 3) or not isinstance(weights, list) or not _all_meta(x, *states, *weights):
        return None
    directions = 2 if two_ways else 1
    batch = states[0].shape[1] if x.dim() == 2 else x.shape[0 if batch_first else 1]
    if (
        len(weights) % states[0].shape[0]
        or weights[0].shape[1] != x.shape[-1]
        or states[0].shape[:2] != (plain(layers) * directions, batch)
    ):
        return None
    out = (*x.shape[:-1], directions * states[0].shape[2])
    return operations.empty(out, x), *[operations.empty(state.shape, x) for state in states]


def unknown(*_: Any) -> None:
    """Of functions whose shapes follow from values."""


def cell(x: Tensor, hidden: Any, from_input: Tensor, from_state: Tensor, *biases: Tensor | None) -> Any:
    """``torch.lstm_cell`` and its like."""
    states = tuple(hidden) if isinstance(hidden, tuple | list) else (hidden,)
    if x.dim() != 2 or not _all_meta(x, *states, from_input, from_state, *biases):
        return None
    shape = (x.shape[0], from_state.shape[1])
    if from_input.shape[1] != x.shape[1] or not all([state.shape == shape for state in states]):
        return None
    made = [operations.empty(shape, x) for _ in states]
    return tuple(made) if isinstance(hidden, tuple | list) else made[0]


def cat(tensors: Sequence[Tensor], dim: int) -> Tensor | None:
    """``torch.cat``."""
    return operations.cat(tensors, dim) if _all_meta(*tensors) else None


def entries(x: Tensor, *others: Any) -> Tensor | None:
    """What works entry by entry."""
    return (
        operations.elementwise(x, *others) if _all_meta(x, *(other for other in others if isinstance(other, Tensor))) else None
    )


def in_place(x: Tensor, other: Tensor) -> Tensor | None:
    """What changes ``x`` entry by entry."""
    return operations.in_place(x, other) if _all_meta(x, other) else None


def activation(x: Tensor, inplace: Any) -> Tensor | None:
    """``torch.nn.functional.relu`` and its like; what works in place returns what it was given."""
    return (x if inplace else operations.like(x)) if _all_meta(x) else None


def _all_meta(first: Tensor, *others: Tensor | None) -> bool:
    """Whether all are real numbers of one kind on the meta device."""
    dtype = first.dtype
    for tensor in others:
        if tensor is not None and (tensor.dtype != dtype or not tensor.is_meta):
            return False
    return first.is_meta and first.is_floating_point()
