"""Operations that take a part of a dimension: slices, splits, selections, lookups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from espalier.graph.integers import Traced, may_change, origin_of, plain, same_origin
from espalier.graph.labels import Dims, Labels
from espalier.graph.rows import Array, Rows, stack
from espalier.graph.rules.registry import Arguments, rule


@rule("slice")
def slice_(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """``x[start:end:step]``: the bounds must mean the same after a cut."""
    x, dim = given["self"], given["dim"] % given["self"].dim()
    size, step = x.shape[dim], given["step"]
    start, end, _ = slice(given["start"], given["end"]).indices(size)
    dims = list(labels.of(x))
    if dims[dim] is not None and (start, end, step) != (0, size, 1):
        dims[dim] = _sliced(labels, dims[dim], dim, size, (start, end, step))
    labels.put(out, dims)
    labels.put_source(out, labels.narrowed(labels.source_of(x), None if out.shape[dim] == size else dims[dim]))


def _sliced(labels: Labels, rows: Rows, dim: int, size: int, bounds: tuple[int, int, int]) -> Rows:
    assert rows is not None
    start, end, step = bounds
    frame = labels.frame
    asked = frame.bounds.get(dim) if frame is not None else None
    if asked is None:
        labels.freeze(rows, "only a part of it is used")
        return rows[start:end:step]
    if step > 1 and size % step == 0:
        labels.split(rows, (size // step, step), (True, False))
    elif step > 1:
        labels.freeze(rows, "every so many channels are used")
    for number in (asked.start, asked.stop):
        if number is None or (not isinstance(number, Traced) and number == 0):
            continue
        if not isinstance(number, Traced) and _immovable(rows[number:] if number < 0 else rows[:number]):
            continue
        if isinstance(number, Traced) and may_change(number) and 0 <= number <= size:
            labels.demand(number, rows[: plain(number)], plain(number))
        else:
            labels.freeze(rows, "a part of it is taken at a place that is written as a number in the code")
    return rows[start:end:step]


def _immovable(rows: Array) -> bool:
    """Whether nothing can remove any of these indices, so that others are counted past them."""
    return bool((rows < 0).all())


@rule("split", "split_with_sizes", "split_copy", "split_with_sizes_copy")
def split(labels: Labels, op: str, given: Arguments, out: Sequence[Tensor]) -> None:
    """Pieces of a dimension. Equal ones stay equal, so they share one axis but remain told apart."""
    x, dim = given["self"], given["dim"] % given["self"].dim()
    rows, lengths = labels.of(x)[dim], [piece.shape[dim] for piece in out]
    pieces: list[Rows] = [None] * len(out)
    if rows is not None:
        pieces = _pieces(labels, rows, lengths)
    source = labels.source_of(x)
    for piece, part in zip(out, pieces, strict=True):
        dims = list(labels.of(x))
        dims[dim] = part
        labels.put(piece, dims)
        told_apart = part is not None and labels.axes.is_fixed(labels.axes.resolve(part)).any(1).all()
        labels.put_source(piece, source if told_apart else labels.narrowed(source, part))


def _pieces(labels: Labels, rows: Rows, lengths: list[int]) -> list[Rows]:
    assert rows is not None
    frame = labels.frame
    numbers = list(frame.sizes) if frame is not None and frame.name in ("split", "split_with_sizes") else None
    equal = len(set(lengths)) == 1 and (numbers is None or all(_same(number, numbers[0]) for number in numbers))
    free = numbers is None or all(may_change(number) for number in numbers)
    if equal and len(lengths) > 1 and free:
        labels.split(rows, (len(lengths), lengths[0]), (False, True))
    elif numbers is None:
        labels.freeze(rows, "it is divided into unequal parts")
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    pieces: list[Rows] = [rows[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    if numbers is not None:
        numbers = numbers * len(lengths) if len(numbers) == 1 else numbers
        for number, piece, length in zip(numbers, pieces, lengths, strict=False):
            if plain(number) == length:
                labels.demand(number, piece, length)
    return pieces


def _same(one: int, other: int) -> bool:
    return same_origin(origin_of(one), origin_of(other))


@rule("unbind", "unbind_copy")
def unbind(labels: Labels, op: str, given: Arguments, out: Sequence[Tensor]) -> None:
    """One tensor per index: the code unpacks as many as there are."""
    x, dim = given["self"], given["dim"] % given["self"].dim()
    for index, piece in enumerate(out):
        _select(labels, x, dim, index, piece)


@rule("select")
def select(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """One index of a dimension."""
    x, dim = given["self"], given["dim"] % given["self"].dim()
    _select(labels, x, dim, given["index"] % x.shape[dim], out)


def _select(labels: Labels, x: Tensor, dim: int, index: int, out: Tensor) -> None:
    dims = list(labels.of(x))
    rows = dims.pop(dim)
    labels.freeze(rows, "single channels of it are picked")
    labels.put(out, dims)
    source = labels.source_of(x)
    if source is not None and rows is not None:
        source = replace(source, given=(*source.given, rows[index : index + 1]))
    labels.put_source(out, source)


@rule("glu")
def glu(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """One half gates the other."""
    x, dim = given["self"], given["dim"] % given["self"].dim()
    dims = list(labels.of(x))
    _, dims[dim] = labels.split(dims[dim], (2, out.shape[dim]), (False, True))
    labels.put(out, dims)


@rule("roll")
def roll(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Indices shifted round: only where nothing is cut."""
    x = given["self"]
    moved = {dim % x.dim() for dim in given["dims"]} if given["dims"] else set(range(x.dim()))
    for dim in moved:
        labels.freeze(labels.of(x)[dim], "is rolled")
    labels.put(out, labels.of(x))


