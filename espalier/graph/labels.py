"""The labels of a trace: per tensor and dimension the rows of atoms that it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.graph.axes import Axes
from espalier.graph.constraints import Constraints
from espalier.graph.integers import Traced, may_change, origin_of, plain
from espalier.graph.rows import Array, Rows, equal

Dims = list[Rows]
Event = tuple[Any, Any, Any]  # what was called, the arguments, the results; of operations, functions and comparisons of lengths

LOOKED = "looked"  # an event: the code has read a shape

KERNEL = "is a spatial dimension of a kernel"


class Frame(NamedTuple):
    """A Python-level call under way: its name, and the sizes and bounds as the code wrote them."""

    name: str
    sizes: Sequence[int] = ()
    bounds: Mapping[int, slice] = MappingProxyType({})


@dataclass(eq=False)  # not frozen: a frozen one takes three times as long to make
class Source:
    """The layer whose output a tensor is, entry by entry: scaling these parameters scales the tensor."""

    serial: int  # grows with every call of a layer
    names: tuple[str, ...]  # weight and bias
    dims: tuple[int, ...]  # the dimension of each along which the outputs lie
    given: tuple[Array, ...] = ()  # atoms that were picked on the way: of q, k and v only q
    part: NDArray[np.bool_] | None = None  # outputs that were picked on the way, by slices; None: all


class Product(NamedTuple):
    """An operation or an output as a product of labelled lengths."""

    module: str
    op: str
    lengths: tuple[tuple[Rows, int], ...]


@dataclass(frozen=True, eq=False)
class Attention:
    """A scaled dot product with the default scale, which depends on the length of the contracted dimension."""

    module: str
    source: Source
    width: Rows
    dims: tuple[Rows, ...]


class Labels:
    """What a trace knows: rules read and write it."""

    def __init__(self) -> None:
        self.axes = Axes()
        self.constraints = Constraints(self.axes)
        self.work: list[Product] = []
        self.activations: list[Product] = []
        self.attention: list[Attention] = []
        self.inexact: list[tuple[Array, str]] = []
        self.parameters: dict[str, Dims] = {}
        self.faults: list[str] = []
        self.module = ""
        self.frames: list[Frame] = []
        self.events: list[Event] = []  # all that was done, in order
        self._names: dict[int, str] = {}
        self._dims: dict[int, Dims] = {}
        self._sources: dict[int, Source] = {}
        self._newest: dict[int, int] = {}
        self.multiplied: set[int] = set()  # serials of layers whose results enter matrix products other than attention's
        self.serial = 0  # of the last call of a layer
        self._turned: dict[int, str] = {}
        self._held: list[Any] = []  # ids stay unique while their tensors live

    # -- labels of tensors -------------------------------------------------------------------------------------

    def adopt(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Know parameters and buffers by name; those known already keep their rows (a second pass)."""
        self._dims.clear()
        self._names.clear()
        self._sources.clear()
        self._newest.clear()
        self._turned.clear()
        self._held.clear()
        self.events.clear()
        for name, tensor in named:
            self._names.setdefault(id(tensor), name)
            self._held.append(tensor)

    def name_of(self, tensor: Any) -> str | None:
        """The parameter or buffer that a tensor is."""
        return self._names.get(id(tensor))

    def of(self, tensor: Any) -> Dims:
        """Rows per dimension."""
        found = self._dims.get(id(tensor))
        if found is not None:
            return found
        name = self._names.get(id(tensor))
        if name is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return [None] * tensor.dim()
        if name not in self.parameters:
            self.parameters[name] = [
                self.axes.fresh(size, f"{name}:{dim}") if size > 1 else None for dim, size in enumerate(tensor.shape)
            ]
        self._dims[id(tensor)] = self.parameters[name]
        return self.parameters[name]

    def put(self, tensor: Any, dims: Sequence[Rows]) -> None:
        """Label a result. Dimensions of length 1 carry no axis, and neither does an index of other length than its label."""
        if not isinstance(tensor, Tensor) or id(tensor) in self._names:
            return
        assert len(dims) == tensor.dim(), (dims, tensor.shape)
        kept: Dims = []
        for rows, size in zip(dims, tensor.shape, strict=True):
            if rows is not None and len(rows) != size:
                self.freeze(rows, "changes its length")
                rows = None
            if size == 1 and rows is not None:
                self.freeze(rows, "is a part of a single channel")
            kept.append(rows if size > 1 else None)
        self._dims[id(tensor)] = kept
        self._held.append(tensor)

    def put_like(self, tensor: Tensor, operand: Tensor) -> None:
        """Label a result that has the dimensions of an operand."""
        if id(tensor) not in self._names:
            self._dims[id(tensor)] = self.of(operand)
            self._held.append(tensor)

    def source_of(self, tensor: Any) -> Source | None:
        """The layer whose output a tensor is."""
        return self._sources.get(id(tensor))

    def put_source(self, tensor: Any, source: Source | None) -> None:
        """Remember the layer whose output a tensor is; None: of none any more, if it was changed in place."""
        if source is None:
            self._sources.pop(id(tensor), None)
        elif isinstance(tensor, Tensor):
            self._sources[id(tensor)] = source
            self._newest[id(tensor)] = max(source.serial, self._newest.get(id(tensor), 0))
            self._held.append(tensor)

    def new_source(self, names: Sequence[str | None], dims: Sequence[int]) -> Source | None:
        """A layer that has just computed something, if its tensors are parameters."""
        if None in names:
            return None
        self.serial += 1
        return Source(self.serial, tuple(name for name in names if name is not None), tuple(dims))

    def newest(self, *tensors: Any) -> int:
        """The last call of a layer that any of the tensors may depend on; 0 if there is none."""
        return max([self._newest.get(id(tensor), 0) for tensor in tensors], default=0)

    def put_newest(self, tensor: Tensor, serial: int) -> None:
        """Remember the last call of a layer that a tensor may depend on."""
        if serial > self._newest.get(id(tensor), 0):
            self._newest[id(tensor)] = serial
            self._held.append(tensor)

    def narrowed(self, source: Source | None, rows: Rows) -> Source | None:
        """The source of a part, with the given rows, of a layer's outputs; None if they cannot be told in the parameters."""
        if source is None or rows is None:
            return source
        own = self.parameters[source.names[0]][source.dims[0]]
        if own is None or own.shape[1] != 1 or rows.shape[1] != 1 or not np.isin(rows, own).all():
            return None
        part = np.isin(own[:, 0], rows[:, 0])
        return replace(source, part=part if source.part is None else part & source.part)

    def put_weight(self, view: Any, tensor: Any) -> None:
        """Remember that a tensor is a parameter with its dimensions in another order."""
        name = self.weight_name(tensor)
        if name is not None:
            self._turned[id(view)] = name
            self._held.append(view)

    def weight_name(self, tensor: Any) -> str | None:
        """The parameter that a tensor is, perhaps with its dimensions in another order."""
        return self._names.get(id(tensor)) or self._turned.get(id(tensor))

    # -- what rules do -----------------------------------------------------------------------------------------

    def unify(self, one: Rows, other: Rows, op: str) -> None:
        """Two dimensions are one."""
        if one is not other:
            self.axes.unify(one, other, f"{op} ties it to something that cannot be cut ({self.module or 'the model'})")

    def unify_vectors(self, rows: Rows, vectors: Iterable[Tensor], op: str) -> None:
        """A dimension and biases, scales or the like are one: most are met here for the first time."""
        unmet: dict[str, Tensor] = {}
        for vector in vectors:
            name = self._unmet(vector)
            if rows is None or name is None or vector.dim() != 1 or vector.shape[0] != len(rows):
                self.unify(rows, self.of(vector)[-1], op)
            else:
                unmet[name] = vector
        if rows is not None and unmet:
            made = self._met_at(rows, [f"{name}:0" for name in unmet], op)
            for (name, vector), own in zip(unmet.items(), made, strict=True):
                self.parameters[name] = self._dims[id(vector)] = [own]

    def unify_matrix(self, rows: Rows, matrix: Tensor, op: str) -> Rows:
        """A dimension and the inputs of a weight (outputs, inputs, kernel) are one. Returns the rows of the outputs."""
        name = self._unmet(matrix)
        if rows is None or name is None or matrix.shape[1] != len(rows):
            outputs, inputs, *kernel = self.of(matrix)
            for places in kernel:
                self.axes.freeze(places, KERNEL)
            self.unify(rows, inputs, op)
            return outputs
        outputs = self.axes.fresh_to_share(matrix.shape[0], f"{name}:0") if matrix.shape[0] > 1 else None
        (inputs,) = self._met_at(rows, [f"{name}:1"], op)
        self.parameters[name] = self._dims[id(matrix)] = [outputs, inputs, *[None] * (matrix.dim() - 2)]
        return outputs

    def meet_depthwise(self, rows: Rows, weight: Tensor, op: str) -> Rows:
        """A dimension and a weight (channels, 1, kernel) are one; None, and nothing done, if that was met before."""
        name = self._unmet(weight)
        if rows is None or name is None or weight.shape[1] != 1 or weight.shape[0] != len(rows):
            return None
        (channels,) = self._met_at(rows, [f"{name}:0"], op)
        self.parameters[name] = self._dims[id(weight)] = [channels, *[None] * (weight.dim() - 1)]
        return channels

    def _unmet(self, tensor: Tensor) -> str | None:
        """The name of a parameter or buffer that has no rows yet."""
        name = self._names.get(id(tensor))
        return None if name in self.parameters or not tensor.is_floating_point() else name

    def _met_at(self, rows: Array, names: Sequence[str], op: str) -> list[Array]:
        """Rows of new blocks that are one with ``rows``."""
        if self.axes.share(rows, names):
            return [rows] * len(names)
        every = [self.axes.fresh(len(rows), name) for name in names]
        for made in every:
            self.unify(rows, made, op)
        return every

    def same(self, one: Rows, other: Rows) -> bool:
        """Whether two dimensions are known to be one."""
        if one is None or other is None or one is other:
            return one is other
        return equal(self.axes.resolve(one), self.axes.resolve(other))

    def freeze(self, rows: Rows, reason: str) -> None:
        """A dimension cannot be cut."""
        self.axes.freeze(rows, f"{reason} ({self.module or 'the model'})")

    def demand(self, number: int, rows: Rows, size: int) -> None:
        """The code says how long a dimension is."""
        if rows is not None or may_change(number):
            self.constraints.demand(origin_of(number), rows, plain(size), self.module or "the model")

    def split(self, rows: Rows, sizes: tuple[int, int], free: tuple[bool, bool]) -> tuple[Rows, Rows]:
        """Rows of the two factors of a dimension."""
        return self.axes.split(rows, sizes, free, self.module)

    def note_products(self, *operands: Tensor) -> None:
        """A layer whose result is used for more than the query of an attention cannot take over a change of its scale."""
        if self.frame is None or self.frame.name != "scaled_dot_product_attention":
            self.multiplied.update(source.serial for x in operands if (source := self.source_of(x)) is not None)

    def note_inexact(self, rows: Rows, op: str) -> None:
        """Numbers are computed over this dimension: with fewer indices the others change, zero or not."""
        if rows is not None:
            self.inexact.append((rows, op))

    def note_work(self, op: str, *lengths: tuple[Rows, int]) -> None:
        """An operation of as many multiply-accumulates as the product of lengths."""
        self.work.append(Product(self.module, op, lengths))

    def met(self, one: Traced, other: Traced) -> None:
        """The code found two numbers equal; it may insist on that."""
        self.events.append(("met", (one, other), None))
        self.constraints.equal(one.origin, other.origin, self.module or "the model")

    def used_as_real(self, number: Traced) -> None:
        """The code computes with a length as a real number."""
        self.events.append(("used as real", number, None))
        self.constraints.real.append(number.origin)

    @property
    def frame(self) -> Frame | None:
        """The innermost Python-level call."""
        return self.frames[-1] if self.frames else None


def written(frame: Frame | None, names: Sequence[str], shape: torch.Size) -> list[int] | None:
    """The sizes of a result as the code wrote them, or None if it did not write them."""
    if frame is None or frame.name not in names or len(frame.sizes) != len(shape):
        return None
    if any(plain(size) not in (-1, actual) for size, actual in zip(frame.sizes, shape, strict=True)):
        return None
    return list(frame.sizes)
