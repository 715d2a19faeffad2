"""What a method is: a frozen configuration (``Method``) that starts a ``Run`` on the site of one training.

The Pruner calls the run at three moments of every optimizer step; everything else (hooks, closures, gradient scaling,
resume, followers) is the Pruner's work. A new method is one file with one Method and one Run.
"""

from __future__ import annotations

import contextlib
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError
from espalier.masks import LayerSparsity
from espalier.methods.frame.shrinkage import Shrinkage
from espalier.records.rounds import Round

OF_PRUNER = ("total_steps", "example_inputs", "followers", "batches", "loss_fn", "process_group")  # not of any method


@dataclass
class Clock:
    """Optimizer steps taken, of how many."""

    total: int
    step: int = 0

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1]."""
        return min(self.step / self.total, 1.0)


@dataclass(frozen=True)
class Site:
    """What a run may work on."""

    model: nn.Module
    optimizers: tuple[Optimizer, ...]
    followers: tuple[nn.Module, ...]
    clock: Clock
    process_group: dist.ProcessGroup | None = None
    example_inputs: Any = None
    batches: Iterable[Any] | None = None
    loss_fn: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Gradients:
    """How to read ``p.grad`` at this step: the loss scale still in it, whether the step will be skipped, and whose step it is.

    ``scale`` and ``found_inf`` are device tensors and must not be read on the host. They hold for the weights of
    ``optimizer``; those of another one may still be scaled, or half accumulated.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None
    optimizer: Optimizer | None = None

    def are_for(self, parameter: Tensor) -> bool:
        """Whether the stepping optimizer is about to use the gradient of ``parameter``."""
        return self.optimizer is None or id(parameter) in self._stepped

    @cached_property
    def _stepped(self) -> frozenset[int]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return frozenset(id(p) for group in groups for p in group["params"])

    def unscaled(self, gradient: Tensor) -> Tensor:
        """The true gradient; zeros if the step is about to be skipped for infinities."""
        if self.scale is not None:
            gradient = gradient / self.scale.to(gradient.device)
        if self.found_inf is not None:
            skipped = self.found_inf.to(gradient.device) > 0
            gradient = gradient.new_zeros(()).where(skipped, gradient)
        return gradient


class Run(ABC):
    """The moving part of a method: state that changes while a model trains.

    Attributes:
        weights: name -> parameter of everything that the method prunes.
    """

    weights: dict[str, nn.Parameter]

    def __init__(self, site: Site) -> None:
        self.site = site

    @abstractmethod
    def before_update(self, gradients: Gradients) -> None:
        """Gradients are fresh and about to be used: penalties go in here, masked gradients go to zero."""

    @abstractmethod
    def after_update(self) -> None:
        """A step was taken and the clock stands after it: masks, cuts and decisions."""

    def companions(self) -> Sequence[MutableMapping[str, Tensor]]:
        """Tensors of the parameters' shapes, by name, that a cut of the model slices too."""
        return []

    def reshaped(self) -> None:
        """The model was cut, and the companions with it."""

    @abstractmethod
    def finish(self) -> None:
        """Put the exact final state into the model, or raise."""

    @property
    @abstractmethod
    def sparsity(self) -> float:
        """Share of the selected weights that is zero."""

    @property
    @abstractmethod
    def target(self) -> float:
        """Share that the method wants to be zero at this moment."""

    @abstractmethod
    def layers(self) -> list[LayerSparsity]:
        """The selected weights, one by one."""

    def shrinkage(self) -> Shrinkage | None:
        """What was cut so far; None for methods that do not cut."""
        return None

    def rounds(self) -> tuple[Round, ...]:
        """The moves of the multipliers so far; empty for methods without any."""
        return ()

    def numbers(self) -> dict[str, float]:
        """What the method adds to ``Pruner.stats()``."""
        return {}

    def observe(self, loss: Tensor) -> None:
        """The training loss of a batch was reported; most methods have no use for it."""

    @property
    def goal(self) -> float:
        """Share of the selected weights that the method wants to be zero at the end."""
        return self.target

    @property
    def looks_ahead(self) -> bool:
        """Whether ``projected`` shows anything else than the model as it is."""
        return False

    @contextlib.contextmanager
    def projected(self) -> Iterator[None]:
        """Inside, the model has the weights that pruning would leave it now; afterwards bit for bit its own again."""
        yield

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""


@dataclass(frozen=True)
class Method(ABC):
    """Configuration of a method: immutable, comparable, usable for many trainings."""

    name: ClassVar[str]
    cuts: ClassVar[bool] = False  # whether parameters change shape: then the model's state dicts carry a Structure

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Unknown arguments end in a sentence; the rest is checked where it is used."""
        known = [field.name for field in fields(cls) if field.init]
        for name in kwargs if "__dataclass_fields__" in vars(cls) else ():  # others have a constructor of their own
            if name not in known:
                raise EspalierError(f"{cls.__name__} has no argument {name!r}: {_instead(name, known)}")
        return super().__new__(cls)

    @abstractmethod
    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that will be pruned in ``model``."""

    @abstractmethod
    def begin(self, site: Site) -> Run:
        """Validate against the model, and put the state of step 0 in force."""


def _instead(name: str, known: Sequence[str]) -> str:
    """Where an unknown argument may belong."""
    if name in OF_PRUNER:
        return f"give it to es.Pruner(..., {name}=...)."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known) or 'none'}."
