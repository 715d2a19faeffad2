"""Riding on the user's optimizers: what turns ``optimizer.step()`` into the moments that a method sees.

The caveats that this file takes care of:

- a closure handed to ``step`` (LBFGS, Lightning) computes the gradients, so it is wrapped;
- a subclass that calls ``super().step()`` fires the hooks twice: only the outermost counts;
- fused optimizers under a GradScaler are called even for a step that will be skipped, with scaled gradients: the flag
  stays on the device and is read two steps later, when it has long arrived;
- an optimizer that we do not ride on and that steps our weights would undo every mask: that raises at its first step;
- torch.distributed.checkpoint takes a step that is none, to build empty optimizer states;
- several optimizers: a step of the training is a step of the one that has stepped most often.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from espalier.errors import EspalierError
from espalier.methods import Gradients

SKIP_LAG = 2  # steps after which a skip flag is read from an accelerator; fixed, so that all ranks agree


class Ride:
    """Hooks on the optimizers of one Pruner.

    Args:
        optimizers: the optimizers to ride on.
        weights: parameters that no other optimizer may step.
        before: called with fresh gradients, just before they are used.
        after: called after each update of an optimizer that was not skipped, with the number of steps taken.
        release: called when a new Pruner takes these weights over.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        weights: Sequence[nn.Parameter],
        before: Callable[[Gradients], None],
        after: Callable[[int], None],
        release: Callable[[], None],
    ) -> None:
        self.optimizers = tuple(optimizers)
        self.weights = {id(p): p for p in weights}
        self._before, self._after, self.release = before, after, release
        self._take_over()
        self._taken = [0] * len(self.optimizers)
        self._depth = [0] * len(self.optimizers)
        self._flags: list[deque[tuple[Any, Tensor]]] = [deque() for _ in self.optimizers]
        self.calls = 0
        self._rehearsing = False
        self._handles: list[RemovableHandle] = []
        for index, optimizer in enumerate(self.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(self._pre_hook(index)))
            self._handles.append(optimizer.register_step_post_hook(self._post_hook(index)))
        _watch(self)

    def _take_over(self) -> None:
        """Release an earlier Pruner of the same weights, such as the one that a notebook cell made when it last ran."""
        for other in list(_rides):
            if other.weights.keys() & self.weights.keys():
                warnings.warn("An earlier Pruner of these weights was not finished; it is detached now.", stacklevel=4)
                other.release()

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _rides.discard(self)

    # -- the two hooks ---------------------------------------------------------------------------------------------

    def _pre_hook(self, index: int) -> Callable[..., tuple[Any, dict[str, Any]] | None]:
        def hook(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            if self._depth[index] and _nested_calls(optimizer) <= 1:
                self._depth[index] = 0  # an earlier step raised half-way and never reached its post hook
            self._depth[index] += 1
            if self._depth[index] > 1:
                return None
            self.calls += 1
            self._rehearsing = _is_rehearsal(optimizer)
            return None if self._rehearsing else self._with_closure(optimizer, args, kwargs)

        return hook

    def _with_closure(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Look at the gradients now, or, if a closure will compute them, right after each call of it."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._before(_reading(optimizer))
            return None

        def wrapped() -> Any:
            loss = closure()
            self._before(_reading(optimizer))
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _post_hook(self, index: int) -> Callable[..., None]:
        def hook(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
            self._depth[index] = max(self._depth[index] - 1, 0)
            if self._depth[index] or self._rehearsing:
                return
            self._taken[index] += 1
            self._note_skip(index, getattr(optimizer, "found_inf", None))
            self._after(self.steps)

        return hook

    @property
    def stepping(self) -> bool:
        """Whether one of the optimizers is inside its ``step`` now."""
        return any(self._depth)

    # -- counting --------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken, without the skipped ones whose flags have been read."""
        return max(self._taken)

    def _note_skip(self, index: int, found_inf: Tensor | None) -> None:
        flags = self._flags[index]
        if found_inf is not None:
            if found_inf.device.type == "cpu":
                self._taken[index] -= int(found_inf.item() > 0)
            else:
                copy = found_inf.detach().to("cpu", non_blocking=True)
                event = torch.Event(found_inf.device)
                event.record()
                flags.append((event, copy))
        while len(flags) > SKIP_LAG:
            self._read_flag(index)

    def _read_flag(self, index: int) -> None:
        event, flag = self._flags[index].popleft()
        event.synchronize()
        self._taken[index] -= int(flag.item() > 0)

    def settle(self) -> None:
        """Read all outstanding skip flags; for saving and finishing, not for training steps."""
        for index, flags in enumerate(self._flags):
            while flags:
                self._read_flag(index)

    def state_dict(self) -> list[int]:
        self.settle()
        return list(self._taken)

    def load_state_dict(self, taken: Sequence[int]) -> None:
        if len(taken) != len(self.optimizers):
            raise EspalierError(
                f"The state was saved with {len(taken)} optimizers and this Pruner rides on {len(self.optimizers)}: build it "
                f"with the same optimizers in the same order."
            )
        self._taken = list(taken)
        for flags in self._flags:
            flags.clear()


def _reading(optimizer: Optimizer) -> Gradients:
    """GradScaler leaves ``grad_scale`` and ``found_inf`` on a fused optimizer for the time of its step."""
    return Gradients(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None), optimizer)


def _is_rehearsal(optimizer: Optimizer) -> bool:
    """torch.distributed.checkpoint steps an optimizer without state once, at lr 0, to see what its state looks like."""
    frame = None if optimizer.state else sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None


def _nested_calls(optimizer: Optimizer) -> int:
    """How many ``step`` calls of this optimizer are on the stack (torch wraps each in ``profile_hook_step.wrapper``)."""
    frame, calls = sys._getframe(1), 0
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            calls += 1
        frame = frame.f_back  # type: ignore[assignment]
    return calls


# -- optimizers that we do not ride on -----------------------------------------------------------------------------

_rides: weakref.WeakSet[Ride] = weakref.WeakSet()
_calls_before: weakref.WeakKeyDictionary[Optimizer, dict[int, int]] = weakref.WeakKeyDictionary()
_watching = False


def _watch(ride: Ride) -> None:
    global _watching
    _rides.add(ride)
    if not _watching:
        register_optimizer_step_pre_hook(_before_any_step)
        register_optimizer_step_post_hook(_after_any_step)
        _watching = True


def _before_any_step(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
    if _rides:
        _calls_before[optimizer] = {id(ride): ride.calls for ride in _rides if optimizer not in ride.optimizers}


def _after_any_step(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
    calls = _calls_before.pop(optimizer, {})
    for ride in list(_rides):
        if calls.get(id(ride)) != ride.calls or ride.stepping:
            continue  # ours, a wrapper (Lookahead) that stepped ours inside its own step, or one that ours steps inside
        shared = sum(id(p) in ride.weights for group in optimizer.param_groups for p in group["params"])
        if shared:
            ride.release()
            raise EspalierError(
                f"A {type(optimizer).__name__} that the Pruner does not ride on has stepped {shared} of its weights, so no "
                f"mask holds: give this optimizer to es.Pruner(model, optimizer, ...), or call finish() or detach() first."
            )
