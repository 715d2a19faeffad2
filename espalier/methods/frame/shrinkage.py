"""What a method that cuts has done so far: when, why, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.records.norms import NormHistogram, took_nothing
from espalier.records.shares import Shares


@dataclass(frozen=True)
class Check:
    """One look at the sub-network.

    Attributes:
        step: optimizer steps taken.
        similarity: of the selected channels to earlier selections, as the indicator defines it; None while there are too few.
        score: what the indicator compares with its threshold.
    """

    step: int
    similarity: float | None
    score: float | None


@dataclass(frozen=True)
class Cut:
    """One physical cut.

    Attributes:
        step: optimizer steps taken before it.
        reason: "stable" (the indicator fired), "faded" (a part of a progressive cut), "latest" (the time-out), "start",
            "planned" (a fixed step) or "finish" (training stopped early).
        macs: MACs left, of a pass with the example inputs.
        params: parameters left.
        norms: of the channels that stayed and of those that left, just before; None in states of older versions.
    """

    step: int
    reason: str
    macs: int
    params: int
    norms: NormHistogram | None = None


@dataclass(frozen=True)
class Shrinkage(Shares):
    """From dense to small.

    Attributes:
        dense_macs, macs: MACs of a pass with the example inputs, before and now.
        dense_params, params: parameters, before and now.
        widths: group name -> channels before and now.
        cuts: the cuts, in order.
        checks: the looks at the sub-network, in order.
    """

    dense_macs: int
    macs: int
    dense_params: int
    params: int
    widths: dict[str, tuple[int, int]]
    cuts: tuple[Cut, ...]
    checks: tuple[Check, ...]

    def summary(self) -> str:
        """A line for the whole, one for each cut and one for each group that lost channels."""
        lines = [
            f"{self.keep_macs:.2%} of the MACs and {self.keep_params:.2%} of the parameters are left "
            f"({self.macs:,} of {self.dense_macs:,} MACs, {self.params:,} of {self.dense_params:,} parameters)"
        ]
        lines += [
            f"  cut after step {cut.step} ({cut.reason}): {cut.macs / self.dense_macs:.2%} of the MACs"
            + ", nothing was left to remove" * took_nothing(cut.norms)
            for cut in self.cuts
        ]
        narrower = {name: pair for name, pair in self.widths.items() if pair[0] != pair[1]}
        width = max(map(len, narrower), default=0)
        lines += [f"  {name:<{width}}  {now:>5} of {before} channels" for name, (before, now) in narrower.items()]
        return "\n".join(lines)
