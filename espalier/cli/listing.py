"""`espalier list [models|data|methods|schedules|criteria|patterns|channel-criteria|indicators|recipes]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from espalier.errors import EspalierError


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            help="models, data, methods, schedules, criteria, patterns, channel-criteria, indicators or recipes; default: all."
        ),
    ] = None,
) -> None:
    """Show what recipes can name."""
    if what is not None and what not in KINDS:
        raise EspalierError(f"There is nothing to list under {what!r}: known are {', '.join(KINDS)}.")
    if what == "methods":
        typer.echo("\n".join(_with_targets()))
    elif what is not None:
        typer.echo("\n".join(KINDS[what]()))
    else:
        for kind, names in KINDS.items():
            typer.echo(f"{kind}: {', '.join(names())}")


def _models() -> Iterable[str]:
    from espalier.tasks.classification.models import model_names

    return [*model_names(), "torchvision:NAME", "timm:NAME"]


def _data() -> Iterable[str]:
    from espalier.tasks.classification.data import data_names

    return list(data_names())


def _methods() -> Iterable[str]:
    from espalier import METHODS

    return METHODS


def _with_targets() -> Iterable[str]:
    """Each method with what a recipe may give as its target."""
    from espalier import METHODS
    from espalier.recipes.pruning import budgets_of

    width = max(map(len, METHODS))
    return [f"{name:<{width}}  {', '.join(budgets_of(name))}".rstrip() for name in METHODS]


def _schedules() -> Iterable[str]:
    from espalier.schedules import SCHEDULES

    return SCHEDULES


def _criteria() -> Iterable[str]:
    from espalier.criteria import CRITERIA

    return CRITERIA


def _patterns() -> Iterable[str]:
    from espalier.masks.patterns import PATTERNS

    return PATTERNS


def _channel_criteria() -> Iterable[str]:
    from espalier.criteria import CHANNEL_CRITERIA

    return CHANNEL_CRITERIA


def _indicators() -> Iterable[str]:
    from espalier.indicators import INDICATORS

    return INDICATORS


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
    "channel-criteria": _channel_criteria,
    "indicators": _indicators,
    "recipes": _recipes,
}
