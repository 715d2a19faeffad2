"""Runs arranged by any of their settings: rows and columns, every cell the mean over seeds and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from espalier.errors import EspalierError
from espalier.records.pairing import Paired, compare_paired
from espalier.records.reading import Run
from espalier.records.settings import is_dense, is_goal, is_target, resolve_keys, value_of, words_of
from espalier.records.summary import differing, mean, method_order, natural, spread

VALUES = ("test_acc", "val_acc", "test_loss", "sparsity", "sparsity_all", "keep_macs", "keep_params", "seconds")
Place = tuple[object, ...]


@dataclass(frozen=True)
class Cell:
    """The runs of one place, which differ in nothing but the seed."""

    runs: tuple[Run, ...]
    value: str

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """Seed -> value, of the runs that have it."""
        found = {run.seed: measured(run, self.value) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def n(self) -> int:
        """Runs that have the value."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return mean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for a single run."""
        return spread(self.by_seed.values())


@dataclass(frozen=True)
class Pivot:
    """A table of cells.

    Attributes:
        value: what the cells show.
        rows, cols: the keys that rows and columns are made of.
        row_places, col_places: their values, in order.
        cells: (row, column) -> cell; combinations that were not run are not there.
    """

    value: str
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    row_places: tuple[Place, ...]
    col_places: tuple[Place, ...]
    cells: Mapping[tuple[Place, Place], Cell]

    def settings(self, row: Place, col: Place) -> dict[str, object]:
        """Key -> value of a place."""
        return dict(zip((*self.rows, *self.cols), (*row, *col), strict=True))

    def against(self, baseline: Mapping[str, object]) -> dict[tuple[Place, Place], Paired]:
        """Every cell against the one whose `baseline` keys have the given values and that is equal otherwise.

        Where the baseline is a method, arguments that only one of the two methods has need not be equal, if that leaves a
        single cell.
        """
        found = {}
        for (row, col), cell in self.cells.items():
            place = self._partner(self.settings(row, col), baseline)
            paired = compare_paired(cell.by_seed, self.cells[place].by_seed) if place not in (None, (row, col)) else None
            if paired is not None:
                found[row, col] = paired
        return found

    def unpaired(self, found: Mapping[tuple[Place, Place], Paired], baseline: Mapping[str, object]) -> list[Place]:
        """Rows with a cell that `against` has found no partner for; cells of the baseline need none."""
        alone = {
            row
            for row, col in self.cells
            if (row, col) not in found and any(self.settings(row, col)[key] != value for key, value in baseline.items())
        }
        return [row for row in self.row_places if row in alone]

    def _partner(self, own: Mapping[str, object], baseline: Mapping[str, object]) -> tuple[Place, Place] | None:
        """The place of the cell that one with these settings is compared with; None without any, or with several."""
        wanted = {**own, **baseline}
        exact = tuple(wanted[key] for key in self.rows), tuple(wanted[key] for key in self.cols)
        if exact in self.cells or "method" not in baseline:
            return exact if exact in self.cells else None
        places = {place: self.settings(*place) for place in self.cells}
        rivals = [there for there in places.values() if there["method"] == baseline["method"]]
        loose = {
            key
            for key in wanted
            if key.startswith("pruning.") and not is_goal(key) and key not in baseline
            if own[key] is None or all(there[key] is None for there in rivals)
        }
        fits = [place for place, there in places.items() if all(there[key] == wanted[key] for key in wanted.keys() - loose)]
        return fits[0] if len(fits) == 1 else None

    def read_baseline(self, text: str) -> dict[str, object]:
        """Read `agp`, a value of the first row key that has it, or `key=value,key=value`.

        Raises:
            EspalierError: no row or column is called so.
        """
        pairs = [part.partition("=") for part in text.split(",")]
        known = {key: self._values(key) for key in (*self.rows, *self.cols)}
        found: dict[str, object] = {}
        for left, sign, right in pairs:
            keys = resolve_keys([left], known) if sign else list(known)
            wanted = (right if sign else left).strip()
            hits = [(key, value) for key in keys for value in known[key] if wanted in (str(value), words_of(key, value))]
            if not hits:
                said = ", ".join(str(value) for key in keys for value in known[key] if value is not None)
                raise EspalierError(f"There is no baseline {wanted!r} in this table: known are {said}.")
            found |= dict(hits[:1])
        return found

    def _values(self, key: str) -> list[object]:
        if key in self.rows:
            return list(dict.fromkeys(place[self.rows.index(key)] for place in self.row_places))
        return list(dict.fromkeys(place[self.cols.index(key)] for place in self.col_places))


def measured(run: Run, value: str) -> float | None:
    """A measured value of a run, None where it has none; the dense reference has all of its MACs and parameters."""
    if value in ("keep_macs", "keep_params"):
        return getattr(run.shrunk, value) if run.shrunk is not None else (1.0 if is_dense(run) else None)
    found: float | None = getattr(run, value)
    return found


