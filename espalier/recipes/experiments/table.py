"""The tables of a comparison: mean and spread over seeds per number of epochs, target and method."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from espalier.recipes.experiments.carrying import Outcome
from espalier.recipes.training.runs import write_atomically
from espalier.records import read_run
from espalier.records.numbers import duration
from espalier.records.shrunk import Shrunk
from espalier.records.summary import Row, mean, method_order, spread, summarise

HEADER = (
    "epochs",
    "sparsity",
    "method",
    "test accuracy %",
    "spread",
    "n",
    "failed",
    "selected %",
    "all %",
    "time per run",
)
CUT_HEADER = (
    "epochs",
    "budget",
    "method",
    "test accuracy %",
    "spread",
    "n",
    "failed",
    "MACs left %",
    "parameters left %",
    "cut after epoch",
    "reason",
    "time per run",
)
NOTE = (
    "Test accuracy of the last epoch, mean and standard deviation over n seeds; every method has the same epochs. "
    "Zeros are given as a share of the selected weights and of all weights."
)
CUT_NOTE = (
    "Test accuracy of the last epoch, mean and standard deviation over n seeds; every method has the same epochs. "
    "The epoch of the (last) cut is a mean over seeds; cuts are made when the selection is stable or faded, at the latest "
    "moment, or as planned."
)


@dataclass(frozen=True)
class Line:
    """All seeds of a method at one number of epochs and target; shares in [0, 1], None where there is no finished run.

    `budget` is that of a method that cuts, "" for others; such a line has what is left, the epoch and the reasons of the cut.
    """

    epochs: int
    sparsity: float
    method: str
    n: int = 0
    failed: int = 0
    accuracy: float | None = None
    spread: float | None = None
    selected: float | None = None
    everything: float | None = None
    seconds: float | None = None
    budget: str = ""
    macs: float | None = None
    params: float | None = None
    cut_epoch: float | None = None
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `HEADER`."""
        place = (str(self.epochs), f"{self.sparsity:g}", self.method)
        return *place, *self._results(), _percent(self.selected), _percent(self.everything), self._time()

    def cut_cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `CUT_HEADER`; the dense reference has all of its MACs left."""
        place = (str(self.epochs), self.budget or "-", self.method)
        left = (self.macs, self.params) if self.budget else (1.0, 1.0)
        when = "-" if self.cut_epoch is None else f"{self.cut_epoch:.3g}"
        return *place, *self._results(), *map(_percent, left), when, self.reason or "-", self._time()

    def _results(self) -> tuple[str, ...]:
        return _percent(self.accuracy), _percent(self.spread), str(self.n), str(self.failed)

    def _time(self) -> str:
        return "-" if self.seconds is None else duration(self.seconds)


def make_lines(outcomes: Iterable[Outcome]) -> list[Line]:
    """Sum up outcomes by epochs, target and method, in this order; masks come before cuts."""
    outcomes = list(outcomes)
    done = {outcome.run.folder for outcome in outcomes if outcome.result is not None}
    # A failed run counts in its row: that it has finished is said for the sake of the summary only.
    runs = [replace(read_run(outcome.run.folder), finished=True) for outcome in outcomes]
    order = {name: rank for rank, name in enumerate(("dense", *method_order(runs)))}
    rows = sorted(summarise(runs), key=lambda row: (row.epochs, row.goal, order[row.method]))
    lines = [_line(row, done) for row in rows]
    return [line for line in lines if not line.budget] + [line for line in lines if line.budget]


def tables(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Lines of the table of masks and of the table of cuts; the dense reference is in each that there is."""
    dense = [line for line in lines if not line.budget and not line.sparsity]
    masks = [line for line in lines if not line.budget]
    cuts = [line for line in lines if line.budget]
    if not cuts:
        return masks, []
    everything = sorted([*dense, *cuts], key=lambda line: line.epochs)
    return (masks if len(masks) > len(dense) else []), everything


def to_markdown(lines: list[Line], title: str) -> str:
    """The tables as Markdown, each with a note that says how to read it."""
    masks, cuts = tables(lines)
    text = [f"# {title}", ""]
    if masks or not cuts:
        text += [*_markdown(HEADER, [line.cells() for line in masks]), "", NOTE, ""]
    if cuts:
        text += [*_markdown(CUT_HEADER, [line.cut_cells() for line in cuts]), "", CUT_NOTE, ""]
    return "\n".join(text)


def to_csv(lines: list[Line]) -> str:
    """The table as CSV with full precision; columns for cuts follow where there are some."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cuts = any(line.budget for line in lines)
    head = ["epochs", "sparsity", "method", "n", "failed", "test_acc_mean", "test_acc_std", "selected", "all", "seconds"]
    writer.writerow([*head, *(["budget", "keep_macs", "keep_params", "cut_epoch", "reason"] if cuts else [])])
    for x in lines:
        row = [x.epochs, x.sparsity, x.method, x.n, x.failed, x.accuracy, x.spread, x.selected, x.everything, x.seconds]
        writer.writerow([*row, *([x.budget, x.macs, x.params, x.cut_epoch, x.reason] if cuts else [])])
    return text.getvalue()


def write_table(lines: list[Line], out: Path, name: str) -> tuple[Path, Path]:
    """Write `compare-NAME.md` and `compare-NAME.csv` into `out`; returns both paths."""
    markdown, table = out / f"compare-{name}.md", out / f"compare-{name}.csv"
    write_atomically(markdown, to_markdown(lines, f"Comparison: {name}").encode())
    write_atomically(table, to_csv(lines).encode())
    return markdown, table


def _line(row: Row, done: set[Path]) -> Line:
    finished = [run for run in row.runs if run.folder in done]
    made: list[Shrunk] = [run.shrunk for run in finished if run.shrunk is not None]
    cuts = [cut for shrunk in made if (cut := shrunk.last_cut) is not None]
    accuracies = [run.test_acc for run in finished]
    return Line(
        row.epochs,
        row.sparsity_target or 0.0,
        row.label,
        len(finished),
        len(row.runs) - len(finished),
        mean(accuracies),
        spread(accuracies),
        mean(run.sparsity for run in finished),
        mean(run.sparsity_all for run in finished),
        mean(run.seconds for run in finished),
        row.aim if row.budget else "",
        mean(shrunk.keep_macs for shrunk in made),
        mean(shrunk.keep_params for shrunk in made),
        mean(cut.epoch for cut in cuts),
        ", ".join(dict.fromkeys(cut.reason for cut in cuts)),
    )


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    text = ["| " + " | ".join(header) + " |", "|" + " ---: |" * len(header)]
    return text + ["| " + " | ".join(row) + " |" for row in rows]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
