"""Python-level functions: the sizes that their callers wrote, and those that are replaced by plain operations while tracing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from espalier.graph.integers import Traced
from espalier.graph.labels import Attention, Frame, Labels
from espalier.graph.rows import merge

SIZED = {"view": 1, "reshape": 1, "expand": 1, "repeat": 1, "new_zeros": 1, "new_ones": 1, "new_empty": 1, "new_full": 1}
MADE = {"zeros", "ones", "empty", "rand", "randn", "full"}
ARGUMENT = {
    "layer_norm": (1, "normalized_shape"), "rms_norm": (1, "normalized_shape"), "group_norm": (1, "num_groups"),
    "pad": (1, "pad"),
    "conv1d": (6, "groups"), "conv2d": (6, "groups"), "conv3d": (6, "groups"), "broadcast_to": (1, "size"),
    "channel_shuffle": (1, "groups"),
    "conv_transpose1d": (6, "groups"), "conv_transpose2d": (6, "groups"), "conv_transpose3d": (6, "groups"),
}  # fmt: skip


BY_VALUE = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "truediv", "pow"}
ARITHMETIC = BY_VALUE | {form.format(name) for name in BY_VALUE for form in ("{}_", "__{}__", "__r{}__", "__i{}__")}


def lengths_as_values(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Traced]:
    """Lengths that become values of a tensor: ``x.sum(1) / x.shape[1]`` is a mean."""
    if name in ("tensor", "as_tensor", "scalar_tensor", "new_tensor"):
        return [value for value in _flat(args[name == "new_tensor" :][:1]) if isinstance(value, Traced)]
    if name in ("full", "full_like", "new_full"):
        return [
            value for value in (*args[1 + (name == "new_full") :][:1], kwargs.get("fill_value")) if isinstance(value, Traced)
        ]
    if name not in ARITHMETIC:
        return []
    given = [*args, *kwargs.values()]
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in given):
        return []
    return [value for value in given if isinstance(value, Traced)]


WRITTEN = {"__getitem__", "narrow", "split", "split_with_sizes", "unflatten", *ARGUMENT, *SIZED, *MADE}


@functools.cache
def _bare_frame(name: str) -> Frame:
    """Of a function whose arguments name no sizes."""
    return Frame(name)


def frame_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Frame:
    """The sizes or bounds in a call, as the code wrote them."""
    if name not in WRITTEN:
        return _bare_frame(name)
    if name == "__getitem__" and len(args) == 2:
        return Frame(name, bounds=_bounds(args[0], args[1]))
    if name == "narrow" and len(args) == 4:
        start = args[2]
        return Frame("narrow", bounds={args[1] % args[0].dim(): slice(start, start + args[3])})
    if name in ("split", "split_with_sizes"):
        sizes = kwargs.get("split_size", kwargs.get("split_size_or_sections", kwargs.get("split_sizes")))
        return Frame(name, _flat(args[1:2] if sizes is None else (sizes,)))
    if name == "unflatten":
        return Frame(name, _unflattened(*args, **kwargs))
    if name in ARGUMENT:
        place, keyword = ARGUMENT[name]
        value = args[place] if len(args) > place else kwargs.get(keyword, ())
        return Frame(name, _flat((value,)))
    if name in SIZED or name in MADE:
        keyword = kwargs.get("size", kwargs.get("shape", kwargs.get("repeats")))
        return Frame(name, _flat(args[SIZED.get(name, 0) :] if keyword is None else (keyword,)))
    return Frame(name)


def _flat(values: Sequence[Any]) -> list[int]:
    """Sizes given one by one or as a sequence; -1 for one in a tensor."""
    if len(values) >= 1 and isinstance(values[0], tuple | list):
        values = values[0]
    return [-1 if isinstance(value, Tensor) else value for value in values if isinstance(value, int | Tensor)]


def _unflattened(x: Tensor, dim: int, sizes: Sequence[int]) -> list[int]:
    rest: list[int] = [-1] * x.dim()
    place = int(dim) % x.dim()
    return [*rest[:place], *sizes, *rest[place + 1 :]]


def _bounds(x: Tensor, index: Any) -> dict[int, slice]:
    """Slices by the dimension at which they are applied, one after another."""
    items = index if isinstance(index, tuple) else (index,)
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    bounds: dict[int, slice] = {}
    dim = 0
    for item in items:
        if isinstance(item, slice):
            bounds[dim] = item
        if item is Ellipsis:
            dim += x.dim() - used
        elif not isinstance(item, int) or isinstance(item, bool):
            dim += 1
    return bounds


# -- attention -----------------------------------------------------------------------------------------------------


UNSCALABLE = "scales the attention, and what computes the query cannot be rescaled"


def attention(
    labels: Labels, query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None, **_: Any
) -> None:
    """Take note of attention with the default scale, 1 / sqrt of the width of a head: a cut of that width changes it."""
    width = labels.of(query)[-1]
    if scale is not None or width is None:
        return
    source = labels.source_of(query)
    if source is None:
        labels.freeze(width, UNSCALABLE)
        return
    labels.attention.append(Attention(labels.module, source, width, tuple(labels.of(query))))


def multi_head_attention(
    labels: Labels,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward`` in plain operations, so that its axes are seen.

    Shapes (length, batch, width) as there; without batch (length, width). Masks don't touch channels and are left out.
    """
    batched = query.dim() == 3
    q, k, v = (x if batched else x.unsqueeze(1) for x in (query, key, value))
    # The width of the residual stream must be heads x head_dim: torch asks for it.
    labels.demand(embed_dim_to_check, labels.of(q)[-1], q.shape[-1])
    packed = None if in_proj_weight is None or use_separate_proj_weight else _three(in_proj_weight)
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if packed is None else packed.unbind(0)
    bias = None if in_proj_bias is None else _three(in_proj_bias)
    biases = (None, None, None) if bias is None else bias.unbind(0)
    threes = [labels.of(x)[0] for x in (packed, bias) if x is not None]  # q, k and v are told apart in each
    picked = tuple(three[:1] for three in threes if three is not None)
    heads = [
        _unflatten(functional.linear(x, _given(w), b), -1, (num_heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((q, k, v), weights, biases, strict=True)
    ]
    count, width = labels.of(heads[0])[1], labels.of(heads[0])[3]
    labels.unify(labels.of(q)[-1], merge([(count, int(num_heads)), (width, heads[0].shape[-1])]), "multi_head_attention")
    for extra in (bias_k, bias_v):
        if extra is not None:
            labels.unify(labels.of(extra)[-1], labels.of(q)[-1], "multi_head_attention")
    scores = heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(heads[0].shape[-1])
    names = [labels.name_of(x) for x in (in_proj_weight, q_proj_weight, in_proj_bias) if x is not None]
    source = labels.new_source(names, [0] * len(names))
    if width is not None:
        if source is None:
            labels.freeze(width, UNSCALABLE)
        else:
            source = replace(source, given=picked)
            labels.attention.append(Attention(labels.module, source, width, tuple(labels.of(heads[0]))))
    weighted = torch.softmax(scores, -1)
    mixed = (weighted @ heads[2]).permute(2, 0, 1, 3).flatten(2)
    out = functional.linear(mixed, out_proj_weight, out_proj_bias)
    labels.demand(embed_dim_to_check, labels.of(out)[-1], out.shape[-1])
    return (out if batched else out.squeeze(1)), (weighted.mean(1) if need_weights else None)


def _given(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight


def _three(stacked: Tensor) -> Tensor:
    """Query, key and value apart."""
    return _unflatten(stacked, 0, (3, -1))


def _unflatten(x: Tensor, dim: int, sizes: tuple[int, int]) -> Tensor:
    return x.unflatten(dim, sizes)  # type: ignore[no-untyped-call,no-any-return]


REPLACED: dict[Any, Callable[..., Any]] = {functional.multi_head_attention_forward: multi_head_attention}
DROPOUT = {
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout,
}  # fmt: skip
