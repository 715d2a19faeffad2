"""What can be known to be wrong with a recipe before anything is trained or read."""

from __future__ import annotations

from pathlib import Path

import torch

from espalier.errors import EspalierError
from espalier.recipes.pruning import build_method
from espalier.recipes.setup import data_path
from espalier.recipes.spec import ModelSpec, Recipe
from espalier.tasks.classification.data import data_names
from espalier.tasks.classification.models import build_model
from espalier.tasks.names import unknown


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