def pivot(runs: Iterable[Run], rows: Sequence[str] = (), cols: Sequence[str] = (), *, value: str = "test_acc") -> Pivot:
    """Arrange finished runs.

    The dense reference has no target: it stands in every row or column of one.

    Args:
        runs: as read by `espalier.records.read_runs`; unfinished ones are left out.
        rows, cols: keys: method, target, sparsity, budget, epochs, seed, model, data, or any recipe key such as pruning.alpha;
            neither: what varies.
        value: one of `VALUES`.

    Raises:
        EspalierError: an unknown key or value, no finished run, or a cell that mixes runs which differ in more than the seed.
    """
    finished = [run for run in runs if run.finished]
    if not finished:
        raise EspalierError("None of these runs is finished yet.")
    if value not in VALUES:
        raise EspalierError(f"A table shows one of {', '.join(VALUES)}, not {value!r}.")
    if not rows and not cols:
        rows, cols = default_keys(finished)
    rows, cols = tuple(resolve_keys(rows, _settings(finished))), tuple(resolve_keys(cols, _settings(finished)))
    members: dict[tuple[Place, Place], list[Run]] = defaultdict(list)
    for run, place in _placed(finished, (*rows, *cols)):
        members[place[: len(rows)], place[len(rows) :]].append(run)
    cells = {place: _cell(place, found, (*rows, *cols), value) for place, found in members.items()}
    order = method_order(finished)
    return Pivot(
        value,
        rows,
        cols,
        _sorted((row for row, _ in cells), rows, order),
        _sorted((col for _, col in cells), cols, order),
        cells,
    )


def default_keys(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """What varies among runs: models, data, methods and their arguments down, targets and epochs across."""
    varying = [key for key in ("model", "data") if len({value_of(run, key) for run in runs}) > 1]
    cols = [key for key in ("target", "epochs") if len({value_of(run, key) for run in runs if not is_dense(run)}) > 1]
    alike, apart = [*varying, "method"], [*varying, "method", "target", "epochs"]
    more = {key for members in _grouped(runs, alike) for key in differing(members) if not is_goal(key)}
    more |= {key for members in _grouped(runs, apart) for key in differing(members)}
    return [*alike, *sorted(more)], cols


def _grouped(runs: Iterable[Run], keys: Sequence[str]) -> Iterable[list[Run]]:
    """Runs with equal values of the keys."""
    groups: dict[Place, list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(value_of(run, key) for key in keys)].append(run)
    return groups.values()


def _settings(runs: Iterable[Run]) -> set[str]:
    return {key for run in runs for key in run.settings}


def _placed(runs: Sequence[Run], keys: Sequence[str]) -> Iterable[tuple[Run, Place]]:
    """Runs with their places: one for most, several for a dense reference in a table with targets."""
    targets = [key for key in keys if is_target(key)]
    others = [key for key in keys if key not in targets and key != "method" and not key.startswith("pruning.")]
    aims: dict[Place, dict[Place, None]] = defaultdict(dict)
    for run in runs:
        if not is_dense(run):
            same = tuple(value_of(run, key) for key in others)
            aims[same][tuple(value_of(run, key) for key in targets)] = None
    for run in runs:
        own = {key: value_of(run, key) for key in keys}
        found = aims.get(tuple(own[key] for key in others)) if is_dense(run) and targets else None
        for aim in found or [tuple(own[key] for key in targets)]:
            given = own | dict(zip(targets, aim, strict=True))
            yield run, tuple(given[key] for key in keys)


def _cell(place: tuple[Place, Place], runs: Sequence[Run], keys: Sequence[str], value: str) -> Cell:
    where = ", ".join(words_of(key, one) for key, one in zip(keys, (*place[0], *place[1]), strict=True)) or "the table"
    mixed = differing(runs)
    if mixed:
        told = ", ".join(f"{key} ({', '.join(sorted({str(run.settings.get(key)) for run in runs})[:4])})" for key in mixed[:3])
        raise EspalierError(
            f"The cell {where!r} mixes runs that differ in {told}: add it to --rows or --cols, or choose with "
            f"--where {mixed[0]}=VALUE."
        )
    seeds: dict[int, Run] = {}
    for run in runs:
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise EspalierError(
                f"{str(other.folder)!r} and {str(run.folder)!r} are the same run of the cell {where!r}: leave one of them out."
            )
    return Cell(tuple(sorted(runs, key=lambda run: run.seed)), value)


def _sorted(places: Iterable[Place], keys: Sequence[str], methods: Sequence[str]) -> tuple[Place, ...]:
    def rank(place: Place) -> list[Any]:
        return [_rank(key, value, methods) for key, value in zip(keys, place, strict=True)]

    return tuple(sorted(dict.fromkeys(places), key=rank))


def _rank(key: str, value: object, methods: Sequence[str]) -> tuple[int, float, Any]:
    if value is None:
        return 0, 0.0, []
    if key == "method" and value in methods:
        return 1, float(methods.index(str(value))), []
    if isinstance(value, int | float):
        return 1, float(value), []
    return 2, 0.0, natural(str(value))
