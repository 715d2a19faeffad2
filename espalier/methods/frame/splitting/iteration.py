"""The rounds of SLR and ADMM: Z and the multipliers through a training, wherever the weights live and whatever projects them.

From ``start`` on every training step minimises f(W) + rho/2 ||W - Z + U||^2 (``coupling``). Every ``check_every`` steps there
is a *round*: the method projects, Z = Proj(W + U), and moves the multipliers. A run that owns an ``Iteration`` says what Proj
is, and what becomes of W at ``hard_prune_at``: zeros under a mask (``masks``), or a cut (``channels``).

Scalars are read on the host in rounds only.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from espalier.cost.budgets import is_number
from espalier.distributed import broadcast
from espalier.errors import EspalierError
from espalier.methods.frame.base import Gradients, Method, Site
from espalier.methods.frame.splitting.coupling import Coupling
from espalier.methods.frame.splitting.losses import FixedLoss
from espalier.records.rounds import Round

ROUNDS, STEPS, FEWEST = 100, 50, 10
LEARNED = 0.9  # a loss above this share of that with shuffled weights is that of a network that has learned nothing

Projection = Callable[[], dict[str, Tensor]]  # -> Proj(W + U) of every weight, tensors of its own


def usual_round(phase: int) -> int:
    """Steps between two rounds unless told: a hundred rounds, but 50 steps each for W to follow Z, and at least ten rounds.

    Example:
        >>> usual_round(39000), usual_round(4000), usual_round(200), usual_round(5)
        (390, 50, 20, 1)
    """
    return max(1, round(phase / ROUNDS), min(STEPS, phase // FEWEST))


@dataclass(frozen=True, kw_only=True)
class Iterated(Method):
    """Base of the methods that split the weights into W and Z.

    Args:
        rho: of the quadratic penalty.
        check_every: optimizer steps between two rounds (an epoch in the papers); None: 100 rounds in all, but 50 steps or more
            between them. With SGD, W needs about (1 - momentum) / (rho lr) steps to follow Z; where rounds come much faster,
            the multipliers overshoot.
        start: share of the training where Z appears; before it the network trains dense. 0 wants a trained network.
        hard_prune_at: share of the training where W is pruned; what remains is retraining. 1: at the end.
        norm: of W - Z over all layers: "global" (one Frobenius norm), "layers" (sum of the layers' norms, as in SLR's code).
    """

    rho: float = 0.1
    check_every: int | None = None
    start: float = 0.0
    hard_prune_at: float = 1.0
    norm: Literal["global", "layers"] = "global"

    @abstractmethod
    def iteration(self, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> Iteration:
        """What happens in its rounds."""

    def check_iteration(self) -> None:
        """Refuse settings that make no sense."""
        if not is_number(self.rho) or not 0 < self.rho < math.inf:
            raise EspalierError(f"rho is a number above 0; got {self.rho!r}.")
        every = self.check_every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise EspalierError(f"check_every is a whole number of optimizer steps, at least 1; got {every!r}.")
        shares = (self.start, self.hard_prune_at)
        if not all(map(is_number, shares)) or not 0 <= self.start < self.hard_prune_at <= 1:
            raise EspalierError(f"start and hard_prune_at are shares of the training, start the lower one; got {shares}.")
        if self.norm not in ("global", "layers"):
            raise EspalierError(f"norm is 'global' or 'layers'; got {self.norm!r}.")


class Iteration(ABC):
    """W, Z and U through a training. A method adds ``begin`` and ``update``, its round.

    Args:
        method: the settings.
        site: what to work on.
        weights: name -> parameter, the W.
        project: Proj(W + U); of W alone before there is a U.

    Attributes:
        first, last: steps taken when Z appears, and when W is pruned.
        check_every: steps between two rounds.
        coupling: Z and U, while there are any.
        rounds: what became of each round so far.
    """

    def __init__(self, method: Iterated, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> None:
        self.method, self.site, self.projection = method, site, project
        total = site.clock.total
        self.first = math.ceil(method.start * total - 1e-9)
        self.last = math.ceil(method.hard_prune_at * total - 1e-9)
        phase = self.last - self.first
        self.check_every = method.check_every or usual_round(phase)
        if self.check_every > phase:
            raise EspalierError(
                f"check_every={self.check_every} leaves no round in the {phase} of {total} steps between start and "
                f"hard_prune_at: lower it."
            )
        self.coupling = Coupling(weights, method.rho)
        self.rounds: list[Round] = []
        self._looked = 0

    # -- what a method adds ----------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """W = Z is demanded from here on; Z is the projection of W, and U is 0."""

    @abstractmethod
    def update(self) -> Round | None:
        """A round: project, move the multipliers, tell. None if nothing could be done."""

    def observe(self, loss: Tensor) -> None:
        """The training loss of a batch was reported."""

    # -- the moments of a step, until W is pruned --------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether there is a round after ``step`` optimizer steps."""
        done = step - self.first
        return done > 0 and done % self.check_every == 0 and step <= self.last

    def before_update(self, gradients: Gradients) -> None:
        """Add the penalty to the gradients, from ``start`` on."""
        if self.site.clock.step >= self.first:
            if not self.coupling.tied:
                self.coupling.tie(self.projection())
                self.begin()
            self.coupling.pull(gradients)

    def after_update(self) -> None:
        """Make the round that is due, if one is."""
        step = self.site.clock.step
        if self.coupling.tied and self.is_due(step) and step > self._looked:
            self._looked = step
            made = self.update()
            if made is not None:
                self.rounds.append(made)

    # -- measuring -------------------------------------------------------------------------------------------------

    def total(self, gaps: Iterable[float]) -> float:
        """The norm over all layers, of the layers' norms."""
        return sum(gaps) if self.method.norm == "layers" else math.hypot(*gaps)

    def read(self, *tensors: Tensor) -> list[list[float]]:
        """The numbers of these tensors, rank 0's on every rank, so that all decide alike. Waits for the device."""
        device = tensors[-1].device
        row = torch.cat([tensor.to(device, torch.float32).reshape(-1) for tensor in tensors])
        broadcast(row, self.site.process_group)
        parts = torch.split(row, [tensor.numel() for tensor in tensors])
        return [part.tolist() for part in parts]

    def record(self, gaps: Sequence[float], **more: Any) -> Round:
        """What to tell of this round: ``gaps`` are ||W - Z|| of the layers, ``more`` the other attributes of ``Round``."""
        return Round(self.site.clock.step, self.total(gaps), dict(zip(self.coupling.weights, gaps, strict=True)), **more)

    def warn_if_untrained(self, loss: FixedLoss) -> None:
        """A network that predicts no better than with its weights shuffled has learned nothing that could be kept."""
        ((value, shuffled),) = self.read(torch.stack([loss.read(), loss.read_shuffled(self.coupling.weights)]))
        if not math.isfinite(value):
            raise EspalierError(
                f"The loss on the batches is {value} before any pruning: check the weights, the batches and loss_fn."
            )
        if value > LEARNED * shuffled:
            warnings.warn(
                f"The loss is {value:.3g}, and {shuffled:.3g} with the weights shuffled: this network was hardly trained, and "
                f"{self.method.name} wants a trained one. Load weights before the first step, or warm it up dense: start=0.4.",
                stacklevel=2,
            )

    # -- reading and resuming --------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        """How many rounds there were, and the gap and step size of the last."""
        if not self.rounds:
            return {"rounds": 0}
        last = self.rounds[-1]
        return {"rounds": len(self.rounds), "gap": last.gap, "step_size": last.step_size}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only."""
        rounds = [made.to_plain() for made in self.rounds]
        return {"coupling": self.coupling.state_dict(), "rounds": rounds, "looked": self._looked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.coupling.load_state_dict(state["coupling"])
        self.rounds = [Round.from_plain(plain) for plain in state["rounds"]]
        self._looked = state["looked"]
