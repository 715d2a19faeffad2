"""`espalier train RECIPE [key=value ...]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.recipes import find_recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a ready recipe (see `list recipes`).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="train.epochs=5 ...")] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    folder: Annotated[Path | None, typer.Option(help="The run folder itself, instead of a name in --runs.")] = None,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
    cores: Annotated[str | None, typer.Option(hidden=True, help="Run on these processor cores only.")] = None,
) -> None:
    """Train a model as a recipe says, pruning on the way; the same command again continues a stopped run."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})  # before torch starts its threads
    from espalier.recipes.recipe import load_recipe
    from espalier.recipes.training.engine import Interrupted
    from espalier.recipes.training.engine import train as run
    from espalier.recipes.training.runs import IN_USE, RESULT, FolderInUse, run_name

    loaded = load_recipe(find_recipe(recipe), overrides or [])
    place = folder if folder is not None else runs / run_name(loaded)
    finished = (place / RESULT).exists()
    try:
        run(loaded, place, quiet=quiet)
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None
    except FolderInUse as busy:
        typer.echo(str(busy), err=True)
        raise typer.Exit(IN_USE) from None
    if not quiet and int(os.environ.get("RANK", "0")) == 0:
        typer.echo(f"finished before, see {place}" if finished else f"written to {place}")
