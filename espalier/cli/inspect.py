"""`espalier inspect MODEL`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli.compare import numbers
from espalier.cli.models import CLASSES_HELP, INPUT_HELP, MODEL_HELP, example_input, input_shape, model_named
from espalier.errors import EspalierError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree

    from espalier.report.inspection import GroupRow, Inspection

SHOWN = 4  # layers of a group, and reasons, without --all


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    shape: Annotated[str | None, typer.Option("--input", help=INPUT_HELP)] = None,
    classes: Annotated[int, typer.Option(min=1, help=CLASSES_HELP)] = 1000,
    ratios: Annotated[str, typer.Option(help="Shares of channels kept to forecast, separated by commas.")] = "0.75,0.5,0.25",
    everything: Annotated[bool, typer.Option("--all", help="Name every layer and every reason.")] = False,
    as_json: Annotated[str | None, typer.Option("--json", help="Write JSON to this file; - prints it instead.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the layers into this SVG file.")] = None,
) -> None:
    """Show which channels of a model belong together, what they cost, what is frozen and why, and what cuts would save."""
    import espalier as es
    from espalier.recipes.training.runs import write_atomically
    from espalier.report.drawing import draw_model
    from espalier.report.inspection import look_into
    from espalier.report.palette import standalone_rules

    shares = numbers(ratios, float, "--ratios")
    if any(not 0 < share <= 1 for share in shares):
        raise EspalierError(f"--ratios takes shares of channels above 0 and up to 1, not {ratios!r}.")
    size = input_shape(model, shape)
    net = model_named(model, classes=classes, in_channels=size[0])
    found = look_into(net, es.trace(net, example_input(size)), model, size, shares)
    if as_json == "-":
        typer.echo(json.dumps(found.content(), indent=2))
    else:
        _print(found, SHOWN if not everything else sys.maxsize)
    if as_json not in (None, "-"):
        write_atomically(Path(as_json), json.dumps(found.content(), indent=2).encode() + b"\n")
        typer.echo(f"written to {as_json}", err=as_json == "-")
    if svg is not None:
        write_atomically(svg, draw_model(found, standalone_rules()).encode() + b"\n")
        typer.echo(f"written to {svg}", err=as_json == "-")


def _print(found: Inspection, most: int) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(_tree(found, most))
    if found.frozen_params:
        _print_frozen(found, most, console)
    _print_forecast(found, console)


def _tree(found: Inspection, most: int) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    from espalier.cost.costs import short

    cost = found.cost
    shape = " x ".join(map(str, found.input))
    tree = Tree(
        f"[bold]{escape(found.model)}[/] at {shape}: {short(cost.macs)} MACs, {short(cost.params)} parameters, "
        f"{len(found.groups)} groups of channels"
    )
    for place, group in enumerate(found.groups):
        each = f"{short(group.macs)} MACs and {short(group.params)} parameters each"
        branch = tree.add(f"{place + 1}  [bold]{escape(group.name)}[/]  {group.size} channels, {each}")
        for role, layers in _roles(group).items():
            branch.add(escape(f"{role} {_some(layers, most)}"))
    return tree


def _roles(group: GroupRow) -> dict[str, list[str]]:
    """Layers by what the group is to them, each once: a bias goes with the weight of its layer."""
    from espalier.report.inspection import ROLES

    found = {role: dict.fromkeys(member.layer for member in group.members if member.role == role) for role in ROLES}
    found["through"] = {layer: None for layer in found["through"] if layer not in found["out of"]}
    return {role: list(layers) for role, layers in found.items() if layers}


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _table(title: str, *heads: str) -> Table:
    """Numbers to the right, words to the left."""
    from rich.table import Column, Table

    columns = [Column(head, justify="left" if head == "why" else "right") for head in heads]
    return Table(*columns, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _print_frozen(found: Inspection, most: int, console: Console) -> None:
    from rich.markup import escape

    from espalier.cost.costs import short

    table = _table(f"\nfrozen: {found.frozen_share:.1%} of the parameters", "parameters", "share", "why")
    reasons = list(found.frozen_why.items())
    rest = sum(count for _, count in reasons[most:])
    if rest:
        reasons = [*reasons[:most], (f"{len(reasons) - most} more reasons: --all", rest)]
    for why, count in reasons:
        table.add_row(short(count), f"{count / max(1, found.cost.params):.1%}", escape(why))
    console.print(table)


def _print_forecast(found: Inspection, console: Console) -> None:
    from espalier.cost.costs import short

    cost = found.cost
    table = _table("\nwhen every group keeps", "channels", "MACs", "of all", "parameters", "of all")
    for row in found.forecast:
        macs, params = row.macs / max(1, cost.macs), row.params / max(1, cost.params)
        table.add_row(f"{row.keep:.0%}", short(row.macs), f"{macs:.1%}", short(row.params), f"{params:.1%}")
    console.print(table)
