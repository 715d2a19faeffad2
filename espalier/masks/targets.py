"""Which weights are pruned: every convolution by default, or what ``include`` and ``exclude`` name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from espalier.errors import EspalierError

Entry = str | type[nn.Module]

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
    owners = dict(_owners(model))
    entries = CONVOLUTIONS if include is None else tuple(include)
    chosen = {name for entry in entries for name in _matches(entry, candidates, owners, required=include is not None)}
    for entry in exclude:
        chosen -= set(_matches(entry, candidates, owners, required=True))
    if include is None:
        _refuse_parametrized(model, exclude)
    if not chosen:
        hint = "the model has no convolution: name the layers to prune, say include=['Linear'] or include=['*']"
        raise EspalierError(f"No weight is selected for pruning ({hint if include is None else 'exclude removes them all'}).")
    return {name: p for name, p in candidates.items() if name in chosen}


def _owners(model: nn.Module) -> Iterator[tuple[str, tuple[str, nn.Module]]]:
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            yield f"{module_name}.{name}" if module_name else name, (module_name, module)


def _matches(
    entry: Entry, candidates: dict[str, nn.Parameter], owners: dict[str, tuple[str, nn.Module]], *, required: bool
) -> list[str]:
    found = [name for name in candidates if _fits(entry, name, *owners[name])]
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


def _refuse_parametrized(model: nn.Module, exclude: Sequence[Entry]) -> None:
    """A convolution whose weight is computed (weight norm, LoRA) has no weight to mask: say so instead of skipping it."""
    for name, module in model.named_modules():
        if not isinstance(module, CONVOLUTIONS) or "weight" in module._parameters:
            continue
        if not any(_fits(entry, f"{name}.weight", name, module) for entry in exclude):
            raise EspalierError(
                f"The weight of {name} is computed by a parametrization, so it cannot be masked: remove the "
                f"parametrization or exclude '{name}'."
            )


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"
