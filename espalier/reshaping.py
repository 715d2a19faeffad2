"""Loading a state dict of other shapes: stateless hooks that reshape the model to the record that travels with the tensors.

``install`` puts two hooks on a model. On saving, its ``Structure`` goes into ``state_dict()._metadata``; on loading, the model
takes the recorded shapes, narrower or wider, before torch copies anything. Without a record nothing is reshaped and torch's
own error stands. The hooks are functions of this module, so a deep copy of the model drags nothing along.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from espalier.structure import Structure
from espalier.surgery import shape_to, structure_of

KEY = "espalier"
FLAG = "_espalier_reshapes"

Bound = tuple[tuple[Optimizer, ...], tuple[nn.Module, ...]]
_bound: weakref.WeakKeyDictionary[nn.Module, Bound] = weakref.WeakKeyDictionary()


def install(model: nn.Module) -> None:
    """Make ``model`` record its structure on saving and take up a recorded one on loading. Twice is once."""
    if not model.__dict__.get(FLAG):
        model.__dict__[FLAG] = True
        model.register_state_dict_post_hook(_record)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(_reshape)  # type: ignore[no-untyped-call]


def bind(model: nn.Module, optimizers: Sequence[Optimizer], followers: Sequence[nn.Module]) -> None:
    """Name what has to be reshaped along when this very model (no copy of it) loads a state dict."""
    _bound[model] = (tuple(optimizers), tuple(followers))


def unbind(model: nn.Module) -> None:
    """Forget what ``bind`` was told."""
    _bound.pop(model, None)


def take_shape(model: nn.Module, structure: Structure) -> None:
    """Give ``model``, and what is bound to it, the shapes of ``structure``."""
    optimizers, followers = _bound.get(model, ((), ()))
    shape_to(model, structure, optimizers=optimizers, followers=followers)


def _record(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    metadata[KEY] = structure_of(model).to_json()


def _reshape(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: object, **__: object) -> None:
    text = metadata.get(KEY)
    if text is not None:
        take_shape(model, Structure.from_json(text))
