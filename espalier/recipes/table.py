"""The table of a comparison: mean and spread over seeds per budget, sparsity and method."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espalier.recipes.compare import Outcome
from espalier.recipes.runs import write_atomically
from espalier.records import read_run
from espalier.records.numbers import duration
from espalier.records.summary import method_order, summarise

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
NOTE = (
    "Test accuracy of the last epoch, mean and standard deviation over n seeds; every method has the same epochs. "
    "Zeros are given as a share of the selected weights and of all weights."
)


@dataclass(frozen=True)
class Line:
    """All seeds of a method at one budget and sparsity; shares in [0, 1], None where there is no finished run."""

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

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `HEADER`."""
        shares = (self.accuracy, self.spread, self.selected, self.everything)
        accuracy, spread, selected, everything = ("-" if x is None else f"{100 * x:.2f}" for x in shares)
        time = "-" if self.seconds is None else duration(self.seconds)
        place = (str(self.epochs), f"{self.sparsity:g}", self.method)
        return *place, accuracy, spread, str(self.n), str(self.failed), selected, everything, time


def make_lines(outcomes: Iterable[Outcome]) -> list[Line]:
    """Sum up outcomes by budget, sparsity and method, in this order."""
    outcomes = list(outcomes)
    runs = [read_run(outcome.run.folder) for outcome in outcomes if outcome.result is not None]
    failed = Counter(_place(outcome) for outcome in outcomes if outcome.result is None)
    lines = []
    for row in summarise(runs):
        place = (row.epochs, row.sparsity_target or 0.0, row.method)
        numbers = (row.acc_mean, row.acc_std, row.sparsity, row.sparsity_all, row.seconds)
        lines.append(Line(*place, row.n, failed.pop(place, 0), *numbers))
    lines += [Line(*place, failed=count) for place, count in failed.items()]
    order = {name: rank for rank, name in enumerate(("dense", *method_order(runs)))}
    return sorted(lines, key=lambda x: (x.epochs, x.sparsity, order.get(x.method, len(order)), x.method))


def to_markdown(lines: list[Line], title: str) -> str:
    """The table as Markdown, with a note that says how to read it."""
    text = [f"# {title}", "", "| " + " | ".join(HEADER) + " |", "|" + " ---: |" * len(HEADER)]
    text += ["| " + " | ".join(line.cells()) + " |" for line in lines]
    return "\n".join([*text, "", NOTE, ""])


def to_csv(lines: list[Line]) -> str:
    """The table as CSV with full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["epochs", "sparsity", "method", "n", "failed", "test_acc_mean", "test_acc_std", "selected", "all", "seconds"]
    )
    for x in lines:
        writer.writerow(
            [x.epochs, x.sparsity, x.method, x.n, x.failed, x.accuracy, x.spread, x.selected, x.everything, x.seconds]
        )
    return text.getvalue()


def write_table(lines: list[Line], out: Path, name: str) -> tuple[Path, Path]:
    """Write `compare-NAME.md` and `compare-NAME.csv` into `out`; returns both paths."""
    markdown, table = out / f"compare-{name}.md", out / f"compare-{name}.csv"
    write_atomically(markdown, to_markdown(lines, f"Comparison: {name}").encode())
    write_atomically(table, to_csv(lines).encode())
    return markdown, table


def _place(outcome: Outcome) -> tuple[int, float, str]:
    recipe = outcome.run.recipe
    return recipe.train.epochs, recipe.pruning.sparsity or 0.0, recipe.pruning.method
