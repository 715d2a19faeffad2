"""A stand-in for the model to trace and to try cuts on: same code, no memory, no side effects on the user's own."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from espalier.errors import EspalierError
from espalier.graph.copying import Copier
from espalier.graph.meta.operations import META, like

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` yields, without going through all levels for each."""
    found: dict[nn.Module, str] = {}

    def visit(path: str, module: nn.Module) -> None:
        if module not in found:
            found[module] = path
            prefix = f"{path}." if path else ""
            for name, child in module._modules.items():
                if child is not None:
                    visit(prefix + name, child)

    visit("", model)
    return [(path, module) for module, path in found.items()]


def named_tensors(model: nn.Module, modules: Iterable[tuple[str, nn.Module]] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers; a shared one under its first name.

    Args:
        model: to walk through.
        modules: all of the model, by path, if that is known.
    """
    known = named_modules(model) if modules is None else list(modules)
    yield from named(known, "_parameters")
    yield from named(known, "_buffers")


def named(modules: Iterable[tuple[str, nn.Module]], kind: str) -> Iterator[tuple[str, Tensor]]:
    """The ``_parameters`` or ``_buffers`` of modules; a shared one under its first name."""
    seen: set[int] = set()
    for path, module in modules:
        held = getattr(module, kind)
        if held:
            prefix = f"{path}." if path else ""
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield prefix + name, tensor


def replica(model: nn.Module, *, meta: bool) -> nn.Module:
    """A deep copy with parameters and buffers on the meta device; or, for models that must see values, with clones of them:
    some change their parameters while they run, as a moving average does. Hooks are not copied, but those of the model's own
    objects are hooks of their copies.

    Raises:
        EspalierError: if the model has lazy parameters or cannot be copied.
    """
    memo: dict[int, Any] = {}
    modules = named_modules(model)
    for name, parameter in named(modules, "_parameters"):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise EspalierError(f"The parameter {name} has no shape yet: run the model once before tracing it.")
        memo[id(parameter)] = nn.Parameter(_meta(parameter) if meta else parameter.detach().clone(), parameter.requires_grad)
    for _, buffer in named(modules, "_buffers"):
        memo[id(buffer)] = _meta(buffer) if meta else buffer.detach().clone()
    try:
        return Copier(model, memo, hookable=not meta).copy()
    except EspalierError:
        raise
    except Exception as error:
        raise EspalierError(
            f"The {type(model).__name__} cannot be copied for tracing ({type(error).__name__}: {error}): what its modules hold "
            f"must be such that copy.deepcopy can copy it."
        ) from error


def _meta(tensor: Tensor) -> Tensor:
    return like(tensor) if tensor.layout is torch.strided else torch.empty_like(tensor, device=META)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no fused paths that hide operations, no trace in the random generators; and no garbage collection, which
    would go through the whole process several times while labels are made."""
    fast, chance, numpys = torch.backends.mha.get_fastpath_enabled(), random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    torch.backends.mha.set_fastpath_enabled(False)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(chance)
        np.random.set_state(numpys)
        if collecting:
            gc.enable()


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a mapping is keywords, a tuple or list positions, anything else the only argument."""
    if isinstance(example_inputs, Mapping):  # a tokenizer returns a mapping that is no dict
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list) and not isinstance(example_inputs, PackedSequence):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor inside nested dicts, sequences and objects such as dataclasses."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, str | bytes | int | float | nn.Module | type(None)):
        seen.add(id(value))
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list | set) else None
        for item in vars(value).values() if inside is None and hasattr(value, "__dict__") else inside or ():
            yield from tensors_in(item, seen)


def stand_ins(inputs: Inputs, *, meta: bool) -> Inputs:
    """Inputs for a stand-in: copies all through, so that nothing done to them is done to the user's. Tensors are on the meta
    device, or have the same values."""
    return _copied(inputs, {id(tensor): _meta_input(tensor) if meta else _clone(tensor) for tensor in tensors_in(inputs)})


def fresh(inputs: Inputs) -> Inputs:
    """The same tensors in containers and objects of their own: a run may take things out."""
    return _copied(inputs, {id(tensor): tensor for tensor in tensors_in(inputs)})


def _copied(inputs: Inputs, tensors: dict[int, Any]) -> Inputs:
    try:
        return copy.deepcopy(inputs, dict(tensors))
    except Exception:  # something in them cannot be copied: it is given as it is
        return cast(Inputs, _rebuilt(inputs, tensors))


def _rebuilt(value: Any, tensors: dict[int, Any]) -> Any:
    """Other dictionaries and sequences, with other tensors; other objects stay as they are."""
    if isinstance(value, Tensor):
        return tensors[id(value)]
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({key: _rebuilt(item, tensors) for key, item in value.items()})
        return made
    if type(value) is list:
        return [_rebuilt(item, tensors) for item in value]
    if isinstance(value, tuple):
        items = [_rebuilt(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _meta_input(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta")


def _clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
