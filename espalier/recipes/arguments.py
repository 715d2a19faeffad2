"""Arguments of methods as a recipe writes them, names and mappings, turned into the library's objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from espalier import schedules
from espalier.criteria import CHANNEL_CRITERIA, ChannelCriterion, ChannelRandom
from espalier.errors import EspalierError
from espalier.indicators import INDICATORS, Indicator
from espalier.masks.patterns import PATTERNS, Pattern
from espalier.names import nearest
from espalier.schedules import SCHEDULES


def parse_pattern(text: object) -> Pattern:
    """Read `weight`, `kernel`, `kernel-shape`, `filter`, `input-channel`, `column`, `2:4` (N:M) or `block:4x4`.

    Example:
        >>> parse_pattern("2:4")
        NM(n=2, m=4)
    """
    try:
        text = str(text)
        if ":" in text and text.partition(":")[0].isdigit():
            n, m = text.split(":")
            return PATTERNS["n:m"](int(n), int(m))  # type: ignore[call-arg]
        kind, _, size = text.partition(":")
        if kind == "block" and size:
            rows, columns = size.split("x")
            return PATTERNS["block"](int(rows), int(columns))  # type: ignore[call-arg]
        return PATTERNS[text]()
    except (KeyError, ValueError) as error:
        if isinstance(error, EspalierError):
            raise
        plain = ", ".join(name for name in PATTERNS if name not in ("n:m", "block"))
        known = f"{plain}, N:M such as 2:4, block:ROWSxCOLUMNS such as block:4x4"
        raise EspalierError(f"The pattern {text!r} is unknown: known are {known}.") from None


def parse_schedule(given: str | dict[str, Any], sparsity: float | None) -> schedules.Schedule:
    """Read a schedule's name, or a mapping with `name` and its arguments; it ends at `sparsity` unless told."""
    name, args = _named(given, SCHEDULES, "schedule")
    if sparsity is not None:
        args.setdefault("final", sparsity)
    try:
        return SCHEDULES[name](**args)
    except TypeError as error:
        raise EspalierError(f"The schedule {name!r} does not take these arguments ({error}).") from None


def parse_indicator(given: object) -> Indicator:
    """Read an indicator's name, or a mapping with `name` and its arguments.

    Example:
        >>> parse_indicator({"name": "jaccard", "lag": 1})
        JaccardStability(lag=1, window=3, threshold=0.999)
    """
    name, args = _named(given, INDICATORS, "indicator")
    made: Indicator = _made(INDICATORS[name], args, f"indicator {name!r}")
    return made


def parse_channel_criterion(given: object, seed: int = 0) -> ChannelCriterion:
    """Read the name of a criterion of channels, or a mapping with `name` and its arguments.

    One that draws does so by `seed`, unless it has one of its own: runs of several seeds are several draws.

    Example:
        >>> parse_channel_criterion({"name": "group-saliency", "root": True})
        GroupSaliency(p=2.0, root=True)
    """
    name, args = _named(given, CHANNEL_CRITERIA, "criterion")
    if name == ChannelRandom.name:
        args.setdefault("seed", seed)
    made: ChannelCriterion = _made(CHANNEL_CRITERIA[name], args, f"criterion {name!r}")
    return made


def _named(given: object, known: Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a text or a mapping; the name is one of `known`."""
    args = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = args.pop("name", None)
    if name is None:
        raise EspalierError(f"The recipe's pruning.{what} needs a name, such as {{name: {next(iter(known))}}}.")
    if not isinstance(name, str) or name not in known:
        raise EspalierError(f"The {what} {name!r} is unknown: {nearest(str(name), known)}")
    return name, args


def _made(kind: Callable[..., Any], args: Mapping[str, Any], what: str) -> Any:
    known = [name for name in getattr(kind, "__dataclass_fields__", {})]
    for key in args:
        if key not in known:
            hint = nearest(str(key), known) if known else "it takes none."
            raise EspalierError(f"The {what} has no argument {key!r}: {hint}")
    try:
        return kind(**args)
    except (TypeError, AttributeError) as error:
        raise EspalierError(f"The recipe's arguments do not fit the {what} ({error}).") from None
