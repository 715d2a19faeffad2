"""`espalier evaluate FILE [key=value ...]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    file: Annotated[Path, typer.Argument(help="A model.safetensors of a run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="data=... ...")] = None,
    recipe: Annotated[str | None, typer.Option(help="Default: recipe.yaml beside FILE.")] = None,
    model: Annotated[str | None, typer.Option(help="Build this model instead of the recipe's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test a saved model: accuracy on the test split, and how many of its weights are zero."""
    from espalier.cli.recipes import find_recipe
    from espalier.recipes.recipe import load_recipe
    from espalier.recipes.training.evaluate import evaluate_file
    from espalier.recipes.training.processes import Processes, choose_device

    given = list(overrides or []) + ([f"model={model}"] if model else [])
    loaded = load_recipe(find_recipe(recipe), given) if recipe else None
    device = choose_device(loaded.train.device if loaded else "auto")
    found = evaluate_file(file, loaded, given, Processes(device=device))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['file']} on {found['data']}: {found['images']} test images")
    typer.echo(f"accuracy {found['test_acc']:.2%}, loss {found['test_loss']:.4f}")
    typer.echo(f"sparsity {found['sparsity']:.2%} of matrices and filters, {found['sparsity_all']:.2%} of all weights")
