"""Searches with Optuna: trials are grids, stopped ones continue with the values that they had."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import main
from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import Ended, PlannedRun
from espalier.recipes.experiments.sweep import Ledger
from espalier.recipes.experiments.sweep_search import Search, SearchSpec, lowest, read_search
from tests.sweep.conftest import Here, WriteGrid, read

optuna = pytest.importorskip("optuna")
RANGES: dict[str, Any] = {"pruning.alpha": {"low": 5, "high": 30}, "pruning.beta": {"low": 0.5, "high": 8.0}}
KEYS: dict[str, Any] = {"set": {"train.epochs": 1}, "grid": {"seed": [0, 1]}}


def search(grid_path: Path, out: Path, trials: int, place: Here) -> dict[str, Any]:
    grid = read(grid_path)
    spec = read_search(grid, trials)
    ledger = Ledger(grid, out)
    list(Search(grid, spec, [], out).run(ledger, place, lambda line: None, lambda running: None))
    content: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return content


def test_a_trial_is_the_grid_and_its_value_the_mean(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(**KEYS, search={"maximize": "val_acc", "ranges": RANGES})
    here = Here()
    found = search(grid, tmp_path / "out", 3, here)
    assert len(here.started) == len(found["runs"]) == 6
    trials = found["search"]["trials"]
    for trial in trials:
        rows = [r for r in found["runs"] if trial["settings"].items() <= r["settings"].items()]
        assert len(rows) == 2
        assert trial["val_acc"] == pytest.approx(sum(row["val_acc"] for row in rows) / 2)
        assert 5 <= trial["settings"]["pruning.alpha"] <= 30
    assert found["search"]["best"]["val_acc"] == max(trial["val_acc"] for trial in trials)

    again = Here()
    assert search(grid, tmp_path / "out", 3, again)["search"] == found["search"]
    assert again.started == []  # as many trials as wanted are there
    more = search(grid, tmp_path / "out", 4, again)
    assert more["search"]["trials"][:3] == trials
    assert len(again.started) == 2


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


class StopsAt(Here):
    """Is stopped when it should start a certain run."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def start(self, run: PlannedRun, slot: int) -> None:
        if len(self.started) == self._count:
            raise Stopped
        super().start(run, slot)


def test_a_stopped_search_continues_with_the_values_that_it_had(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid, out = write_grid(**KEYS, search={"minimize": "val_loss", "ranges": RANGES, "trials": 2}), tmp_path / "out"
    stopped = StopsAt(3)
    with pytest.raises(Stopped):
        search(grid, out, 2, stopped)
    again = Here()
    found = search(grid, out, 2, again)
    assert len(again.started) == 1  # one run of four was missing
    assert len(found["runs"]) == 4
    assert [trial["trial"] for trial in found["search"]["trials"]] == [0, 2]  # 1 was stopped and asked for again


def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path: Path, write_grid: WriteGrid) -> None:
    ranges = {"optimizer.lr": [1.0e38, 0.05]}
    keys = {"set": {"train.epochs": 1, "lr_schedule": "constant"}, "search": {"maximize": "val_acc", "ranges": ranges}}
    found = search(write_grid(**keys), tmp_path / "out", 6, Here())
    values = {trial["settings"]["optimizer.lr"]: trial["val_acc"] for trial in found["search"]["trials"]}
    assert values[1.0e38] is None
    assert values[0.05] > 0
    assert found["search"]["best"]["settings"] == {"optimizer.lr": 0.05}


class Fails(Here):
    """Nothing trains."""

    def start(self, run: PlannedRun, slot: int) -> None:
        self.started.append(run.folder.name)
        self._over.append(Ended(slot, 2, "out of memory"))


def test_failed_trials_are_tried_again(
    tmp_path: Path, write_grid: WriteGrid, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"set": {"train.epochs": 1}, "search": {"maximize": "val_acc", "trials": 2, "ranges": RANGES}}
    grid, out = write_grid(**keys), tmp_path / "out"
    for place, code in ((Fails(), 1), (Fails(), 1), (Here(), 0)):
        monkeypatch.setattr(import_module("espalier.cli.sweep"), "_place", lambda *given, place=place: place)
        with pytest.raises(SystemExit) as left:
            main(["sweep", str(grid), "--search", "optuna", "--out", str(out)])
        assert left.value.code == code
        assert ("2 of 2 runs failed; the same command tries them again." in "".join(capfd.readouterr())) == bool(code)
        assert len(set(place.started)) == 2
    found = json.loads((out / "sweep.json").read_text())
    assert [row["state"] for row in found["runs"]] == ["finished", "finished"]
    assert [trial["trial"] for trial in found["search"]["trials"]] == [4, 5]
    assert all(trial["val_acc"] > 0 for trial in found["search"]["trials"])


