"""Train a recipe and die on the way: `python interrupted.py RECIPE FOLDER FORWARDS SIGNAL`.

The signal comes after so many forward passes of the training loop, so also in the middle of an accumulation.
"""

import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from espalier.recipes.recipe import load_recipe
from espalier.recipes.training import engine


def main(recipe: str, folder: str, forwards: int, signal: int) -> None:
    left = [forwards]

    def count(module: nn.Module, inputs: Any) -> None:
        if module.training and isinstance(module, nn.Linear) and inputs[0].device.type != "meta":  # the head; no trace
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal)

    if forwards >= 0:
        nn.modules.module.register_module_forward_pre_hook(count)
    try:
        engine.train(load_recipe(recipe), Path(folder), quiet=True)
    except engine.Interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
