"""What it takes to reach an accuracy: the least budget, and the most compression, among the runs that were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.records.summary import Row


@dataclass(frozen=True)
class Reached:
    """The cheapest row of a method that reaches the accuracy, None where none does; and its most accurate one."""

    model: str
    data: str
    label: str
    fixed: str
    row: Row | None
    best: Row


def least_budget(rows: Iterable[Row], accuracy: float) -> list[Reached]:
    """Per method and target the fewest epochs whose mean accuracy is at least `accuracy`.

    Args:
        rows: of `espalier.records.summary.summarise`.
        accuracy: a share in [0, 1]; nothing is interpolated between the budgets that were run.
    """
    return _cheapest(rows, accuracy, lambda row: (row.label, row.goal), lambda row: row.epochs, lambda row: row.aim)


def most_compression(rows: Iterable[Row], accuracy: float) -> list[Reached]:
    """Per method and number of epochs the highest sparsity, or the smallest share of the MACs, with at least `accuracy`.

    Args:
        rows: of `espalier.records.summary.summarise`; the dense reference is left out.
        accuracy: a share in [0, 1].
    """
    pruned = [row for row in rows if not row.dense]
    plain = [row for row in pruned if row.sparsity_target or row.keep_macs is not None]
    return _cheapest(plain, accuracy, lambda row: (row.method, row.variant, bool(row.budget), row.epochs), _kept, _epochs)


def _kept(row: Row) -> float:
    """What is left: of the selected weights, or of the MACs."""
    return row.keep_macs if row.keep_macs is not None and row.budget else 1.0 - (row.sparsity_target or 0.0)


def _epochs(row: Row) -> str:
    return f"{row.epochs} epochs"


def _cheapest(
    rows: Iterable[Row],
    accuracy: float,
    family: Callable[[Row], Hashable],
    cost: Callable[[Row], float],
    fixed: Callable[[Row], str],
) -> list[Reached]:
    families: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row.acc_mean is not None:
            families[row.model, row.data, family(row)].append(row)
    return [_of_family(members, accuracy, cost, fixed) for members in families.values()]


def _of_family(rows: Sequence[Row], accuracy: float, cost: Callable[[Row], float], fixed: Callable[[Row], str]) -> Reached:
    first = rows[0]
    there = [row for row in rows if (row.acc_mean or 0.0) >= accuracy]
    best = max(rows, key=lambda row: row.acc_mean or 0.0)
    return Reached(first.model, first.data, first.label, fixed(first), min(there, key=cost, default=None), best)
