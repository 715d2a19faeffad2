"""A grid file: one recipe and what to vary in it -> the recipes of all runs, checked before any of them starts.

recipe: convnet4-cifar10              # a ready recipe, or a path from the grid file's folder
claim: OCP beats one-shot ...         # what the file tests, in a sentence
set: {train.precision: bf16}          # holds for every run
grid:                                 # every combination; the first key varies slowest
  seed: [0, 1, 2]
runs:                                 # blocks, each combined with the grid above; none: one block without keys
  - set: {pruning: {method: dense}}
  - grid: {pruning.method: [ocp, agp], pruning.sparsity: [0.8, 0.9]}
exclude: [{pruning.method: agp, seed: 2}]
include: [{pruning: {method: dense}, train.epochs: 50}]     # single runs more
search: ...                           # espalier.recipes.experiments.sweep_search
paper: ...                            # espalier.records.paper
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.names import nearest
from espalier.recipes.experiments.grid_checks import check_model, check_recipe, files_are_there, plain_values, refuse_hidden
from espalier.recipes.recipe import apply_settings, parse_recipe, read_yaml, resolved, tells_apart
from espalier.recipes.spec import Recipe
from espalier.records.paper import Paper, read_paper
from espalier.records.reading import flatten

_KEYS = ("recipe", "name", "claim", "set", "grid", "runs", "exclude", "include", "search", "paper")
_BLOCK_KEYS = ("set", "grid")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """What some runs have in common, and what varies among them: dotted keys -> a value, or the values to take."""

    set: Settings
    grid: dict[str, list[Any]]


@dataclass(frozen=True)
class Grid:
    """A grid file as read; `base` is the recipe that all runs start from, as plain YAML."""

    path: Path
    name: str
    claim: str
    base: dict[str, Any]
    common: Block
    blocks: tuple[Block, ...]
    exclude: tuple[Settings, ...]
    include: tuple[Settings, ...]
    search: Settings | None
    paper: Paper


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: its recipe, and what the grid sets in it, dotted keys -> values."""

    recipe: Recipe
    settings: Settings

    @property
    def words(self) -> str:
        """The settings in short, for people."""
        return words_of(self.settings)


def read_grid(path: Path, find: Callable[[str], Path]) -> Grid:
    """Read a grid file and the recipe that it names.

    Args:
        path: the file.
        find: finds a recipe that does not lie beside the file, by path or by the name of a ready one.

    Raises:
        EspalierError: it cannot be read, has an unknown key, or something in it has the wrong form.
    """
    raw = plain_values(read_yaml(path, "grid file", "'recipe' and 'grid'", "give the path of a YAML file."), path.name)
    for key in raw:
        if key not in _KEYS:
            raise EspalierError(f"{path.name} has an unknown key {key!r}: {nearest(str(key), _KEYS)}")
    if not isinstance(raw.get("recipe"), str):
        raise EspalierError(f"{path.name} needs the key 'recipe': the name of a ready recipe, or a path from its own folder.")
    beside = path.parent / raw["recipe"]
    recipe = beside if beside.is_file() else find(raw["recipe"])
    base = read_yaml(recipe, "recipe", "'model' and 'data'", "`espalier list recipes` names some.")
    base.setdefault("name", recipe.stem)
    blocks = _list(raw, "runs", path) or [{}]
    search = raw.get("search")
    return Grid(
        path=path,
        name=str(raw.get("name") or path.stem),
        claim=" ".join(str(raw.get("claim") or "").split()),
        base=base,
        common=_block({key: raw[key] for key in _BLOCK_KEYS if key in raw}, path.name),
        blocks=tuple(_block(block, f"{path.name}, block {n} of 'runs',") for n, block in enumerate(blocks, start=1)),
        exclude=tuple(_mapping(one, "an entry of 'exclude'", path.name) for one in _list(raw, "exclude", path)),
        include=tuple(_mapping(one, "an entry of 'include'", path.name) for one in _list(raw, "include", path)),
        search=None if search is None else _mapping(search, "'search'", path.name),
        paper=read_paper(raw.get("paper"), path.name),
    )


def expand(grid: Grid, overrides: Sequence[tuple[str, Any]] = (), more: Mapping[str, Any] | None = None) -> list[GridRun]:
    """All runs of a grid, each checked.

    Args:
        grid: the file.
        overrides: keys and values that hold for every run, from the command line.
        more: keys and values that go last, of one trial of a search.

    Raises:
        EspalierError: a run's recipe is refused (the run is named), an override would do nothing, or no run is left.
    """
    for key, value in overrides:
        refuse_hidden(key, value, _set_later(grid, more or {}), grid.path.name)
    made = []
    for settings, varied in _combinations(grid):
        found = _run(grid, [*grid.common.set.items(), *overrides, *settings, *(more or {}).items()], {**varied, **(more or {})})
        made.append(found)
    kept = _without_excluded(grid, made)
    for run in {repr(run.recipe.model): run for run in kept}.values():
        with _named(grid, run.settings):
            check_model(run.recipe.model)
    if not kept:
        raise EspalierError(f"{grid.path.name} leaves nothing to run: every combination is excluded.")
    return kept


