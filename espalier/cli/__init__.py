"""The command line: one file per verb, collected here. Heavy imports wait until a verb runs."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

try:
    import typer
except ImportError:
    raise SystemExit("The command line needs some more packages: pip install 'espalier[train]'.") from None

from espalier.cli.compare import compare
from espalier.cli.evaluate import evaluate
from espalier.cli.export import export
from espalier.cli.inspect import inspect
from espalier.cli.listing import list_names
from espalier.cli.lottery import lottery
from espalier.cli.profile import profile
from espalier.cli.report import report
from espalier.cli.sweep import sweep
from espalier.cli.table import table
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
app.command()(sweep)
app.command()(table)
app.command()(lottery)
app.command()(report)
app.command()(inspect)
app.command()(profile)
app.command()(export)
app.command("list")(list_names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: bad input ends in one sentence on standard error and exit code 2, never in a traceback.

    Args:
        arguments: what follows the command's name; None takes it from the command line.
    """
    try:
        app(args=arguments)
    except EspalierError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"The disk is full ({error.filename}): free some space and give the same command again.", file=sys.stderr)
        raise SystemExit(2) from None
