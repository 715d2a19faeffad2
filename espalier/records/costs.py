"""What a training has cost, and which results no other one beats at the same cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from espalier.records.reading import Run
from espalier.records.summary import Row, mean


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (cost, gain) that no other one beats, by rising cost.

    Example:
        >>> pareto([(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6)])
        [0, 2]
    """
    front: list[int] = []
    for number in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        if not front or points[number][1] > points[front[-1]][1]:
            front.append(number)
    return front


def dense_macs(runs: Iterable[Run]) -> dict[tuple[str, str], int]:
    """MACs of one image through the dense model, by model and data: what runs that cut channels have recorded."""
    return {(run.model, run.data): run.shrunk.dense_macs for run in runs if run.shrunk is not None}


def training_macs(run: Run, dense: Mapping[tuple[str, str], int]) -> float | None:
    """MACs of all forward passes of a training, which a cut makes cheaper from its step on; None where they are not known.

    Masks save nothing: they are counted as dense. Backward passes cost about twice as much again, for every method.

    Args:
        run: a finished run.
        dense: of `dense_macs`; a run that did not cut takes its model's from there.
    """
    batch, accumulate = run.settings.get("train.batch_size"), run.settings.get("train.accumulate", 1)
    full = run.shrunk.dense_macs if run.shrunk is not None else dense.get((run.model, run.data))
    steps = run.metrics[-1].step if run.metrics else None
    if not isinstance(batch, int) or not isinstance(accumulate, int) or full is None or steps is None:
        return None
    total, since, macs = 0.0, 0, full
    for cut in run.shrunk.cuts if run.shrunk is not None else ():
        total, since, macs = total + (cut.step - since) * macs, cut.step, cut.macs
    return batch * accumulate * (total + (steps - since) * macs)


def row_training_macs(row: Row, dense: Mapping[tuple[str, str], int]) -> float | None:
    """The mean of `training_macs` over the runs of a row."""
    return mean(training_macs(run, dense) for run in row.runs)
