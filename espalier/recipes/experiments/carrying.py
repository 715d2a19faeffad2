"""Carry many runs out: side by side, finished ones skipped, half-finished ones continued, failures recorded.

*Where* they run is a `Place`: processes on this machine here, a Ray cluster in `espalier.recipes.experiments.sweep_ray`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier.errors import EspalierError
from espalier.recipes.recipe import resolved
from espalier.recipes.spec import Recipe
from espalier.recipes.training import runs
from espalier.records import numbers

_LOOK_EVERY = 0.1  # seconds between looks at the runs under way
_BUSY_EVERY = 2.0  # and at those that another process works on


@dataclass(frozen=True)
class PlannedRun:
    """One training among many, and the folder that it belongs to."""

    recipe: Recipe
    folder: Path
    words: str = ""

    @property
    def label(self) -> str:
        """Words for progress lines."""
        if self.words:
            return self.words
        pruning = self.recipe.pruning
        share = "" if pruning.sparsity is None else f" {pruning.sparsity:g}"
        if pruning.budget:
            share = f" at {numbers.budget(pruning.budget)}"
        if "at_epoch" in pruning.args:
            share = f" {pruning.args['at_epoch']}{share}"
        return f"{pruning.method}{share}, seed {self.recipe.seed}, {self.recipe.train.epochs} epochs"


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: `state` is "kept" (was finished before), "done" or "failed"."""

    run: PlannedRun
    state: str
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Ended:
    """A run that is over, well or not.

    `code` is 0 where it went well, `runs.IN_USE` where another process was faster; `error` says what did not go well, None:
    see its log.
    """

    slot: int
    code: int = 0
    error: str | None = None


class Place(ABC):
    """Where runs are carried out; it has `slots` places for runs, numbered from 0."""

    slots: int

    @abstractmethod
    def start(self, run: PlannedRun, slot: int) -> None:
        """Start a run, whose folder holds its recipe already, in a free slot."""

    @abstractmethod
    def ended(self) -> list[Ended]:
        """The runs that are over since the last call; does not wait."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the runs under way to save a checkpoint and end, and wait until they have."""


