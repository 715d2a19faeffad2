"""Compare methods at equal budget: plan many runs, carry them out side by side, skip what is finished."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier.errors import EspalierError
from espalier.recipes import runs
from espalier.recipes.pruning import build_method, for_method
from espalier.recipes.recipe import resolved
from espalier.recipes.spec import Recipe

DENSE = "dense"
DEFAULT_METHODS = (DENSE, "one-shot", "iterative", "agp", "ocp")


@dataclass(frozen=True)
class PlannedRun:
    """One training of a comparison and the folder that it belongs to."""

    recipe: Recipe
    folder: Path

    @property
    def label(self) -> str:
        """Words for progress lines."""
        pruning = self.recipe.pruning
        share = "" if pruning.sparsity is None else f" {pruning.sparsity:g}"
        return f"{pruning.method}{share}, seed {self.recipe.seed}, {self.recipe.train.epochs} epochs"


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: `state` is "kept" (was finished before), "done" or "failed"."""

    run: PlannedRun
    state: str
    result: dict[str, Any] | None = None
    error: str | None = None


def plan(
    recipe: Recipe,
    methods: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    budgets: Sequence[int],
    out: Path,
) -> list[PlannedRun]:
    """All runs of a comparison, seed by seed, so that a partial table is balanced.

    The dense reference does not depend on the sparsity and is trained once per seed and budget.

    Raises:
        EspalierError: a method, sparsity, seed or budget is refused; before any run starts.
    """
    if min((*seeds, 0)) < 0 or min((*budgets, 1)) < 1:
        raise EspalierError("A seed is a whole number of at least 0, and a budget one of at least 1 epoch.")
    planned: dict[Path, PlannedRun] = {}
    for seed in seeds:
        for epochs in budgets:
            for sparsity in sparsities:
                for method in methods:
                    pruning = for_method(recipe.pruning, method, sparsity)
                    build_method(pruning)
                    train = recipe.train.model_copy(update={"epochs": epochs})
                    one = recipe.model_copy(update={"pruning": pruning, "train": train, "seed": seed})
                    folder = out / runs.run_name(one)
                    planned.setdefault(folder, PlannedRun(one, folder))
    if not planned:
        raise EspalierError("There is nothing to compare: give at least one method, sparsity, seed and budget.")
    return list(planned.values())


def carry_out(
    planned: Sequence[PlannedRun],
    jobs: int,
    tell: Callable[[str], None],
    tick: Callable[[Sequence[PlannedRun]], None],
) -> Iterator[Outcome]:
    """Run what is not finished, `jobs` processes at a time; a failure is recorded and the rest goes on.

    With several jobs each process has one thread and one core of its own.

    Args:
        planned: what to run.
        jobs: processes at a time.
        tell: takes a line whenever a run starts.
        tick: takes, once a second or so, the runs that are under way.
    """
    waiting: list[PlannedRun] = []
    for run in planned:
        done = runs.read_result(run.folder)
        if done is not None:
            yield Outcome(run, "kept", done)
        else:
            waiting.append(run)
    cores = _cores()
    free = list(range(jobs))
    shown = 0.0
    running: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot, run = free.pop(0), waiting.pop(0)
                tell(f"start {run.label}")
                core = cores[slot % len(cores)] if jobs > 1 and cores else None
                running[slot] = (run, _start(run, core, one_thread=jobs > 1))
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    free.append(slot)
                    yield _outcome(run, process.returncode)
            if time.monotonic() > shown + 1:
                tick([run for run, _ in running.values()])
                shown = time.monotonic()
            time.sleep(0.1)
    finally:  # Ctrl-C, or the caller stopped listening: let the runs save their checkpoints
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _start(run: PlannedRun, core: int | None, *, one_thread: bool) -> subprocess.Popen[bytes]:
    """Start `espalier train` on the run's resolved recipe, its output going to `train.log` in the run folder."""
    runs.open_run(run.folder, run.recipe)
    environment = dict(os.environ)
    extra = [] if core is None else ["--core", str(core)]
    if one_thread:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        extra.append("train.threads=1")
    recipe = run.folder / runs.RECIPE
    # The caller's names and trackers win over those of an older, otherwise equal recipe.
    runs.write_atomically(recipe, yaml.safe_dump(resolved(run.recipe), sort_keys=False).encode())
    command = [sys.executable, "-m", "espalier.cli", "train", str(recipe), "--folder", str(run.folder), *extra]
    with (run.folder / "train.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)


def _outcome(run: PlannedRun, code: int) -> Outcome:
    result = runs.read_result(run.folder)
    if code == 0 and result is not None:
        return Outcome(run, "done", result)
    log = run.folder / "train.log"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    error = lines[-1] if lines else f"the process ended with code {code}"
    if code < 0:
        error = f"the process was ended by signal {-code}"
    runs.write_json(run.folder / runs.FAILURE, {"error": error, "exit_code": code})
    return Outcome(run, "failed", error=error)


def _cores() -> list[int]:
    """Cores that this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
