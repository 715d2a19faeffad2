"""What a run that cut channels has recorded: costs before and after, widths, the cuts, the looks before them, latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espalier.records.norms import NormHistogram, took_nothing
from espalier.records.shares import Shares


@dataclass(frozen=True)
class CutMade:
    """One physical cut after so many steps, or epochs; MACs and parameters are what it left, norms those just before."""

    step: int
    epoch: float
    reason: str
    macs: int
    params: int
    norms: NormHistogram | None = None


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward pass at one batch size, small model and dense; `speedup`, with quartiles, call by call."""

    batch: int
    seconds: float
    dense_seconds: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Shrunk(Shares):
    """From dense to small.

    Attributes:
        dense_macs, macs: of one image.
        dense_params, params: parameters.
        widths: group -> channels before and now.
        cuts: in order.
        checks: (step, similarity, score) of every look at the sub-network.
        speeds: measured at the end, smallest batch first; () where it was not measured.
        threads: of the measurement.
    """

    dense_macs: int
    macs: int
    dense_params: int
    params: int
    widths: Mapping[str, tuple[int, int]]
    cuts: tuple[CutMade, ...]
    checks: tuple[tuple[int, float | None, float | None], ...]
    speeds: tuple[Speed, ...] = ()
    threads: int | None = None

    @property
    def last_cut(self) -> CutMade | None:
        """The last cut that removed channels."""
        real = [cut for cut in self.cuts if not took_nothing(cut.norms)]
        return next(reversed(real or self.cuts), None)


def read_shrunk(result: Mapping[str, Any]) -> Shrunk | None:
    """The record in a `result.json`; None for methods that do not cut.

    Raises:
        KeyError, TypeError, ValueError: the record is not complete.
    """
    if result.get("dense_macs") is None:
        return None
    latency = result.get("latency") or {}
    return Shrunk(
        dense_macs=int(result["dense_macs"]),
        macs=int(result["macs"]),
        dense_params=int(result["dense_params"]),
        params=int(result["params"]),
        widths={str(name): (int(before), int(now)) for name, (before, now) in result["widths"].items()},
        cuts=tuple(map(_cut, result["cuts"])),
        checks=tuple((int(step), similarity, score) for step, similarity, score in result["checks"]),
        speeds=tuple(
            Speed(int(x["batch"]), *(float(x[key]) for key in ("seconds", "dense_seconds", "speedup", "low", "high")))
            for x in latency.get("rows", ())
        ),
        threads=latency.get("threads"),
    )


def _cut(said: Mapping[str, Any]) -> CutMade:
    return CutMade(
        step=int(said["step"]),
        epoch=float(said["epoch"]),
        reason=str(said["reason"]),
        macs=int(said["macs"]),
        params=int(said["params"]),
        norms=NormHistogram.from_content(said.get("norms")),
    )
