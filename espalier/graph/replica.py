"""A stand-in for the model to trace and to try cuts on: same code, no memory, no side effects on the user's own."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_full_backward_hooks",
)  # fmt: skip


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers; a shared one under its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def replica(model: nn.Module, *, meta: bool) -> nn.Module:
    """A deep copy with parameters and buffers on the meta device; or, for models that must see values, with shared parameters
    and cloned buffers. Hooks are kept by reference: a deep copy of one could drag a whole optimizer along.

    Raises:
        EspalierError: if the model has lazy parameters or cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise EspalierError(f"The parameter {name} has no shape yet: run the model once before tracing it.")
        memo[id(parameter)] = nn.Parameter(_meta(parameter), parameter.requires_grad) if meta else parameter
    for _, buffer in model.named_buffers():
        memo[id(buffer)] = _meta(buffer) if meta else buffer.detach().clone()
    for module in model.modules():
        for attribute in HOOKS:
            hooks = module.__dict__.get(attribute)
            if hooks is not None:
                memo[id(hooks)] = hooks.copy()
    try:
        return copy.deepcopy(model, memo)
    except EspalierError:
        raise
    except Exception as error:
        raise EspalierError(
            f"The {type(model).__name__} cannot be copied for tracing ({type(error).__name__}: {error}): modules under the old "
            f"torch.nn.utils.weight_norm or spectral_norm need torch.nn.utils.parametrizations instead."
        ) from error


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor.detach(), device="meta")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no fused paths that hide operations, no trace in the random generators; and no garbage collection, which
    would go through the whole process several times while labels are made."""
    fast = torch.backends.mha.get_fastpath_enabled()
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
        if collecting:
            gc.enable()


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a mapping is keywords, a tuple or list positions, anything else the only argument."""
    if isinstance(example_inputs, Mapping):  # a tokenizer returns a mapping that is no dict
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
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


def on_meta(value: Any) -> Any:
    """The same nest of dicts and sequences, with every tensor on the meta device; other objects stay as they are."""
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if isinstance(value, dict):
        return type(value)((key, on_meta(item)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(on_meta, value))
    return type(value)(map(on_meta, value)) if isinstance(value, tuple | list) else value