def test_a_folder_holds_one_search_at_a_time(tmp_path: Path, write_grid: WriteGrid) -> None:
    """The second one would take the trials of the first, which are under way, for abandoned ones."""
    path, out = write_grid(**KEYS, search={"maximize": "val_acc", "ranges": RANGES}), tmp_path / "out"
    grid = read(path)
    first = Search(grid, read_search(grid, 1), [], out)
    outcomes = first.run(Ledger(grid, out), Here(), lambda line: None, lambda running: None)
    next(outcomes)
    with pytest.raises(EspalierError, match="Another process is writing to"):
        search(path, out, 1, Here())
    assert len(list(outcomes)) == 1
    (trial,) = search(path, out, 1, Here())["search"]["trials"]  # it is over, and nobody has touched its trial
    assert trial["trial"] == 0


def test_ranges_are_read(write_grid: WriteGrid) -> None:
    ranges = {
        "optimizer.lr": {"low": "1e-3", "high": 1, "log": True},
        "seed": {"low": 0, "high": 9, "step": 3},
        "pruning.method": ["ocp"],
    }
    spec = read_search(read(write_grid(search={"maximize": "val_acc", "trials": 4, "ranges": ranges})))
    assert spec == SearchSpec("val_acc", True, 4, spec.ranges)
    assert lowest(spec) == {"optimizer.lr": 0.001, "seed": 0, "pruning.method": "ocp"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(maximise=1), "unknown key 'maximise': did you mean 'maximize'?"),
        (lambda s: s.update(maximize="test_acc"), "what is chosen by the test set is not tested by it"),
        (lambda s: s.update(minimize="val_loss"), "needs maximize: val_acc or minimize: val_loss"),
        (lambda s: s.update(ranges={}), "needs 'ranges'"),
        (lambda s: s.update(trials=0), "How many trials?"),
        (lambda s: s.update(ranges={"seed": {"low": 0}}), "needs 'low' and 'high'"),
        (lambda s: s.update(ranges={"seed": {"low": 0, "hihg": 3, "high": 4}}), "did you mean 'high'?"),
        (lambda s: s.update(ranges={"seed": {"low": 3, "high": 3}}), "must have low below high"),
        (lambda s: s.update(ranges={"seed": {"low": 0, "high": 3, "log": True}}), "both above 0"),
        (lambda s: s.update(ranges={"seed": {"low": "a", "high": 3}}), "must be of numbers, not 'a'"),
    ],
)
def test_mistakes(change: Callable[[dict[str, Any]], None], words: str, write_grid: WriteGrid) -> None:
    section: dict[str, Any] = {"maximize": "val_acc", "trials": 2, "ranges": dict(RANGES)}
    change(section)
    with pytest.raises(EspalierError) as said:
        read_search(read(write_grid(search=section)))
    assert words in str(said.value)


def test_a_key_that_the_grid_varies_too_is_refused(write_grid: WriteGrid) -> None:
    section = {"maximize": "val_acc", "trials": 2, "ranges": RANGES}
    with pytest.raises(EspalierError, match=r"varies 'pruning.alpha' in 'grid' and in 'search'"):
        read_search(read(write_grid(grid={"pruning.alpha": [13, 14]}, search=section)))


def test_a_folder_with_a_search_for_something_else_is_refused(tmp_path: Path, write_grid: WriteGrid) -> None:
    up = read(write_grid(search={"maximize": "val_acc", "trials": 1, "ranges": RANGES}))
    Search(up, read_search(up), [], tmp_path / "out")
    down = read(write_grid(search={"minimize": "val_loss", "trials": 1, "ranges": RANGES}))
    with pytest.raises(EspalierError, match="choose another folder"):
        Search(down, read_search(down), [], tmp_path / "out")
