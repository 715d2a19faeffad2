"""Sweeps: skipped, resumed, recorded, killed at any moment and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import main
from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import LocalProcesses
from espalier.recipes.experiments.grid import expand
from espalier.recipes.experiments.sweep import SweepRun, limited, plan_sweep
from espalier.recipes.training import runs
from tests.sweep.conftest import TWELVE, Here, WriteGrid, carry, read

ROOT = Path(__file__).resolve().parents[2]


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of `sweep.json`, without what differs between two machines or moments."""
    content = json.loads((out / "sweep.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in content["runs"]]


@pytest.fixture
def stopped_by_nobody(tmp_path: Path, write_grid: WriteGrid) -> list[dict[str, Any]]:
    """Rows of the twelve runs, carried out in one go."""
    carry(write_grid(**TWELVE), tmp_path / "whole")
    return rows(tmp_path / "whole")


def test_killed_at_a_random_moment_and_started_again_it_ends_with_the_same_rows(
    tmp_path: Path, write_grid: WriteGrid, stopped_by_nobody: list[dict[str, Any]]
) -> None:
    grid, out = write_grid(**TWELVE), tmp_path / "killed"
    command = [sys.executable, "-m", "espalier", "sweep", str(grid), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(out.glob("*/metrics.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    moment = random.SystemRandom().uniform(0, 4)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)  # the sweep and its runs, without a warning
    process.wait(timeout=60)
    states = [row["state"] for row in rows(out)]
    assert "waiting" in states, f"killed {moment:.2f} s after the first epoch"
    finished = {folder.parent.name for folder in out.glob("*/result.json")}
    again = Here()
    assert {outcome.state for outcome in carry(grid, out, again)} <= {"kept", "done"}
    assert len(again.started) == 12 - len(finished)
    assert not finished & set(again.started)
    assert rows(out) == stopped_by_nobody
    assert len(stopped_by_nobody) == 12


def test_a_row_says_what_was_varied_and_what_came_out(stopped_by_nobody: list[dict[str, Any]]) -> None:
    row = stopped_by_nobody[1]
    assert row["settings"] == {"seed": 0, "pruning.method": "ocp", "pruning.sparsity": 0.5}
    assert row["state"] == "finished"
    assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0 < row["test_acc"] <= 1
    assert row["recipe_hash"][:8] == row["run"][-8:]


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(grid={"optimizer.lr": [1.0e38, 0.05]}, set={"lr_schedule": "constant", "train.epochs": 1})
    outcomes = carry(grid, tmp_path / "out")
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    failed, done = rows(tmp_path / "out")
    assert "not finite" in failed["error"]
    assert (failed["state"], done["state"]) == ("failed", "finished")
    again = Here()
    carry(grid, tmp_path / "out", again)
    assert again.started == [failed["run"]]  # tried again; the finished one is not


def test_limit_starts_so_many_and_leaves_the_rest_waiting(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(grid={"seed": [0, 1, 2]}, set={"train.epochs": 1})
    carry(grid, tmp_path / "out", limit=2)
    assert [row["state"] for row in rows(tmp_path / "out")] == ["finished", "finished", "waiting"]
    sweep = plan_sweep(expand(read(grid)), tmp_path / "out")
    assert limited(sweep, 1) == sweep  # finished ones do not count


def test_a_run_that_another_process_works_on_is_waited_for(tmp_path: Path, write_grid: WriteGrid) -> None:
    grid, out = write_grid(grid={"seed": [0, 1]}, set={"train.epochs": 1}), tmp_path / "out"
    first, second = plan_sweep(expand(read(grid)), out)
    first.folder.mkdir(parents=True)
    lock = first.folder / ".lock"
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(4)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    here = Here()
    outcomes = carry(grid, out, here)
    assert here.started == [second.folder.name, first.folder.name]
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    other.wait(timeout=60)


def test_states(tmp_path: Path, write_grid: WriteGrid) -> None:
    (run,) = plan_sweep(expand(read(write_grid())), tmp_path / "out")
    assert run.state == "waiting"
    run.folder.mkdir(parents=True)
    (run.folder / runs.CHECKPOINT).touch()
    assert run.state == "half-finished"
    (run.folder / runs.FAILURE).write_text('{"error": "the disk is full"}')
    assert (run.state, run.row()["error"]) == ("failed", "the disk is full")


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path, write_grid: WriteGrid) -> None:
    carry(write_grid(grid={"seed": [0]}), tmp_path / "out", limit=0)
    with pytest.raises(EspalierError, match="holds the sweep 'trial': choose another folder"):
        carry(write_grid("other.yaml"), tmp_path / "out")


def run_of(out: Path, write_grid: WriteGrid) -> SweepRun:
    (run,) = plan_sweep(expand(read(write_grid(set={"train.epochs": 1}))), out)
    return run


def test_processes_have_cores_threads_and_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_grid: WriteGrid
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            started.append((command, options["env"]))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5}, raising=False)
    run = run_of(tmp_path, write_grid).planned
    run.folder.mkdir(parents=True)
    place = LocalProcesses(3, cores=2, gpus=(0, 1))
    for slot in range(3):
        place.start(run, slot)
    assert [command[-2:] for command, _ in started] == [[c, "train.threads=2"] for c in ("0,1", "2,3", "4,5")]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in started] == ["0", "1", "0"]
    assert {environment["OMP_NUM_THREADS"] for _, environment in started} == {"2"}
    assert sorted(ended.slot for ended in place.ended()) == [0, 1, 2]
    with pytest.raises(EspalierError, match="cannot have 9 cores of its own, there are 6"):
        LocalProcesses(1, cores=9)


def command_line(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["sweep", *arguments])
    said = "".join(capfd.readouterr())
    assert left.value.code == code, said
    return said


def test_the_command_lists_then_runs_then_keeps(
    tmp_path: Path, write_grid: WriteGrid, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = str(write_grid(claim="Seeds differ.", grid={"seed": [0, 1]}, set={"train.epochs": 1}))
    out = tmp_path / "out"
    said = command_line(capfd, grid, "--out", str(out), "--dry-run")
    assert said.startswith("Seeds differ.\nwaiting ")
    assert "2 runs: 2 waiting" in said
    assert not out.exists()
    said = command_line(capfd, grid, "--out", str(out), "--limit", "1")
    assert "2 runs: 1 finished, 1 waiting; written to" in said
    assert "1 finished, 1 waiting" in command_line(capfd, grid, "--out", str(out), "--dry-run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--on", "cloud"), "--on local or --on ray, not 'cloud'"),
        (("--address", "auto"), "--address is for --on ray"),
        (("--retries", "2"), "--retries is for --on ray"),
        (("--gpus-per-run", "0.5"), "--gpus-per-run is for --on ray"),
        (("--on", "ray", "--gpus", "0"), "give --gpus-per-run, not --gpus"),
        (("--gpus", "a"), "--gpus takes numbers of GPUs"),
        (("--trials", "3"), "A search is asked for by --search optuna"),
        (("--search", "random"), "A search is asked for by --search optuna"),
        (("--search", "optuna"), "has no section 'search'"),
        (("--search", "optuna", "--limit", "3"), "Give --trials to a search"),
        (("train.epoch=3",), "did you mean 'epochs'?"),
    ],
)
def test_bad_options_end_in_one_sentence(
    options: tuple[str, ...], words: str, tmp_path: Path, write_grid: WriteGrid, capfd: pytest.CaptureFixture[str]
) -> None:
    said = command_line(capfd, str(write_grid()), *options, "--out", str(tmp_path / "out"), code=2)
    assert words in said
    assert said.count("\n") == 1
