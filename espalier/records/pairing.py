"""Two methods compared seed by seed: what the seed does to both cancels out of the difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """A difference over equal seeds.

    Attributes:
        n: seeds that both have.
        difference: mean of the differences, ours minus the baseline's.
        error: its standard error; None for a single pair.
        p: of the two-sided paired t-test; None for a single pair, or if all differences are equal.
    """

    n: int
    difference: float
    error: float | None = None
    p: float | None = None


def compare_paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """Compare values by seed; None if there is no seed that both have.

    Args:
        ours: seed -> value.
        baseline: seed -> value.

    Example:
        >>> found = compare_paired({0: 0.52, 1: 0.55, 2: 0.51}, {0: 0.50, 1: 0.52, 2: 0.50, 3: 0.4})
        >>> found.n, round(found.difference, 4), round(found.error, 4), round(found.p, 3)
        (3, 0.02, 0.0058, 0.074)
    """
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [ours[seed] - baseline[seed] for seed in seeds]
    n, mean = len(seeds), statistics.fmean(differences)
    if n < 2:
        return Paired(n, mean)
    deviation = statistics.stdev(differences)
    error = deviation / math.sqrt(n)
    if deviation <= 1e-12 * max(map(abs, differences), default=0.0) or deviation == 0:
        return Paired(n, mean, error)
    return Paired(n, mean, error, _two_sided(mean / error, n - 1))


def _two_sided(t: float, freedom: int) -> float | None:
    """The chance of a t at least as far from 0; None without SciPy, which comes with the extra `train`."""
    try:
        from scipy import stats
    except ImportError:
        return None
    return float(2 * stats.t.sf(abs(t), freedom))
