"""Operations that only rearrange dimensions: views, permutations, expansions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from espalier.graph.constraints import LITERAL
from espalier.graph.integers import Length, Traced, may_change, plain
from espalier.graph.labels import Dims, Labels, written
from espalier.graph.rows import Rows, merge
from espalier.graph.rules.registry import Arguments, rule

VIEWS = ("view", "reshape", "unflatten")


@rule("view", "_unsafe_view", "_reshape_alias", "reshape")
def view(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Dimensions are split, merged, or both, in the smallest blocks of equal length."""
    x = given["self"]
    sizes = written(labels.frame, VIEWS, out.shape)
    dims: Dims = [None] * out.dim()
    if out.numel():
        rows, shape = labels.of(x), tuple(x.shape)
        for before, after in _blocks(shape, tuple(out.shape)):
            _view_block(labels, [(rows[dim], shape[dim]) for dim in before], after, out.shape, sizes, dims)
    if sizes is not None:
        for number, length, size in zip(sizes, dims, out.shape, strict=True):
            if plain(number) != -1 and size > 1:
                labels.demand(number, length, size)
    labels.put(out, dims)
    labels.put_source(out, labels.source_of(x))


@functools.lru_cache(1024)
def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions (without those of length 1) with equal products."""
    old = [dim for dim, size in enumerate(before) if size != 1]
    new = [dim for dim, size in enumerate(after) if size != 1]
    blocks: list[tuple[list[int], list[int]]] = []
    while old and new:
        mine, theirs = [old.pop(0)], [new.pop(0)]
        left, right = before[mine[0]], after[theirs[0]]
        while left != right:
            if left < right:
                mine.append(old.pop(0))
                left *= before[mine[-1]]
            else:
                theirs.append(new.pop(0))
                right *= after[theirs[-1]]
        blocks.append((mine, theirs))
    return blocks


def _view_block(
    labels: Labels, factors: list[tuple[Rows, int]], after: list[int], shape: torch.Size, sizes: list[int] | None, dims: Dims
) -> None:
    if len(factors) == len(after) == 1:
        dims[after[0]] = factors[0][0]
        return
    if all(rows is None for rows, _ in factors):
        return
    rest = merge(factors)
    free = [sizes is None or plain(sizes[dim]) == -1 or may_change(sizes[dim]) for dim in after]
    if not any(free):
        labels.freeze(rest, LITERAL)
        return
    for place, dim in enumerate(after[:-1]):
        if rest is None:
            return
        remaining = len(rest) // shape[dim]
        dims[dim], rest = labels.split(rest, (shape[dim], remaining), (free[place], any(free[place + 1 :])))
    dims[after[-1]] = rest


@rule("permute")
def permute(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Dimensions in another order."""
    x = given["self"]
    _reorder(labels, x, [dim % max(1, x.dim()) for dim in given["dims"]], out)


