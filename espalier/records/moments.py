"""Runs as they stood at the end of an earlier epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from espalier.errors import EspalierError
from espalier.records.reading import Run

AT_EPOCH = ("val_acc", "sparsity", "sparsity_all", "seconds")  # what every epoch records; the test set is looked at once


def at_epoch(runs: Iterable[Run], epoch: int) -> list[Run]:
    """The runs that have reached the end of ``epoch``, finished or not, with the values of `AT_EPOCH` that they had there.

    Raises:
        EspalierError: none has.
    """
    found = []
    for run in runs:
        record = next((record for record in run.metrics if record.epoch == epoch), None)
        if record is not None:
            values = {name: getattr(record, name) for name in AT_EPOCH}
            found.append(replace(run, finished=True, test_acc=None, test_loss=None, shrunk=None, **values))
    if not found:
        raise EspalierError(f"None of these runs has reached epoch {epoch}.")
    return found
