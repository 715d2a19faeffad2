"""`espalier lottery RECIPE --rounds ... --seeds ...`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.compare import numbers
from espalier.cli.recipes import find_recipe


def lottery(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a ready recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="train.epochs=5 ...")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of pruning after the dense training.")] = 5,
    fraction: Annotated[float, typer.Option(help="Share of the remaining weights that each round removes.")] = 0.2,
    densities: Annotated[str | None, typer.Option(help="Shares that stay, such as 0.83,0.67,0.5, in place of rounds.")] = None,
    rewind: Annotated[str, typer.Option(help="Moment to go back to: steps, or epochs as in 1ep.")] = "0",
    keep_weights: Annotated[bool, typer.Option(help="Learning-rate rewinding: weights stay as trained.")] = False,
    controls: Annotated[str, typer.Option(help="Of random-init,random-masks; '' for none.")] = "random-init,random-masks",
    finders: Annotated[str, typer.Option(help="Methods whose tickets are trained too, such as one-shot,agp,ocp.")] = "",
    siblings: Annotated[bool, typer.Option(help="Instability: each round once more with the data in another order.")] = False,
    seeds: Annotated[str, typer.Option(help="Whole numbers separated by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the folder of the lottery goes.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, each with one thread.")] = 1,
) -> None:
    """Find lottery tickets by iterative magnitude pruning with rewinding, and train them and their controls.

    Every training is an ordinary run folder: the same command again skips what is finished and goes on where it was stopped.
    """
    from espalier.recipes.experiments.carrying import LocalProcesses
    from espalier.recipes.experiments.lottery import draw, draws_of
    from espalier.recipes.experiments.lottery_results import write_results
    from espalier.recipes.experiments.lottery_settings import Settings
    from espalier.recipes.recipe import load_recipe
    from espalier.recipes.training.engine import Interrupted

    settings = Settings(
        load_recipe(find_recipe(recipe), overrides or []),
        rounds=rounds,
        fraction=fraction,
        densities=() if densities is None else tuple(numbers(densities, float, "--densities")),
        rewind=rewind,
        keep_weights=keep_weights,
        controls=names(controls),
        finders=names(finders),
        siblings=siblings,
    )
    chosen = numbers(seeds, int, "--seeds")
    draws, failed = draws_of(settings, chosen, out), 0
    folder = out / settings.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _leave)
    try:
        for outcome in draw(settings, chosen, out, LocalProcesses(jobs), typer.echo):
            said = outcome.error if outcome.result is None else f"test accuracy {outcome.result['test_acc']:.2%}"
            typer.echo(f"{outcome.state} {outcome.run.label}: {said}")
            failed += outcome.state == "failed"
            write_results(settings, draws, folder)
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None
    result, table = write_results(settings, draws, folder)
    typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"written to {table} and {result}")
    if failed:
        typer.echo(f"{failed} runs failed; the same command tries them again.", err=True)
        raise typer.Exit(1)


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once.

    >>> names("ocp, agp,ocp")
    ('ocp', 'agp')
    """
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that the runs under way save their checkpoints
