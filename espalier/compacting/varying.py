"""Which entries of a tensor depend on the model's inputs: a mask of ones and zeros per tensor, of its shape.

A zero is a proof: whatever the inputs, as long as their shapes stay, this entry has the value that it has now. A one may be
too careful. Operations without a rule make everything vary that they compute from something that varies. Zero times anything
counts as zero: infinities and NaN are left out of account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from espalier.graph.rules import elementwise, find

Arguments = Mapping[str, Any]
Answer = Tensor | list[Tensor] | None  # of the first result, or of all; None where no rule tells

aten = torch.ops.aten


class Varying:
    """Masks by tensor. Views of a tensor have views of its mask, so that what is written through one is seen by all."""

    def __init__(self) -> None:
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor, whose id then stays its own

    def known(self, tensor: Any) -> bool:
        """Whether a tensor has a mask."""
        return id(tensor) in self._masks

    def of(self, tensor: Tensor) -> Tensor:
        """The mask of a tensor; zeros for one that nobody told about, such as a parameter."""
        found = self._masks.get(id(tensor))
        return torch.zeros_like(tensor, dtype=torch.float32) if found is None else found[1]

    def own(self, tensor: Tensor) -> Tensor:
        """The same, and from now on it is this tensor's."""
        if not self.known(tensor):
            self.put(tensor, torch.zeros_like(tensor, dtype=torch.float32))
        return self._masks[id(tensor)][1]

    def put(self, tensor: Tensor, mask: Tensor) -> None:
        """Give a tensor its mask."""
        self._masks[id(tensor)] = (tensor, mask)

    def any_in(self, *values: Any) -> bool:
        """Whether anything in nested arguments varies."""
        for value in values:
            if isinstance(value, tuple | list):
                if self.any_in(*value):
                    return True
            elif isinstance(value, Tensor) and self.known(value) and bool(self._masks[id(value)][1].any()):
                return True
        return False


def spread(varying: Varying, func: Any, args: Any, kwargs: Any, given: Arguments) -> Answer:
    """Masks of what an operation will compute, from its arguments before it runs."""
    name = _plain(func)
    if name in RULES:
        return RULES[name](varying, given)
    if name in MOVES:
        return _moved(varying, func, args, kwargs)
    if _is_elementwise(func):
        return _together(varying, *given.values())
    return None


def is_known(func: Any) -> bool:
    """Whether an operation has a rule."""
    return _plain(func) in RULES or _plain(func) in MOVES or _is_elementwise(func)


def _plain(func: Any) -> str:
    """The name of an operation, without the underscore of those in place."""
    name: str = func.overloadpacket.__name__
    return name if name in RULES or name in MOVES else name.removesuffix("_")


def _is_elementwise(func: Any) -> bool:
    return find(_plain(func), func.tags) is elementwise.elementwise and torch.Tag.nondeterministic_seeded not in func.tags


# -- rules ---------------------------------------------------------------------------------------------------------

MOVES = frozenset({
    "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "squeeze",
    "unsqueeze", "split", "split_with_sizes", "unbind", "cat", "stack", "clone", "alias", "detach", "index_select",
    "flip", "roll",
    "repeat", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal", "im2col",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "lift_fresh",
})  # fmt: skip


def _moved(varying: Varying, func: Any, args: Any, kwargs: Any) -> Answer:
    """Entries only change their places: the operation itself tells where to."""
    if varying.any_in(*args[1:], *kwargs.values()) or any(isinstance(value, torch.dtype) for value in args):
        return None  # indices that vary; the same bytes read as another type
    first = args[0]
    masks = varying.of(first) if isinstance(first, Tensor) else [varying.of(tensor) for tensor in first]
    try:
        return func(masks, *args[1:], **kwargs)  # type: ignore[no-any-return]
    except RuntimeError:  # a view that the strides of the mask do not allow
        return None


def _together(varying: Varying, *values: Any) -> Tensor:
    """Entry by entry, with broadcasting: whatever meets something that varies, varies."""
    masks = [varying.of(value) for value in values if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(mask.shape for mask in masks))  # type: ignore[no-untyped-call]
    total = torch.zeros(shape, device=max((mask.device for mask in masks), key=str))
    for mask in masks:
        total = torch.maximum(total, mask.to(total.device))
    return total


def _live(varying: Varying, value: Any) -> Tensor:
    """Where a value can be something else than zero."""
    if not isinstance(value, Tensor):
        return torch.ones(()) if value else torch.zeros(())
    return torch.maximum(varying.of(value), (value != 0).float())


def _times(varying: Varying, given: Arguments) -> Answer:
    one, other = given["self"], given["other"]
    mine, theirs = (varying.of(v) if isinstance(v, Tensor) else torch.zeros(()) for v in (one, other))
    return torch.maximum(mine * _live(varying, other), theirs * _live(varying, one))


def _divided(varying: Varying, given: Arguments) -> Answer:
    one, other = given["self"], given["other"]
    mine = varying.of(one)
    below = varying.of(other) if isinstance(other, Tensor) else torch.zeros(())
    return torch.maximum(mine + 0 * below, below * _live(varying, one))


def _copied(varying: Varying, given: Arguments) -> Answer:
    source = given["src"]
    mask = varying.of(source).to(given["self"].device)
    return mask.expand(given["self"].shape).clone()


