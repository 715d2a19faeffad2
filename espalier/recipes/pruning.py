"""From the `pruning` section of a recipe to a method object of the library."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

import espalier as es
from espalier.criteria.weights import Random
from espalier.errors import EspalierError
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.frame.masking.ratios import WithRatios
from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.methods.frame.splitting.iteration import Iterated
from espalier.methods.frame.splitting.masks import Splitting
from espalier.names import nearest
from espalier.recipes.arguments import (
    parse_channel_criterion,
    parse_indicator,
    parse_pattern,
    parse_schedule,
)
from espalier.recipes.recipe import apply_overrides
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.records.numbers import BUDGETS
from espalier.schedules import SCHEDULES

# Written in epochs in a recipe, in steps or shares of the training in the library.
IN_EPOCHS = {"checks_per_epoch": "check_every", "at_epoch": "at", "hard_prune_at_epoch": "hard_prune_at"}
RATIOS = "ratios"  # shares by name pattern in place of one sparsity, which the library's methods take under that name
RESTART = "restart_lr"  # also the recipe's alone: the learning-rate schedule starts over with each stage of the method
# How channels are ranked belongs to a method; where and under which budget it cuts is the same for all that are compared.
_RANKING = ("criterion", "scope", "normalise")


def build_method(spec: PruningSpec, *, epochs: int | None = None, steps_per_epoch: int | None = None, seed: int = 0) -> Any:
    """Make the method that the recipe names.

    Args:
        spec: the section.
        epochs: of the whole training, which `at_epoch` is a part of; None: not known yet, any will do.
        steps_per_epoch: optimizer steps, which `checks_per_epoch` are spread over; None: not known yet.
        seed: of the run, by which `criterion: random` draws.

    Raises:
        EspalierError: unknown method or argument (the nearest known one is named), or a combination it refuses.

    Example:
        >>> build_method(PruningSpec(method="ocp", sparsity=0.9)).sparsity
        0.9
        >>> build_method(PruningSpec(method="prune-at", keep_macs=0.5, at_epoch=5), epochs=20).at
        0.25
    """
    method = _method_class(spec.method)
    known = method_arguments(spec.method)
    _check_target(spec, known)
    given = _without_epochs(spec, known, epochs, steps_per_epoch)
    if "sparsity" in known:
        given["sparsity"] = given.pop(RATIOS, None) or spec.sparsity
    elif spec.method in SCHEDULES:
        given["curve"] = spec.method
    for key in given:
        if key not in known:
            raise EspalierError(f"The method {spec.method!r} has no argument {key!r}: {nearest(key, _writable(known))}")
    for key in ("include", "exclude"):
        if not isinstance(given.get(key, []), (list, str, type(None))):  # the method itself refuses a text
            raise EspalierError(f"pruning.{key} must be a list of name patterns, such as [layer1.*], not {given[key]!r}.")
    try:
        return method(**_parsed(given, spec.sparsity, cuts=method.cuts, seed=seed))
    except (TypeError, AttributeError) as error:
        raise EspalierError(f"The recipe's pruning section does not fit {spec.method!r} ({error}).") from None


def lr_restarts(recipe: Recipe) -> tuple[float, ...]:
    """Shares of the training at which the recipe's learning-rate schedule starts over.

    Raises:
        EspalierError: the pruning section is refused, or restarts are given twice.

    Example:
        >>> section = {"method": "train-prune-finetune", "keep_macs": 0.5, "learn_from": 0.4, "at": 0.6, "restart_lr": True}
        >>> lr_restarts(Recipe(model="resnet20", data="digits", pruning=section))
        (0.4, 0.6)
    """
    method = build_method(recipe.pruning, epochs=recipe.train.epochs)
    own = recipe.lr_schedule.restart_at or ()
    if not recipe.pruning.args.get(RESTART):
        return own
    if own:
        raise EspalierError(f"Give lr_schedule.restart_at or pruning.{RESTART}, not both.")
    return tuple(share for share in method.stages if 0 < share < 1)  # a cut before or after the training starts nothing over


def method_arguments(name: str) -> list[str]:
    """Names of the arguments that a method takes."""
    return list(inspect.signature(_method_class(name)).parameters)


def takes_sparsity(name: str) -> bool:
    """Whether the method has a share of zeros as its target."""
    return bool({"sparsity", "curve"} & set(method_arguments(name)))


def takes_ratios(name: str) -> bool:
    """Whether the method takes a share of zeros for every name pattern."""
    return issubclass(_method_class(name), WithRatios)


def has_ratios(spec: PruningSpec) -> bool:
    """Whether the section gives shares by name pattern in place of one sparsity."""
    return bool(spec.args.get(RATIOS))


def cuts(name: str) -> bool:
    """Whether the method cuts channels, and so takes a budget."""
    return _method_class(name).cuts


def budgets_of(name: str) -> list[str]:
    """What a method may be given as its target: `sparsity`, or budgets."""
    known = method_arguments(name)
    return [key for key in ("sparsity", *BUDGETS) if key in known or (key == "sparsity" and takes_sparsity(name))]


def for_method(
    spec: PruningSpec,
    method: str,
    sparsity: float | None = None,
    *,
    keep_macs: float | None = None,
    own: Sequence[str] = (),
) -> PruningSpec:
    """The same pruning section with another method: arguments that only the old one has are left out.

    What both take (pattern, include, rounding, budget, ...) says *where* and *how much* to prune and is kept, so that methods
    are compared on the same terms. Masks of weights and cuts of channels have nothing in common.

    Args:
        spec: the section.
        method: the other method.
        sparsity: its share of zeros, if it takes one; None: the section's `ratios`, if it has and the method takes some.
        keep_macs: its budget in place of the section's, if it cuts.
        own: `key=value` texts that hold for this method alone; a budget among them replaces any other.
    """
    known = method_arguments(method)
    if sparsity is not None and not 0 <= sparsity < 1:
        raise EspalierError(f"A sparsity is a share of at least 0 and less than 1, such as 0.9; got {sparsity:g}.")
    raw: dict[str, Any] = {"sparsity": sparsity if takes_sparsity(method) else None}
    raw |= {key: value for key, value in spec.args.items() if key in _writable(known) and _is_shared(key, spec.method, method)}
    if keep_macs is not None and cuts(method):
        raw = {key: value for key, value in raw.items() if key not in BUDGETS} | {"keep_macs": keep_macs}
    given = {text.partition("=")[0].partition(".")[0].strip() for text in own}
    keeps = sparsity is None and "sparsity" not in given and takes_ratios(method)
    if RATIOS in given or (keeps and raw.get(RATIOS)):
        raw.pop("sparsity")
    else:
        raw.pop(RATIOS, None)
    replaced = {other for pair in IN_EPOCHS.items() if given & set(pair) for other in pair}
    replaced |= set(BUDGETS) if given & set(BUDGETS) else set()
    raw = {key: value for key, value in raw.items() if key not in replaced}
    raw = apply_overrides({"pruning": raw}, [f"pruning.{text}" for text in own])["pruning"]
    try:
        return PruningSpec(**({"method": method} | raw))
    except ValidationError:
        raise EspalierError(f"{', '.join(own)} does not fit the method {method!r}: a sparsity is a share below 1.") from None


def as_prune_at(spec: PruningSpec, epoch: float) -> PruningSpec:
    """A section of a method that cuts, as the same cut at a fixed epoch: same ranking, caps, widths and budget.

    Arguments that the method leaves at defaults of its own are written out.
    """
    raw = {key: value for key, value in spec.args.items() if key in _writable(method_arguments("prune-at"))}
    if cuts(spec.method) and spec.method != "prune-at":
        method = build_method(spec)
        for field in dataclasses.fields(Structured):
            value = getattr(method, field.name)
            told = field.name in raw or field.name == "check_every"  # which is a placeholder while steps are not known
            if not told and value != field.default and isinstance(value, str | int | float):
                raw[field.name] = value
    raw = {key: value for key, value in raw.items() if key not in ("at", "at_epoch")}
    raw["at_epoch"] = int(epoch) if epoch == int(epoch) else epoch
    return PruningSpec(method="prune-at", **raw)


def _is_shared(key: str, old: str, new: str) -> bool:
    """Whether an argument of one method means the same for another."""
    if old == new:
        return True
    if key == RATIOS:
        return takes_ratios(new)
    if cuts(old) or cuts(new):
        fields = {field.name for field in dataclasses.fields(Structured)} - set(_RANKING) | {"checks_per_epoch"}
        if all(issubclass(_method_class(name), Iterated) for name in (old, new)):
            fields |= {field.name for field in dataclasses.fields(Iterated)} | {"hard_prune_at_epoch"}
        return cuts(old) and cuts(new) and key in fields
    if key in ("checks_per_epoch", "hard_prune_at_epoch") or key in {field.name for field in dataclasses.fields(Splitting)}:
        split = all(issubclass(_method_class(name), Splitting) for name in (old, new))
        return split or key in {field.name for field in dataclasses.fields(Scheduled)}
    return False


def _writable(known: Sequence[str]) -> list[str]:
    """Arguments as a recipe may write them."""
    return [*known, RATIOS, RESTART, *(key for key, stands_for in IN_EPOCHS.items() if stands_for in known)]


def _without_restart(spec: PruningSpec) -> dict[str, Any]:
    """The arguments without the one that speaks of the learning rate; that one checked."""
    given = spec.args
    wanted = given.pop(RESTART, None)
    if wanted is not None and not isinstance(wanted, bool):
        raise EspalierError(f"pruning.{RESTART} is true or false; got {wanted!r}.")
    if wanted and not has_stages(spec.method):
        those = ", ".join(name for name in es.METHODS if has_stages(name))
        raise EspalierError(
            f"The method {spec.method!r} has no stages that are known beforehand, so pruning.{RESTART} means nothing to it: "
            f"give lr_schedule.restart_at, or one of {those}."
        )
    return given


def has_stages(name: str) -> bool:
    """Whether the moments at which the method turns to something else are settings of it."""
    method = _method_class(name)
    return issubclass(method, Structured) and method.stages is not Structured.stages


def _check_target(spec: PruningSpec, known: Sequence[str]) -> None:
    """A share of zeros for methods that zero weights, a budget for those that cut channels."""
    name = spec.method
    if spec.args.get(RATIOS) is not None:
        _check_ratios(spec)
    elif takes_sparsity(name):
        if spec.sparsity is None:
            raise EspalierError(f"The method {name!r} needs pruning.sparsity, such as pruning.sparsity=0.9.")
    elif spec.sparsity is not None:
        instead = "give a budget such as pruning.keep_macs=0.5, and" if cuts(name) else "to train it,"
        raise EspalierError(f"The method {name!r} takes no pruning.sparsity: {instead} set pruning.sparsity=null.")
    for key in spec.args:
        if key in BUDGETS and key not in known:
            those = ", ".join(other for other in es.METHODS if cuts(other))
            raise EspalierError(f"The method {name!r} takes no pruning.{key}: that is a budget of methods that cut ({those}).")


def _check_ratios(spec: PruningSpec) -> None:
    if not takes_ratios(spec.method):
        those = ", ".join(name for name in es.METHODS if takes_ratios(name))
        raise EspalierError(f"The method {spec.method!r} takes no pruning.{RATIOS}: those that do are {those}.")
    if spec.sparsity is not None:
        raise EspalierError(f"Give pruning.sparsity or pruning.{RATIOS}, not both.")
    if not isinstance(spec.args[RATIOS], dict):
        raise EspalierError(f"pruning.{RATIOS} is a mapping such as {{layer1.*: 0.9}}, not {spec.args[RATIOS]!r}.")


def _without_epochs(spec: PruningSpec, known: Sequence[str], epochs: int | None, steps_per_epoch: int | None) -> dict[str, Any]:
    """The arguments with what is written in epochs turned into steps and shares."""
    given = _without_restart(spec)
    for key, stands_for in IN_EPOCHS.items():
        if key not in given or stands_for not in known:
            continue
        value = given.pop(key)
        if value is None:
            continue
        if given.get(stands_for) is not None:
            raise EspalierError(f"Give pruning.{key} or pruning.{stands_for}, not both.")
        moment = key != "checks_per_epoch"
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (key != "at_epoch" and not value):
            least = "of at least 0" if key == "at_epoch" else "above 0"
            raise EspalierError(f"pruning.{key} is a number {least}; got {value!r}.")
        if moment:
            if epochs is not None and value > epochs:
                raise EspalierError(f"pruning.{key}={value} comes after the end of a training of {epochs} epochs.")
            given[stands_for] = min(1.0, value / epochs) if epochs is not None else 0.5 if key == "at_epoch" else 1.0
        else:
            given[stands_for] = max(1, round(steps_per_epoch / value)) if steps_per_epoch is not None else 1
    return given


def _parsed(given: dict[str, Any], sparsity: float | None, *, cuts: bool, seed: int) -> dict[str, Any]:
    """The arguments with names and mappings turned into objects."""
    made = dict(given)
    if cuts:
        if "criterion" in made:
            made["criterion"] = parse_channel_criterion(made["criterion"], seed)
        if made.get("indicator") is not None:
            made["indicator"] = parse_indicator(made["indicator"])
        return made
    if not isinstance(made.get("criterion", ""), str):
        raise EspalierError(f"pruning.criterion must be a name that `espalier list criteria` shows, not {made['criterion']!r}.")
    if made.get("criterion") == "random":
        made["criterion"] = Random(seed)
    if "pattern" in made:
        made["pattern"] = parse_pattern(made["pattern"])
    if isinstance(made.get("curve"), (str, dict)):
        made["curve"] = parse_schedule(made["curve"], sparsity)
    return made


def _method_class(name: str) -> type[es.Method]:
    """The class of a method; the name of a schedule stands for following that schedule."""
    if name in es.METHODS:
        return es.METHODS[name]
    if name in SCHEDULES:
        return es.Follow
    raise EspalierError(f"The method {name!r} is unknown: {nearest(name, [*es.METHODS, *SCHEDULES])}")
