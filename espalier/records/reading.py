"""What run folders say: find them, read them.

A run folder is plain files (`recipe.yaml`, `metrics.jsonl`, `result.json`), so reading one takes no training code.
The comparison that makes runs and the report that shows them both read here; `espalier.records.summary` adds up over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espalier.errors import EspalierError
from espalier.masks import LayerSparsity
from espalier.records.numbers import BUDGETS, budgets_in
from espalier.records.rounds import Round
from espalier.records.shrunk import Shrunk, read_shrunk

SWEEP = "sweep.json"  # in the folder of a sweep: its rows, and the numbers of a paper to show beside them


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`. Accuracies and sparsities are shares in [0, 1]; what was not recorded is None."""

    epoch: int
    step: int | None = None
    lr: float | None = None
    train_loss: float | None = None
    train_acc: float | None = None
    val_loss: float | None = None
    val_acc: float | None = None
    sparsity: float | None = None
    sparsity_all: float | None = None
    keep_macs: float | None = None
    keep_params: float | None = None
    stability: float | None = None
    val_acc_projected: float | None = None
    gap: float | None = None
    step_size: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder. Only a finished run has `test_acc`, `layers`, `rounds` of multipliers and, if its method cuts, `shrunk`.

    `budget` is what such a method was given, () for others; `images` counts those of each part of the data, {} where that was
    not recorded; `failure` is why a run ended early, if it said so.
    """

    folder: Path
    name: str
    model: str
    data: str
    method: str
    sparsity_target: float | None
    epochs: int
    seed: int
    finished: bool
    budget: tuple[tuple[str, float], ...] = ()
    metrics: tuple[Epoch, ...] = ()
    layers: tuple[LayerSparsity, ...] = ()
    test_acc: float | None = None
    test_loss: float | None = None
    val_acc: float | None = None
    sparsity: float | None = None
    sparsity_all: float | None = None
    params: int | None = None
    images: Mapping[str, object] = field(default_factory=dict)
    shrunk: Shrunk | None = None
    rounds: tuple[Round, ...] = ()
    seconds: float | None = None
    failure: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, finished or not."""
    return (folder / "result.json").is_file() or (folder / "recipe.yaml").is_file()


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among and below `paths`, each once, in the order of their names.

    Raises:
        EspalierError: a path does not exist, or no run is found at all.
    """
    places = [Path(path) for path in paths]
    found: dict[Path, None] = {}
    for path in places:
        if not path.is_dir():
            raise EspalierError(f"There is no folder {str(path)!r}; give a run folder or a folder of run folders.")
        inside = [path] if is_run(path) else sorted(folder for folder in path.rglob("*/") if is_run(folder))
        found.update(dict.fromkeys(inside))
    if not found:
        said = ", ".join(repr(str(path)) for path in places) or "an empty list of folders"
        raise EspalierError(f"No runs in {said}: a run folder holds recipe.yaml and, once finished, result.json.")
    return list(found)


def read_run(folder: str | Path) -> Run:
    """Read one run folder.

    Raises:
        EspalierError: it holds no run, or a file in it cannot be understood.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise EspalierError(f"{str(folder)!r} is not a run folder: it holds neither result.json nor recipe.yaml.")
    settings = _read_settings(folder / "recipe.yaml")
    result = _read_json(folder / "result.json")
    metrics = tuple(_read_metrics(folder / "metrics.jsonl"))
    said = {**_identity(settings), **{key: value for key, value in result.items() if value is not None}}
    try:
        return Run(
            folder=folder,
            name=str(said.get("name") or folder.name),
            model=str(said.get("model", "unknown")),
            data=str(said.get("data", "unknown")),
            method=str(said.get("method", "unknown")),
            sparsity_target=_number(said.get("sparsity_target")),
            epochs=int(said.get("epochs", len(metrics))),
            seed=int(said.get("seed", 0)),
            finished=bool(result),
            budget=tuple(budgets_in(said.get("budget") or {}).items()),
            metrics=metrics,
            layers=tuple(
                LayerSparsity(str(raw["name"]), tuple(raw.get("shape", ())), int(raw["total"]), int(raw["zeros"]))
                for raw in result.get("layers", ())
            ),
            test_acc=_number(result.get("test_acc")),
            test_loss=_number(result.get("test_loss")),
            val_acc=_number(result.get("val_acc")),
            sparsity=_number(result.get("sparsity")),
            sparsity_all=_number(result.get("sparsity_all")),
            params=result.get("params"),
            images=result.get("images") or {},
            shrunk=read_shrunk(result),
            rounds=tuple(map(Round.from_plain, result.get("rounds", ()))),
            seconds=_number(result.get("seconds")),
            failure=None if result else _read_json(folder / "failed.json").get("error"),
            settings=settings,
            machine=result.get("machine") or {},
            versions=result.get("versions") or {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EspalierError(f"The run folder {str(folder)!r} does not hold a complete record ({error!r}).") from None


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read every run among and below `paths`.

    Only a result knows the proper name of its data; a run that has none yet takes it over from one on the same data.
    """
    runs = [read_run(folder) for folder in find_runs(paths)]
    proper = {_source(run): run.data for run in runs if run.finished}
    return [run if run.finished else replace(run, data=proper.get(_source(run), run.data)) for run in runs]


def _source(run: Run) -> tuple[object, object]:
    return run.settings.get("data.name"), run.settings.get("data.path")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EspalierError(f"{str(path)!r} cannot be read as JSON ({error}); remove it to have the run repeated.") from None
    if not isinstance(value, dict):
        raise EspalierError(f"{str(path)!r} must hold one JSON object; remove it to have the run repeated.")
    return value


def _read_settings(path: Path) -> dict[str, object]:
    """The recipe with dotted keys, {} where there is none."""
    if not path.is_file():
        return {}
    import yaml  # comes with the extra `train`; summing up results alone does not need it

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EspalierError(f"{str(path)!r} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    return dict(flatten(raw)) if isinstance(raw, dict) else {}


def flatten(section: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Settings with dotted keys.

    Example:
        >>> dict(flatten({"train": {"epochs": 3}, "seed": 0}))
        {'train.epochs': 3, 'seed': 0}
    """
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _identity(settings: Mapping[str, object]) -> dict[str, Any]:
    """What a result would say of itself, for runs that have none yet."""
    known = {
        "name": settings.get("name"),
        "model": settings.get("model.name", settings.get("model")),
        "data": settings.get("data.name", settings.get("data")),
        "method": settings.get("pruning.method", settings.get("pruning")),
        "sparsity_target": settings.get("pruning.sparsity"),
        "budget": {key: settings.get(f"pruning.{key}") for key in BUDGETS},
        "epochs": settings.get("train.epochs"),
        "seed": settings.get("seed"),
    }
    return {key: value for key, value in known.items() if value is not None}


def _read_metrics(path: Path) -> list[Epoch]:
    """One record per epoch; a resumed run may have written an epoch twice, and a killed one half a last line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    known = Epoch.__dataclass_fields__
    epochs: dict[int, Epoch] = {}
    for number, line in enumerate(lines, start=1):
        try:
            raw = json.loads(line)
            values = {key: _number(raw.get(key)) for key in known if key not in ("epoch", "step")}
            epochs[int(raw["epoch"])] = Epoch(epoch=int(raw["epoch"]), step=raw.get("step"), **values)
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines) or not line.strip():
                continue
            raise EspalierError(f"Line {number} of {str(path)!r} is not a record of an epoch; remove that line.") from None
    return [epochs[epoch] for epoch in sorted(epochs)]


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
