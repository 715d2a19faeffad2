"""The Pruner's state as a passenger of ``optimizer.state_dict()``, so that every checkpoint that has the optimizer has it.

The optimizer's post hook adds it under ``KEY``; the load pre-hook takes it out again. An optimizer state without it is
refused: going on from it would silently start the schedule over. (The load *post* hook would come too late: parameters
have to have their shapes before the optimizer's tensors arrive.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from espalier.errors import EspalierError

KEY = "espalier"
VERSION = 1

_ridden: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()


def refuse_second_pruner(optimizers: Sequence[Optimizer]) -> None:
    """Two Pruners on one optimizer would count every step twice and fight over masks."""
    if any(_ridden.get(optimizer) for optimizer in optimizers):
        raise EspalierError(
            "This optimizer already has a Pruner: call its finish() or detach() first, or build a new optimizer."
        )


class Passenger:
    """Puts the state of a Pruner into the state dict of its first optimizer, and takes it out on loading.

    Args:
        optimizers: the optimizers of the Pruner.
        save: gives the state.
        load: takes it up.

    Attributes:
        excused: the Pruner was loaded apart just now, so an optimizer state without it is complete.
    """

    excused = False

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        save: Callable[[], dict[str, Any]],
        load: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._optimizers = tuple(optimizers)
        for optimizer in self._optimizers:
            _ridden[optimizer] = True

        def add(_: Optimizer, state: dict[str, Any]) -> None:
            state[KEY] = save()

        def take(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            if KEY not in state and self.excused:
                return state
            if KEY not in state:
                raise EspalierError(
                    "This optimizer state was saved without a Pruner, so the sparsity schedule would start over: load a "
                    "checkpoint of a pruned training (pruner.load_state_dict first, if the Pruner was saved apart), or load it "
                    "before building the Pruner to prune from here on."
                )
            load(state[KEY])
            return {key: value for key, value in state.items() if key != KEY}

        first = self._optimizers[0]
        self._handles = [
            first.register_state_dict_post_hook(add),
            first.register_load_state_dict_pre_hook(take),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for optimizer in self._optimizers:
            _ridden.pop(optimizer, None)


def check_same_training(saved: Mapping[str, Any], method: str, total_steps: int) -> None:
    """Refuse the state of another version, method or budget, naming both."""
    if not isinstance(saved, Mapping) or saved.get("version") != VERSION:
        raise EspalierError("This is no state of a Pruner, or one of another version of espalier.")
    if saved["method"] != method:
        there, here = differing(str(saved["method"]), method)
        raise EspalierError(f"The state belongs to {there}, but this Pruner has {here}: build it with the same.")
    if saved["total_steps"] != total_steps:
        raise EspalierError(
            f"The state belongs to a training of {saved['total_steps']} steps, but this Pruner has total_steps={total_steps}: "
            f"build it with the same."
        )


def differing(one: str, other: str) -> tuple[str, str]:
    """Two methods as ``repr`` writes them, cut down to what tells them apart.

    Example:
        >>> differing("AGP(sparsity=0.9, begin=0.1, include=['a', 'b'])", "AGP(sparsity=0.8, begin=0.1, include=['a', 'b'])")
        ('AGP(sparsity=0.9)', 'AGP(sparsity=0.8)')
        >>> differing("AGP(sparsity=0.9)", "OCP(sparsity=0.9)")
        ('AGP', 'OCP')
    """
    (name, mine), (other_name, others) = _arguments(one), _arguments(other)
    if name != other_name:
        return name, other_name
    keys = [key for key in {**mine, **others} if mine.get(key) != others.get(key)]
    if not keys:
        return one, other

    def words(arguments: Mapping[str, str]) -> str:
        said = ", ".join(f"{key}={arguments[key]}" for key in keys if key in arguments)
        return f"{name}({said})" if said else f"{name} without {', '.join(keys)}"

    return words(mine), words(others)


def _arguments(text: str) -> tuple[str, dict[str, str]]:
    """Name and arguments in the ``repr`` of a dataclass; commas inside brackets and quotes divide nothing."""
    name, _, inside = text.partition("(")
    parts, depth, quote = [""], 0, ""
    for letter in inside.removesuffix(")"):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    pairs = (part.partition("=") for part in parts)
    return name, {key.strip(): value for key, _, value in pairs}
