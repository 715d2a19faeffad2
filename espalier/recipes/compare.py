"""Compare methods at equal budget: plan many runs, carry them out side by side, skip what is finished."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier.errors import EspalierError
from espalier.recipes import runs
from espalier.recipes.pruning import as_prune_at, build_method, cuts, for_method, takes_sparsity
from espalier.recipes.recipe import resolved
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.records import numbers

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
class Entry:
    """A method to compare, with arguments that hold for it alone, as `key=value` texts.

    Example:
        >>> Entry.read("ocsp:progressive=4:criterion=magnitude")
        Entry(method='ocsp', own=('progressive=4', 'criterion=magnitude'))
    """

    method: str
    own: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Entry:
        """Read `METHOD:KEY=VALUE:KEY=VALUE`.

        Raises:
            EspalierError: what follows the method is no `key=value`.
        """
        method, _, rest = text.partition(":")
        own = tuple(part.strip() for part in re.split(r":(?=\s*[A-Za-z_.]+=)", rest)) if rest else ()
        for part in own:
            key, sign, _ = part.partition("=")
            if not sign or not key or key == "method":
                raise EspalierError(f"{text!r} should have the form METHOD:KEY=VALUE, such as ocsp:progressive=4.")
        return cls(method.strip(), own)


def read_entries(text: str) -> list[Entry]:
    """Read names of methods, with their arguments, separated by commas (those in brackets do not count).

    Example:
        >>> [entry.method for entry in read_entries("dense,ocsp:include=[layer1.*,layer2.*],epi")]
        ['dense', 'ocsp', 'epi']
    """
    return [Entry.read(part.strip()) for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]


def default_methods(recipe: Recipe, *, cutting: bool) -> list[str]:
    """What is compared unless told: the schedules of masks; where channels are cut, dense and the recipe's or two methods."""
    if cuts(recipe.pruning.method):
        return [DENSE, recipe.pruning.method]
    return [DENSE, "ocsp", "epi"] if cutting else list(DEFAULT_METHODS)


def refuse_unused(methods: Sequence[str | Entry], *, sparsity: bool, keep_macs: bool) -> None:
    """Refuse a target that was given on the command line and that none of the methods takes.

    Raises:
        EspalierError: names the methods and the option.
    """
    names = [one if isinstance(one, str) else one.method for one in methods]
    those = ", ".join(names)
    if sparsity and names and not any(map(takes_sparsity, names)):
        raise EspalierError(f"None of {those} takes --sparsity: leave it out, it is for methods that zero weights.")
    if keep_macs and names and not any(map(cuts, names)):
        raise EspalierError(f"None of {those} takes --keep-macs: leave it out, it is for methods that cut channels.")


def plan(
    recipe: Recipe,
    methods: Sequence[str | Entry],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    budgets: Sequence[int],
    out: Path,
    *,
    keep_macs: Sequence[float] = (),
    prune_at: Sequence[float] = (),
) -> list[PlannedRun]:
    """All runs of a comparison, seed by seed, so that a partial table is balanced.

    The dense reference depends on no target and is trained once per seed and number of epochs.

    Args:
        recipe: what all runs have in common.
        methods: names, or entries with arguments.
        sparsities: for methods that zero weights.
        seeds: of all runs.
        budgets: in epochs.
        out: where run folders go.
        keep_macs: for methods that cut; none: the budget in the recipe or in the entry.
        prune_at: epochs for a grid search: one cut each, as the recipe's method (or the first of `methods` that cuts) makes it.

    Raises:
        EspalierError: a method, target, seed or budget is refused; before any run starts.
    """
    if min((*seeds, 0)) < 0 or min((*budgets, 1)) < 1:
        raise EspalierError("A seed is a whole number of at least 0, and a budget one of at least 1 epoch.")
    entries = [Entry(one) if isinstance(one, str) else one for one in methods]
    variants = list(_prunings(recipe.pruning, entries, sparsities, keep_macs, prune_at))
    planned: dict[Path, PlannedRun] = {}
    for seed in seeds:
        for epochs in budgets:
            for pruning in variants:
                build_method(pruning, epochs=epochs)
                train = recipe.train.model_copy(update={"epochs": epochs})
                one = recipe.model_copy(update={"pruning": pruning, "train": train, "seed": seed})
                folder = out / runs.run_name(one)
                planned.setdefault(folder, PlannedRun(one, folder))
    if not planned:
        raise EspalierError("There is nothing to compare: give at least one method, sparsity, seed and budget.")
    return list(planned.values())


def _prunings(
    base: PruningSpec,
    entries: Sequence[Entry],
    sparsities: Sequence[float],
    keep_macs: Sequence[float],
    prune_at: Sequence[float],
) -> Iterable[PruningSpec]:
    """The pruning sections of one seed: without a target, by sparsity, by MACs."""
    for entry in entries:
        if not takes_sparsity(entry.method) and not cuts(entry.method):
            yield for_method(base, entry.method, own=entry.own)
    for sparsity in sparsities:
        for entry in entries:
            if takes_sparsity(entry.method):
                yield for_method(base, entry.method, sparsity, own=entry.own)
    cutting = [entry for entry in entries if cuts(entry.method)]
    for share in keep_macs or (None,):
        made = [for_method(base, entry.method, keep_macs=share, own=entry.own) for entry in cutting]
        for spec in made:
            if not spec.budget:
                raise EspalierError(f"The method {spec.method!r} needs a budget: give --keep-macs 0.5, or one in the recipe.")
        yield from made
        if prune_at:
            own = for_method(base, base.method, keep_macs=share) if cuts(base.method) else None
            model = own or next(iter(made), None) or for_method(base, "prune-at", keep_macs=share)
            yield from (as_prune_at(model, epoch) for epoch in prune_at)


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
