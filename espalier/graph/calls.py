"""Which module is running, and which ones ask whether the model trains.

Code that never reads ``training`` does the same in both modes. So the pass in training mode repeats only the calls that read
it. What ``torch.nn`` reads it for, dropout and statistics, changes no axis.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from espalier.graph.labels import Labels


@dataclass(eq=False)
class Call:
    """One call of a module; those that read ``training`` keep what they were given and what they returned."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    earlier: int  # how many calls had read ``training`` when it began
    out: Any = None
    asked: bool = False


@dataclass
class Calls:
    """The calls of one pass that are under way, and the outermost finished ones that read ``training``."""

    labels: Labels
    plain: set[str] = field(default_factory=set)  # modules whose forward is that of torch.nn
    asking: list[Call] = field(default_factory=list)
    _running: list[Call] = field(default_factory=list)

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before a module's forward."""
        self._running.append(Call(path, module, args, kwargs, len(self.asking)))
        self.labels.module = path

    def leave(self, module: nn.Module, args: object, out: Any) -> None:
        """A hook after a module's forward."""
        call = self._running.pop()
        self.labels.module = self._running[-1].path if self._running else ""
        if call.asked:
            call.out = out
            self.asking[call.earlier :] = [call]

    def asked(self) -> None:
        """The running module reads ``training``, its own or another's."""
        if self._running and self._running[-1].path not in self.plain:
            self._running[-1].asked = True


@contextlib.contextmanager
def modules_followed(model: nn.Module, labels: Labels) -> Iterator[Calls]:
    """Know at any time which module is running."""
    handles, calls = [], Calls(labels)
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            if _is_plain(module):
                calls.plain.add(path)
            enter = functools.partial(calls.enter, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(calls.leave))
    try:
        yield calls
    finally:
        labels.module = ""
        for handle in handles:
            handle.remove()


def _is_plain(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("torch.nn.") and not hooked


# -- who reads training --------------------------------------------------------------------------------------------


def can_be_watched(model: nn.Module) -> bool:
    """Whether every read of ``training`` can be seen, and nothing else happens when the mode is set."""
    kinds = {type(module) for module in model.modules()}
    return not any(
        issubclass(kind, torch.jit.ScriptModule)
        or kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
        or type(kind) not in (type, abc.ABCMeta)
        or any("training" in vars(base) or "__init_subclass__" in vars(base) for base in kind.__mro__[:-1])
        for kind in kinds
    )


@contextlib.contextmanager
def training_watched(model: nn.Module, calls: Calls) -> Iterator[None]:
    """Take note of reads of ``training``: the modules of a replica get subclasses in which it is a property, as parametrized
    modules of torch get theirs."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module in model.modules():
            kind = type(module)
            if kind not in kinds:
                kinds[kind] = _watched(kind, calls)
            module.__class__ = kinds[kind]
            changed.append((module, kind))
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


def _watched(kind: Any, calls: Calls) -> Any:
    def read(module: nn.Module) -> Any:
        calls.asked()
        return module.__dict__["training"]

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "training": property(read, write)}
    return type(kind)(kind.__name__, (kind,), names)
