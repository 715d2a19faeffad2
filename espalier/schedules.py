"""Curves of sparsity over training progress.

Every schedule is a frozen dataclass and a pure function of progress t in [0, 1] (steps done / all steps). It returns the
share of weights that is zero at t. Before ``start`` the value is ``initial``; from ``end`` on it is ``curve(1)``; between
them ``curve`` sees the position inside the window, also in [0, 1].

>>> schedule = OneCycle(0.95)
>>> [round(100 * schedule(epoch / 10), 2) for epoch in (1, 2, 3, 10)]
[2.53, 9.48, 29.46, 95.0]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real

from espalier.errors import EspalierError


def check_sparsity(value: float, name: str = "sparsity") -> None:
    """Raise unless ``value`` is a share in [0, 1); a percentage gets its own hint."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise EspalierError(f"{name} must be a number in [0, 1), the share of weights that is zero; got {value!r}.")
    if 1 < value <= 100:
        raise EspalierError(f"{name}={value:g} looks like a percentage; give a share in [0, 1): {name}={value / 100:g}.")
    if not 0 <= value < 1:
        raise EspalierError(f"{name} must lie in [0, 1), the share of weights that is zero; got {value:g}.")


@dataclass(frozen=True)
class Schedule(ABC):
    """What all schedules share: the two sparsities and the window of progress in which one becomes the other.

    Args:
        final: sparsity at the end of the window, a share in [0, 1).
        initial: sparsity before the window.
        start: progress at which the window opens.
        end: progress at which it closes.

    Raises:
        EspalierError: for a sparsity outside [0, 1) or a window that is not 0 <= start < end <= 1.
    """

    final: float
    initial: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_sparsity(self.final, "final sparsity")
        check_sparsity(self.initial, "initial sparsity")
        numbers = isinstance(self.start, Real) and isinstance(self.end, Real)
        if not (numbers and 0 <= self.start < self.end <= 1):
            raise EspalierError(
                f"A schedule needs 0 <= start < end <= 1, as shares of training; got start={self.start!r}, end={self.end!r}."
            )

    def __call__(self, progress: float) -> float:
        """Sparsity in force when the share ``progress`` of all steps has been taken."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.start:
            return float(self.initial)
        position = 1.0 if progress >= self.end else (progress - self.start) / (self.end - self.start)
        return float(self.curve(position))  # a number of numpy would not load with weights_only=True

    @abstractmethod
    def curve(self, position: float) -> float:
        """Sparsity at a position in [0, 1] inside the window."""

    @property
    def levels(self) -> frozenset[float] | None:
        """The finite set of values that the schedule takes, or None for a gradual one (see N:M patterns)."""
        return None

    def _between(self, share: float) -> float:
        return self.initial + (self.final - self.initial) * share


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One-Cycle Pruning (Hubens et al., ICIP 2022): slow start, steep middle, long tail.

    s(t) = s_i + (s_f - s_i) (1 + exp(-alpha + beta)) / (1 + exp(-alpha t + beta)). The factor makes s(1) exactly s_f;
    s(0) is s_i plus 0.67 % of the way. The steepest point is t = beta / alpha. The library of the paper's authors also
    used beta = 6.
    """

    alpha: float = 14.0
    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.alpha, Real) and 0 < self.alpha < 500):
            raise EspalierError(
                f"alpha, the slope of the one-cycle schedule, must be positive and below 500; got {self.alpha!r}."
            )
        if not (isinstance(self.beta, Real) and -500 < self.beta < 500):
            raise EspalierError(f"beta, the offset of the one-cycle schedule, must lie in (-500, 500); got {self.beta!r}.")

    def curve(self, position: float) -> float:
        rise = (1 + math.exp(-self.alpha + self.beta)) / (1 + math.exp(-self.alpha * position + self.beta))
        return self._between(rise)


@dataclass(frozen=True)
class Step(Schedule):
    """One jump to the final sparsity at ``start`` (one-shot pruning)."""

    def curve(self, position: float) -> float:
        return self.final

    @property
    def levels(self) -> frozenset[float] | None:
        return frozenset({self.final} if self.start == 0 else {self.initial, self.final})


@dataclass(frozen=True)
class Staircase(Schedule):
    """``steps`` equal jumps (iterative pruning, Han et al. 2015): s_i + (s_f - s_i) ceil(n pos) / n."""

    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.steps, Integral) or self.steps < 1:
            raise EspalierError(f"A staircase needs at least one step, and whole ones; got steps={self.steps!r}.")

    def curve(self, position: float) -> float:
        # A hair less than pos, so that 3 * (2/3) in floats does not become the third stair.
        return self._between(math.ceil(self.steps * position - 1e-9) / self.steps)

    @property
    def levels(self) -> frozenset[float] | None:
        return frozenset(self._between(stair / self.steps) for stair in range(self.steps + 1))


@dataclass(frozen=True)
class Cubic(Schedule):
    """Automated gradual pruning, AGP (Zhu & Gupta 2017): s_f + (s_i - s_f) (1 - pos)^3."""

    def curve(self, position: float) -> float:
        return self._between(1 - (1 - position) ** 3)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from initial to final."""

    def curve(self, position: float) -> float:
        return self._between(position)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave: s_i + (s_f - s_i) (1 - cos(pi pos)) / 2."""

    def curve(self, position: float) -> float:
        return self._between((1 - math.cos(math.pi * position)) / 2)


@dataclass(frozen=True)
class Exponential(Schedule):
    """s_i (s_f / s_i)^pos. It cannot leave zero, so ``initial`` must be positive (the authors used 1e-6)."""

    initial: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial <= 0 or self.final <= 0:
            raise EspalierError("An exponential schedule needs initial and final sparsity above 0, say initial=1e-6.")

    def curve(self, position: float) -> float:
        return self.final if position == 1 else self.initial * (self.final / self.initial) ** position


@dataclass(frozen=True)
class DenseSparseDense(Schedule):
    """Up to ``final`` on a cosine until ``turn`` (share of the window), then down to ``initial`` again (DSD)."""

    turn: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.turn < 1:
            raise EspalierError(f"The turn of a dense-sparse-dense schedule must lie inside (0, 1); got {self.turn:g}.")

    def curve(self, position: float) -> float:
        up = position / self.turn if position < self.turn else (1 - position) / (1 - self.turn)
        return self._between((1 - math.cos(math.pi * up)) / 2)


@dataclass(frozen=True)
class Constant(Schedule):
    """The final sparsity from the first step on."""

    def curve(self, position: float) -> float:
        return self.final

    @property
    def levels(self) -> frozenset[float] | None:
        return frozenset({self.final})


SCHEDULES: dict[str, type[Schedule]] = {
    "one-cycle": OneCycle,
    "step": Step,
    "staircase": Staircase,
    "cubic": Cubic,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "dense-sparse-dense": DenseSparseDense,
    "constant": Constant,
}
