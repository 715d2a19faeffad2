"""Operations over whole dimensions: sums, means, softmax, sorting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from espalier.graph.labels import Labels
from espalier.graph.rules.registry import Arguments, rule

EXACT = {"sum"}  # zeros add nothing


@rule(
    "sum", "mean", "amax", "amin", "aminmax", "var", "std", "var_mean", "std_mean", "logsumexp", "all", "any", "prod", "norm",
    "linalg_vector_norm", "max", "min", "median", "nansum", "count_nonzero",
)  # fmt: skip
def reduce(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """The reduced dimensions go, or have length 1 if they are kept."""
    x = given["self"]
    if isinstance(given.get("other"), Tensor):  # max(a, b) of two tensors
        raise LookupError
    chosen = _dims(given.get("dim"), x.dim())
    rows = labels.of(x)
    for dim in chosen:
        if op not in EXACT:
            labels.note_inexact(rows[dim], op)
    for result in out if isinstance(out, tuple | list) else (out,):
        if isinstance(result, Tensor):
            kept = result.dim() == x.dim()
            labels.put(result, [None if dim in chosen else r for dim, r in enumerate(rows) if kept or dim not in chosen])


@rule("argmax", "argmin")
def arg(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Positions mean something else after a cut."""
    x = given["self"]
    chosen = _dims(given["dim"], x.dim())
    rows = labels.of(x)
    for dim in chosen:
        labels.freeze(rows[dim], f"{op} gives positions in it")
    kept = out.dim() == x.dim()
    labels.put(out, [None if dim in chosen else r for dim, r in enumerate(rows) if kept or dim not in chosen])


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
def softmax(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Every entry depends on all along one dimension."""
    x = given["self"]
    if x.dim():
        labels.note_inexact(labels.of(x)[given["dim"] % x.dim()], op)
    labels.put(out, labels.of(x))


@rule("topk", "sort", "kthvalue")
def sort(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Values and positions along one dimension; the others stay."""
    x = given["self"]
    dim = given["dim"] % max(1, x.dim())
    dims = list(labels.of(x))
    labels.freeze(dims[dim] if dims else None, f"{op} gives positions in it")
    for result in out:
        labels.put(result, [None if place == dim else rows for place, rows in enumerate(dims)][: result.dim()])


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fft(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """Transformed dimensions cannot be cut."""
    x = given["self"]
    dims = list(labels.of(x))
    for dim in given["dim"]:
        labels.freeze(dims[dim], "is Fourier transformed")
        dims[dim] = None
    labels.put(out, dims)


def _dims(chosen: Any, count: int) -> set[int]:
    if chosen is None or chosen == []:
        return set(range(count))
    return {dim % max(1, count) for dim in ([chosen] if isinstance(chosen, int) else chosen)}
