"""What a search may spend: limits on MACs, parameters and channels, and whether a choice of widths keeps to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from espalier.cost.costs import short
from espalier.cost.evaluation import Compiled
from espalier.cost.form import Floats
from espalier.errors import EspalierError


def is_number(given: object) -> TypeGuard[float]:
    """Whether it is a whole or real number, of Python or numpy; True and False are none."""
    return isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)


def check_share(name: str, share: object) -> None:
    """Refuse what is no number from 0 to 1."""
    if not is_number(share) or not 0 <= share <= 1:
        raise EspalierError(f"{name} is a share between 0 and 1, not {share!r}.")


@dataclass(frozen=True)
class Limit:
    """At most ``most`` of what ``measure`` finds at widths (..., groups)."""

    asked: str
    unit: str
    measure: Callable[[Floats], Floats]
    most: float
    now: float


class Budget:
    """All limits of one search.

    Args:
        found: the compiled graph.
        selected: positions of the groups that the search may narrow.
        keep_macs: and the others, as ``search`` takes them.

    Raises:
        EspalierError: no limit, or one that means nothing.
    """

    def __init__(
        self,
        found: Compiled,
        selected: list[int],
        *,
        keep_macs: float | None,
        keep_params: float | None,
        max_macs: float | None,
        max_params: float | None,
        prune_channels: float | None,
    ) -> None:
        def macs(widths: Floats) -> Floats:
            return found.macs.total(found.shares(widths))

        def params(widths: Floats) -> Floats:
            return found.params.total(found.shares(widths))

        def channels(widths: Floats) -> Floats:
            return np.asarray(widths[..., selected].sum(axis=-1))

        self.limits: list[Limit] = []
        for name, share, unit, measure in (
            ("keep_macs", keep_macs, "MACs", macs),
            ("keep_params", keep_params, "parameters", params),
            ("prune_channels", prune_channels, "channels", channels),
        ):
            if share is None:
                continue
            check_share(name, share)
            now = float(measure(found.sizes))
            most = now - round(now * share) if name == "prune_channels" else now * share
            self.limits.append(Limit(f"{name}={share:g}", unit, measure, most * (1 + 1e-12), now))
        for name, given, unit, measure in (
            ("max_macs", max_macs, "MACs", macs),
            ("max_params", max_params, "parameters", params),
        ):
            if given is None:
                continue
            if not is_number(given) or not given > 0:
                raise EspalierError(f"{name} is a number of {unit} above 0, not {given!r}.")
            self.limits.append(Limit(f"{name}={given:g}", unit, measure, float(given), float(measure(found.sizes))))
        if not self.limits:
            raise EspalierError("A search needs a budget: give keep_macs, keep_params, max_macs, max_params or prune_channels.")

    def fits(self, widths: Floats) -> NDArray[np.bool_]:
        """Whether the limits are kept, (..., groups) -> (...)."""
        kept = [limit.measure(widths) <= limit.most for limit in self.limits]
        return np.asarray(np.logical_and.reduce(kept, axis=0))

    def check(self, narrowest: Floats) -> None:
        """Refuse what cannot be met.

        Args:
            narrowest: the least that each group may keep, (groups,).
        """
        for limit in self.limits:
            least = float(limit.measure(narrowest))
            if least > limit.most:
                raise EspalierError(
                    f"{limit.asked} asks for at most {short(limit.most)} {limit.unit}, but caps, floors and rounding leave at "
                    f"least {short(least)} ({least / limit.now:.4f} of the present ones): ask for more, raise max_ratio, "
                    f"or lower min_channels or round_to."
                )
