"""From the `pruning` section of a recipe to a method object of the library."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import espalier as es
from espalier import schedules
from espalier.errors import EspalierError
from espalier.masks.patterns import PATTERNS, Pattern
from espalier.methods.scheduled import Scheduled
from espalier.recipes.recipe import nearest
from espalier.recipes.spec import PruningSpec

SCHEDULES: dict[str, type[schedules.Schedule]] = {
    "one-cycle": schedules.OneCycle,
    "step": schedules.Step,
    "staircase": schedules.Staircase,
    "cubic": schedules.Cubic,
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "exponential": schedules.Exponential,
    "dense-sparse-dense": schedules.DenseSparseDense,
    "constant": schedules.Constant,
}


def build_method(spec: PruningSpec) -> Any:
    """Make the method that the recipe names.

    Raises:
        EspalierError: unknown method or argument (the nearest known one is named), or a combination it refuses.

    Example:
        >>> build_method(PruningSpec(method="ocp", sparsity=0.9)).sparsity
        0.9
    """
    method = _method_class(spec.method)
    known = method_arguments(spec.method)
    given = spec.args
    if takes_sparsity(spec.method) and spec.sparsity is None:
        raise EspalierError(f"The method {spec.method!r} needs pruning.sparsity, such as pruning.sparsity=0.9.")
    if "sparsity" in known:
        given["sparsity"] = spec.sparsity
    elif spec.method in SCHEDULES:
        given["curve"] = spec.method
    for key in given:
        if key not in known:
            raise EspalierError(f"The method {spec.method!r} has no argument {key!r}: {nearest(key, known)}")
    for key in ("include", "exclude"):
        if not isinstance(given.get(key, []), (list, str, type(None))):  # the method itself refuses a text
            raise EspalierError(f"pruning.{key} must be a list of name patterns, such as [layer1.*], not {given[key]!r}.")
    if not isinstance(given.get("criterion", ""), str):
        raise EspalierError(
            f"pruning.criterion must be a name that `espalier list criteria` shows, not {given['criterion']!r}."
        )
    if "pattern" in given:
        given["pattern"] = parse_pattern(given["pattern"])
    if isinstance(given.get("curve"), (str, dict)):
        given["curve"] = parse_schedule(given["curve"], spec.sparsity)
    try:
        return method(**given)
    except (TypeError, AttributeError) as error:
        raise EspalierError(f"The recipe's pruning section does not fit {spec.method!r} ({error}).") from None


def method_arguments(name: str) -> list[str]:
    """Names of the arguments that a method takes."""
    return list(inspect.signature(_method_class(name)).parameters)


def takes_sparsity(name: str) -> bool:
    """Whether the method has a target at all."""
    return bool({"sparsity", "curve"} & set(method_arguments(name)))


def for_method(spec: PruningSpec, method: str, sparsity: float | None) -> PruningSpec:
    """The same pruning section with another method: arguments that only the old one has are left out.

    What both take (scope, pattern, criterion, include, ...) says *where* to prune and is kept, so that methods are
    compared on the same weights.
    """
    known = method_arguments(method)
    if sparsity is not None and not 0 <= sparsity < 1:
        raise EspalierError(f"A sparsity is a share of at least 0 and less than 1, such as 0.9; got {sparsity:g}.")
    where = [f.name for f in dataclasses.fields(Scheduled)]
    kept = {k: v for k, v in spec.args.items() if k in known and (method == spec.method or k in where)}
    return PruningSpec(method=method, sparsity=sparsity if takes_sparsity(method) else None, **kept)


def _method_class(name: str) -> type[es.Method]:
    """The class of a method; the name of a schedule stands for following that schedule."""
    if name in es.METHODS:
        return es.METHODS[name]
    if name in SCHEDULES:
        return es.Follow
    raise EspalierError(f"The method {name!r} is unknown: {nearest(name, [*es.METHODS, *SCHEDULES])}")


def parse_pattern(text: object) -> Pattern:
    """Read `weight`, `kernel`, `filter`, `2:4` (N:M) or `block:4x4`.

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
        known = "weight, kernel, filter, N:M such as 2:4, block:ROWSxCOLUMNS such as block:4x4"
        raise EspalierError(f"The pattern {text!r} is unknown: known are {known}.") from None


def parse_schedule(given: str | dict[str, Any], sparsity: float | None) -> schedules.Schedule:
    """Read a schedule's name, or a mapping with `name` and its arguments; it ends at `sparsity` unless told."""
    args: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    name = args.pop("name", None)
    if name not in SCHEDULES:
        raise EspalierError(f"The schedule {name!r} is unknown: {nearest(str(name), SCHEDULES)}")
    if sparsity is not None:
        args.setdefault("final", sparsity)
    try:
        return SCHEDULES[name](**args)
    except TypeError as error:
        raise EspalierError(f"The schedule {name!r} does not take these arguments ({error}).") from None