class LocalProcesses(Place):
    """Processes on this machine, each `espalier train` on the folder's recipe, its output in the folder's `train.log`.

    Args:
        jobs: processes at a time.
        cores: of each process, which has as many threads and is kept to cores of its own; None: one thread with several
            jobs, wherever the system finds room (other commands may be at work beside this one), no limit with a single job.
        gpus: numbers of the GPUs that the jobs share in turn; (): what the recipe's `train.device` says.

    Raises:
        EspalierError: more cores than there are.
    """

    def __init__(self, jobs: int, cores: int | None = None, gpus: Sequence[int] = ()) -> None:
        self.slots = jobs
        self._cores = _cores_of_slots(jobs, cores)
        self._threads = 1 if cores is None and jobs > 1 else cores
        self._gpus = tuple(gpus)
        self._running: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}

    @property
    def note(self) -> str | None:
        """That runs share cores, where they do."""
        here = len(_known_cores())
        return f"{self.slots} runs at a time share {here} core{'s' * (here != 1)}" if self.slots > here > 0 else None

    def start(self, run: PlannedRun, slot: int) -> None:
        environment, extra = dict(os.environ), []
        cores = self._cores[slot]
        if self._threads is not None:
            threads = str(self._threads)
            environment |= {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
            extra = [*(["--cores", ",".join(map(str, cores))] if cores else []), f"train.threads={threads}"]
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(self._gpus[slot % len(self._gpus)])
        command = [sys.executable, "-m", "espalier", "train", str(run.folder / runs.RECIPE), "--folder", str(run.folder)]
        with (run.folder / runs.LOG).open("ab") as log:
            process = subprocess.Popen(
                [*command, *extra], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
        self._running[slot] = run, process

    def ended(self) -> list[Ended]:
        over = {slot: process for slot, (_, process) in self._running.items() if process.poll() is not None}
        for slot in over:
            del self._running[slot]
        return [Ended(slot, process.returncode, _signal(process.returncode)) for slot, process in over.items()]

    def stop(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.wait()
        self._running.clear()


def carry_out(
    planned: Sequence[PlannedRun],
    place: Place,
    tell: Callable[[str], None],
    tick: Callable[[Sequence[PlannedRun]], None],
) -> Iterator[Outcome]:
    """Run what is not finished, as many at a time as the place has slots; a failure is recorded and the rest goes on.

    A run that another process is working on (of a second sweep over the same folders, or of one that was killed and has left
    it behind) is waited for, not started twice. Where that shows only after the start, the run waits again.

    Args:
        planned: what to run.
        place: where.
        tell: takes a line whenever a run starts.
        tick: takes, once a second or so, the runs that are under way.
    """
    waiting: list[PlannedRun] = []
    for run in planned:
        kept = _kept(run)
        if kept is not None:
            yield kept
        else:
            waiting.append(run)
    free = list(range(place.slots))
    running: dict[int, PlannedRun] = {}
    busy = _Busy(tell)
    shown = 0.0
    try:
        while waiting or running:
            for run in list(waiting):
                if not free:
                    break
                if busy.seen(run):
                    continue
                waiting.remove(run)
                over = _kept(run) or _prepare(run)  # somebody else may have finished it meanwhile
                if over is not None:
                    yield over
                    continue
                slot = free.pop(0)
                tell(f"start {run.label}")
                running[slot] = run
                place.start(run, slot)
            for ended in place.ended():
                free.append(ended.slot)
                run = running.pop(ended.slot)
                if ended.code == runs.IN_USE:
                    waiting.append(run)
                    busy.note(run)
                else:
                    yield _outcome(run, ended)
            if time.monotonic() > shown + 1:
                tick(list(running.values()))
                shown = time.monotonic()
            time.sleep(_LOOK_EVERY)
    finally:  # Ctrl-C, or the caller stopped listening: let the runs save their checkpoints
        place.stop()


class _Busy:
    """Which runs another process is working on; looks at each folder's lock every two seconds at most."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._until: dict[Path, float] = {}

    def seen(self, run: PlannedRun) -> bool:
        now, known = time.monotonic(), self._until.get(run.folder)
        if known is not None and now < known:
            return True
        if not runs.is_locked(run.folder):
            return False
        self.note(run)
        return True

    def note(self, run: PlannedRun) -> None:
        """Another process works on this run: leave it alone for a while."""
        if run.folder not in self._until:
            self._tell(f"wait for another process that works on {run.label}")
        self._until[run.folder] = time.monotonic() + _BUSY_EVERY


def _kept(run: PlannedRun) -> Outcome | None:
    """The outcome of a run that is finished, or whose result cannot be read; None: it is to be started."""
    try:
        done = runs.read_result(run.folder)
    except EspalierError as damaged:
        return _failed(run, str(damaged))
    return None if done is None else Outcome(run, "kept", done)


def _prepare(run: PlannedRun) -> Outcome | None:
    """Make the folder with its recipe; the caller's names and trackers win over those of an older, otherwise equal recipe.

    Returns its failure if that cannot be done. What is known of an earlier failure is forgotten: the run starts anew.
    """
    try:
        runs.open_run(run.folder, run.recipe)
        runs.write_atomically(run.folder / runs.RECIPE, yaml.safe_dump(resolved(run.recipe), sort_keys=False).encode())
    except EspalierError as error:
        return _failed(run, str(error))
    (run.folder / runs.FAILURE).unlink(missing_ok=True)
    return None


def _outcome(run: PlannedRun, ended: Ended) -> Outcome:
    if ended.code == 0:
        kept = _kept(run)
        if kept is not None:
            return kept if kept.result is None else Outcome(run, "done", kept.result)
    error = ended.error or _last_words(run.folder / runs.LOG) or f"the process ended with code {ended.code}"
    return _failed(run, error, ended.code)


def _failed(run: PlannedRun, error: str, code: int | None = None) -> Outcome:
    """Record a failure in the run's folder, where there is one that can be written to."""
    with contextlib.suppress(EspalierError):
        runs.write_json(run.folder / runs.FAILURE, {"error": error, "exit_code": code})
    return Outcome(run, "failed", error=error)


def _last_words(log: Path) -> str | None:
    if not log.exists():
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else None


def _signal(code: int) -> str | None:
    return f"the process was ended by signal {-code}" if code < 0 else None


def _known_cores() -> list[int]:
    """The cores that this process may use; [] where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cores_of_slots(jobs: int, each: int | None) -> list[list[int]]:
    """The cores of every slot; [] for any."""
    known = _known_cores()
    if each is None:
        return [[] for _ in range(jobs)]
    if known and each > len(known):
        raise EspalierError(f"A run cannot have {each} cores of its own, there are {len(known)} here: lower --cores.")
    if known and jobs * each > len(known):
        raise EspalierError(
            f"{jobs} runs at a time cannot have {each} cores each of their own, there are {len(known)} here: lower --jobs or "
            f"--cores."
        )
    return [known[slot * each : (slot + 1) * each] for slot in range(jobs)]
