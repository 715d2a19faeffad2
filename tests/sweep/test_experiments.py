"""The grid files of `experiments/`: every run of every table is a valid recipe, every published number has its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from espalier.recipes.experiments.grid import GridRun, expand
from espalier.recipes.experiments.sweep_search import lowest, read_search
from espalier.recipes.recipe import resolved
from espalier.records.reading import flatten
from tests.sweep.conftest import read

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
GRIDS = sorted(path for path in FOLDER.glob("*/*.yaml") if not path.name.endswith(".recipe.yaml"))


def has(run: GridRun, where: Mapping[str, object]) -> bool:
    settings = dict(flatten(resolved(run.recipe)))
    return all(settings.get(key) == value for key, value in where.items())


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_grid_can_be_run_and_says_what_it_tests(path: Path) -> None:
    grid = read(path)
    runs = expand(grid, (), None if grid.search is None else lowest(read_search(grid)))
    assert grid.claim
    assert grid.name.startswith(f"{path.parent.name}-")
    assert f"{path.parent.name}/{path.name}" in (FOLDER / "README.md").read_text()
    for number in grid.paper.numbers:
        assert any(has(run, number.where) for run in runs), number
    if path.stem.startswith("reduced"):
        assert len({run.recipe.seed for run in runs}) >= 3


def test_every_paper_has_a_reduced_table() -> None:
    assert {path.parent.name for path in GRIDS if path.stem == "reduced"} == {"ocp", "epi", "ocsp", "slr"}
    names = [read(path).name for path in GRIDS]
    assert len(names) == len(set(names))  # each has a folder of its own under runs/
