"""Which module is running, and which ones ask whether the model trains.

Code that never reads ``training`` does the same in both modes. So in training mode only the calls that read it are repeated
(``training.py``). What ``torch.nn`` reads it for, dropout and statistics, changes no axis.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from espalier.graph.copying import take_hooks
from espalier.graph.held import Held
from espalier.graph.labels import Event, Labels
from espalier.graph.leaves import Leaf, hooks_of_all, leaf_of, plain_among
from espalier.graph.modes import without_functions

if TYPE_CHECKING:
    from espalier.graph.twins import Twins

Modules = Sequence[tuple[str, nn.Module]]  # those of a model, with their paths


@dataclass(eq=False)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    earlier: int  # how many calls had ended when it began
    start: int  # how many events there had been
    end: int = 0  # and when it ended
    out: Any = None
    inside: list[Call] = field(default_factory=list)  # the calls that it made itself
    asked: bool = False  # whether it has read ``training``
    others: bool = False  # whether there are like calls that have not been made
    told: bool = False  # whether somebody had told its module something since the pass began, or one inside
    lost: bool = False  # whether who made it has failed since
    differs: bool = False  # whether ``trained`` is something else than ``out``
    trained: Any = None  # what it returns in training mode, if it differs

    def events(self, labels: Labels) -> list[Event]:
        """What it did itself, and for each call inside that it was made."""
        found: list[Event] = []
        place = self.start
        for call in self.inside:
            found += labels.events[place : call.start]
            found.append((CALLED, call, call.out))
            place = call.end
        return found + labels.events[place : self.end]


CALLED = "called"


def snapshot(out: Any) -> Any:
    """What a call is given or returns, whatever is put into a dictionary or list later."""
    kind = type(out)
    return kind(out) if kind is list or kind is dict or kind is OrderedDict else out


class Repeat(Protocol):
    """A call made a second time."""

    def inside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
        """What a module returns that it calls; ``run`` runs that."""


@dataclass
class Calls:
    """The calls of one pass."""

    labels: Labels
    plain: set[str]  # modules whose forward is that of torch.nn
    leaves: dict[int, nn.Module]  # those of them that need not be run, by their id
    ended: list[Call] = field(default_factory=list)  # those inside before those that made them
    twins: Twins | None = None  # where like blocks are labelled once
    alike: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)  # blocks labelled, and not, since they are alike
    held: Held | None = None  # what modules held when the pass began
    repeat: Repeat | None = None  # where a call is made again
    at_once: Callable[[Any, tuple[Any, ...]], Any] | None = None  # labels a function; None if that has to be taken apart
    _running: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, modules: Modules, labels: Labels) -> Calls:
        """Of the modules of a model."""
        plain = {id(module): module for module in plain_among(module for _, module in modules)}
        leaves = {number: module for number, module in plain.items() if leaf_of(type(module)) is not None}
        return cls(labels, {path for path, module in modules if id(module) in plain}, leaves)

    def without_leaves(self, modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """Modules that may keep something: layers of torch do not."""
        return (module for module in modules if id(module) not in self.leaves)

    def differ_in_mode(self) -> bool:
        """Whether like blocks are not in the same modes: a model may keep some of its blocks from training."""
        pairs = (zip(one.modules(), other.modules(), strict=True) for one, other in self.alike)
        return any(mine.training != theirs.training for pair in pairs for mine, theirs in pair)

    def asking_since(self, earlier: int) -> list[Call]:
        """Those that have read ``training``, of all but so many that had ended."""
        return [call for call in self.ended[earlier:] if call.asked]

    def new(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call that is about to begin."""
        events = len(self.labels.events)
        return Call(path, module, tuple(map(snapshot, args)), kwargs, len(self.ended), events, events)

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before a module's forward."""
        call = self.new(path, module, args, kwargs)
        call.told = self.held is not None and not self.held.is_same_in(module)
        self._running.append(call)
        self.labels.module = path

    def leave(self, module: nn.Module, args: object, out: Any) -> None:
        """A hook after a module's forward."""
        while (call := self._running.pop()).module is not module:
            pass  # it raised, and the model went on
        self.labels.module = self._running[-1].path if self._running else ""
        call.out, call.end = snapshot(out), len(self.labels.events)
        self.end(call)

    def leaf(self, path: str, module: nn.Module, leaf: Leaf, x: Tensor) -> Any:
        """What a layer returns that need not be run; None if it has to be."""
        if self.at_once is None or id(module) not in self.leaves:
            return None
        call = self.new(path, module, (x,), {})
        above, self.labels.module = self.labels.module, path
        try:
            with without_functions():
                function = leaf.asked(module, x)
                out = None if function is None else self.at_once(*function)
            if out is not None and leaf.then:
                out = self._handed_on(call, leaf.then, out)
        finally:
            self.labels.module = above
        if out is not None:
            call.out, call.end = out, len(self.labels.events)
            self.end(call)
        return out

    def _handed_on(self, call: Call, names: Sequence[str], out: Any) -> Any:
        """What the last of several modules inside returns, each called with what the one before returns."""
        self._running.append(call)
        try:
            for name in names:
                out = getattr(call.module, name)(out)
        except BaseException:
            self.fail()
            raise
        self._running.pop()
        return out

    def end(self, call: Call) -> None:
        """A call has returned."""
        self.ended.append(call)
        if self._running:
            self._running[-1].inside.append(call)
            self._running[-1].told |= call.told

    def fail(self) -> None:
        """A module raised. The model may catch that and take another way: whoever catches it depends on what was read."""
        call = self._running.pop()
        self.labels.module = self._running[-1].path if self._running else ""
        if call.asked and self._running:
            self._running[-1].asked = True
        for each in call.inside:
            each.lost = True

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
            take_hooks(module)
            enter = functools.partial(calls.enter, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(calls.leave))
    try:
        yield
    finally:
        calls.labels.module = ""
        for handle in handles:
            handle.remove()


