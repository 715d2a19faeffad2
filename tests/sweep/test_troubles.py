"""Sweeps among trouble: folders in use, damaged files, failures of before."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.cli.watching import Watch
from espalier.errors import EspalierError
from espalier.recipes.experiments import sweep_ray
from espalier.recipes.experiments.carrying import Ended, LocalProcesses, PlannedRun
from espalier.recipes.experiments.grid import expand
from espalier.recipes.experiments.lottery import Draw, draw
from espalier.recipes.experiments.lottery_settings import Settings
from espalier.recipes.experiments.sweep import SweepRun, plan_sweep
from espalier.recipes.recipe import parse_recipe
from espalier.recipes.training import runs
from espalier.recipes.training.engine import Interrupted
from tests.sweep.conftest import RECIPE, Here, WriteGrid, carry, read

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"train.epochs": 1}


def planned(write_grid: WriteGrid, out: Path, **keys: Any) -> list[SweepRun]:
    return plan_sweep(expand(read(write_grid(set=SHORT, **keys))), out)


def states(out: Path) -> list[str]:
    return [row["state"] for row in json.loads((out / "sweep.json").read_text())["runs"]]


class SomebodyFaster(Here):
    """The first run is in use by the time that its training asks for the lock, and finished a moment later."""

    def start(self, run: PlannedRun, slot: int) -> None:
        first = not self.started
        super().start(run, slot)
        if first:
            self._over = [Ended(slot, runs.IN_USE, "Another process is writing there.")]


def test_a_run_that_somebody_else_has_locked_first_waits_and_has_not_failed(tmp_path: Path, write_grid: WriteGrid) -> None:
    place = SomebodyFaster()
    grid = write_grid(grid={"seed": [0, 1]}, set=SHORT)
    outcomes = carry(grid, tmp_path / "out", place)
    assert [(outcome.run.recipe.seed, outcome.state) for outcome in outcomes] == [(1, "done"), (0, "kept")]
    assert not list(tmp_path.glob("out/*/failed.json"))
    assert states(tmp_path / "out") == ["finished", "finished"]


def test_the_last_ledger_knows_what_another_sweep_has_finished_since(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid, out = write_grid(grid={"seed": [0, 1]}, set=SHORT), tmp_path / "out"

    class OtherSweep(Here):
        def start(self, run: PlannedRun, slot: int) -> None:
            super().start(run, slot)
            carry(grid, out)

    carry(grid, out, OtherSweep(), limit=1)
    assert states(out) == ["finished", "finished"]


def test_the_same_sweep_twice_at_once_ends_well_for_both(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid, out = write_grid(grid={"seed": [0, 1]}, set=SHORT), tmp_path / "out"
    command = [sys.executable, "-m", "espalier", "sweep", str(grid), "--out", str(out)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    said = [process.communicate(timeout=240)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert not list(out.glob("*/failed.json"))
    assert states(out) == ["finished", "finished"]


def test_whoever_looks_at_a_lock_does_not_make_a_training_fail(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def look() -> None:
        with runs.locked(tmp_path):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=look)
    other.start()
    assert entered.wait(10)
    assert runs.is_locked(tmp_path)
    threading.Timer(0.2, leave.set).start()
    with runs.locked(tmp_path):  # tries again for a while
        pass
    other.join()
    with runs.locked(tmp_path):
        began = time.monotonic()
        with pytest.raises(runs.FolderInUse, match="wait for it"), runs.locked(tmp_path, patience=0.1):
            pass
        assert time.monotonic() - began < 1


def test_a_training_in_a_folder_in_use_has_an_exit_code_of_its_own(tmp_path: Path, write_grid: WriteGrid) -> None:
    from espalier.cli import main

    write_grid()
    folder = tmp_path / "run"
    folder.mkdir()
    with runs.locked(folder), pytest.raises(SystemExit) as left:
        main(["train", str(tmp_path / "tiny.yaml"), "--folder", str(folder), "--quiet"])
    assert left.value.code == runs.IN_USE


@pytest.mark.parametrize(("name", "content"), [("recipe.yaml", ""), ("result.json", '{"test_')])
def test_a_damaged_file_in_one_folder_fails_that_run_only(
    name: str, content: str, tmp_path: Path, write_grid: WriteGrid
) -> None:
    out = tmp_path / "out"
    first, _ = planned(write_grid, out, grid={"seed": [0, 1]})
    first.folder.mkdir(parents=True)
    (first.folder / name).write_text(content)
    grid = tmp_path / "trial.yaml"
    outcomes = carry(grid, out)
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    assert name in (outcomes[0].error or "")
    assert states(out) == ["failed", "finished"]
    assert name in json.loads((out / "sweep.json").read_text())["runs"][0]["error"]
    (first.folder / name).unlink()
    assert {outcome.state for outcome in carry(grid, out)} == {"kept", "done"}
    assert states(out) == ["finished", "finished"]


def test_a_failure_of_before_is_forgotten_when_the_run_starts_anew(tmp_path: Path, write_grid: WriteGrid) -> None:
    (run,) = planned(write_grid, tmp_path / "out")
    run.folder.mkdir(parents=True)
    failure = run.folder / runs.FAILURE
    failure.write_text('{"error": "the disk is full"}')
    seen: list[bool] = []

    class Looking(Here):
        def start(self, run: PlannedRun, slot: int) -> None:
            seen.append(failure.exists())
            super().start(run, slot)

    carry(tmp_path / "trial.yaml", tmp_path / "out", Looking())
    assert seen == [False]
    assert states(tmp_path / "out") == ["finished"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (runs.FolderInUse("somebody is there"), (runs.IN_USE, "somebody is there")),
        (EspalierError("the loss is not finite"), (1, "the loss is not finite")),
        (Interrupted("stopped at step 3"), None),
    ],
)
def test_what_a_task_on_a_cluster_answers(
    error: EspalierError, answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / runs.RECIPE).touch()

    def fail(folder: Path, threads: int) -> None:
        raise error

    monkeypatch.setattr(sweep_ray, "_train_here", fail)
    monkeypatch.setattr(sweep_ray, "_node", lambda: "here")
    if answer is None:  # Ray is to start it again, which it does for this exception
        with pytest.raises(sweep_ray.WorkerStopped, match="step 3"):
            sweep_ray._train(str(tmp_path), str(ROOT), 1)
    else:
        assert sweep_ray._train(str(tmp_path), str(ROOT), 1) == answer
    assert str(error) in (tmp_path / runs.LOG).read_text()


def test_cores_of_their_own_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    with pytest.raises(EspalierError, match="4 runs at a time cannot have 2 cores each of their own, there are 2 here: lower"):
        LocalProcesses(4, cores=2)
    assert LocalProcesses(4).note == "4 runs at a time share 2 cores"
    assert LocalProcesses(2).note is None
    assert LocalProcesses(1, cores=2).note is None


def test_a_seed_whose_round_cannot_be_prepared_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RECIPE | {"train": RECIPE["train"] | {"epochs": 1}, "pruning": {"method": "dense"}}
    settings = Settings(parse_recipe(plain), rounds=1, controls=())
    find = Draw._find

    def damaged(one: Draw, number: int) -> None:
        if one.seed == 0:
            raise EspalierError("result.json is damaged")
        find(one, number)

    monkeypatch.setattr(Draw, "_find", damaged)
    place = Here()
    outcomes = list(draw(settings, (0, 1), tmp_path, place))
    assert [outcome.error for outcome in outcomes if outcome.state == "failed"] == ["result.json is damaged"]
    assert place.started == ["round-00", "round-00", "round-01"]
    with pytest.raises(EspalierError, match="is damaged"):  # nothing is left to do
        list(draw(settings, (0,), tmp_path, Here()))


def test_damaged_metrics_of_a_run_under_way_do_not_end_the_sweep(tmp_path: Path, write_grid: WriteGrid) -> None:
    (run,) = planned(write_grid, tmp_path / "out")
    run.folder.mkdir(parents=True)
    (run.folder / runs.METRICS).write_text("{\n")
    watch = Watch(1, 1)
    watch._live = True
    watch.tick([run.planned])
