"""A sweep: all runs of a grid, their folders, and `sweep.json`, one row per run, written anew after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import Outcome, Place, PlannedRun, carry_out
from espalier.recipes.experiments.grid import Grid, GridRun, Settings
from espalier.recipes.training import runs
from espalier.records.reading import SWEEP

FINISHED, FAILED, STARTED, WAITING = "finished", "failed", "half-finished", "waiting"
_FROM_RESULT = (
    "test_acc",
    "test_loss",
    "val_acc",
    "val_loss",
    "sparsity",
    "sparsity_all",
    "macs",
    "keep_macs",
    "params",
    "keep_params",
    "epochs",
    "steps",
    "seconds",
    "recipe_hash",
)


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: what to train, where, and the settings that the grid gives it."""

    planned: PlannedRun
    settings: Settings

    @property
    def folder(self) -> Path:
        """The run's folder, named by the content of its recipe."""
        return self.planned.folder

    @property
    def state(self) -> str:
        """ "finished", "failed", "half-finished" (a checkpoint is there) or "waiting"."""
        state: str = self.row()["state"]
        return state

    def row(self) -> dict[str, Any]:
        """The run's line of `sweep.json`, read from its folder; a damaged result counts as a failure."""
        row: dict[str, Any] = {"run": self.folder.name, "state": WAITING, "settings": self.settings}
        try:
            result = runs.read_result(self.folder)
        except EspalierError as damaged:
            return row | {"state": FAILED, "error": str(damaged)}
        if result is not None:
            return row | {"state": FINISHED} | {key: result[key] for key in _FROM_RESULT if result.get(key) is not None}
        if (self.folder / runs.FAILURE).exists():
            return row | {"state": FAILED, "error": runs.read_failure(self.folder)}
        if (self.folder / runs.CHECKPOINT).exists():
            row["state"] = STARTED
        return row


def plan_sweep(grid_runs: Iterable[GridRun], out: Path) -> list[SweepRun]:
    """The runs with their folders; equal recipes are one run, so that a dense reference is trained once."""
    planned: dict[Path, SweepRun] = {}
    for run in grid_runs:
        folder = out / runs.run_name(run.recipe)
        planned.setdefault(folder, SweepRun(PlannedRun(run.recipe, folder, run.words), run.settings))
    return list(planned.values())


class Ledger:
    """`sweep.json`: what the sweep is about, and a row per run.

    Args:
        grid: the grid file.
        out: the folder of all runs.

    Raises:
        EspalierError: the folder holds another sweep.
    """

    def __init__(self, grid: Grid, out: Path) -> None:
        self.path = out / SWEEP
        self._head: dict[str, Any] = {"name": grid.name, "claim": grid.claim, "paper": dict(grid.paper.raw)}
        self._rows: dict[Path, dict[str, Any]] = {}
        self.search: dict[str, Any] | None = None
        if self.path.exists() and _name_in(self.path) != grid.name:
            raise EspalierError(f"{str(out)!r} holds the sweep {_name_in(self.path)!r}: choose another folder with --out.")

    def add(self, planned: Sequence[SweepRun]) -> None:
        """Read the rows of these runs and write the file."""
        self._rows |= {run.folder: run.row() for run in planned}
        self.write()

    def write(self) -> None:
        """Write the file whole or not at all."""
        content = self._head | ({} if self.search is None else {"search": self.search}) | {"runs": list(self._rows.values())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EspalierError(f"The folder {str(self.path.parent)!r} cannot be made ({error.strerror}).") from None
        runs.write_json(self.path, content)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of the grid."""
        return list(self._rows.values())


def run_sweep(
    sweep: Sequence[SweepRun],
    ledger: Ledger,
    place: Place,
    tell: Callable[[str], None],
    tick: Callable[[Sequence[PlannedRun]], None],
    *,
    limit: int | None = None,
) -> Iterator[Outcome]:
    """Carry out what is not finished; the ledger is up to date whenever an outcome comes.

    Args:
        sweep: the runs.
        ledger: of the sweep.
        place: where they run.
        tell, tick: as of `carry_out`.
        limit: start at most so many runs.
    """
    ledger.add(sweep)
    by_folder = {run.folder: run for run in sweep}
    for outcome in carry_out([run.planned for run in limited(sweep, limit)], place, tell, tick):
        ledger.add([by_folder[outcome.run.folder]])
        yield outcome
    ledger.add(sweep)  # another sweep may have finished some of them since


def limited(sweep: Sequence[SweepRun], limit: int | None) -> list[SweepRun]:
    """The finished runs and the first `limit` of the others."""
    if limit is None:
        return list(sweep)
    left = [run.folder for run in sweep if run.state != FINISHED][:limit]
    return [run for run in sweep if run.state == FINISHED or run.folder in left]


def _name_in(path: Path) -> object:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise EspalierError(f"{str(path)!r} cannot be read: delete it, the run folders say all that was in it.") from None
