"""What a measurement says, as values and as a small table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of measurements.

    Example:
        >>> Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0, samples=5)
    """

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class Row:
    """One batch size.

    Attributes:
        batch: items per call.
        seconds: of one call.
        memory: peak bytes; None on devices that do not count them.
        other_seconds, other_memory: of the model compared with; None without one.
        ratio: how many times as long the other model takes; above 1 the profiled model is the faster one.
    """

    batch: int
    seconds: Spread
    memory: int | None
    other_seconds: Spread | None = None
    other_memory: int | None = None
    ratio: Spread | None = None


@dataclass(frozen=True)
class Profile:
    """What ``es.profile`` measured. ``str()`` of it is a small table.

    Attributes:
        device: "cpu", or the name of the accelerator.
        threads: of torch, for the operators on the CPU.
        train: whether forward and backward were timed, or a forward pass without gradients in evaluation mode.
        rows: one for each batch size.
    """

    device: str
    threads: int
    train: bool
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        what = "forward and backward, training mode" if self.train else "forward, evaluation mode"
        lines = [f"{what}; {self.device}, {self.threads} thread{'s' * (self.threads != 1)}; median (quartiles)"]
        compared = any(row.ratio for row in self.rows)
        heads = ["batch", "latency", "per item", "peak memory"]
        heads += ["other", "other's memory", "other / this"] if compared else []
        cells = [heads]
        for row in self.rows:
            line = [str(row.batch), _times(row.seconds), _time(row.seconds.median / row.batch), _bytes(row.memory)]
            if row.other_seconds is not None and row.ratio is not None:
                ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} - {row.ratio.high:.2f})"
                line += [_times(row.other_seconds), _bytes(row.other_memory), ratio]
            cells.append(line)
        widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _times(spread: Spread) -> str:
    scale, unit = (1e3, "ms") if spread.median < 1 else (1.0, "s")
    return f"{spread.median * scale:.3g} {unit} ({spread.low * scale:.3g} - {spread.high * scale:.3g})"


def _bytes(number: int | None) -> str:
    if number is None:
        return "not counted"
    return f"{number / 1e6:.3g} MB" if number < 1e9 else f"{number / 1e9:.3g} GB"
