"""What it takes to reach an accuracy: the least budget, and the most compression, among the runs that were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from espalier.records.settings import is_goal, is_ratio
from espalier.records.summary import Row, differing, in_words


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
    named = _by_settings(rows, lambda key: is_goal(key) and not is_ratio(key))
    return _cheapest(named, accuracy, lambda row: row.goal, lambda row: row.epochs, lambda row: row.aim)


def most_compression(rows: Iterable[Row], accuracy: float) -> list[Reached]:
    """Per method and number of epochs the highest sparsity, or the smallest share of the MACs, with at least `accuracy`.

    Args:
        rows: of `espalier.records.summary.summarise`; the dense reference is left out.
        accuracy: a share in [0, 1].
    """
    pruned = [row for row in rows if not row.dense]
    plain = [row for row in pruned if row.sparsity_target or row.keep_macs is not None]
    return _cheapest(_by_settings(plain, is_goal), accuracy, lambda row: (bool(row.budget), row.epochs), _kept, _epochs)


def _kept(row: Row) -> float:
    """What is left: of the selected weights, or of the MACs."""
    return row.keep_macs if row.keep_macs is not None and row.budget else 1.0 - (row.sparsity_target or 0.0)


def _epochs(row: Row) -> str:
    return f"{row.epochs} epochs"


def _by_settings(rows: Iterable[Row], free: Callable[[str], bool]) -> list[Row]:
    """The rows with variants that name all settings in which the runs of their method differ, but for the `free` ones.

    A row's own variant tells it from the rows of its target and epochs only: it may name nothing here, and something there.
    """
    methods: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        methods[row.model, row.data, row.method].append(row)
    named = []
    for members in methods.values():
        keys = [key for key in differing([run for row in members for run in row.runs]) if not free(key)]
        named += [replace(row, variant=in_words(row.runs[0], keys)) if row.runs else row for row in members]
    return named


def _cheapest(
    rows: Sequence[Row],
    accuracy: float,
    family: Callable[[Row], Hashable],
    cost: Callable[[Row], float],
    fixed: Callable[[Row], str],
) -> list[Reached]:
    families: dict[tuple[str, str, str, Hashable], list[Row]] = defaultdict(list)
    for row in rows:
        if row.acc_mean is not None:
            families[row.model, row.data, row.label, family(row)].append(row)
    return [_of_family(members, accuracy, cost, fixed) for members in families.values()]


def _of_family(rows: Sequence[Row], accuracy: float, cost: Callable[[Row], float], fixed: Callable[[Row], str]) -> Reached:
    first = rows[0]
    there = [row for row in rows if (row.acc_mean or 0.0) >= accuracy]
    best = max(rows, key=lambda row: row.acc_mean or 0.0)
    return Reached(first.model, first.data, first.label, fixed(first), min(there, key=cost, default=None), best)
