"""Layers of ``torch.nn``, and some of timm and torchvision, that need not be run: what their forward would call is known.

The way from a layer to that function, through hooks, checks and torch's dispatcher, would take most of the time of a trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as every

from espalier.graph.composites import on_meta
from espalier.graph.modes import without_functions

Function = Callable[[Any, Tensor], tuple[Any, tuple[Any, ...]] | None]


@dataclass(frozen=True)
class Leaf:
    """What a class of layers does in evaluation mode with one tensor."""

    function: Function  # of layer and tensor: what forward calls, and the arguments; None where it has to be run after all.
    # Instead of a function None, if the layer returns what it was given.
    then: tuple[str, ...] = ()  # modules inside that are called in turn with what that returns
    names: frozenset[str] | None = None  # that forward reads; other ones: it has been written anew

    def asked(self, layer: Any, x: Tensor) -> tuple[Any, tuple[Any, ...]] | None:
        """The function and its arguments; None where the layer has to be run."""
        try:
            return self.function(layer, x)
        except KeyError:  # its weight is no parameter
            return None


def leaf_of(kind: Any) -> Leaf | None:
    """What is known of a class, if it is known."""
    leaf = LEAVES.get(kind)
    if leaf is not None:
        return leaf
    leaf = OF_OTHERS.get(f"{kind.__module__}.{kind.__qualname__}")
    code = None if leaf is None else getattr(kind.forward, "__code__", None)
    return leaf if leaf is not None and code is not None and frozenset(code.co_names) == leaf.names else None


def hooks_of_all() -> bool:
    """Whether there are hooks that every module calls."""
    return bool(
        every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


def plain_among(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Modules that do what their class in ``torch.nn``, timm or torchvision does, and nothing else."""
    known: dict[type[nn.Module], bool] = {}
    for module in modules:
        kind = type(module)
        if kind not in known:
            known[kind] = _is_known(kind)
        if known[kind] and not module._forward_hooks and not module._forward_pre_hooks and OWN.isdisjoint(module.__dict__):
            yield module


def _is_known(kind: Any) -> bool:
    if not kind.__module__.startswith("torch.nn."):
        return leaf_of(kind) is not None
    convolves = getattr(kind, CONVOLVES, None)
    return _is_of_torch(kind.forward) and (convolves is None or _is_of_torch(convolves))


CONVOLVES = "_conv_forward"
OWN = frozenset({"forward", CONVOLVES, "weight", "bias", "running_mean", "running_var"})  # what an object may have of its own


def _is_of_torch(function: Any) -> bool:
    """Whether a function was written there: parametrized modules have others, and anybody may set one."""
    name: str = getattr(function, "__globals__", {}).get("__name__", "")
    return name.startswith("torch.nn.")


@contextlib.contextmanager
def leaves_at_once(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run no such layers of a model on meta in evaluation mode: they return empty tensors at once. Their classes are others for
    that time."""
    kinds: dict[Any, Any] = {}
    changed = []
    try:
        for module in () if hooks_of_all() else plain_among(modules):
            kind: Any = type(module)
            if (leaf := leaf_of(kind)) is not None:
                kinds[kind] = kinds.get(kind) or type(kind.__name__, (kind,), {"__call__": _at_once(kind, leaf)})
                object.__setattr__(module, "__class__", kinds[kind])
                changed.append((module, kind))
        yield
    finally:
        for module, kind in changed:
            object.__setattr__(module, "__class__", kind)


def _at_once(kind: Any, leaf: Leaf) -> Any:
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            with without_functions():
                function = leaf.asked(module, args[0])
                out = None if function is None else args[0] if function[0] is None else on_meta(*function, {})
            if out is not None:
                for name in leaf.then:
                    out = getattr(module, name)(out)
                return out
        return kind.__call__(module, *args, **kwargs)

    return call


def _convolution(function: Any) -> Function:
    def leaf(layer: Any, x: Tensor) -> tuple[Any, tuple[Any, ...]] | None:
        if layer.padding_mode != "zeros":
            return None
        held = layer._parameters
        return function, (x, held["weight"], held["bias"], layer.stride, layer.padding, layer.dilation, layer.groups)

    return leaf


def _batch_norm(dim: int) -> Function:
    def leaf(layer: Any, x: Tensor) -> tuple[Any, tuple[Any, ...]] | None:
        if x.dim() != dim:
            return None
        held, kept = layer._parameters, layer._buffers
        vectors = kept["running_mean"], kept["running_var"], held["weight"], held["bias"]
        return functional.batch_norm, (x, *vectors, False, layer.momentum, layer.eps)

    return leaf


def _linear(layer: Any, x: Tensor) -> tuple[Any, tuple[Any, ...]]:
    held = layer._parameters
    return functional.linear, (x, held["weight"], held["bias"])


def _layer_norm(layer: Any, x: Tensor) -> tuple[Any, tuple[Any, ...]]:
    held = layer._parameters
    return functional.layer_norm, (x, layer.normalized_shape, held["weight"], held["bias"], layer.eps)


def _activation(function: Any) -> Function:
    return lambda layer, x: (function, (x, layer.inplace))


def _nothing(layer: Any, x: Tensor) -> tuple[None, tuple[Tensor]]:
    """In evaluation mode; in training noise, which says nothing of axes."""
    return None, (x,)


FUNCTIONS: dict[type[nn.Module], Function] = {
    nn.Conv1d: _convolution(functional.conv1d),
    nn.Conv2d: _convolution(functional.conv2d),
    nn.Conv3d: _convolution(functional.conv3d),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.ReLU: _activation(functional.relu),
    nn.ReLU6: _activation(functional.relu6),
    nn.SiLU: _activation(functional.silu),
    nn.Hardswish: _activation(functional.hardswish),
    nn.Hardsigmoid: _activation(functional.hardsigmoid),
    nn.GELU: lambda layer, x: (functional.gelu, (x,)) if layer.approximate == "none" else None,
    nn.Sigmoid: lambda layer, x: (torch.sigmoid, (x,)),
    nn.Tanh: lambda layer, x: (torch.tanh, (x,)),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _nothing),
}

LEAVES = {kind: Leaf(function) for kind, function in FUNCTIONS.items()}
OF_OTHERS = {
    "timm.layers.norm_act.BatchNormAct2d": Leaf(
        _batch_norm(4),
        ("drop", "act"),
        frozenset({
            "F", "_assert", "act", "add_", "batch_norm", "bias", "drop", "eps", "float", "momentum", "ndim",
            "num_batches_tracked", "running_mean", "running_var", "track_running_stats", "training", "weight",
        }),
    ),
    "timm.layers.norm.LayerNorm": Leaf(
        lambda layer, x: None if layer._fast_norm else _layer_norm(layer, x),
        (),
        frozenset({"F", "_fast_norm", "bias", "eps", "fast_layer_norm", "layer_norm", "normalized_shape", "weight"}),
    ),
    "timm.layers.drop.DropPath": Leaf(
        _nothing, (), frozenset({"drop_path", "drop_prob", "training", "scale_by_keep"})
    ),
    "torchvision.ops.stochastic_depth.StochasticDepth": Leaf(
        _nothing, (), frozenset({"stochastic_depth", "p", "mode", "training"})
    ),
}  # fmt: skip
