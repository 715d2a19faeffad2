"""The command line: one file per verb, collected here. Heavy imports wait until a verb runs."""

from __future__ import annotations

import sys

import typer

from espalier.cli.compare import compare
from espalier.cli.evaluate import evaluate
from espalier.cli.listing import list_names
from espalier.cli.report import report
from espalier.cli.train import train
from espalier.errors import EspalierError

app = typer.Typer(
    name="espalier",
    help="Prune neural networks during their one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(report)
app.command("list")(list_names)


def main() -> None:
    """Entry point: bad input ends in one sentence on standard error and exit code 2, never in a traceback."""
    try:
        app()
    except EspalierError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
