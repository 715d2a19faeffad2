"""Which module is running, and which ones ask whether the model trains.

Code that never reads ``training`` does the same in both modes. So the pass in training mode repeats only the calls that read
it. What ``torch.nn`` reads it for, dropout and statistics, changes no axis.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from espalier.graph.labels import Event, Labels

if TYPE_CHECKING:
    from espalier.graph.twins import Twins

Modules = Sequence[tuple[str, nn.Module]]  # those of a model, with their paths


@dataclass(eq=False)
class Call:
    """One call of a module; those that read ``training`` keep what they were given and what they returned."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    earlier: int  # how many calls had read ``training`` when it began
    start: int  # how many events there had been
    out: Any = None
    asked: bool = False
    others: bool = False  # whether there are like calls that have not been made
    events: Sequence[Event] = ()


@dataclass
class Calls:
    """The calls of one pass that are under way, and the outermost finished ones that read ``training``."""

    labels: Labels
    plain: set[str]  # modules whose forward is that of torch.nn
    asking: list[Call] = field(default_factory=list)
    twins: Twins | None = None  # where like blocks are labelled once
    _running: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, modules: Modules, labels: Labels) -> Calls:
        """Of the modules of a model."""
        return cls(labels, {path for path, module in modules if _is_plain(module)})

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before a module's forward."""
        self._running.append(Call(path, module, args, kwargs, len(self.asking), len(self.labels.events)))
        self.labels.module = path

    def leave(self, module: nn.Module, args: object, out: Any) -> None:
        """A hook after a module's forward."""
        while (call := self._running.pop()).module is not module:
            pass  # it raised, and the model went on
        self.labels.module = self._running[-1].path if self._running else ""
        if call.asked:
            call.out, call.events = out, self.labels.events[call.start :]
            self.asking[call.earlier :] = [call]

    def fail(self) -> None:
        """A module raised. The model may catch that and take another way: whoever catches it depends on what was read."""
        call = self._running.pop()
        self.labels.module = self._running[-1].path if self._running else ""
        if call.asked and self._running:
            self._running[-1].asked = True

    def asked(self) -> None:
        """The running module reads ``training``, its own or another's."""
        if self._running and self._running[-1].path not in self.plain:
            self._running[-1].asked = True


@contextlib.contextmanager
def modules_followed(modules: Modules, calls: Calls) -> Iterator[None]:
    """Know at any time which module is running: by hooks, which every module can have."""
    handles = []
    for path, module in modules:
        if not isinstance(module, torch.jit.ScriptModule):
            enter = functools.partial(calls.enter, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(calls.leave))
    try:
        yield
    finally:
        calls.labels.module = ""
        for handle in handles:
            handle.remove()


def _is_plain(module: nn.Module) -> bool:
    kind = type(module)
    hooked = module._forward_hooks or module._forward_pre_hooks
    replaced = "forward" in module.__dict__ or not kind.forward.__module__.startswith("torch.nn.")  # as of parametrized modules
    return kind.__module__.startswith("torch.nn.") and not hooked and not replaced


# -- who reads training --------------------------------------------------------------------------------------------


def can_be_watched(modules: Modules) -> bool:
    """Whether every read of ``training`` can be seen, and nothing else happens when the mode is set."""
    kinds = {type(module) for _, module in modules}
    return not any(
        issubclass(kind, torch.jit.ScriptModule)
        or kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
        or type(kind) not in (type, abc.ABCMeta)
        or any("training" in vars(base) or "__init_subclass__" in vars(base) for base in kind.__mro__[:-1])
        for kind in kinds
    )


def set_mode(model: nn.Module, modules: Modules, *, training: bool) -> None:
    """``model.train(training)``; where that sets flags and nothing else, they are set more quickly."""
    if not can_be_watched(modules):
        _ = model.train() if training else model.eval()
        return
    for _, module in modules:
        module.__dict__["training"] = training


@contextlib.contextmanager
def training_watched(modules: Modules, calls: Calls) -> Iterator[None]:
    """Follow modules, more quickly than by hooks, and take note of reads of ``training``: the modules of a replica get
    subclasses in which it is a property, as parametrized modules of torch get theirs. Not for code
    that asks for exact classes: see ``asks_for_classes``."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    paths = {id(module): path for path, module in modules}
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for _, module in modules:
            kind = type(module)
            if kind not in kinds:
                kinds[kind] = _watched(kind, calls, paths)
            object.__setattr__(module, "__class__", kinds[kind])
            changed.append((module, kind))
        yield
    finally:
        calls.labels.module = ""
        for module, kind in changed:
            object.__setattr__(module, "__class__", kind)
        for watched in kinds.values():  # only the garbage collector frees a class: it must not hold all that calls know
            del watched.__call__, watched.training


def _watched(kind: Any, calls: Calls, paths: Mapping[int, str]) -> Any:
    def read(module: nn.Module) -> Any:
        calls.asked()
        return module.__dict__["training"]

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path, twins = paths.get(id(module)), calls.twins
        if path is None:  # made while the model runs
            return kind.__call__(module, *args, **kwargs)
        if twins is not None and path in twins.paths:
            asked = Call(path, module, args, kwargs, len(calls.asking), 0)
            return twins.run(asked, lambda: followed(module, path, args, kwargs))
        return followed(module, path, args, kwargs)

    def followed(module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.enter(path, module, args, kwargs)
        try:
            out = kind.__call__(module, *args, **kwargs)
        except BaseException:
            calls.fail()
            raise
        calls.leave(module, args, out)
        return out

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__call__": call}
    return type(kind)(kind.__name__, (kind,), {**names, "training": property(read, write)})
