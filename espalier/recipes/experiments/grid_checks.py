"""What can be known to be wrong with a recipe before anything is trained or read."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from espalier.errors import EspalierError
from espalier.names import unknown
from espalier.recipes.pruning import build_method
from espalier.recipes.spec import SHORTHAND, ModelSpec, Recipe
from espalier.recipes.training.setup import data_path
from espalier.records.reading import flatten
from espalier.tasks.classification.data import data_names
from espalier.tasks.classification.models import build_model


def check_recipe(recipe: Recipe) -> None:
    """Check the method with its arguments and the name of the data; the data itself is not looked at.

    Raises:
        EspalierError: says what does not fit.
    """
    build_method(recipe.pruning, epochs=recipe.train.epochs)
    if recipe.data.name not in data_names():
        raise unknown("data set", recipe.data.name, data_names())


def files_are_there(recipe: Recipe) -> None:
    """Check that the data and the start weights that a recipe reads exist.

    Raises:
        EspalierError: they do not.
    """
    path = data_path(recipe.data)
    if path is not None and not recipe.data.download and not Path(path).exists():
        raise EspalierError(f"There is no data at {path!r}: give data.path=FOLDER, or data.download=true if it can be fetched.")
    weights = recipe.model.weights
    if weights not in (None, "pretrained") and not Path(str(weights)).expanduser().exists():
        raise EspalierError(f"There are no start weights {weights!r}: give model.weights=FILE.")


def check_model(spec: ModelSpec) -> None:
    """Build the model once, for ten classes of coloured images: what it refuses then, it refuses always.

    Raises:
        EspalierError: there is no such model, or it does not take the arguments.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            build_model(spec.name, num_classes=10, in_channels=3, **spec.args)
    except EspalierError:
        raise
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EspalierError(f"The recipe's model section does not fit the model {spec.name!r} ({reason}).") from error


def plain_values(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """What a grid file says with its dates turned into texts, so that all of it fits into JSON.

    Raises:
        EspalierError: a number is infinite or not a number, or YAML has made something else of a value; names the key.

    Example:
        >>> plain_values({"paper": {"source": datetime.date(2022, 1, 1)}}, "grid.yaml")
        {'paper': {'source': '2022-01-01'}}
    """
    return {_text(key): _plain(value, str(key), where) for key, value in raw.items()}


def _plain(value: Any, key: str, where: str) -> Any:
    if isinstance(value, dict):
        return {_text(inner): _plain(one, str(inner), where) for inner, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, key, where) for one in value]
    value = _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise EspalierError(f"{where} has the value {value} for {key!r}: give a finite number.")
    if value is not None and not isinstance(value, str | int | float):
        raise EspalierError(f"{where} has a value for {key!r} that is no number, text, list or mapping: {value!r}.")
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, datetime.date | datetime.time) else value


def refuse_hidden(key: str, value: object, later: Iterable[tuple[str, str]], where: str) -> None:
    """Refuse a setting of the command line that the grid would undo.

    Args:
        key, value: the setting.
        later: keys that apply after it, and where they stand, in words.
        where: the file.

    Raises:
        EspalierError: names the key that undoes it.
    """
    whole = {f"{key}.{SHORTHAND[key]}": value} if key in SHORTHAND and isinstance(value, str) else {key: value}
    parts = {key, *(name for name, _ in flatten(whole))}
    for other, place in later:
        if any(part == other or part.startswith(f"{other}.") for part in parts):
            raise EspalierError(f"{where} sets {other!r} {place}: change it there, {key}=... would have no effect.")