def refuse_missing_files(runs: Iterable[GridRun]) -> None:
    """Refuse a sweep on this machine whose data or start weights are not here.

    Raises:
        EspalierError: names the folder or file.
    """
    for run in {(repr(run.recipe.data), run.recipe.model.weights): run for run in runs}.values():
        files_are_there(run.recipe)


def _combinations(grid: Grid) -> Iterable[tuple[list[tuple[str, Any]], Settings]]:
    """Settings of every run, in the order in which they apply; and those among them that tell it from others."""
    for common in _product(grid.common.grid):
        for block in grid.blocks:
            for own in _product(block.grid):
                settings = [*common, *block.set.items(), *own]
                yield settings, _varied(settings)
    for one in grid.include:
        yield list(one.items()), _varied(list(one.items()))


def _product(varied: Mapping[str, Sequence[Any]]) -> Iterable[list[tuple[str, Any]]]:
    for values in itertools.product(*varied.values()):
        yield list(zip(varied, values, strict=True))


def _varied(settings: Sequence[tuple[str, Any]]) -> Settings:
    return dict(flatten(dict(settings)))


def _run(grid: Grid, settings: Sequence[tuple[str, Any]], varied: Settings) -> GridRun:
    base = dict(grid.base)
    if any(key in ("model", "model.name", "data", "data.name") for key, _ in settings):
        base["name"] = None  # the recipe's name would be wrong: the folder is named after model and data
    with _named(grid, varied):
        recipe = parse_recipe(apply_settings(base, settings))
        check_recipe(recipe)
    return GridRun(recipe, varied)


@contextmanager
def _named(grid: Grid, settings: Settings) -> Iterator[None]:
    """Say of which run of which file an error is."""
    try:
        yield
    except EspalierError as error:
        more = " (runs that take other keys than the rest get a block of their own under 'runs')"
        hint = more if "takes no" in str(error) else ""
        raise EspalierError(f"{grid.path.name}, {words_of(settings)}: {error}{hint}") from None


def words_of(settings: Mapping[str, Any]) -> str:
    """Settings in short, for people.

    Example:
        >>> words_of({"pruning.method": "ocp", "seed": 0})
        'method=ocp, seed=0'
    """
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()) or "the recipe"


def _set_later(grid: Grid, more: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys that the grid sets after those of the command line, and where it does."""
    for block in (grid.common, *grid.blocks):
        for key in [*block.grid, *(block.set if block is not grid.common else ())]:
            yield key, "itself"
    for entry in grid.include:
        for key in entry:
            yield key, "in 'include'"
    for key in more:
        yield key, "in 'search'"


def _without_excluded(grid: Grid, runs: Sequence[GridRun]) -> list[GridRun]:
    plain = [dict(flatten(resolved(run.recipe))) for run in runs]
    kept = list(range(len(runs)))
    for entry in grid.exclude:
        wanted = dict(flatten(entry))
        for key in wanted:
            if not any(key in settings for settings in plain):
                known = {other for settings in plain for other in settings}
                raise EspalierError(f"{grid.path.name} excludes by an unknown key {key!r}: {nearest(key, known)}")
        hit = [number for number, settings in enumerate(plain) if _matches(settings, wanted)]
        if not hit:
            raise EspalierError(f"{grid.path.name} excludes {entry}, which no run is: correct the entry, or leave it out.")
        kept = [number for number in kept if number not in hit]
    return [runs[number] for number in kept]


def _matches(settings: Mapping[str, object], wanted: Mapping[str, Any]) -> bool:
    """Whether a run has these values; a list stands for any of its entries."""
    return all(settings.get(key, _Absent) in (value if isinstance(value, list) else [value]) for key, value in wanted.items())


class _Absent:
    """A value that nothing equals."""


def _block(raw: object, where: str) -> Block:
    block = _mapping(raw, "it", where)
    for key in block:
        if key not in _BLOCK_KEYS:
            raise EspalierError(f"{where} has an unknown key {key!r}: {nearest(str(key), _BLOCK_KEYS)}")
    varied = _mapping(block.get("grid") or {}, "'grid'", where)
    for key, values in varied.items():
        if not isinstance(values, list) or not values:
            raise EspalierError(
                f"{where} needs a list of values for {key!r}, such as {key}: [{values}]; one value goes into 'set'."
            )
        if len(values) > 1 and not tells_apart(key):
            raise EspalierError(
                f"{where} varies {key!r}, but runs that differ in nothing else are one experiment with one folder: put one "
                f"value into 'set'."
            )
    return Block(_mapping(block.get("set") or {}, "'set'", where), varied)


def _list(raw: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = raw.get(key) or []
    if not isinstance(value, list):
        raise EspalierError(f"The key {key!r} of {path.name} must be a list, each entry starting with a dash.")
    return value


def _mapping(raw: object, what: str, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise EspalierError(f"{where}: {what} must be a mapping such as {{train.epochs: 5}}, not {raw!r}.")
    return raw
