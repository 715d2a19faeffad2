"""Matrix products: the contracted dimensions are one, the others go on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from espalier.graph.labels import Dims, Labels, Product, Source
from espalier.graph.rows import Rows
from espalier.graph.rules.registry import Arguments, rule


@rule("mm")
def mm(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(m, k) x (k, n)."""
    _product(labels, op, given["self"], given["mat2"], None, out)


@rule("addmm", "_addmm_activation")
def addmm(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(m, k) x (k, n) plus a bias."""
    _product(labels, op, given["mat1"], given["mat2"], given["self"], out)


def _product(labels: Labels, op: str, one: Tensor, two: Tensor, bias: Tensor | None, out: Tensor) -> None:
    (rows, inner), (again, columns) = labels.of(one), labels.of(two)
    labels.note_products(one, two)
    labels.unify(inner, again, op)
    labels.put(out, [rows, columns])
    labels.note_work(op, (rows, out.shape[0]), (columns, out.shape[1]), (inner, one.shape[1]))
    if bias is not None and bias.dim() and bias.shape[-1] == out.shape[1] > 1:
        labels.unify(labels.of(bias)[-1], columns, op)
    labels.put_source(out, layer(labels, two, bias, columns))


@rule("linear")
def linear(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(..., k) x (n, k) plus a bias."""
    x, weight, bias = given["input"], given["weight"], given["bias"]
    *others, inner = labels.of(x)
    labels.note_products(x, weight)
    columns = labels.unify_matrix(inner, weight, op)
    labels.put(out, [*others, columns])
    labels.note_work(op, *zip(others, out.shape, strict=False), (columns, out.shape[-1]), (inner, x.shape[-1]))
    if bias is not None and bias.shape[0] > 1:
        labels.unify_vectors(columns, [bias], op)
    labels.put_source(out, layer(labels, weight, bias, columns))


def layer(labels: Labels, weight: Tensor, bias: Tensor | None, outputs: Rows) -> Source | None:
    """The parameters that scale the result of a linear layer or convolution, if they are parameters."""
    name = labels.weight_name(weight)
    dim = next((dim for dim, rows in enumerate(labels.parameters.get(name or "", [])) if rows is outputs is not None), None)
    if dim is None:
        return None
    return labels.new_source([name], [dim]) if bias is None else labels.new_source([name, labels.name_of(bias)], [dim, 0])


@rule("mv")
def mv(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(m, k) x (k)."""
    rows, inner = labels.of(given["self"])
    labels.unify(inner, labels.of(given["vec"])[0], op)
    labels.put(out, [rows])


@rule("dot", "vdot")
def dot(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(k) x (k)."""
    labels.unify(labels.of(given["self"])[0], labels.of(next(iter(v for n, v in given.items() if n != "self")))[0], op)


@rule("matmul")
def matmul(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(..., m, k) x (..., k, n)."""
    labels.note_products(given["input"], given["other"])
    labels.put(out, _batched(labels, labels.of(given["input"]), labels.of(given["other"]), out.shape, given["input"].shape[-1]))


def _batched(labels: Labels, one: Dims, two: Dims, shape: Sequence[int], inner: int) -> Dims:
    """Rows of the products of equally many matrices."""
    for mine, theirs in zip((*one[:-2], one[-1]), two[:-1], strict=True):
        labels.unify(mine, theirs, "matmul")
    dims = [*one[:-1], two[-1]]
    labels.note_work("bmm", *zip(dims, shape, strict=True), (one[-1], inner))
    return dims


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(..., m, k), (..., n, k) and (..., n, v). Unless fused it keeps both operands scaled, scores and softmax."""
    query, key, value = (given[name] for name in ("query", "key", "value"))
    one, two, shape = labels.of(query), labels.of(key), (*query.shape[:-1], key.shape[-2])
    scores = _batched(labels, one, [*two[:-2], two[-1], two[-2]], shape, query.shape[-1])
    labels.note_inexact(two[-2], op)
    labels.put(out, _batched(labels, scores, labels.of(value), out.shape, key.shape[-2]))
    for dims, sizes in ((one, query.shape), (two, key.shape), (scores, shape), (scores, shape)):
        labels.activations.append(Product(labels.module, op, tuple(zip(dims, sizes, strict=True))))


@rule("bmm", "baddbmm")
def bmm(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """(b, m, k) x (b, k, n), perhaps plus something of the result's shape."""
    one, two = (given["batch1"], given["batch2"]) if op.startswith("baddbmm") else (given["self"], given["mat2"])
    (batch, rows, inner), (batch2, again, columns) = labels.of(one), labels.of(two)
    labels.note_products(one, two)
    labels.unify(batch, batch2, op)
    labels.unify(inner, again, op)
    dims = [batch, rows, columns]
    if op.startswith("baddbmm"):
        added = given["self"]
        for dim, known in enumerate(labels.of(added)):
            place = dim + 3 - added.dim()
            if added.shape[dim] == out.shape[place] != 1:
                labels.unify(dims[place], known, op)
    labels.put(out, dims)
    labels.note_work(op, *zip(dims, out.shape, strict=True), (inner, one.shape[2]))
