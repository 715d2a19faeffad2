"""Latency budgets: measured, never guessed.

The search needs a price for any widths within milliseconds, and latency cannot be computed. So a few narrower copies of the
model are timed once on the device, at the widths that the rounding allows, which tells how many MACs a latency pays for. When
the channels are about to leave, a copy of the very network is timed; as long as it is too slow, the budget shrinks and the
search is done again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from espalier.cost import cost
from espalier.errors import EspalierError
from espalier.graph import ChannelGraph, Group, trace
from espalier.profiling import profile
from espalier.surgery import reshaping
from espalier.surgery.channels import cut

SHARES = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1)  # of the MACs, at which copies are timed
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
SECONDS = 0.25  # of timing for each copy


def parse_latency(given: str | float) -> float:
    """Seconds from "5ms", "800us" or a number of seconds.

    Raises:
        EspalierError: for anything else.

    Example:
        >>> parse_latency("5ms"), parse_latency(0.25)
        (0.005, 0.25)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(s|ms|us)\s*", given) if isinstance(given, str) else None
    try:
        seconds = float(found[1]) * UNITS[found[2]] if found else 0.0 if isinstance(given, str) else float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(given, bool) or not 0 < seconds < float("inf"):
        raise EspalierError(f'max_latency is a time above 0, such as "5ms", "800us" or seconds; got {given!r}.')
    return seconds


def measure(model: nn.Module, inputs: Any) -> float:
    """Median seconds of a pass with the inputs as they are."""
    batch = profile(model, inputs, seconds=SECONDS).rows[-1]
    return batch.seconds.median


class LatencyLimit:
    """How many MACs a latency pays for on this device.

    Args:
        model: the dense model; copies of it are timed, it is left alone.
        inputs: what it is timed with.
        seconds: the most that a pass may take.
        search_for: widths under a limit of MACs, as the method's own search finds them; None where it cannot be met.

    Attributes:
        macs: the limit.
        measured: of the last network that was timed.

    Raises:
        EspalierError: if the narrowest network is still too slow.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        graph: ChannelGraph,
        seconds: float,
        search_for: Callable[[float], Mapping[Group, Tensor] | None],
    ) -> None:
        self.seconds, self.inputs = seconds, inputs
        whole = cost(graph).macs
        points: list[tuple[int, float]] = []
        for share in SHARES:
            keep = search_for(share * whole)
            if keep is None:
                break
            widths = {group: len(kept) for group, kept in keep.items()}
            points.append((cost(graph, widths).macs, self.timed(model, keep)))
            if points[-1][1] <= seconds:
                break
        self.measured = points[-1][1] if points else float("inf")
        if self.measured > seconds:
            raise EspalierError(
                f"max_latency asks for {seconds * 1e3:.3g} ms, but the narrowest network that caps, floors and rounding allow "
                f"takes {self.measured * 1e3:.3g} ms here (the dense one {points[0][1] * 1e3:.3g} ms): ask for more, or raise "
                f"max_ratio."
            )
        self.macs = _limit(points, seconds)

    def timed(self, model: nn.Module, keep: Mapping[Group, Tensor]) -> float:
        """Seconds of a copy of the model that keeps these channels."""
        twin = copy.deepcopy(model)
        reshaping.uninstall(twin)
        fresh = {group.name: group for group in trace(twin, self.inputs).groups}
        narrower = {fresh[group.name]: kept for group, kept in keep.items() if len(kept) < group.size}
        if narrower:
            cut(twin, narrower)
        with torch.no_grad():
            return measure(twin, self.inputs)

    def tighten(self, model: nn.Module, keep: Mapping[Group, Tensor]) -> bool:
        """Time the network that is about to be made; True if it is fast enough, else the limit is lowered."""
        self.measured = self.timed(model, keep)
        if self.measured <= self.seconds:
            return True
        self.macs *= max(0.5, min(0.97, self.seconds / self.measured))
        return False


TRIES = 6  # networks that are timed before a cut; each is at least 3 % smaller


def _limit(points: list[tuple[int, float]], seconds: float) -> float:
    """MACs at which the latency, linear between the points, reaches the limit."""
    if points[0][1] <= seconds:
        return float(points[0][0])
    for (more, slow), (less, fast) in pairwise(points):
        if fast <= seconds < slow:
            return less + (more - less) * (seconds - fast) / (slow - fast)
    return float(points[-1][0])
