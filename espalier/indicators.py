"""When a sub-network has settled: similarity of the channels selected at successive checks.

A check is a look at which channels would be kept if the cut were made now. An indicator compares the newest selection with
earlier ones. It sees selections only, so it goes with every criterion and every budget. Lags and windows count checks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.errors import EspalierError

Selection = Sequence[NDArray[np.bool_]]  # for each group, which of its channels are kept


def count_similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """Psi of EPI: 1 - mean over layers of |n_1 - n_2| / (n_1 + n_2), from the kept counts of each layer (Eq. 4 and 5).

    A layer that is empty in both counts as equal.

    Example:
        >>> round(count_similarity([64, 100, 200, 50], [60, 110, 190, 54]), 5)
        0.96401
    """
    differences = [abs(a - b) / (a + b) if a + b else 0.0 for a, b in zip(one, other, strict=True)]
    return 1 - sum(differences) / len(differences)


def jaccard(one: Selection, other: Selection) -> float:
    """Mean over groups of |A & B| / |A | B|, A and B the kept channels.

    Example:
        >>> a, b = np.arange(16) < 8, np.arange(16) < 8
        >>> b[[7, 8]] = False, True
        >>> round(jaccard([a], [b]), 3)
        0.778
    """
    shares = []
    for a, b in zip(one, other, strict=True):
        either = int((a | b).sum())
        shares.append(int((a & b).sum()) / either if either else 1.0)
    return sum(shares) / len(shares)


def agreement(one: Selection, other: Selection) -> float:
    """Share of all channels on which two selections say the same: 1 - normalised Hamming distance.

    Example:
        >>> agreement([np.array([True, True])], [np.array([True, False])])
        0.5
    """
    same = sum(int((a == b).sum()) for a, b in zip(one, other, strict=True))
    return same / sum(len(a) for a in one)


@dataclass(frozen=True, kw_only=True)
class Indicator(ABC):
    """Base of all indicators: frozen settings, no state. Higher scores are more stable."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def history(self) -> int:
        """How many selections ``score`` looks at, the newest included."""

    @property
    def span(self) -> int:
        """How many selections a score goes back to, the newest included."""
        return self.history

    @abstractmethod
    def similarity(self, selections: Sequence[Selection]) -> float | None:
        """Of the newest selection to earlier ones, in [0, 1]; oldest first, at most ``history`` of them. None: too few."""

    @abstractmethod
    def score(self, similarities: Sequence[float | None]) -> float | None:
        """The number that is compared with the threshold, from the similarities of all checks, oldest first."""

    @abstractmethod
    def fires(self, scores: Sequence[float | None]) -> bool:
        """Whether to cut now, from the scores of all checks, oldest first."""


@dataclass(frozen=True, kw_only=True)
class JaccardStability(Indicator):
    """Stability score of OCSPruner (WACV 2026): J_t = Jaccard similarity to the selection ``lag`` checks ago, averaged over
    the last ``window`` checks (with J = 0 for checks that have none to compare with); fires at ``threshold``.

    For small networks one swapped channel lowers J visibly (by 0.02 with ten groups that keep 8 of 16), so 0.999 means "no
    change at all over the whole window" there.
    """

    lag: int = 2
    window: int = 3
    threshold: float = 0.999

    name: ClassVar[str] = "jaccard"

    def __post_init__(self) -> None:
        _check_counts(lag=self.lag, window=self.window)
        _check_threshold(self.threshold)

    @property
    def history(self) -> int:
        return self.lag + 1

    @property
    def span(self) -> int:
        return self.lag + self.window

    def similarity(self, selections: Sequence[Selection]) -> float | None:
        return jaccard(selections[-1], selections[-1 - self.lag]) if len(selections) > self.lag else None

    def score(self, similarities: Sequence[float | None]) -> float | None:
        last = [similarity or 0.0 for similarity in similarities[-self.window :]]
        return sum(last) / self.window

    def fires(self, scores: Sequence[float | None]) -> bool:
        return _latest(scores) >= self.threshold