# -- who reads training --------------------------------------------------------------------------------------------


def can_be_watched(modules: Modules) -> bool:
    """Whether every read of ``training`` can be seen."""
    kinds = {type(module) for _, module in modules}
    return not any(
        issubclass(kind, torch.jit.ScriptModule)
        or type(kind) not in (type, abc.ABCMeta)
        or any("training" in vars(base) or "__init_subclass__" in vars(base) for base in kind.__mro__[:-1])
        for kind in kinds
    )


def only_sets_flags(modules: Modules) -> bool:
    """Whether nothing else happens when the mode is set."""
    return all(map(sets_flags, {type(module) for _, module in modules})) and can_be_watched(modules)


def sets_flags(kind: type[nn.Module]) -> bool:
    """Whether modules of a class do nothing else when the mode is set."""
    return kind.train is nn.Module.train and kind.eval is nn.Module.eval


def set_mode(model: nn.Module, modules: Modules, *, training: bool, flags: bool) -> None:
    """``model.train(training)``, more quickly where it only sets ``flags``."""
    if not flags:
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
    if hooks_of_all():
        calls.at_once = None
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
    leaf = leaf_of(kind)

    def read(module: nn.Module) -> Any:
        calls.asked()
        return module.__dict__["training"]

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path, twins, repeat = paths.get(id(module)), calls.twins, calls.repeat
        if path is None:  # made while the model runs
            return kind.__call__(module, *args, **kwargs)
        if repeat is not None:  # in training mode
            return repeat.inside(module, args, kwargs, lambda: followed(module, path, args, kwargs))
        hooked = module._forward_hooks or module._forward_pre_hooks
        if leaf is not None and len(args) == 1 and not kwargs and type(args[0]) is Tensor and not hooked:
            out = calls.leaf(path, module, leaf, args[0])
            return followed(module, path, args, kwargs) if out is None else out
        if twins is not None and path in twins.paths:
            return twins.run(calls.new(path, module, args, kwargs), lambda: followed(module, path, args, kwargs))
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
