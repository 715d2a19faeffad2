"""The plots of the report: summary rows of one model on one data set -> charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from espalier.records.summary import Row
from espalier.report.plots.common import Plots
from espalier.report.plots.layers import per_layer
from espalier.report.plots.results import against_budget, against_sparsity
from espalier.report.plots.training import over_training, schedules
from espalier.report.svg import SLOTS
from espalier.report.tables import row_label

__all__ = ["KINDS", "Plots", "all_plots", "assign_slots"]

KINDS = ("sparsity", "budget", "training", "schedules", "layers")
_OWN_SLOT = {"dense": 0, "ocp": 1, "one-shot": 2, "iterative": 3, "agp": 4}


def all_plots(rows: Sequence[Row], unfinished: Sequence[Row] = ()) -> list[Plots]:
    """Every kind of plot for the rows of one model on one data set.

    Args:
        rows: summary of the finished runs.
        unfinished: summary of the others; they only show in the plots over training.
    """
    slots = assign_slots([*rows, *unfinished])
    return [
        against_sparsity(rows, slots),
        against_budget(rows, slots),
        over_training(rows, unfinished, slots),
        schedules(rows, unfinished, slots),
        per_layer(rows, slots),
    ]


def assign_slots(rows: Iterable[Row]) -> dict[str, int]:
    """A colour for every label, the same in all plots; well-known methods always have their own."""
    slots: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.variant):
        label = row_label(row)
        free = [slot for slot in range(SLOTS) if slot not in (*slots.values(), *_OWN_SLOT.values())]
        own = _OWN_SLOT.get(row.method)
        if own is not None and own not in slots.values():
            slots.setdefault(label, own)
        slots.setdefault(label, free[0] if free else 1 + len(slots) % (SLOTS - 1))
    return slots
