"""A recipe small enough for tests: real digits, a tiny net, a second of training."""

from collections.abc import Callable
from typing import Any

import pytest

from espalier.recipes.recipe import parse_recipe
from espalier.recipes.spec import Recipe

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "convnet4", "width": 4},
    "data": {"name": "digits", "limit": 320, "augment": {"crop_padding": 1}},
    "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 5e-4},
    "train": {"epochs": 3, "batch_size": 32, "device": "cpu"},
    "pruning": {"method": "ocp", "sparsity": 0.8},
}


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """`tiny("train.epochs=2")`: the small recipe with overrides."""
    return lambda *overrides: parse_recipe(TINY, overrides)
