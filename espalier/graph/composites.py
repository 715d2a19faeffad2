"""Functions that are labelled in one go.

Taken apart, a linear layer is four operations and a scaled dot product eighteen. That takes most of the time of tracing a
transformer, and says no more than one rule can. Convolutions, norms and the like are one operation each, but the way to it
through torch's dispatcher takes several times as long as its rule; so they are here as well, under the names and with the
arguments of their operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from espalier.graph.integers import plain
from espalier.graph.meta import functions
from espalier.graph.modes import transform, without_operations

PLAIN = frozenset({Tensor, nn.Parameter})  # subclasses may have operations of their own
PLAIN_OR_NONE = PLAIN | {type(None)}
Given = dict[str, Any]


@dataclass(frozen=True)
class Composite:
    """A function with a rule of its own."""

    name: str
    arguments: tuple[str, ...]
    shape: Callable[..., Any]  # empty results on meta; None where the function has to be taken apart
    tensors: tuple[str, ...]  # these have to be tensors
    optional: tuple[str, ...] = ()  # or None
    told: Callable[[Given], Given | None] | None = None  # the arguments as the operation is told them; None: take it apart
    silent: frozenset[str] = frozenset()  # arguments that say nothing of axes
    by_values: bool = False  # the shape of the results follows from values

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given | None:
        """The arguments by name, None for those that were left out; None if the call is not a usual one."""
        given: Given = dict.fromkeys(self.arguments)
        given.update(zip(self.arguments, args, strict=False))
        given.update(kwargs)
        if len(given) != len(self.arguments) or len(args) > len(given):
            return None
        for name in self.tensors:
            if type(given[name]) not in PLAIN:
                return None
        for name in self.optional:
            if type(given[name]) not in PLAIN_OR_NONE:
                return None
        return given

    def given(self, named: Given) -> Given | None:
        """The arguments as the operation is told them; None where it has to be taken apart."""
        return named if self.told is None else self.told(named)

    def telling(self, named: Given) -> Given:
        """The arguments by which two calls can be told apart."""
        return {name: value for name, value in named.items() if name not in self.silent} if self.silent else named

    def result(self, given: Given) -> Any:
        """What the function returns on meta; None where it has to be taken apart."""
        if transform() is not None or self.by_values:  # inside vmap a tensor is larger than it says
            return None
        with without_operations():
            return self.shape(*given.values())

    def computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Given) -> Any:
        """What the function returns where there are values; None where it has to be taken apart."""
        with without_operations():
            empty = {name: _without_values(value) for name, value in given.items()}
        if not self.by_values and self.result(empty) is None:
            return None
        with without_operations():
            return func(*args, **kwargs)


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return type(value)(map(_without_values, value)) if type(value) in (tuple, list) else value


def _convolution(given: Given) -> Given | None:
    count = given["weight"].dim() - 2
    settings = {name: _each(given[name], default, count) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    if None in settings.values():
        return None
    groups = 1 if given["groups"] is None else plain(given["groups"])
    tensors = {name: given[name] for name in ("input", "weight", "bias")}
    return {**tensors, **settings, "transposed": False, "output_padding": [0] * count, "groups": groups}


def _each(value: Any, default: int, count: int) -> list[int] | None:
    """One number for each spatial dimension."""
    if value is None:
        return [default] * count
    if isinstance(value, int):
        return [plain(value)] * count
    return list(map(plain, value)) if isinstance(value, tuple | list) and len(value) == count else None


def _batch_norm(given: Given) -> Given | None:
    """In training mode torch asks for several values per channel."""
    x, eps = given["input"], given["eps"]
    if not isinstance(eps, float) or eps < 0 or x.dim() < 2 or (given["training"] and x.numel() <= x.shape[1]):
        return None
    if not given["training"] and (given["running_mean"] is None or given["running_var"] is None):
        return None
    return {name: given[name] for name in ("input", "weight", "bias", "running_mean", "running_var")}


def _layer_norm(given: Given) -> Given:
    return {**given, "normalized_shape": list(map(plain, given["normalized_shape"]))}


def _joined(given: Given) -> Given | None:
    tensors = given["tensors"]
    if type(tensors) not in (tuple, list) or not tensors or any(type(tensor) not in PLAIN for tensor in tensors):
        return None
    return {"tensors": tensors, "dim": 0 if given["dim"] is None else plain(given["dim"])}


def _convolutions() -> dict[Any, Composite]:
    arguments = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    made = Composite("convolution", arguments, functions.convolution, ("input", "weight"), ("bias",), _convolution)
    return dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), made)


def _recurrent(name: str) -> Composite:
    arguments = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    silent = frozenset({"dropout", "train"})
    return Composite(name, arguments, functions.recurrent, ("input",), (), _packed, silent)


def _packed(given: Given) -> Given:
    """Packed sequences come with their batch sizes as a second argument, and all sequences in one dimension."""
    data, sizes, hidden, *others = given.values()
    names = [name for name in given if name != "input"]
    packed = isinstance(sizes, Tensor) and type(others[0]) is list
    return {"input": data, **dict(zip(names, (hidden, *others, False), strict=True))} if packed else given


def _cell(name: str) -> Composite:
    arguments = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
    return Composite(name, arguments, functions.cell, ("input", "w_ih", "w_hh"), ("b_ih", "b_hh"))


COMPOSITES: dict[Any, Composite] = {
    functional.linear: Composite("linear", ("input", "weight", "bias"), functions.linear, ("input", "weight"), ("bias",)),
    functional.scaled_dot_product_attention: Composite(
        "scaled_dot_product_attention",
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        functions.attention,
        ("query", "key", "value"),
        silent=frozenset({"dropout_p"}),
    ),
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__),
        Composite("matmul", ("input", "other"), functions.matmul, ("input", "other")),
    ),
    **_convolutions(),
    functional.batch_norm: Composite(
        "native_batch_norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        functions.batch_norm,
        ("input",),
        ("running_mean", "running_var", "weight", "bias"),
        _batch_norm,
        silent=frozenset({"training", "momentum"}),
    ),
    functional.layer_norm: Composite(
        "native_layer_norm",
        ("input", "normalized_shape", "weight", "bias", "eps"),
        functions.layer_norm,
        ("input",),
        ("weight", "bias"),
        _layer_norm,
    ),
    functional.rms_norm: Composite(
        "rms_norm", ("input", "normalized_shape", "weight", "eps"), functions.rms_norm, ("input",), ("weight",), _layer_norm
    ),
    **dict.fromkeys((torch.cat, torch.concat), Composite("cat", ("tensors", "dim"), functions.cat, (), (), _joined)),
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__), Composite("add", ("self", "other"), functions.entries, ("self", "other"))
    ),
    **dict.fromkeys(
        (torch.mul, Tensor.mul, Tensor.__mul__), Composite("mul", ("self", "other"), functions.entries, ("self", "other"))
    ),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), Composite("add", ("self", "other"), functions.in_place, ("self", "other"))),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), Composite("mul", ("self", "other"), functions.in_place, ("self", "other"))),
    functional.relu: Composite("relu", ("self", "inplace"), functions.activation, ("self",)),
    functional.relu6: Composite("hardtanh", ("self", "inplace"), functions.activation, ("self",)),
    functional.silu: Composite("silu", ("self", "inplace"), functions.activation, ("self",)),
    functional.hardswish: Composite("hardswish", ("self", "inplace"), functions.activation, ("self",)),
    functional.hardsigmoid: Composite("hardsigmoid", ("self", "inplace"), functions.activation, ("self",)),
    torch.lstm: _recurrent("lstm"),
    torch.gru: _recurrent("gru"),
    torch.rnn_tanh: _recurrent("rnn_tanh"),
    torch.rnn_relu: _recurrent("rnn_relu"),
    torch._C._VariableFunctions._pad_packed_sequence: Composite(
        "_pad_packed_sequence",
        ("data", "batch_sizes", "batch_first", "padding_value", "total_length"),
        functions.unknown,
        ("data", "batch_sizes"),
        by_values=True,
    ),
    torch.lstm_cell: _cell("lstm_cell"),
    torch.gru_cell: _cell("gru_cell"),
    torch.rnn_tanh_cell: _cell("rnn_tanh_cell"),
    torch.rnn_relu_cell: _cell("rnn_relu_cell"),
    torch.sigmoid: Composite("sigmoid", ("self",), functions.entries, ("self",)),
    torch.tanh: Composite("tanh", ("self",), functions.entries, ("self",)),
    functional.gelu: Composite("gelu", ("self", "approximate"), functions.entries, ("self",)),
}


def on_meta(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a composite returns on meta; None for anything else, and where it has to be taken apart."""
    composite = COMPOSITES.get(func)
    named = None if composite is None else composite.named(args, kwargs)
    given = None if composite is None or named is None else composite.given(named)
    return None if composite is None or given is None else composite.result(given)


class CompositesOnMeta(TorchFunctionMode):
    """Runs them in one go, where no rule is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = on_meta(func, args, kwargs)
        return func(*args, **kwargs) if out is None else out