@rule("unfold")
def unfold(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """``x.unfold(dim, size, step)``: sliding windows, as a last dimension."""
    x, dim = given["self"], given["dimension"] % given["self"].dim()
    dims = list(labels.of(x))
    labels.freeze(dims[dim], "windows slide along it")
    dims[dim] = None
    labels.put(out, [*dims, None])


@rule("index_select")
def index_select(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Chosen indices of one dimension."""
    x = given["self"]
    dim = given["dim"] % max(1, x.dim())
    dims = list(labels.of(x))
    if dims:
        labels.freeze(dims[dim], "indices pick from it")
        dims[dim] = None
    labels.put(out, dims)


@rule("index")
def index(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """``x[indices]``: what is indexed by tensors is replaced by their dimensions."""
    x = given["self"]
    dims = labels.of(x)
    chosen = [place for place, item in enumerate(given["indices"]) if item is not None]
    kept: Dims = []
    for dim, rows in enumerate(dims):
        if dim in chosen:
            labels.freeze(rows, "indices pick from it")
        else:
            kept.append(rows)
    new = out.dim() - len(kept)
    if any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in given["indices"]):
        for rows in kept:
            labels.freeze(rows, "a mask picks from it")
        labels.put(out, [None] * out.dim())
        return
    together = chosen == list(range(chosen[0], chosen[0] + len(chosen))) if chosen else True
    place = chosen[0] if chosen and together else 0
    labels.put(out, [*kept[:place], *[None] * new, *kept[place:]])


@rule("embedding")
def embedding(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Rows of a table by number."""
    numbers, width = labels.of(given["weight"])
    labels.freeze(numbers, "is a vocabulary")
    labels.put(out, [None] * (out.dim() - 1) + [width])


@rule("constant_pad_nd")
def constant_pad(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Constants around: padded channels are channels of their own, cut with whatever they are added to."""
    x, pad = given["self"], list(given["pad"])
    frame = labels.frame
    numbers = list(frame.sizes) if frame is not None and frame.name == "pad" and len(frame.sizes) == len(pad) else pad
    dims = list(labels.of(x))
    for place in range(len(pad) // 2):
        dim = x.dim() - 1 - place
        low, high = pad[2 * place : 2 * place + 2]
        if dims[dim] is None or (low, high) == (0, 0):
            dims[dim] = dims[dim] if (low, high) == (0, 0) else None
        elif low < 0 or high < 0:
            labels.freeze(dims[dim], "is cropped")
            dims[dim] = None
        else:
            before, after = (_padding(labels, numbers[2 * place + side], (low, high)[side]) for side in (0, 1))
            dims[dim] = stack([(before, low), (dims[dim], x.shape[dim]), (after, high)])
    labels.put(out, dims)


def _padding(labels: Labels, number: int, size: int) -> Rows:
    if size == 0 or not may_change(number):
        return None
    rows = labels.axes.fresh(size, f"{labels.module}[padding]")
    labels.demand(number, rows, size)
    return rows
