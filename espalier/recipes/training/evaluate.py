"""Loss and accuracy over a split, summed on the device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import EspalierError
from espalier.recipes.recipe import load_recipe
from espalier.recipes.spec import Recipe
from espalier.recipes.training.processes import Processes
from espalier.recipes.training.runs import RECIPE
from espalier.recipes.training.setup import build_recipe_model, open_recipe_data


class Tally:
    """Running sums of loss and correct answers; stays on the device until asked.

    Example:
        >>> tally = Tally(torch.device("cpu"))
        >>> tally.add(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 0]), torch.tensor(4.5))
        >>> tally.read()
        (4.5, 0.5)
    """

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=wide, device=device)  # loss, correct, images

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a batch: logits (B, C), labels (B,), mean loss ()."""
        images = len(labels)
        correct = (logits.argmax(1) == labels).sum()
        self.sums[0] += loss.detach() * images
        self.sums[1] += correct
        self.sums[2] += images

    def read(self, processes: Processes | None = None) -> tuple[float, float]:
        """Mean loss and accuracy so far, over all processes."""
        sums = self.sums if processes is None else processes.add(self.sums)
        loss, correct, images = sums.tolist()
        return loss / max(images, 1.0), correct / max(images, 1.0)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: torch.autocast | None = None,
) -> tuple[float, float]:
    """Mean cross entropy and accuracy of a model, which is left in the mode it was found in."""
    tally = Tally(processes.device)
    was_training = model.training
    model.eval()
    for images, labels in batches:
        with autocast or torch.autocast(processes.device.type, enabled=False):
            logits = model(images)
        tally.add(logits, labels, functional.cross_entropy(logits.float(), labels))
    model.train(was_training)
    return tally.read(processes)


def evaluate_file(weights: Path, recipe: Recipe | None, overrides: list[str], processes: Processes) -> dict[str, Any]:
    """Test a saved model on the test split of its recipe's data.

    Args:
        weights: a file written by `espalier.save`, or another state dict that the model takes.
        recipe: how to build model and data; None reads `recipe.yaml` beside the file.
        overrides: `key=value` for the recipe that is read.
        processes: where to run.

    Returns:
        "test_acc" and "test_loss", "sparsity" over weights of two or more dimensions, "sparsity_all" over all.
    """
    if not weights.is_file():
        raise EspalierError(f"There is no file {str(weights)!r}.")
    if recipe is None:
        beside = weights.parent / RECIPE
        if not beside.exists():
            raise EspalierError(f"There is no {RECIPE} beside {str(weights)!r}: name one with --recipe.")
        recipe = load_recipe(beside, overrides)
    data = open_recipe_data(recipe, processes)
    filled = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": str(weights)})})
    model = build_recipe_model(filled, data).to(processes.device)
    loss, accuracy = evaluate(model, data.test.epoch(0), processes)
    parameters = list(model.parameters())
    return {
        "file": str(weights),
        "data": data.info.name,
        "images": data.info.sizes["test"],
        "test_acc": accuracy,
        "test_loss": loss,
        "sparsity": _zero_share([p for p in parameters if p.ndim >= 2]),
        "sparsity_all": _zero_share(parameters),
    }


def _zero_share(parameters: list[nn.Parameter]) -> float:
    zeros = sum(int((p == 0).sum()) for p in parameters)
    return zeros / max(1, sum(p.numel() for p in parameters))
