"""What operations return on the meta device, said at once.

Torch works out many shapes in Python, at up to a millisecond an operation. Here they are known for the arguments that models
use. Each returns None for all others, above all for those that do not fit together: trial cuts rely on the refusal of the
operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory of no place, and of the dtype of ``like``."""
    return torch.empty(shape, dtype=like.dtype, device=META)


def like(x: Tensor) -> Tensor:
    """``torch.empty_like`` on meta, which takes its time."""
    if x.is_contiguous():
        return empty(x.shape, x)
    if _lies_close(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
    return torch.empty_like(x, device=META)


def _lies_close(x: Tensor) -> bool:
    """Whether entries fill their memory, each a place of its own: then results are laid out as ``x`` is."""
    room = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size < 2 or stride != room:  # torch has rules of its own for lengths of 1
            return False
        room *= size
    return True


# -- entry by entry ------------------------------------------------------------------------------------------------


def elementwise(*args: Any) -> Tensor | None:
    """What works entry by entry."""
    whole = _whole(args)
    return _spread_both_ways(args) if whole is None else like(whole)


def _spread_both_ways(args: Sequence[Any]) -> Tensor | None:
    """A result larger than any of its operands, ``x[:, None] * y``."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    first = tensors[0]
    if not all(tensor.dtype == first.dtype and tensor.is_contiguous() for tensor in tensors):
        return None
    if len(tensors) < 2 or not first.is_floating_point() or len({tensor.dim() for tensor in tensors}) > 1:
        return None
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    fits = all(size in (1, wanted) for tensor in tensors for size, wanted in zip(tensor.shape, shape, strict=True))
    return empty(shape, first) if fits and 0 not in shape else None


def in_place(*args: Any) -> Tensor | None:
    """What changes its first operand entry by entry."""
    whole = _whole(args)
    return args[0] if whole is not None and whole.numel() == args[0].numel() else None


def _whole(args: Sequence[Any]) -> Tensor | None:
    """The operand that has dtype and shape of the result: the others are equal, or spread along what it has."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0] if tensors[0].is_floating_point() else None  # integers times 0.5 are none
    whole = max(tensors, key=Tensor.numel)
    fits = whole.is_floating_point() and all(
        tensor.dtype == whole.dtype and _spreads(tensor.shape, whole.shape) for tensor in tensors
    )
    return whole if fits else None


def _spreads(small: Sequence[int], large: Sequence[int]) -> bool:
    if small == large:
        return True
    if len(small) > len(large):
        return False
    return all(one in (1, other) for one, other in zip(reversed(small), reversed(large), strict=False))


def contiguous(x: Tensor) -> Tensor:
    """A copy in one piece."""
    return empty(x.shape, x)


def _masked_fill(x: Tensor, mask: Tensor, *_: Any) -> Tensor | None:
    return like(x) if _spreads(mask.shape, x.shape) else None


def _roll(x: Tensor, *_: Any) -> Tensor | None:
    return like(x) if x.is_contiguous() else None


# -- fewer dimensions, other sizes ---------------------------------------------------------------------------------


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    if not x.is_floating_point() or not x.numel():
        return None
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    if any(not -x.dim() <= place < x.dim() for place in dims):
        return None
    gone = {place % x.dim() for place in dims}
    return empty([1 if place in gone else size for place, size in enumerate(x.shape) if keepdim or place not in gone], x)


def _norm(x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    return _mean(x, dim, keepdim)


def _resized(x: Tensor, size: Any, *rest: Any) -> Tensor | None:
    """Interpolated to a size, or by factors."""
    pixels, factors = x.shape[2:], next((value for value in rest if isinstance(value, tuple | list)), None)
    if size is None and factors is not None and len(factors) == len(pixels):
        size = [int(length * factor) for length, factor in zip(pixels, factors, strict=True)]
    if size is None or len(size) != len(pixels) or min(size) < 1 or not x.is_floating_point() or not x.numel():
        return None
    made = empty((*x.shape[:2], *size), x)
    return made.contiguous(memory_format=torch.channels_last) if _is_like_channels_last(x) else made


def _is_like_channels_last(x: Tensor) -> bool:
    """As torch asks to choose the layout of a result: whether strides grow from channels to pixels to images."""
    if x.dim() != 4 or 0 in x.shape:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        stride = x.stride(dim)
        if stride < least or (dim == 0 and least == x.stride(1)):
            return False
        least = stride * max(1, x.shape[dim])
    return True


# -- layers --------------------------------------------------------------------------------------------------------


def convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any, groups: int
) -> Tensor | None:
    """Not transposed."""
    if transposed or not len(stride) == len(padding) == len(dilation) == x.dim() - 2 == weight.dim() - 2 > 0:
        return None
    (batch, channels, *places), (made, given, *kernel) = x.shape, weight.shape
    if given * groups != channels or made % groups or not x.numel() or (bias is not None and bias.shape[0] != made):
        return None
    settings = zip(places, kernel, stride, padding, dilation, strict=True)
    pixels = [(size + 2 * pad - gap * (length - 1) - 1) // step + 1 for size, length, step, pad, gap in settings]
    return empty((batch, made, *pixels), x) if min(pixels) > 0 else None


def batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """With its statistics."""
    if x.dim() < 2 or not have_length(channels := x.shape[1], *[value for value in rest[:4] if isinstance(value, Tensor)]):
        return None
    return like(x), empty((channels,), x), empty((channels,), x)


def layer_norm(x: Tensor, normalized_shape: Any, weight: Any, bias: Any, *_: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """With its statistics."""
    if not is_normalised(x, normalized_shape, weight, bias):
        return None
    count = len(normalized_shape)
    statistic = (*x.shape[: x.dim() - count], *[1] * count)
    return empty(x.shape, x), empty(statistic, x), empty(statistic, x)


def is_normalised(x: Tensor, shape: Sequence[int], *learned: Tensor | None) -> bool:
    """Whether the last dimensions have a shape, and what was learned for them."""
    count, shape = x.dim() - len(shape), list(shape)
    return count >= 0 and list(x.shape[count:]) == shape and all([t is None or list(t.shape) == shape for t in learned])


def _group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    if c % group or x.numel() != n * c * hxw or not have_length(c, weight, bias):
        return None
    return like(x), empty((n, group), x), empty((n, group), x)


def have_length(length: int, *vectors: Any) -> bool:
    """Whether vectors, where there are any, have a length."""
    return all([vector is None or vector.shape[0] == length for vector in vectors])


# -- matrices, joins -----------------------------------------------------------------------------------------------


def _addmm(bias: Tensor, one: Tensor, two: Tensor, *rest: Any) -> Tensor | None:
    if rest or one.dim() != 2 or two.dim() != 2 or one.shape[1] != two.shape[0] or not bias.dtype == one.dtype == two.dtype:
        return None
    shape = (one.shape[0], two.shape[1])
    return empty(shape, one) if _spreads(bias.shape, shape) else None


def _bmm(one: Tensor, two: Tensor, *rest: Any) -> Tensor | None:
    if rest or one.dim() != 3 or two.dim() != 3 or one.shape[::2] != two.shape[:2] or one.dtype != two.dtype:
        return None
    return empty((*one.shape[:2], two.shape[2]), one)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    """Of equal dtypes."""
    first = tensors[0]
    shapes = [list(tensor.shape) for tensor in tensors]
    lengths = [shape.pop(dim) for shape in shapes if -len(shape) <= dim < len(shape)]
    if len(lengths) < len(shapes) or any(shape != shapes[0] for shape in shapes):
        return None
    if not all(tensor.dtype == first.dtype for tensor in tensors):
        return None
    if first.dim() in (4, 5) and not all(tensor.is_contiguous() for tensor in tensors):  # perhaps channels-last
        return None
    shape = list(first.shape)
    shape[dim] = sum(lengths)
    return empty(shape, first)


ELEMENTWISE = frozenset({
    "add", "sub", "rsub", "mul", "div", "addcmul", "reciprocal", "pow", "square", "sqrt", "rsqrt", "exp", "log", "neg", "abs",
    "sin", "cos", "erf", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "clone", "relu", "leaky_relu", "elu", "gelu",
    "silu", "mish", "softplus", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "_softmax", "_safe_softmax",
})  # fmt: skip
RESIZED = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
)  # fmt: skip
SHORTCUTS: dict[str, Callable[..., Any]] = {
    "masked_fill": _masked_fill,
    "roll": _roll,
    "convolution": convolution,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "native_layer_norm": layer_norm,
    "native_group_norm": _group_norm,
    "addmm": _addmm,
    "bmm": _bmm,
    "cat": cat,
    "mean": _mean,
    "amax": _mean,
    "amin": _mean,
    "sum": _mean,
    "linalg_vector_norm": _norm,
    **dict.fromkeys(RESIZED, _resized),
    **{name: elementwise for name in ELEMENTWISE},
    **{f"{name}_": in_place for name in ELEMENTWISE},
}
