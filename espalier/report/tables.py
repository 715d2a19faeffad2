"""Summary rows -> the cells that people read: for the page, for the command line, for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espalier.records import numbers
from espalier.records.summary import Row, mean

CUT_COLUMNS = (
    "method",
    "budget",
    "epochs",
    "accuracy (%)",
    "vs dense",
    "runs",
    "MACs left (%)",
    "parameters left (%)",
    "cut after epoch",
    "forward pass",
    "time per run",
)
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


@dataclass(frozen=True)
class CutRow:
    """A row of a method that cuts channels, or of the dense reference, in words.

    `base` has what such rows share with those of masks. `latency` is the forward pass of the largest measured batch with its
    speed-up over the dense model, `time` that of the training as a share of the dense one's.
    """

    base: TableRow
    budget: str
    macs: str
    params: str
    cut: str
    latency: str
    time: str

    def cells(self) -> tuple[str, ...]:
        """The cells in the order of `CUT_COLUMNS`."""
        base = self.base
        first = (base.method, self.budget, str(base.row.epochs), base.accuracy, base.against_dense, base.runs)
        return (*first, self.macs, self.params, self.cut, self.latency, self.time)


def cut_rows(rows: Iterable[Row]) -> list[CutRow]:
    """Format the rows of one model on one data set that cut channels, with the dense reference first of its epochs."""
    lines = [line for line in table_rows(rows) if line.row.dense or line.row.budget]
    dense = {line.row.epochs: line.row.seconds for line in lines if line.row.dense}
    return [_cut_row(line, dense.get(line.row.epochs)) for line in sorted(lines, key=lambda line: line.row.epochs)]


def _cut_row(line: TableRow, dense_seconds: float | None) -> CutRow:
    row = line.row
    time = line.time
    if row.dense:
        return CutRow(line, numbers.NOTHING, "100", "100", numbers.NOTHING, numbers.NOTHING, time)
    if row.seconds is not None and dense_seconds:
        time = f"{time}, {row.seconds / dense_seconds:.2f} of dense"
    return CutRow(
        line,
        row.aim,
        numbers.percent(row.keep_macs),
        numbers.percent(row.keep_params),
        cut_words(row),
        latency_words(row),
        time,
    )


def cut_words(row: Row) -> str:
    """After which epoch the (last) cut came, on average, and why."""
    last = [cut for shrunk in row.shrunk if (cut := shrunk.last_cut) is not None]
    if not last:
        return numbers.NOTHING
    return f"{mean(cut.epoch for cut in last):.3g} ({', '.join(dict.fromkeys(cut.reason for cut in last))})"


def latency_words(row: Row) -> str:
    """The forward pass of the largest measured batch, and how many times faster than the dense model's it is."""
    speeds = [shrunk.speeds[-1] for shrunk in row.shrunk if shrunk.speeds]
    if not speeds:
        return numbers.NOTHING
    seconds, times = mean(speed.seconds for speed in speeds) or 0.0, mean(speed.speedup for speed in speeds)
    return f"{seconds * 1e3:.3g} ms for {speeds[0].batch}, {times:.2f}x"


def table_rows(rows: Iterable[Row]) -> list[TableRow]:
    """Format the rows of one model on one data set.

    A row's rivals are the pruned rows of the same target and budget; only where there are some is one marked as best.
    `against_dense` compares with the dense row of the same budget.
    """
    rows = list(rows)
    dense = {row.epochs: row.acc_mean for row in rows if row.dense}
    return [_format(row, dense.get(row.epochs), _rivals(row, rows)) for row in rows]


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a GitHub table; a model or data column only where they differ. The best accuracy is bold.

    Methods that cut channels have a table of their own below, with the dense reference in it again.

    Example:
        >>> print(markdown_table([]))
        No finished runs.
    """
    if not rows:
        return "No finished runs."
    cuts = [row for row in rows if row.dense or row.budget]
    if any(row.budget for row in rows):
        masks = [row for row in rows if not row.budget]
        above = [_mask_table(masks)] if any(not row.dense for row in masks) else []
        return "\n\n".join([*above, _cut_table(cuts)])
    return _mask_table(rows)


def _mask_table(rows: Sequence[Row]) -> str:
    settings = list(dict.fromkeys((row.model, row.data) for row in rows))
    lines: list[tuple[str, ...]] = []
    for setting in settings:
        for line in table_rows(row for row in rows if (row.model, row.data) == setting):
            accuracy = f"**{line.accuracy}**" if line.best else line.accuracy
            time = f"**{line.time}**" if line.fastest else line.time
            lines.append((*setting, *line.cells()[:3], accuracy, *line.cells()[4:-1], time))
    head = ["model", "data", "method", "sparsity", "budget", "accuracy (%)", "vs dense", "runs"]
    head += ["zeros of selected (%)", "zeros of all (%)", "time per run"]
    return _grid(head, lines, whole=len(settings) > 1)


def _cut_table(rows: Sequence[Row]) -> str:
    settings = list(dict.fromkeys((row.model, row.data) for row in rows))
    lines: list[tuple[str, ...]] = []
    for setting in settings:
        for line in cut_rows(row for row in rows if (row.model, row.data) == setting):
            cells = list(line.cells())
            if line.base.best:
                cells[3] = f"**{cells[3]}**"
            lines.append((*setting, *cells))
    return _grid(["model", "data", *CUT_COLUMNS], lines, whole=len(settings) > 1)


def _grid(head: list[str], lines: list[tuple[str, ...]], *, whole: bool) -> str:
    """A GitHub table, without its first two columns unless `whole`."""
    if not whole:
        head, lines = head[2:], [line[2:] for line in lines]
    ruler = ["---" if name in ("model", "data", "method") else "---:" for name in head]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in (head, ruler, *lines))


def row_label(row: Row) -> str:
    """Method, and the settings that tell it from its namesakes."""
    return row.label


def _rivals(row: Row, rows: Sequence[Row]) -> list[Row]:
    if row.dense:
        return []
    return [other for other in rows if (other.goal, other.epochs) == (row.goal, row.epochs)]


def _format(row: Row, dense: float | None, rivals: Sequence[Row]) -> TableRow:
    accuracies = [rival.acc_mean for rival in rivals if rival.acc_mean is not None]
    against = row.acc_mean - dense if not row.dense and row.acc_mean is not None and dense is not None else None
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
