"""What wrappers around a model have to learn about a change of shapes.

A reducer of ``torch.nn.parallel.DistributedDataParallel`` keeps buckets of the old shapes: after a cut it would average some
gradients and forget others, partly without an error. ``espalier.DistributedDataParallel`` compares ``changes_made()`` at each
forward, one integer, and follows. Any other is looked up at the cut, among all living objects and only where
``torch.distributed`` runs, and gets a hook that refuses its next forward: nothing is left on the model itself, so that copies,
compiled graphs and exports stay clean, and whoever throws the old wrapper away and wraps anew is not disturbed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, MutableMapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

from espalier.errors import EspalierError


class FollowsCuts:
    """Base class of wrappers that take care of themselves."""


_changes = 0
_last: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()


def note_change(tensor: Tensor) -> None:
    """Remember that ``tensor`` has got other data of another shape."""
    global _changes
    _changes += 1
    _last[tensor] = _changes


def changes_made() -> int:
    """How many parameters and buffers were replaced in this process. Grows with every cut."""
    return _changes


def last_change(tensors: Iterable[Tensor]) -> int:
    """What ``changes_made()`` said when one of ``tensors`` was replaced last; 0 if none ever was."""
    return max((_last.get(tensor, 0) for tensor in tensors), default=0)


def refuse_old_reducers(changed: Iterable[Tensor]) -> None:
    """Make torch's own DistributedDataParallel around any of the ``changed`` tensors refuse its next forward."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    ids = {id(tensor) for tensor in changed}
    for wrapper in [thing for thing in gc.get_objects() if issubclass(type(thing), DistributedDataParallel)]:
        if not isinstance(wrapper, FollowsCuts) and any(id(p) in ids for p in wrapper.parameters()):
            wrapper.register_forward_pre_hook(_refuse)


def _refuse(wrapper: nn.Module, args: Any) -> None:
    raise EspalierError(
        "The model inside this torch.nn.parallel.DistributedDataParallel was cut, and its reducer still has the old shapes: "
        "use espalier.DistributedDataParallel, which follows cuts, or wrap the model anew after each cut."
    )