@dataclass(frozen=True, kw_only=True)
class CountStability(Indicator):
    """Early Pruning Indicator (CVPR 2022): EPI_t = mean of Psi(N_t, N_{t-j}) over j = 1..r; fires when it is above tau and at
    least as high as at each of the ``look_back`` checks before (missing ones count as lower).

    Looks at how many channels each layer keeps, not at which.
    """

    r: int = 5
    threshold: float = 0.983
    look_back: int = 5

    name: ClassVar[str] = "count"

    def __post_init__(self) -> None:
        _check_counts(r=self.r, look_back=self.look_back)
        _check_threshold(self.threshold)

    @property
    def history(self) -> int:
        return self.r + 1

    def similarity(self, selections: Sequence[Selection]) -> float | None:
        if len(selections) <= self.r:
            return None
        counts = [[int(kept.sum()) for kept in selection] for selection in selections]
        return sum(count_similarity(counts[-1], counts[-1 - j]) for j in range(1, self.r + 1)) / self.r

    def score(self, similarities: Sequence[float | None]) -> float | None:
        return similarities[-1]

    def fires(self, scores: Sequence[float | None]) -> bool:
        now = _latest(scores)
        before = [score for score in scores[-1 - self.look_back : -1] if score is not None]
        return now > self.threshold and all(now >= score for score in before)


@dataclass(frozen=True, kw_only=True)
class MaskDistance(Indicator):
    """Early-Bird tickets (arXiv 1909.11957): fires when the newest of the last ``window`` masks differs from each of the
    others in at most ``distance`` of all channels."""

    window: int = 5
    distance: float = 0.1

    name: ClassVar[str] = "mask-distance"

    def __post_init__(self) -> None:
        _check_counts(window=self.window)
        if self.window < 2:
            raise EspalierError("window counts the masks that are compared and is at least 2; got 1.")
        _check_threshold(self.distance)

    @property
    def history(self) -> int:
        return self.window

    def similarity(self, selections: Sequence[Selection]) -> float | None:
        if len(selections) < self.window:
            return None
        return min(agreement(selections[-1], other) for other in selections[-self.window : -1])

    def score(self, similarities: Sequence[float | None]) -> float | None:
        return similarities[-1]

    def fires(self, scores: Sequence[float | None]) -> bool:
        return _latest(scores) >= 1 - self.distance - 1e-12


def has_levelled_off(scores: Sequence[float | None], *, lag: int = 2, rise: float = 1e-4, first: int = 3) -> bool:
    """Whether a curve has reached its first plateau: later than check ``first``, and up by at most ``rise`` within ``lag``.

    The rule by which OCSPruner starts to shrink channels on ImageNet.

    Example:
        >>> has_levelled_off([0.0, 0.2, 0.5, 0.7, 0.8]), has_levelled_off([0.0, 0.2, 0.5, 0.7, 0.8, 0.79, 0.8])
        (False, True)
    """
    if len(scores) - 1 <= max(first, lag):
        return False
    now, before = scores[-1], scores[-1 - lag]
    return now is not None and before is not None and now - before <= rise


def check_indicator(given: object) -> None:
    """Refuse what is no indicator, such as the name or the class of one."""
    if not isinstance(given, Indicator):
        raise EspalierError(f"indicator takes an object, such as es.indicators.JaccardStability(); got {given!r}.")


def _latest(scores: Sequence[float | None]) -> float:
    return scores[-1] if scores and scores[-1] is not None else -1.0


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise EspalierError(f"{name} counts checks and is a whole number of at least 1; got {count!r}.")


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise EspalierError(f"A threshold of similarity lies in [0, 1]; got {threshold!r}.")


INDICATORS: dict[str, type[Indicator]] = {kind.name: kind for kind in (JaccardStability, CountStability, MaskDistance)}
