"""The plots of the report: summary rows of one model on one data set -> charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from espalier.records.summary import Row
from espalier.report.plots.common import Plots
from espalier.report.plots.cuts import macs_left, stability, step_time, widths
from espalier.report.plots.layers import per_layer
from espalier.report.plots.norms import norms
from espalier.report.plots.results import against_budget, against_macs, against_sparsity
from espalier.report.plots.rounds import gaps, has_rounds, layer_gaps, multipliers, projected
from espalier.report.plots.training import over_training, schedules
from espalier.report.svg import SLOTS
from espalier.report.tables import row_label

__all__ = ["KINDS", "Plots", "all_plots", "assign_slots"]

_MASKS = ("sparsity", "tradeoff", "budget", "training", "schedules", "layers")
_ROUNDS = ("projected", "gap", "layergap", "multipliers")
KINDS = (*_MASKS, *_ROUNDS, "stability", "macs", "speed", "norms", "widths")
_OWN_SLOT = {"dense": 0, "ocp": 1, "one-shot": 2, "iterative": 3, "agp": 4}


def all_plots(rows: Sequence[Row], unfinished: Sequence[Row] = ()) -> list[Plots]:
    """Every kind of plot for the rows of one model on one data set; of masks, multipliers and cuts where there are such rows.

    Args:
        rows: summary of the finished runs.
        unfinished: summary of the others; they only show in the plots over training.
    """
    slots = assign_slots([*rows, *unfinished])
    everything = [*rows, *unfinished]
    masks, cuts = any(row.sparsity_target for row in everything), any(row.budget for row in everything)
    zeros, left = [row for row in rows if not row.budget], [row for row in unfinished if not row.budget]
    plots = []
    if masks or not cuts:
        plots.append(against_sparsity(zeros, slots))
    if cuts:
        plots.append(against_macs(rows, slots))
    plots += [against_budget(rows, slots), over_training(rows, unfinished, slots)]
    if masks or not cuts:
        plots += [schedules(zeros, left, slots), per_layer(zeros, slots)]
    if any(has_rounds(row) for row in everything):
        plots += [projected(rows, unfinished, slots), gaps(rows, unfinished, slots)]
        plots += [layer_gaps(rows, slots), multipliers(rows, slots)]
    if cuts:
        plots += [stability(rows, unfinished, slots), macs_left(rows, unfinished, slots)]
        plots += [step_time(rows, unfinished, slots), norms(rows, slots), widths(rows, slots)]
    return plots


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
