"""What a person sees while many runs are carried out, and what SIGTERM does meanwhile."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier.errors import EspalierError

if TYPE_CHECKING:
    from espalier.recipes.experiments.carrying import Outcome, PlannedRun

_MOST_BARS = 16


def leave_tidily() -> None:
    """Let SIGTERM unwind this process, so that the runs under way save their checkpoints."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


class Watch:
    """Progress of many runs: live lines on a terminal, one line per event elsewhere."""

    def __init__(self, total: int, jobs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._live = sys.stdout.isatty()
        self._total, self._count = total, 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(),
            disable=not self._live,
        )
        self._all = self._bar.add_task("runs", total=total)
        self._slots = [self._bar.add_task("", total=1, visible=False) for _ in range(min(jobs, _MOST_BARS))]

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        """A run starts."""
        if not self._live:
            print(line, flush=True)

    def tick(self, running: Sequence[PlannedRun]) -> None:
        """Show how far the runs under way are."""
        from espalier.recipes.training.progress import pruned
        from espalier.recipes.training.runs import read_metrics

        if not self._live:
            return
        for slot in self._slots[len(running) :]:
            self._bar.update(slot, visible=False)
        for slot, run in zip(self._slots, running, strict=False):
            try:
                rows = read_metrics(run.folder)
            except EspalierError:  # the run itself says what is wrong with the file
                rows = []
            said = run.words or run.label.rpartition(",")[0]
            if rows:
                said += f"  val {rows[-1]['val_acc']:.1%}  {pruned(rows[-1])}"
            self._bar.update(slot, description=said, completed=len(rows), total=run.recipe.train.epochs, visible=True)

    def finished(self, outcome: Outcome) -> None:
        """A run is over."""
        self._count += 1
        self._bar.update(self._all, completed=self._count)
        what = outcome.error if outcome.result is None else f"test accuracy {outcome.result['test_acc']:.2%}"
        line = f"[{self._count}/{self._total}] {outcome.state} {outcome.run.label}: {what}"
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
