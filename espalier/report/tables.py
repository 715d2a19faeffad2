"""Summary rows -> the cells that people read: for the page, for the command line, for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espalier.records import numbers
from espalier.records.summary import Row

COLUMNS = ("method", "sparsity", "budget", "accuracy", "vs dense", "runs", "of selected", "of all", "time")


@dataclass(frozen=True)
class TableRow:
    """One row in words.

    `best` marks the highest mean accuracy among its rivals; `fastest` the shortest time, and those that noise could
    explain, unless that is all of them.
    """

    row: Row
    method: str
    sparsity: str
    budget: str
    accuracy: str
    against_dense: str
    runs: str
    selected: str
    all_weights: str
    time: str
    best: bool = False
    fastest: bool = False

    def cells(self) -> tuple[str, ...]:
        """The cells in the order of `COLUMNS`."""
        return (
            self.method,
            self.sparsity,
            self.budget,
            self.accuracy,
            self.against_dense,
            self.runs,
            self.selected,
            self.all_weights,
            self.time,
        )


def table_rows(rows: Iterable[Row]) -> list[TableRow]:
    """Format the rows of one model on one data set.

    A row's rivals are the pruned rows of the same sparsity and budget; only where there are some is one marked as best.
    `against_dense` compares with the dense row of the same budget.
    """
    rows = list(rows)
    dense = {row.epochs: row.acc_mean for row in rows if not row.sparsity_target}
    return [_format(row, dense.get(row.epochs), _rivals(row, rows)) for row in rows]


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a GitHub table; a model or data column only where they differ. The best accuracy is bold.

    Example:
        >>> print(markdown_table([]))
        No finished runs.
    """
    if not rows:
        return "No finished runs."
    settings = list(dict.fromkeys((row.model, row.data) for row in rows))
    lines: list[tuple[str, ...]] = []
    for setting in settings:
        for line in table_rows(row for row in rows if (row.model, row.data) == setting):
            accuracy = f"**{line.accuracy}**" if line.best else line.accuracy
            time = f"**{line.time}**" if line.fastest else line.time
            lines.append((*setting, *line.cells()[:3], accuracy, *line.cells()[4:-1], time))
    head = ["model", "data", "method", "sparsity", "budget", "accuracy (%)", "vs dense", "runs"]
    head += ["zeros of selected (%)", "zeros of all (%)", "time per run"]
    if len(settings) == 1:
        head, lines = head[2:], [line[2:] for line in lines]
    ruler = ["---" if name in ("model", "data", "method") else "---:" for name in head]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in (head, ruler, *lines))


def row_label(row: Row) -> str:
    """Method, and the settings that tell it from its namesakes."""
    return f"{row.method} ({row.variant})" if row.variant else row.method


def _rivals(row: Row, rows: Sequence[Row]) -> list[Row]:
    if not row.sparsity_target:
        return []
    return [other for other in rows if (other.sparsity_target, other.epochs) == (row.sparsity_target, row.epochs)]


def _format(row: Row, dense: float | None, rivals: Sequence[Row]) -> TableRow:
    accuracies = [rival.acc_mean for rival in rivals if rival.acc_mean is not None]
    against = row.acc_mean - dense if row.sparsity_target and row.acc_mean is not None and dense is not None else None
    return TableRow(
        row=row,
        method=row_label(row),
        sparsity=numbers.target(row.sparsity_target),
        budget=numbers.epochs(row.epochs),
        accuracy=numbers.percent_spread(row.acc_mean, row.acc_std),
        against_dense=numbers.points(against),
        runs=str(row.n),
        selected=numbers.percent(row.sparsity),
        all_weights=numbers.percent(row.sparsity_all),
        time=numbers.duration(row.seconds),
        best=len(accuracies) > 1 and row.acc_mean == max(accuracies),
        fastest=_as_fast(row, rivals) and not all(_as_fast(rival, rivals) for rival in rivals),
    )


def _as_fast(row: Row, rivals: Sequence[Row]) -> bool:
    """Whether a row's time, less its own spread, comes within 2 % of the shortest."""
    times = [rival.seconds for rival in rivals if rival.seconds is not None]
    return bool(times) and row.seconds is not None and row.seconds - (row.seconds_std or 0.0) <= 1.02 * min(times)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
