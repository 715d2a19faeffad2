"""Search over ranges with Optuna: each trial is the whole grid with the trial's values, judged by the mean over its runs.

    search:
      maximize: val_acc                       # or minimize: val_loss; the last epoch's, on held-out training images
      trials: 30
      ranges:
        pruning.alpha: {low: 5, high: 30}     # whole numbers stay whole; step: 5 and log: true are understood
        optimizer.lr: {low: 0.01, high: 1.0, log: true}
        pruning.method: [ocp, agp]            # or a choice

The study lies in `search.journal` beside the runs. A stopped search continues: trials that were under way are asked for again
with the values that they had, which name the same run folders; so are trials that have failed. A folder holds one search at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.names import nearest
from espalier.recipes.experiments.carrying import Outcome, Place, PlannedRun
from espalier.recipes.experiments.grid import Grid, expand
from espalier.recipes.experiments.sweep import Ledger, SweepRun, plan_sweep, run_sweep
from espalier.recipes.training import runs as folders
from espalier.records.summary import mean

JOURNAL = "search.journal"
GOALS = ("val_acc", "val_loss")
_KEYS = ("maximize", "minimize", "trials", "ranges")
_RANGE_KEYS = ("low", "high", "log", "step")
_CONTINUES = "continues"


@dataclass(frozen=True)
class SearchSpec:
    """What is looked for, and where: dotted recipe keys -> a range (low, high, log, step) or a list of choices."""

    goal: str
    maximize: bool
    trials: int
    ranges: Mapping[str, Any]

    @property
    def direction(self) -> str:
        """As Optuna calls it."""
        return "maximize" if self.maximize else "minimize"


def read_search(grid: Grid, trials: int | None = None) -> SearchSpec:
    """Read the `search` section of a grid file; `trials` goes before the section's.

    Raises:
        EspalierError: there is none, or something in it is not understood.
    """
    raw, where = grid.search, grid.path.name
    if raw is None:
        raise EspalierError(f"{where} has no section 'search': give it the keys 'maximize' and 'ranges'.")
    for key in raw:
        if key not in _KEYS:
            raise EspalierError(f"The section 'search' of {where} has an unknown key {key!r}: {nearest(str(key), _KEYS)}")
    goals = [key for key in ("maximize", "minimize") if key in raw]
    if len(goals) != 1 or raw[goals[0]] not in GOALS:
        raise EspalierError(
            f"The section 'search' of {where} needs maximize: val_acc or minimize: val_loss "
            f"(what is chosen by the test set is not tested by it)."
        )
    ranges = raw.get("ranges")
    if not isinstance(ranges, dict) or not ranges:
        raise EspalierError(f"The section 'search' of {where} needs 'ranges', such as pruning.alpha: {{low: 5, high: 30}}.")
    for key in ranges:
        if any(key in block.grid for block in (grid.common, *grid.blocks)):
            raise EspalierError(f"{where} varies {key!r} in 'grid' and in 'search': leave it out of one of them.")
    count = trials if trials is not None else raw.get("trials")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise EspalierError(f"How many trials? Give --trials 20, or 'trials' in the section 'search' of {where}.")
    checked = {str(key): _range(str(key), given, where) for key, given in ranges.items()}
    return SearchSpec(raw[goals[0]], goals[0] == "maximize", count, checked)


def lowest(spec: SearchSpec) -> dict[str, Any]:
    """One point of the ranges, to check the grid with before the search starts."""
    return {key: one[0] if isinstance(one, list) else one["low"] for key, one in spec.ranges.items()}


class Search:
    """A search that can be stopped and continued.

    Args:
        grid: the file.
        spec: its search section.
        overrides: keys and values for every run.
        out: the folder of runs, which the study is kept in.

    Raises:
        EspalierError: Optuna is not installed, or the folder holds a study with another goal.
    """

    def __init__(self, grid: Grid, spec: SearchSpec, overrides: Sequence[tuple[str, Any]], out: Path) -> None:
        try:
            import optuna
        except ImportError:
            raise EspalierError("`--search optuna` needs one more package: pip install 'espalier[optuna]'.") from None
        self._optuna, self._grid, self._spec, self._overrides, self._out = optuna, grid, spec, overrides, out
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        out.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / JOURNAL)))
        self.study = optuna.create_study(study_name=grid.name, storage=storage, load_if_exists=True, direction=spec.direction)
        if self.study.direction.name.lower() != spec.direction:
            raise EspalierError(f"{str(out / JOURNAL)!r} holds a search that is to {self.study.direction.name.lower()}: "
                                f"choose another folder with --out.")  # fmt: skip

    def run(
        self,
        ledger: Ledger,
        place: Place,
        tell: Callable[[str], None],
        tick: Callable[[Sequence[PlannedRun]], None],
    ) -> Iterator[Outcome]:
        """Carry out trials until there are as many as wanted, several at a time where the place has room.

        Raises:
            EspalierError: another search is going on in the folder.
        """
        with folders.locked(self._out):  # or trials of another search, which are under way, would pass for abandoned ones
            self._ask_again()
            self.study.sampler = self._optuna.samplers.TPESampler(seed=len(self.study.trials))
            each = len(self._plan(lowest(self._spec)))
            ledger.search = self.summary()
            ledger.add([run for trial in self.done() for run in self._plan(trial.params)])
            together = max(1, place.slots // each)
            while (left := self._spec.trials - len(self.done())) > 0:
                trials = [self.study.ask() for _ in range(min(left, together))]
                planned = [self._plan(self._suggest(trial)) for trial in trials]
                results: dict[Path, dict[str, Any] | None] = {}
                runs = list({run.folder: run for one in planned for run in one}.values())
                for outcome in run_sweep(runs, ledger, place, tell, tick):
                    results[outcome.run.folder] = outcome.result
                    yield outcome
                for trial, members in zip(trials, planned, strict=True):
                    self._judge(trial, [results[run.folder] for run in members])
                ledger.search = self.summary()
                ledger.write()

    def done(self) -> list[Any]:
        """The trials that were carried out, whether they went well or not."""
        again = {trial.user_attrs[_CONTINUES] for trial in self.study.trials if _CONTINUES in trial.user_attrs}
        return [trial for trial in self.study.trials if trial.state.is_finished() and trial.number not in again]

    def summary(self) -> dict[str, Any]:
        """All trials and the best one, for `sweep.json`."""
        trials = [{"trial": trial.number, "settings": trial.params, self._spec.goal: trial.value} for trial in self.done()]
        known = [one for one in trials if one[self._spec.goal] is not None]
        best = (max if self._spec.maximize else min)(known, key=lambda one: one[self._spec.goal], default=None)
        return {self._spec.direction: self._spec.goal, "best": best, "trials": trials}

    def _plan(self, values: Mapping[str, Any]) -> list[SweepRun]:
        return plan_sweep(expand(self._grid, self._overrides, values), self._out)

    def _suggest(self, trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, one in self._spec.ranges.items():
            if isinstance(one, list):
                values[key] = trial.suggest_categorical(key, one)
            elif all(isinstance(one[end], int) for end in ("low", "high")):
                values[key] = trial.suggest_int(key, one["low"], one["high"], step=one.get("step") or 1, log=one["log"])
            else:
                values[key] = trial.suggest_float(key, one["low"], one["high"], step=one.get("step"), log=one["log"])
        return values

    def _judge(self, trial: Any, results: Sequence[Mapping[str, Any] | None]) -> None:
        values = [None if result is None else result.get(self._spec.goal) for result in results]
        if any(value is None for value in values):
            self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, mean(values))

    def _ask_again(self) -> None:
        """Trials that an earlier search has left under way, or that failed, become the next ones, with the same values."""
        states = self._optuna.trial.TrialState
        for trial in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)
        for trial in self.done():
            if trial.state == states.FAIL:
                self.study.enqueue_trial(trial.params, user_attrs={_CONTINUES: trial.number})


def _range(key: str, given: object, where: str) -> Any:
    if isinstance(given, list) and given:
        return given
    if not isinstance(given, dict) or not {"low", "high"} <= set(given):
        raise EspalierError(f"The range of {key!r} in {where} needs 'low' and 'high', or is a list of choices.")
    for name in given:
        if name not in _RANGE_KEYS:
            raise EspalierError(
                f"The range of {key!r} in {where} has an unknown key {name!r}: {nearest(str(name), _RANGE_KEYS)}"
            )
    one = {name: _number(key, given[name], where) for name in ("low", "high", "step") if given.get(name) is not None}
    log = given.get("log", False)
    if not isinstance(log, bool) or one["low"] >= one["high"] or (log and (one["low"] <= 0 or "step" in one)):
        raise EspalierError(
            f"The range of {key!r} in {where} must have low below high; with log: true both above 0, and no step."
        )
    return {**one, "log": log}


def _number(key: str, value: object, where: str) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        return float(str(value))  # YAML takes 1e-3 for a text
    except ValueError:
        raise EspalierError(f"The range of {key!r} in {where} must be of numbers, not {value!r}.") from None