def _zeros(varying: Varying, given: Arguments) -> Answer:
    if varying.any_in(given.get("value")):
        return None
    return torch.zeros_like(given["self"], dtype=torch.float32)


def _cast(varying: Varying, given: Arguments) -> Answer:
    mask = varying.of(given["self"])
    device = given.get("device")
    return mask.clone() if device is None else mask.to(device)


def _padded(varying: Varying, given: Arguments) -> Answer:
    return aten.constant_pad_nd(varying.of(given["self"]), given["pad"], 0.0)  # type: ignore[no-any-return]


def _indexed(varying: Varying, given: Arguments) -> Answer:
    if varying.any_in(given["indices"]):
        return None
    return aten.index(varying.of(given["self"]), given["indices"])  # type: ignore[no-any-return]


def _convolution(varying: Varying, given: Arguments) -> Answer:
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if varying.any_in(weight, bias):
        return None
    rest = [given[key] for key in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    reached = aten.convolution(varying.of(x), (weight != 0).float(), None, *rest)
    return torch.where(reached > 0.5, 1.0, 0.0)  # sums of ones: fast algorithms are off by rounding


def _product(varying: Varying, one: Tensor, two: Tensor, added: Tensor | None = None) -> Tensor:
    reached = varying.of(one) @ _live(varying, two) + _live(varying, one) @ varying.of(two)
    if added is not None:
        reached = reached + varying.of(added)
    return (reached > 0.5).float()


def _batch_norm(varying: Varying, given: Arguments) -> Answer:
    x, weight = given["input"], given.get("weight")
    if varying.any_in(weight, given.get("bias"), given.get("running_mean"), given.get("running_var")):
        return None
    mask = varying.of(x)
    if given.get("training") or given.get("running_mean") is None:
        mask = mask.amax([0, *range(2, x.dim())], keepdim=True).expand_as(mask)
    if weight is not None:
        mask = mask * (weight != 0).float().view(1, -1, *[1] * (x.dim() - 2))
    return mask.clone()


def _layer_norm(varying: Varying, given: Arguments) -> Answer:
    x, weight = given["input"], given.get("weight")
    if varying.any_in(weight, given.get("bias")):
        return None
    mask = varying.of(x)
    dims = list(range(x.dim() - len(given["normalized_shape"]), x.dim()))
    mask = mask.amax(dims, keepdim=True).expand_as(mask)
    return mask.clone() if weight is None else mask * (weight != 0).float()


def _group_norm(varying: Varying, given: Arguments) -> Answer:
    x, weight = given["input"], given.get("weight")
    if varying.any_in(weight, given.get("bias")):
        return None
    groups = given.get("group", given.get("num_groups"))
    grouped = varying.of(x).reshape(x.shape[0], groups, -1)
    mask = grouped.amax(2, keepdim=True).expand_as(grouped).reshape(x.shape)
    return mask.clone() if weight is None else mask * (weight != 0).float().view(1, -1, *[1] * (x.dim() - 2))


def _along(varying: Varying, given: Arguments) -> Answer:
    mask = varying.of(given["self"])
    return mask.amax(given["dim"], keepdim=True).expand_as(mask).clone() if mask.dim() else mask.clone()


def _reduced(varying: Varying, given: Arguments) -> Answer:
    mask, dim = varying.of(given["self"]), given.get("dim")
    chosen = list(range(mask.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return mask.amax(chosen, keepdim=bool(given.get("keepdim"))) if chosen else mask.clone()


def _pooled(func: Callable[..., Tensor]) -> Callable[[Varying, Arguments], Answer]:
    def rule(varying: Varying, given: Arguments) -> Answer:
        (first, x), *rest = given.items()
        return (func(**{first: varying.of(x)}, **dict(rest)) > 0).float()

    return rule


def _largest(func: Callable[..., Any]) -> Callable[[Varying, Arguments], Answer]:
    def rule(varying: Varying, given: Arguments) -> Answer:
        x, *rest = given.values()
        return func(varying.of(x), *rest)[0]  # type: ignore[no-any-return]

    return rule


POOLS = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d",
)  # fmt: skip
RULES: dict[str, Callable[[Varying, Arguments], Answer]] = {
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"), _convolution),
    **dict.fromkeys(("mul", "multiply"), _times),
    **dict.fromkeys(("div", "divide", "true_divide"), _divided),
    **dict.fromkeys(("zero", "fill", "zeros_like", "ones_like", "full_like", "empty_like"), _zeros),
    **dict.fromkeys(
        (
            "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("native_group_norm", "group_norm"), _group_norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod"), _along),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "prod", "logsumexp", "all", "any", "linalg_vector_norm"), _reduced),
    "copy": _copied,
    "_to_copy": _cast,
    "constant_pad_nd": _padded,
    "index": _indexed,
    "mm": lambda varying, given: _product(varying, given["self"], given["mat2"]),
    "addmm": lambda varying, given: _product(varying, given["mat1"], given["mat2"], given["self"]),
    "bmm": lambda varying, given: _product(varying, given["self"], given["mat2"]),
    "baddbmm": lambda varying, given: _product(varying, given["batch1"], given["batch2"], given["self"]),
    **{name: _pooled(getattr(aten, name)) for name in POOLS},
    **{name: _largest(getattr(aten, name)) for name in ("max_pool2d_with_indices", "max_pool3d_with_indices")},
}  # fmt: skip
