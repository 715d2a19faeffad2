"""Grids small enough for tests, and a place that trains in this process: starting one costs more than these runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.cli.recipes import find_recipe
from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import Ended, Outcome, Place, PlannedRun
from espalier.recipes.experiments.grid import Grid, expand, read_grid
from espalier.recipes.experiments.sweep import Ledger, plan_sweep, run_sweep
from espalier.recipes.recipe import load_recipe
from espalier.recipes.training import runs
from espalier.recipes.training.engine import train

RECIPE: dict[str, Any] = {
    "model": {"name": "convnet4", "width": 4},
    "data": {"name": "digits", "limit": 320},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 2, "batch_size": 32, "device": "cpu", "threads": 1, "channels_last": False},
    "pruning": {"method": "ocp", "sparsity": 0.8},
}
TWELVE: dict[str, Any] = {
    "recipe": "tiny.yaml",
    "grid": {"seed": [0, 1, 2]},
    "runs": [
        {"set": {"pruning": {"method": "dense"}}},
        {"grid": {"pruning.method": ["ocp"], "pruning.sparsity": [0.5, 0.9]}},
        {"set": {"pruning": {"method": "agp", "sparsity": 0.5}}},
    ],
}
WriteGrid = Callable[..., Path]


class Here(Place):
    """Trains in this process, one run after the other."""

    slots = 1

    def __init__(self) -> None:
        self.started: list[str] = []
        self._over: list[Ended] = []

    def start(self, run: PlannedRun, slot: int) -> None:
        self.started.append(run.folder.name)
        try:
            train(load_recipe(run.folder / runs.RECIPE), run.folder, quiet=True)
            self._over.append(Ended(slot))
        except EspalierError as error:
            self._over.append(Ended(slot, 2, str(error)))

    def ended(self) -> list[Ended]:
        over, self._over = self._over, []
        return over

    def stop(self) -> None:
        pass


@pytest.fixture
def write_grid(tmp_path: Path) -> WriteGrid:
    """`write_grid(grid={...})`: a grid file beside a tiny recipe; keys as in the file."""

    def write(name: str = "trial.yaml", **keys: Any) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"recipe": "tiny.yaml"} | keys, sort_keys=False))
        return path

    return write


def read(path: Path) -> Grid:
    return read_grid(path, find_recipe)


def carry(path: Path, out: Path, place: Place | None = None, limit: int | None = None) -> list[Outcome]:
    """Sweep a grid file in this process."""
    grid = read(path)
    sweep = plan_sweep(expand(grid), out)
    ledger = Ledger(grid, out)
    return list(run_sweep(sweep, ledger, place or Here(), lambda line: None, lambda running: None, limit=limit))
