"""A run's settings by the names that people use: method, target, epochs, or any dotted recipe key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from espalier.errors import EspalierError
from espalier.names import nearest
from espalier.records import numbers
from espalier.records.reading import Run

NAMES = {
    "method": "pruning.method",
    "sparsity": "pruning.sparsity",
    "target": "",
    "budget": "",
    "epochs": "train.epochs",
    "seed": "seed",
    "model": "model.name",
    "data": "data.name",
}
_ALIASES = {key: name for name, key in NAMES.items() if key}
_TARGETS = ("target", "sparsity", "budget", "pruning.sparsity", *(f"pruning.{key}" for key in numbers.BUDGETS))
_RATIOS = "pruning.ratios"


def is_dense(run: Run) -> bool:
    """Whether nothing was to be pruned."""
    return not run.sparsity_target and not run.budget


def is_target(key: str) -> bool:
    """Whether a key says how much is pruned, which a dense reference has no value of."""
    return key in _TARGETS


def is_ratio(key: str) -> bool:
    """Whether a key says how much is pruned of some layers."""
    return key == _RATIOS or key.startswith(f"{_RATIOS}.")


def is_goal(key: str) -> bool:
    """Whether a key says how much is pruned, of all or of some layers, or how long is trained."""
    return is_target(key) or is_ratio(key) or key in ("epochs", "train.epochs")


def resolve_keys(keys: Iterable[str], settings: Iterable[str]) -> list[str]:
    """Full keys of what somebody wrote: a name, a dotted key, or the end of one that is unique.

    Raises:
        EspalierError: unknown, or the end of several keys.

    Example:
        >>> resolve_keys(["method", "alpha", "train.epochs"], ["pruning.alpha", "train.epochs"])
        ['method', 'pruning.alpha', 'epochs']
    """
    known = sorted(settings)
    return [_resolve(key.strip(), known) for key in keys if key.strip()]


def _resolve(key: str, known: Sequence[str]) -> str:
    key = _ALIASES.get(key, key)
    if key in NAMES or key in known:
        return key
    ends = [other for other in known if other.endswith(f".{key}")]
    if len(ends) == 1:
        return _ALIASES.get(ends[0], ends[0])
    if ends:
        raise EspalierError(f"The key {key!r} may be {' or '.join(ends)}: write it out.")
    raise EspalierError(f"No run has a setting {key!r}: {nearest(key, [*NAMES, *known])}")


def value_of(run: Run, key: str) -> object:
    """The value of a full key; None where the run has none."""
    if key == "target":
        if run.budget:
            return numbers.budget(dict(run.budget))
        return None if is_dense(run) else f"{numbers.target(run.sparsity_target)} zeros"
    if key == "budget":
        return numbers.budget(dict(run.budget)) if run.budget else None
    if key == "sparsity":
        return run.sparsity_target or None
    if key in NAMES:
        found: object = getattr(run, key)
        return found
    value = run.settings.get(key)
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def words_of(key: str, value: object) -> str:
    """A value as the head of a row or column.

    Example:
        >>> words_of("epochs", 5), words_of("sparsity", 0.9), words_of("pruning.alpha", 14.0), words_of("seed", None)
        ('5 epochs', '90 %', 'alpha 14', '–')
    """
    if value is None:
        return numbers.NOTHING
    if key == "epochs" and isinstance(value, int):
        return numbers.epochs(value)
    if key == "sparsity" and isinstance(value, int | float):
        return numbers.target(value)
    if key in ("method", "target", "budget", "model", "data"):
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.rpartition('.')[2]} {shown}"


def matches(run: Run, wanted: Mapping[str, object]) -> bool:
    """Whether a run has these values, of full keys; a list stands for any of its entries."""
    return all(_equal(value_of(run, key), value) for key, value in wanted.items())


def _equal(has: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return any(_equal(has, one) for one in wanted)
    if isinstance(has, int | float) and isinstance(wanted, int | float):
        return abs(has - wanted) <= 1e-9 * max(1.0, abs(has))
    return has == wanted or str(has) == str(wanted)
