"""Compare methods at equal budget: plan the runs; `espalier.recipes.experiments.carrying` carries them out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espalier.errors import EspalierError
from espalier.recipes.experiments.carrying import PlannedRun
from espalier.recipes.pruning import RATIOS, as_prune_at, build_method, cuts, for_method, has_ratios, takes_sparsity
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.recipes.training import runs

DENSE = "dense"
DEFAULT_METHODS = (DENSE, "one-shot", "iterative", "agp", "ocp")


@dataclass(frozen=True)
class Entry:
    """A method to compare, with arguments that hold for it alone, as `key=value` texts.

    Example:
        >>> Entry.read("ocsp:progressive=4:criterion=magnitude")
        Entry(method='ocsp', own=('progressive=4', 'criterion=magnitude'))
    """

    method: str
    own: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Entry:
        """Read `METHOD:KEY=VALUE:KEY=VALUE`.

        Raises:
            EspalierError: what follows the method is no `key=value`.
        """
        method, _, rest = text.partition(":")
        own = tuple(part.strip() for part in re.split(r":(?=\s*[A-Za-z_.]+=)", rest)) if rest else ()
        for part in own:
            key, sign, _ = part.partition("=")
            if not sign or not key or key == "method":
                raise EspalierError(f"{text!r} should have the form METHOD:KEY=VALUE, such as ocsp:progressive=4.")
        return cls(method.strip(), own)


def read_entries(text: str) -> list[Entry]:
    """Read names of methods, with their arguments, separated by commas (those in brackets do not count).

    Example:
        >>> [entry.method for entry in read_entries("dense,ocsp:include=[layer1.*,layer2.*],epi")]
        ['dense', 'ocsp', 'epi']
    """
    return [Entry.read(part.strip()) for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]


def default_methods(recipe: Recipe, *, cutting: bool, ratios: bool = False) -> list[str]:
    """What is compared unless told: the schedules of masks; where channels are cut, dense and the recipe's or two methods;
    where the recipe's `ratios` count, dense, one-shot pruning and the recipe's method."""
    if ratios:
        return list(dict.fromkeys((DENSE, "one-shot", recipe.pruning.method)))
    if cuts(recipe.pruning.method):
        return [DENSE, recipe.pruning.method]
    return [DENSE, "ocsp", "epi"] if cutting else list(DEFAULT_METHODS)


def refuse_unused(methods: Sequence[str | Entry], *, sparsity: bool, keep_macs: bool) -> None:
    """Refuse a target that was given on the command line and that none of the methods takes.

    Raises:
        EspalierError: names the methods and the option.
    """
    names = [one if isinstance(one, str) else one.method for one in methods]
    those = ", ".join(names)
    if sparsity and names and not any(map(takes_sparsity, names)):
        raise EspalierError(f"None of {those} takes --sparsity: leave it out, it is for methods that zero weights.")
    if keep_macs and names and not any(map(cuts, names)):
        raise EspalierError(f"None of {those} takes --keep-macs: leave it out, it is for methods that cut channels.")


def plan(
    recipe: Recipe,
    methods: Sequence[str | Entry],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    budgets: Sequence[int],
    out: Path,
    *,
    keep_macs: Sequence[float] = (),
    prune_at: Sequence[float] = (),
) -> list[PlannedRun]:
    """All runs of a comparison, seed by seed, so that a partial table is balanced.

    The dense reference depends on no target and is trained once per seed and number of epochs.

    Args:
        recipe: what all runs have in common.
        methods: names, or entries with arguments.
        sparsities: for methods that zero weights; none: the recipe's `ratios`, where it has some.
        seeds: of all runs.
        budgets: in epochs.
        out: where run folders go.
        keep_macs: for methods that cut; none: the budget in the recipe or in the entry.
        prune_at: epochs for a grid search: one cut each, as the recipe's method (or the first of `methods` that cuts) makes it.

    Raises:
        EspalierError: a method, target, seed or budget is refused; before any run starts.
    """
    if min((*seeds, 0)) < 0 or min((*budgets, 1)) < 1:
        raise EspalierError("A seed is a whole number of at least 0, and a budget one of at least 1 epoch.")
    entries = [Entry(one) if isinstance(one, str) else one for one in methods]
    variants = list(_prunings(recipe.pruning, entries, sparsities, keep_macs, prune_at))
    planned: dict[Path, PlannedRun] = {}
    for seed in seeds:
        for epochs in budgets:
            for pruning in variants:
                build_method(pruning, epochs=epochs)
                train = recipe.train.model_copy(update={"epochs": epochs})
                one = recipe.model_copy(update={"pruning": pruning, "train": train, "seed": seed})
                folder = out / runs.run_name(one)
                planned.setdefault(folder, PlannedRun(one, folder))
    if not planned:
        raise EspalierError("There is nothing to compare: give at least one method, sparsity, seed and budget.")
    return list(planned.values())


def _prunings(
    base: PruningSpec,
    entries: Sequence[Entry],
    sparsities: Sequence[float],
    keep_macs: Sequence[float],
    prune_at: Sequence[float],
) -> Iterable[PruningSpec]:
    """The pruning sections of one seed: without a target, by sparsity, by MACs."""
    for entry in entries:
        if not takes_sparsity(entry.method) and not cuts(entry.method):
            yield for_method(base, entry.method, own=entry.own)
    for sparsity in sparsities or ((None,) if has_ratios(base) else ()):
        for entry in entries:
            if takes_sparsity(entry.method):
                spec = for_method(base, entry.method, sparsity, own=entry.own)
                if sparsity is None and spec.sparsity is None and not has_ratios(spec):
                    raise EspalierError(
                        f"The recipe has pruning.{RATIOS} in place of a sparsity, which {entry.method!r} does not take: give "
                        f"--sparsity, {entry.method}:sparsity=0.9, or methods that do."
                    )
                yield spec
    cutting = [entry for entry in entries if cuts(entry.method)]
    for share in keep_macs or (None,):
        made = [for_method(base, entry.method, keep_macs=share, own=entry.own) for entry in cutting]
        for spec in made:
            if not spec.budget:
                raise EspalierError(f"The method {spec.method!r} needs a budget: give --keep-macs 0.5, or one in the recipe.")
        yield from made
        if prune_at:
            own = for_method(base, base.method, keep_macs=share) if cuts(base.method) else None
            model = own or next(iter(made), None) or for_method(base, "prune-at", keep_macs=share)
            yield from (as_prune_at(model, epoch) for epoch in prune_at)
