"""Loading a state dict of other shapes: stateless hooks that reshape the model to the record that travels with the tensors.

``install`` puts two hooks on a model. On saving, its ``Structure`` goes into ``state_dict()._metadata``; on loading, the model
takes the recorded shapes, narrower or wider, before torch copies anything. Without a record nothing is reshaped and torch's
own error stands. The hooks are functions of this module, so a deep copy of the model drags nothing along.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError
from espalier.structure import Structure
from espalier.surgery.cutting import shape_to, structure_of
from espalier.wrappers import unwrap

KEY = "espalier"
FLAG = "_espalier_reshapes"  # copied with the model, as its hooks are; False makes them do nothing


class Passenger(Protocol):
    """Somebody who keeps tensors of the parameters' shapes: the run of a method."""

    def companions(self) -> Sequence[MutableMapping[str, Tensor]]:
        """Tensors by parameter name that a cut slices too."""

    def reshaped(self) -> None:
        """Called after a cut."""


@dataclass
class Bound:
    """What has to be reshaped along with a model. Weak, like the table: an optimizer's hooks hold its Pruner and so the model,
    and a strong value would keep its own key alive."""

    optimizers: list[weakref.ref[Optimizer]] = field(default_factory=list)
    followers: list[weakref.ref[nn.Module]] = field(default_factory=list)
    passenger: weakref.ref[Passenger] | None = None

    def living_optimizers(self) -> list[Optimizer]:
        return [o for ref in self.optimizers if (o := ref()) is not None]

    def living_followers(self) -> list[nn.Module]:
        return [f for ref in self.followers if (f := ref()) is not None]


_bound: weakref.WeakKeyDictionary[nn.Module, Bound] = weakref.WeakKeyDictionary()


def install(model: nn.Module) -> None:
    """Make ``model`` record its structure on saving and take up a recorded one on loading. Twice is once."""
    if FLAG not in model.__dict__:
        model.register_state_dict_post_hook(_record)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(_take_up)  # type: ignore[no-untyped-call]
    model.__dict__[FLAG] = True


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any], *, strict: bool = True) -> nn.Module:
    """Load a state dict of a cut model, such as ``torch.load(path, weights_only=True)["model"]``, into a freshly built one.

    Build optimizers and EMA models after this, and load their states then.

    Args:
        model: of the same constructor; it takes the shapes of the structure that travels with the state dict.
        state_dict: as ``model.state_dict()`` gave it; a copy into a plain dict has lost the structure.
        strict: refuse missing and superfluous names.

    Returns:
        ``model``.

    Raises:
        EspalierError: if the structure belongs to another model.
        RuntimeError: torch's own, for names and shapes that don't fit.

    Example:
        >>> import torch, espalier as es
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = build()
        >>> graph = es.trace(net, torch.zeros(1, 4))
        >>> _ = es.cut(net, {graph.groups[0]: [0, 3, 5]})
        >>> es.load_state_dict(build(), net.state_dict())[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    install(unwrap(model))
    model.load_state_dict(state_dict, strict=strict)
    return model


def uninstall(model: nn.Module) -> None:
    """Neither record nor take up structures any more."""
    if FLAG in model.__dict__:
        model.__dict__[FLAG] = False


def bind(
    model: nn.Module, optimizers: Sequence[Optimizer], followers: Sequence[nn.Module], passenger: Passenger | None = None
) -> None:
    """Name what is reshaped along when this very model (no copy of it) is cut or loads other shapes. Keeps nothing alive."""
    _bound[model] = Bound(
        [weakref.ref(o) for o in optimizers],
        [weakref.ref(f) for f in followers],
        None if passenger is None else weakref.ref(passenger),
    )


def bound_to(model: nn.Module) -> Bound:
    """What ``bind`` was told."""
    return _bound.get(model) or Bound()


def unbind(model: nn.Module) -> None:
    """Forget what ``bind`` was told."""
    _bound.pop(model, None)


def take_shape(model: nn.Module, structure: Structure) -> None:
    """``shape_to`` with the optimizers and followers that are bound to ``model``.

    Raises:
        EspalierError: if the structure belongs to another model. Nothing has changed then.
    """
    bound = bound_to(model)
    shape_to(model, structure, optimizers=bound.living_optimizers(), followers=bound.living_followers())


def _record(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    if model.__dict__.get(FLAG):
        metadata[KEY] = structure_of(model).to_json()


def _take_up(model: nn.Module, state: Mapping[str, Any], prefix: str, metadata: dict[str, Any], *_: object) -> None:
    text = metadata.get(KEY)
    if text is None or not model.__dict__.get(FLAG):
        return
    structure = Structure.from_json(text)
    for name in structure.shapes:
        tensor = state.get(prefix + name)
        if isinstance(tensor, Tensor) and tuple(tensor.shape) != structure.shape(name):
            raise EspalierError(
                f"The state dict holds {name} as {list(tensor.shape)}, but its structure record says "
                f"{list(structure.shape(name))}: the tensors were exchanged after saving."
            )
    take_shape(model, structure)
