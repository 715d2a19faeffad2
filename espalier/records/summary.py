"""The arithmetic of every table: runs that differ in nothing but the seed become one row with mean and spread."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espalier.records import numbers
from espalier.records.reading import Run
from espalier.records.shrunk import Shrunk

# Settings in which the runs of one row may differ: they change neither what is learned nor from what. The path of the data
# is one of them while as many images lie there.
_START = "model.weights"
_PATH = "data.path"
_INCIDENTAL = ("name", "seed", "trackers", _PATH, "data.workers", "data.download", "data.resident")
_INCIDENTAL_TRAIN = ("threads", "device", "check_every", "keep_best", "checkpoint_every", "latency")


@dataclass(frozen=True)
class Row:
    """Finished runs that differ in nothing but the seed, summed up.

    `acc_std` and `seconds_std` are sample standard deviations over seeds, None for a single run. `variant` names the
    settings, if any, that tell this row from others of the same model, data, method, target and epochs. `budget` is that of
    a method that cuts channels, () for others; `keep_macs` and `keep_params` are what it left, as means.
    """

    model: str
    data: str
    method: str
    sparsity_target: float | None
    epochs: int
    variant: str
    n: int
    acc_mean: float | None
    acc_std: float | None
    sparsity: float | None
    sparsity_all: float | None
    seconds: float | None
    seconds_std: float | None
    runs: tuple[Run, ...] = ()
    budget: tuple[tuple[str, float], ...] = ()
    keep_macs: float | None = None
    keep_params: float | None = None

    @property
    def label(self) -> str:
        """Method, and the settings that tell it from its namesakes."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def dense(self) -> bool:
        """Whether nothing was to be pruned: the reference for all others of its epochs."""
        return not self.sparsity_target and not self.budget

    @property
    def goal(self) -> tuple[float, tuple[tuple[str, float], ...]]:
        """What is equal for the rows that are compared with one another, the epochs apart; sorts."""
        return self.sparsity_target or 0.0, self.budget

    @property
    def aim(self) -> str:
        """The goal in words.

        Example:
            >>> Row("m", "d", "agp", 0.9, 5, "", 1, None, None, None, None, None, None).aim
            '90 % zeros'
        """
        if self.budget:
            return numbers.budget(dict(self.budget))
        return f"{numbers.target(self.sparsity_target)} zeros" if self.sparsity_target else "dense"

    @property
    def shrunk(self) -> tuple[Shrunk, ...]:
        """What its runs have recorded of their cuts."""
        return tuple(run.shrunk for run in self.runs if run.shrunk is not None)


def summarise(runs: Iterable[Run], *, finished: bool = True) -> list[Row]:
    """Sum up runs over seeds: one row per model, data, target, epochs, method and variant, in that order.

    Args:
        runs: as read by `espalier.records.read_runs`.
        finished: take the finished runs, the only ones that tables may show; False takes the others.
    """
    runs = [run for run in runs if run.finished == finished]
    methods = method_order(runs)
    groups: dict[tuple[str, str, float, tuple[tuple[str, float], ...], int, int], list[Run]] = defaultdict(list)
    for run in runs:
        target = run.sparsity_target or 0.0
        groups[run.model, run.data, target, run.budget, run.epochs, methods.index(run.method)].append(run)
    rows = []
    for key in sorted(groups):
        rows += [_row(variant, members) for variant, members in _split_variants(groups[key]).items()]
    return rows


def method_order(runs: Iterable[Run]) -> list[str]:
    """Names of the methods among `runs` in a fixed order: dense, then from the simplest schedule to the smoothest."""
    known = ("dense", "one-shot", "iterative", "agp", "ocp")
    names = {run.method for run in runs}
    return [name for name in known if name in names] + sorted(names - set(known))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None without any.

    Example:
        >>> mean([1.0, None, 2.0])
        1.5
    """
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """Sample standard deviation of the values that are there; None for fewer than two.

    Example:
        >>> spread([1.0, 3.0]), spread([1.0])
        (1.4142135623730951, None)
    """
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _row(variant: str, runs: Sequence[Run]) -> Row:
    first = runs[0]
    return Row(
        model=first.model,
        data=first.data,
        method=first.method,
        sparsity_target=first.sparsity_target,
        epochs=first.epochs,
        variant=variant,
        n=len(runs),
        acc_mean=mean(run.test_acc for run in runs),
        acc_std=spread(run.test_acc for run in runs),
        sparsity=mean(run.sparsity for run in runs),
        sparsity_all=mean(run.sparsity_all for run in runs),
        seconds=mean(run.seconds for run in runs),
        seconds_std=spread(run.seconds for run in runs),
        runs=tuple(runs),
        budget=first.budget,
        keep_macs=mean(run.shrunk.keep_macs for run in runs if run.shrunk is not None),
        keep_params=mean(run.shrunk.keep_params for run in runs if run.shrunk is not None),
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ and that matter to what is learned, apart from the seed; dotted keys, sorted."""
    own = [{key: value for key, value in run.settings.items() if not _incidental(key, run)} for run in runs]
    keys = sorted({key for settings in own for key in settings})
    found = [key for key in keys if len({repr(settings.get(key)) for settings in own}) > 1]
    if _START in found and _goes_with_the_seed(_START, runs):
        found.remove(_START)
    return sorted([*found, _PATH]) if _other_data(runs, found) else found


def _goes_with_the_seed(key: str, runs: Sequence[Run]) -> bool:
    """Whether runs of one seed have one value: start weights that each seed has trained for itself."""
    return len({(run.seed, repr(run.settings.get(key))) for run in runs}) == len({run.seed for run in runs})


def in_words(run: Run, keys: Iterable[str]) -> str:
    """What a run has of these dotted keys, as `key=value` text."""
    return ", ".join(f"{key.rpartition('.')[2]}={run.settings[key]}" for key in keys if key in run.settings)


def natural(text: str) -> list[tuple[float, str]]:
    """A key that sorts numbers in a text by their size.

    Example:
        >>> sorted(["conv10", "conv9"], key=natural)
        ['conv9', 'conv10']
    """
    return [(float(part), "") if number % 2 else (-1.0, part) for number, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", text))]


def _split_variants(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the settings in which they differ, apart from the seed, as `key=value` text; '' where they do not."""
    keys = differing(runs)
    variants: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        variants[in_words(run, keys)].append(run)
    return dict(sorted(variants.items(), key=lambda item: natural(item[0])))


def _other_data(runs: Iterable[Run], keys: Sequence[str]) -> bool:
    """Whether runs with equal values of the keys, which may say how many images to take, have found others at another path."""
    alike: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        alike[tuple(repr(run.settings.get(key)) for key in keys)].append(run)
    return any(
        len({repr(run.settings.get(_PATH)) for run in members}) > 1
        and len({repr(sorted(run.images.items())) for run in members}) > 1
        for members in alike.values()
    )


def _incidental(key: str, run: Run) -> bool:
    if key in ("pruning.masks", "pruning.digest"):  # every seed has its own; where a kind is told, that says which they are
        return bool(run.settings.get("pruning.kind"))
    return key in _INCIDENTAL or any(key.startswith(f"train.{name}") for name in _INCIDENTAL_TRAIN)
