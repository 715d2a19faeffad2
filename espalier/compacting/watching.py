"""One forward pass under watch: what varies with the inputs, and what every weight reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.compacting.readings import Reading, of_convolution, of_product
from espalier.compacting.varying import Arguments, Varying, is_known, spread
from espalier.graph.modes import TorchDispatchMode, without_functions
from espalier.graph.operands import arguments_of, tensors_among
from espalier.graph.replica import named_tensors, quiet, tensors_in

CONVOLUTIONS = frozenset({"convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"})
PRODUCTS = {"mm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "bmm": ("self", "mat2"), "baddbmm": ("batch1", "batch2")}
VALUES = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})
TURNS = frozenset({"t", "transpose", "permute"})
SPREADS = frozenset({"expand", "view", "_unsafe_view", "reshape", "unsqueeze"})  # a matrix for every item of a batch


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what varies, and collects readings.

    Attributes:
        readings: one for every use of a weight of a convolution or matrix product, in order.
        branches: whether code took a value out of a tensor that varies, to branch on it or to compute with it.
        unclear: parameters that such an operation uses in another form than their own, through a view or a computation.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.varying = Varying()
        self.readings: list[Reading] = []
        self.unclear: set[str] = set()
        self.branches = False
        self._names = {id(tensor): name for name, tensor in reversed(list(named_tensors(model)))}
        self._turned: dict[int, tuple[str, bool]] = {}  # matrices that are a parameter, turned or not
        self._made_of: dict[int, frozenset[str]] = {}  # computed from parameters alone
        self._computed: set[int] = set()  # computed from inputs
        self._waiting: dict[int, Reading] = {}  # results without a bias, which a batch norm may follow
        self._held: list[Tensor] = []  # ids stay unique while their tensors live
        for tensor in inputs:
            self.varying.put(tensor, torch.ones_like(tensor, dtype=torch.float32))
            self._computed.add(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with without_functions():
            given = arguments_of(func, args, kwargs)
            tensors = list(tensors_among(given.values()))
            name = func.overloadpacket.__name__
            self._look_after(name, given, tensors)
            reading = self._read(name, given)
            if not is_known(func) and name != "embedding":
                self.unclear |= self._origins_of(tensors)
            vague = self.varying.any_in(*tensors) or torch.Tag.nondeterministic_seeded in func.tags
            own = _is_view(func) and id(tensors[0]) not in self._names
            if own:
                self.varying.own(tensors[0])
            self.branches |= vague and name in VALUES
            masks = spread(self.varying, func, args, kwargs, given) if vague or _is_view(func) else None
            if own and masks is None:  # what is written through such a view is not followed
                self.varying.own(tensors[0]).fill_(1.0)
                vague = True
            out = func(*args, **kwargs)
            results = list(tensors_among([out]))
            self._mark(func, given, results, masks, vague)
            self._trace_back(name, tensors, results)
            if reading is not None:
                self.readings.append(reading)
                if reading.target is None and not reading.pads and results:
                    self._waiting[id(results[0])] = reading
        return out

    # -- what varies -------------------------------------------------------------------------------------------

    def _mark(self, func: Any, given: Arguments, results: list[Tensor], masks: Any, vague: bool) -> None:
        written = [given[a.name] for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = [tensor for tensor in written if isinstance(tensor, Tensor)]
        fresh = [result for result in results if not any(result is tensor for tensor in written)]
        for tensor in written:
            known = self.varying.own(tensor)
            in_place = isinstance(masks, Tensor) and not fresh
            known.copy_(masks if in_place else torch.full_like(known, float(vague)))
        found = list(masks) if isinstance(masks, tuple | list) else [masks]
        for place, result in enumerate(fresh):
            mask: Tensor | None = found[place] if place < len(found) else None
            if mask is None and vague:
                mask = torch.ones_like(result, dtype=torch.float32)
            if mask is not None:
                self.varying.put(result, mask if _is_view(func) else _aligned(mask, result))

    # -- where things come from --------------------------------------------------------------------------------

    def _trace_back(self, name: str, tensors: list[Tensor], results: list[Tensor]) -> None:
        """Remember what is a parameter in another form."""
        self._held += results
        if any(id(tensor) in self._computed for tensor in tensors):
            self._computed.update(map(id, results))
            return
        origins = self._origins_of(tensors)
        if origins:
            self._made_of.update((id(result), origins) for result in results)
        if len(results) == 1 and len(tensors) == 1 and (matrix := self._matrix(tensors[0])) is not None:
            before, after = tensors[0].shape, results[0].shape
            if name in TURNS and len(before) == 2 and tuple(after) == tuple(reversed(before)):
                turned = results[0].stride() != tensors[0].stride() or before[0] != before[1]
                self._turned[id(results[0])] = (matrix[0], matrix[1] ^ turned)
            elif name in SPREADS and len(after) <= 3 and after[-2:] == before[-2:]:
                self._turned[id(results[0])] = matrix

    def _origins_of(self, tensors: Sequence[Tensor]) -> frozenset[str]:
        return frozenset[str]().union(*map(self._origins, tensors))

    def _origins(self, tensor: Tensor) -> frozenset[str]:
        name = self._names.get(id(tensor))
        return self._made_of.get(id(tensor), frozenset()) if name is None else frozenset({name})

    def _matrix(self, tensor: Tensor) -> tuple[str, bool] | None:
        name = self._names.get(id(tensor))
        return (name, False) if name is not None and tensor.dim() == 2 else self._turned.get(id(tensor))

    # -- readings ----------------------------------------------------------------------------------------------

    def _read(self, name: str, given: Arguments) -> Reading | None:
        if name in CONVOLUTIONS:
            weight = self._names.get(id(given["weight"]))
            if weight is not None:
                return of_convolution(weight, self._names.get(id(given["bias"])), given, self.varying)
            self.unclear |= self._origins(given["weight"])
        elif name in PRODUCTS:
            one, two = (given[key] for key in PRODUCTS[name])
            for x, other, left in ((one, two, False), (two, one, True)):
                matrix = self._matrix(other)
                if matrix is not None:
                    scaled = any(given.get(key, 1) != 1 for key in ("alpha", "beta"))
                    bias = None if scaled or name != "addmm" else self._names.get(id(given["self"]))
                    self.unclear |= self._origins(x)
                    return of_product(matrix, bias, x, other, left, self.varying)
            self.unclear |= self._origins(one) | self._origins(two)
        return None

    def _look_after(self, name: str, given: Arguments, tensors: list[Tensor]) -> None:
        """A result that goes into one batch norm and nowhere else has its bias there: minus the running mean."""
        for tensor in tensors:
            reading = self._waiting.get(id(tensor))
            if reading is None:
                continue
            mean = given.get("running_mean")
            named = isinstance(mean, Tensor) and tensor is given.get("input") and self._names.get(id(mean))
            first, reading.followed = not reading.followed, True
            reading.target = (named, -1.0) if named and first and not given.get("training") else None


def watch(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Watch:
    """Run a model once in evaluation mode, under watch."""
    seen = Watch(model, list(tensors_in([args, kwargs])))
    with quiet(), seen:
        model(*args, **kwargs)
    return seen


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return not func._schema.is_mutable and any(result.alias_info is not None for result in returns)


def _aligned(mask: Tensor, tensor: Tensor) -> Tensor:
    """The mask in the strides of its tensor, so that the same views exist."""
    if mask.shape != tensor.shape:
        return torch.ones_like(tensor, dtype=torch.float32)
    if mask.stride() == tensor.stride():
        return mask
    return torch.empty_like(tensor, dtype=torch.float32).copy_(mask)
