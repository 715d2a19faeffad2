"""How many units to drop where: uniformly, by one global ranking, or by the Erdos-Renyi-Kernel rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.errors import EspalierError

SCOPES = ("local", "global", "erk")
Shape = tuple[int, ...]


def round_half_up(value: float) -> int:
    """The rounding behind every "exact" count of this library."""
    return math.floor(value + 0.5)


def local_drops(sparsity: float, units: Sequence[int]) -> list[int]:
    """The same share of every layer, the reading of One-Cycle Pruning. A layer never loses its last unit.

    >>> local_drops(0.95, [1000, 400])
    [950, 380]
    """
    return [min(round_half_up(sparsity * count), count - 1) for count in units]


def share_drops(part: float, shares: Sequence[float], units: Sequence[int]) -> list[int]:
    """A share of its own for every layer, of which ``part`` is in force. A layer never loses its last unit.

    >>> share_drops(1.0, [0.95, 0.5], [1000, 400])
    [950, 200]
    """
    return [min(round_half_up(part * share * count), count - 1) for share, count in zip(shares, units, strict=True)]


def global_drop(sparsity: float, units: Sequence[int]) -> int:
    """One number for all layers together; at least one unit a layer stays."""
    total = sum(units)
    return min(round_half_up(sparsity * total), total - len(units))


def erk_shares(sparsity: float, shapes: Sequence[Shape], units: Sequence[int]) -> list[float]:
    """Sparsity of every layer under ERK (Evci et al. 2020), with an overall mean of ``sparsity``.

    The density of a layer is proportional to (sum of its dimensions) / (product of its dimensions); where that exceeds
    1 the layer stays dense and the others make up for it.
    """
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(raw)) if i not in dense]
        if not free:
            return [0.0] * len(raw)
        keep = (1 - sparsity) * sum(units) - sum(units[i] for i in dense)
        scale = keep / sum(raw[i] * units[i] for i in free)
        overfull = {i for i in free if scale * raw[i] > 1}
        if not overfull:
            return [0.0 if i in dense else 1 - scale * raw[i] for i in range(len(raw))]
        dense |= overfull


def erk_drops(sparsity: float, final_shares: Sequence[float], final: float, units: Sequence[int]) -> list[int]:
    """Counts at a moment when ``sparsity`` is in force: the final shares scaled down, summing to the exact total."""
    shares = [share * sparsity / final if final else 0.0 for share in final_shares]
    exact = [share * count for share, count in zip(shares, units, strict=True)]
    drops = [min(math.floor(value), count - 1) for value, count in zip(exact, units, strict=True)]
    missing = global_drop(sparsity, units) - sum(drops)
    by_remainder = sorted(range(len(units)), key=lambda i: drops[i] - exact[i])
    for i in (by_remainder * 2)[: max(missing, 0)]:
        if drops[i] < units[i] - 1:
            drops[i] += 1
    return drops


def check_reachable(scope: str, sparsity: float, names: Sequence[str], units: Sequence[int], shares: Sequence[float]) -> None:
    """Refuse a target that rounds to a whole layer, or to nothing at all, of some layer (local and ERK) or the model."""
    if sparsity == 0:
        return
    if scope == "global":
        if round_half_up(sparsity * sum(units)) > sum(units) - len(units):
            raise EspalierError(
                f"A global sparsity of {sparsity:g} would empty a layer: {sum(units)} units in {len(units)} layers allow "
                f"at most {1 - len(units) / sum(units):.4f}."
            )
        if round_half_up(sparsity * sum(units)) == 0:
            raise EspalierError(f"A sparsity of {sparsity:g} rounds to none of the {sum(units)} units: raise it.")
        return
    for name, count, share in zip(names, units, shares, strict=True):
        drop = round_half_up(share * count)
        if drop >= count:
            raise EspalierError(
                f"A sparsity of {share:g} would remove all {count} units of {name}: exclude it, lower the sparsity or "
                f"choose scope='global'."
            )
        if drop == 0 and share > 0 and scope == "local":
            raise EspalierError(
                f"A sparsity of {share:g} rounds to none of the {count} units of {name}: exclude it, raise the sparsity "
                f"or choose a finer pattern."
            )
