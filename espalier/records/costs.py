"""What a training has cost, and which results no other one beats at the same cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from espalier.records.reading import Run
from espalier.records.summary import Row, mean

Net = tuple[object, ...]  # what the MACs of a dense model depend on


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


def dense_macs(runs: Iterable[Run]) -> dict[Net, int]:
    """MACs of one image through the dense model, by model with all of its settings, data and size of its images.

    They are known of models that have been cut: those runs have recorded them.
    """
    return {_net(run): run.shrunk.dense_macs for run in runs if run.shrunk is not None}


def training_macs(run: Run, dense: Mapping[Net, int]) -> float | None:
    """MACs of all forward passes of a training, which a cut makes cheaper from its step on; None where they are not known.

    Masks save nothing: they are counted as dense. Backward passes cost about twice as much again, for every method.

    Args:
        run: a finished run.
        dense: of `dense_macs`; a run that did not cut takes its model's from there.
    """
    batch, accumulate = run.settings.get("train.batch_size"), run.settings.get("train.accumulate", 1)
    full = run.shrunk.dense_macs if run.shrunk is not None else dense.get(_net(run))
    steps = run.metrics[-1].step if run.metrics else None
    if not isinstance(batch, int) or not isinstance(accumulate, int) or full is None or steps is None:
        return None
    total, since, macs = 0.0, 0, full
    for cut in run.shrunk.cuts if run.shrunk is not None else ():
        total, since, macs = total + (cut.step - since) * macs, cut.step, cut.macs
    return batch * accumulate * (total + (steps - since) * macs)


def row_training_macs(row: Row, dense: Mapping[Net, int]) -> float | None:
    """The mean of `training_macs` over the runs of a row."""
    return mean(training_macs(run, dense) for run in row.runs)


def _net(run: Run) -> Net:
    model = sorted((key, repr(value)) for key, value in run.settings.items() if key.startswith("model.") and value is not None)
    return run.model, run.data, run.settings.get("data.image_size"), *model