@rule("transpose")
def transpose(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Two dimensions exchanged."""
    x = given["self"]
    order = list(range(x.dim()))
    if order:
        one, two = given["dim0"] % x.dim(), given["dim1"] % x.dim()
        order[one], order[two] = two, one
    _reorder(labels, x, order, out)


@rule("t")
def t(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """A matrix turned."""
    _reorder(labels, given["self"], list(range(given["self"].dim()))[::-1], out)


def _reorder(labels: Labels, x: Tensor, order: Sequence[int], out: Tensor) -> None:
    dims = labels.of(x)
    labels.put(out, [dims[dim] for dim in order])
    labels.put_source(out, labels.source_of(x))
    labels.put_weight(out, x)


@rule("unsqueeze")
def unsqueeze(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """A new dimension of length 1."""
    dims = list(labels.of(given["self"]))
    dims.insert(given["dim"] % out.dim(), None)
    labels.put(out, dims)
    labels.put_source(out, labels.source_of(given["self"]))


@rule("squeeze")
def squeeze(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Dimensions of length 1 dropped."""
    x, chosen = given["self"], given.get("dim")
    every = range(x.dim())
    chosen = (
        set(every) if chosen is None else {d % x.dim() for d in ([chosen] if isinstance(chosen, int) else chosen) if x.dim()}
    )
    labels.put(out, [labels.of(x)[dim] for dim in every if not (dim in chosen and x.shape[dim] == 1)])
    labels.put_source(out, labels.source_of(x))


@rule("expand")
def expand(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Dimensions of length 1 repeated to a length that the code says."""
    x = given["self"]
    sizes = written(labels.frame, ("expand", "broadcast_to"), out.shape)
    new = out.dim() - x.dim()
    dims: Dims = []
    for dim, size in enumerate(out.shape):
        number = sizes[dim] if sizes is not None else size
        if dim >= new and x.shape[dim - new] == size:
            dims.append(labels.of(x)[dim - new])
            if sizes is not None and plain(number) != -1:
                labels.demand(number, dims[-1], size)
        elif sizes is None and size > 1:  # grown inside a function of torch, to the length of something that it knows
            dims.append(labels.axes.fresh(size, f"{labels.module}[made]"))
        else:
            dims.append(made(labels, number, size))
    labels.put(out, dims)
    labels.put_source(out, labels.source_of(x))


def made(labels: Labels, number: int, size: int) -> Rows:
    """Rows of a dimension that the code makes as long as a number says."""
    if not isinstance(number, Traced) or not may_change(number) or size == 1:
        return None
    if isinstance(number.origin, Length) and number.origin.rows is not None and len(number.origin.rows) == size:
        return number.origin.rows
    rows = labels.axes.fresh(size, f"{labels.module}[made]")
    labels.demand(number, rows, size)
    return rows


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty", "eye", "arange")
def factory(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """New tensors have the axes of the numbers that shape them."""
    names = ("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
    sizes = written(labels.frame, names, out.shape)
    if sizes is not None:
        labels.put(out, [made(labels, number, size) for number, size in zip(sizes, out.shape, strict=True)])


@rule("repeat")
def repeat(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Every dimension repeated as a whole."""
    x, times = given["self"], given["repeats"]
    sizes = labels.frame.sizes if labels.frame is not None and labels.frame.name == "repeat" else times
    new = out.dim() - x.dim()
    dims: Dims = []
    for dim, (number, size) in enumerate(zip(sizes, out.shape, strict=True)):
        length = x.shape[dim - new] if dim >= new else 1
        rows = labels.of(x)[dim - new] if dim >= new else None
        dims.append(made(labels, number, size) if length == 1 else merge([(None, size // length), (rows, length)]))
    labels.put(out, dims)


@rule("as_strided")
def as_strided(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Other strides for the same dimensions (pooling does that for channels-last); anything else is too free to follow."""
    x = given["self"]
    if out.shape != x.shape:
        raise LookupError
    labels.put(out, labels.of(x))


@rule("flip")
def flip(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Indices in reverse order."""
    turned = {dim % out.dim() for dim in given["dims"]}
    labels.put(out, [r[::-1] if d in turned and r is not None else r for d, r in enumerate(labels.of(given["self"]))])


@rule("pixel_shuffle")
def pixel_shuffle(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Channels (c, r, r) become pixels."""
    dims = list(labels.of(given["self"]))
    inner = given["upscale_factor"] ** 2
    dims[-3], _ = labels.split(dims[-3], (out.shape[-3], inner), (True, False))
    labels.put(out, dims)


@rule("pixel_unshuffle")
def pixel_unshuffle(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Pixels become channels (c, r, r)."""
    dims = list(labels.of(given["self"]))
    dims[-3] = merge([(dims[-3], given["self"].shape[-3]), (None, given["downscale_factor"] ** 2)])
    labels.put(out, dims)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(groups, n) turned into (n, groups)."""
    dims = list(labels.of(given["self"]))
    groups, rest = given["groups"], out.shape[1] // given["groups"]
    frame = labels.frame
    number = frame.sizes[0] if frame is not None and frame.name == "channel_shuffle" and frame.sizes else groups
    outer, inner = labels.split(dims[1], (groups, rest), (may_change(number), True))
    labels.demand(number, outer, groups)
    dims[1] = merge([(inner, rest), (outer, groups)])
    labels.put(out, dims)


@rule("im2col")
def im2col(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(B, C, H, W) -> (B, C x kernel, patches)."""
    x = given["self"]
    dims = labels.of(x)
    inner = given["kernel_size"][0] * given["kernel_size"][1]
    labels.put(out, [*dims[:-3], merge([(dims[-3], x.shape[-3]), (None, inner)]), None])


@rule("col2im")
def col2im(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(B, C x kernel, patches) -> (B, C, H, W)."""
    dims = labels.of(given["self"])
    inner = given["kernel_size"][0] * given["kernel_size"][1]
    outer, _ = labels.split(dims[-2], (out.shape[-3], inner), (True, False))
    labels.put(out, [*dims[:-2], outer, None, None])


@rule("view_as_complex")
def view_as_complex(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """The last dimension, of length 2, becomes real and imaginary part."""
    dims = labels.of(given["self"])
    labels.freeze(dims[-1], "is the real and the imaginary part")
    labels.put(out, dims[:-1])


@rule("view_as_real")
def view_as_real(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Real and imaginary part become a last dimension."""
    labels.put(out, [*labels.of(given["self"]), None])
