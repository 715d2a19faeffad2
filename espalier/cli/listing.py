"""`espalier list [models|data|methods|schedules|criteria|patterns|recipes]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from espalier.errors import EspalierError


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(help="models, data, methods, schedules, criteria, patterns or recipes; default: all."),
    ] = None,
) -> None:
    """Show what recipes can name."""
    if what is not None and what not in KINDS:
        raise EspalierError(f"There is nothing to list under {what!r}: known are {', '.join(KINDS)}.")
    for kind in KINDS if what is None else (what,):
        names = list(KINDS[kind]())
        if what is None:
            typer.echo(f"{kind}: {', '.join(names)}")
        else:
            typer.echo("\n".join(names))


def _models() -> Iterable[str]:
    from espalier.tasks.classification.models import model_names

    return [*model_names(), "torchvision:NAME", "timm:NAME"]


def _data() -> Iterable[str]:
    from espalier.tasks.classification.data import data_names

    return list(data_names())


def _methods() -> Iterable[str]:
    from espalier import METHODS

    return METHODS


def _schedules() -> Iterable[str]:
    from espalier.recipes.pruning import SCHEDULES

    return SCHEDULES


def _criteria() -> Iterable[str]:
    from espalier.criteria import CRITERIA

    return CRITERIA


def _patterns() -> Iterable[str]:
    from espalier.masks.patterns import PATTERNS

    return PATTERNS


def _recipes() -> Iterable[str]:
    from espalier.cli.recipes import ready_recipes

    return ready_recipes()


KINDS: dict[str, Callable[[], Iterable[str]]] = {
    "models": _models,
    "data": _data,
    "methods": _methods,
    "schedules": _schedules,
    "criteria": _criteria,
    "patterns": _patterns,
    "recipes": _recipes,
}
