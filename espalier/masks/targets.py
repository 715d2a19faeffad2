"""Which weights are pruned: every convolution by default, what ``include`` and ``exclude`` name, or what has a ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from espalier.errors import EspalierError

Entry = str | type[nn.Module]
Place = tuple[str, str, nn.Module]  # name of a parameter, name of its module, the module

CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def select_weights(
    model: nn.Module, include: Sequence[Entry] | None = None, exclude: Sequence[Entry] = ()
) -> dict[str, nn.Parameter]:
    """Name -> parameter of every weight to prune, in the order of ``model.named_parameters()``.

    An entry is a module type (``nn.Linear``), its name (``"Linear"``), or a pattern (``"layer1.*"``, ``"*"`` for every
    weight of two or more dimensions) that is held against names of parameters and of modules. None means every
    convolution, as in the code of the One-Cycle paper.

    Raises:
        EspalierError: for an entry that matches nothing, and if nothing is left.
    """
    candidates = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    places = _places(model)
    entries = CONVOLUTIONS if include is None else tuple(include)
    chosen = {name for entry in entries for name in _matches(entry, candidates, places, required=include is not None)}
    hint = "the model has no convolution: name the layers to prune, say include=['Linear'] or include=['*']"
    hint = "exclude removes them all" if chosen else hint if include is None else "include is empty"
    for entry in exclude:
        chosen -= set(_matches(entry, candidates, places, required=True))
    _refuse_parametrized(model, entries, exclude)
    if not chosen:
        raise EspalierError(f"No weight is selected for pruning ({hint}).")
    return {name: p for name, p in candidates.items() if name in chosen}


def select_ratios(model: nn.Module, ratios: Mapping[str, float], exclude: Sequence[Entry] = ()) -> dict[str, float]:
    """Name of weight -> share to prune, for every weight that a pattern names; of several patterns the last one counts.

    Weights with a share of 0 stay dense and are left out.

    Raises:
        EspalierError: for a pattern that matches nothing, and if nothing is left.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> select_ratios(model, {"Linear": 0.9, "1": 0.5})
        {'0.weight': 0.9, '1.weight': 0.5}
    """
    shares: dict[str, float] = {}
    for pattern, ratio in ratios.items():
        shares |= dict.fromkeys(select_weights(model, [pattern]), float(ratio))
    chosen = select_weights(model, list(ratios), exclude)
    found = {name: shares[name] for name in chosen if shares[name]}
    if not found:
        raise EspalierError("No weight is selected for pruning (every ratio is 0).")
    return found


def _places(model: nn.Module) -> dict[str, list[Place]]:
    """Where each parameter is found; a tied one is found in several places, and an entry may mean any of them."""
    first = {id(p): name for name, p in model.named_parameters()}
    places: dict[str, list[Place]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for leaf, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{module_name}.{leaf}" if module_name else leaf
            places.setdefault(first[id(p)], []).append((name, module_name, module))
    return places


def _matches(entry: Entry, candidates: dict[str, nn.Parameter], places: dict[str, list[Place]], *, required: bool) -> list[str]:
    found = [name for name in candidates if any(_fits(entry, *place) for place in places[name])]
    if required and not found:
        shown = entry if isinstance(entry, str) else entry.__name__
        raise EspalierError(
            f"'{shown}' matches no weight of two or more dimensions; the model's weights are {_some(list(candidates))}."
        )
    return found


def _fits(entry: Entry, name: str, module_name: str, module: nn.Module) -> bool:
    if isinstance(entry, type):
        return isinstance(module, entry)
    if not isinstance(entry, str):
        raise EspalierError(f"include and exclude take name patterns and module types; got {entry!r}.")
    return (
        fnmatchcase(name, entry)
        or fnmatchcase(module_name, entry)
        or any(kind.__name__ == entry for kind in type(module).__mro__)
    )


def _refuse_parametrized(model: nn.Module, entries: Sequence[Entry], exclude: Sequence[Entry]) -> None:
    """A layer whose weight is computed (weight norm, old masks) has no weight to mask: say so instead of skipping it."""
    for name, module in model.named_modules():
        place = (f"{name}.weight", name, module)
        if not any(_fits(entry, *place) for entry in entries) or any(_fits(entry, *place) for entry in exclude):
            continue
        if "weight" in module._parameters or "weight" in module._buffers:
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter) and weight.dim() >= 2:
            raise EspalierError(
                f"The weight of {name} is computed by a parametrization, so it cannot be masked: remove the "
                f"parametrization or exclude '{name}*'."
            )


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"
