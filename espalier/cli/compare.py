"""`espalier compare RECIPE --methods ... --sparsity ... --seeds ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli.recipes import find_recipe
from espalier.cli.watching import Watch, leave_tidily
from espalier.errors import EspalierError

if TYPE_CHECKING:
    from rich.table import Table

    from espalier.recipes.experiments.carrying import Outcome
    from espalier.recipes.experiments.table import Line


METHODS_HELP = (
    "Names separated by commas, with arguments of their own as in ocsp:progressive=4:start=0.1; default: "
    "dense,one-shot,iterative,agp,ocp, or dense and methods that cut."
)
MASKS = ("epochs", "sparsity", "method", "accuracy %", "spread", "n", "zeros %", "of all %", "time")
CUTS = ("epochs", "budget", "method", "accuracy %", "spread", "n", "MACs %", "params %", "cut after", "reason", "time")
LEFT = ("method", "budget", "reason")


def compare(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a ready recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="data.limit=9 ...")] = None,
    methods: Annotated[str | None, typer.Option(help=METHODS_HELP)] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="Shares separated by commas, for methods that zero weights; default: the recipe's ratios, or 0.9."),
    ] = None,
    keep_macs: Annotated[str | None, typer.Option(help="Shares separated by commas, for methods that cut channels.")] = None,
    prune_at: Annotated[str | None, typer.Option(help="Also one cut at each of these epochs: a grid search.")] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers separated by commas.")] = "0,1,2",
    epochs: Annotated[int | None, typer.Option(help="Budget of every run; default: the recipe's.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Several budgets in epochs, separated by commas.")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders and the table go.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each with one thread.")] = 1,
) -> None:
    """Train every method at every target with every seed, at equal budget; finished runs are not run again."""
    from espalier.recipes.experiments.carrying import LocalProcesses, carry_out
    from espalier.recipes.experiments.compare import default_methods, plan, read_entries, refuse_unused
    from espalier.recipes.experiments.table import make_lines, write_table
    from espalier.recipes.pruning import has_ratios
    from espalier.recipes.recipe import load_recipe
    from espalier.recipes.training.runs import read_result
    from espalier.recipes.training.setup import check_data

    loaded = load_recipe(find_recipe(recipe), overrides or [])
    if epochs is not None and budgets is not None:
        raise EspalierError("Give --epochs or --budgets, not both.")
    one = loaded.train.epochs if epochs is None else epochs
    chosen = [one] if budgets is None else numbers(budgets, int, "--budgets")
    shares = [] if keep_macs is None else numbers(keep_macs, float, "--keep-macs")
    moments = [] if prune_at is None else numbers(prune_at, float, "--prune-at")
    ratios = sparsity is None and has_ratios(loaded.pruning)
    usual = default_methods(loaded, cutting=bool(shares or moments), ratios=ratios)
    entries = usual if methods is None else read_entries(methods)
    zeros = [] if ratios else numbers("0.9" if sparsity is None else sparsity, float, "--sparsity")
    refuse_unused(entries, sparsity=sparsity is not None, keep_macs=bool(shares) and not moments)
    planned = plan(
        loaded,
        entries,
        zeros,
        numbers(seeds, int, "--seeds"),
        chosen,
        out,
        keep_macs=shares,
        prune_at=moments,
    )
    if any(read_result(run.folder) is None for run in planned):
        check_data(loaded)
    outcomes: list[Outcome] = []
    name = loaded.name or "runs"
    leave_tidily()
    with Watch(len(planned), jobs) as watch:
        for outcome in carry_out(planned, LocalProcesses(jobs), watch.tell, watch.tick):
            outcomes.append(outcome)
            watch.finished(outcome)
            write_table(make_lines(outcomes), out, name)
    lines = make_lines(outcomes)
    print_table(lines, name)
    markdown, table = write_table(lines, out, name)
    typer.echo(f"written to {markdown} and {table}")
    failed = [o for o in outcomes if o.state == "failed"]
    if failed:
        typer.echo(f"{len(failed)} of {len(outcomes)} runs failed; the same command tries them again.", err=True)
        raise typer.Exit(1)


def numbers(text: str, kind: Callable[[str], Any], option: str) -> list[Any]:
    """Read `0.9,0.95` as numbers.

    Raises:
        EspalierError: something in it is not a number.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise EspalierError(f"{option} takes numbers separated by commas, not {text!r}.") from None


def print_table(lines: list[Line], name: str) -> None:
    """Show the table of masks and the table of cuts, where there are lines for them, on the terminal."""
    from rich.console import Console

    from espalier.recipes.experiments.table import tables

    masks, cuts = tables(lines)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for heads, rows in ((MASKS, masks), (CUTS, cuts)):
        if rows:
            console.print(_terminal_table(name, heads, rows))


def _terminal_table(name: str, heads: Sequence[str], lines: Sequence[Line]) -> Table:
    from rich.table import Column, Table

    table = Table(*(Column(head, justify="left" if head in LEFT else "right") for head in heads), box=None)
    table.title, table.padding, table.pad_edge = name, (0, 2, 0, 0), False
    before = None
    for line in lines:
        here = (line.epochs, line.sparsity, line.budget)
        if before is not None and here != before:
            table.add_row()
        before = here
        cells = line.cells() if heads is MASKS else line.cut_cells()
        start, n, failed, rest = cells[:5], *cells[5:7], cells[7:]
        table.add_row(*start, f"{n} ({failed} failed)" if line.failed else n, *rest)
    return table
