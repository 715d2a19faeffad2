"""A lottery ticket: training under masks that were found before.

The masks of a file (``es.lottery.save_masks``) are in force from the first step to the last; nothing is ranked. Rewinding is
loading the state of an early step into the model, before or after the Pruner is built. See ``espalier.lottery`` for where masks
come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from espalier.criteria import Criterion
from espalier.distributed import broadcast
from espalier.errors import EspalierError
from espalier.lottery import density, load_masks
from espalier.masks import Pattern, Weight, pack_bits, unpack_bits
from espalier.masks.targets import Entry
from espalier.methods.frame.base import Site
from espalier.methods.frame.masking.atinit import FixedRun
from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Constant

_OPEN = 1e-3  # how far a sparsity that is told may be from that of the file


@dataclass(frozen=True)
class Ticket(Scheduled):
    """Fixed masks from a file.

    Args:
        masks: a file that ``es.lottery.save_masks`` wrote; it says which weights are masked.
        sparsity: share of their weights that is zero, to be held against the file (within 0.001); None takes the file's word.
        kind: a word that tells tables what masks or weights these are, such as "random masks"; it changes nothing.
        digest: sixteen hexadecimal digits that name the masks, whatever the file is called, to be held against the file; ""
            takes the file's word, and the attribute has its digits.

    Attributes:
        share: of their weights that is zero.

    Raises:
        EspalierError: there is no such file, or it holds other masks; when the Pruner is built, masks of another model.

    Example:
        >>> import tempfile, torch, espalier as es
        >>> net = torch.nn.Conv2d(3, 8, 3)
        >>> masks = es.lottery.next_masks(es.lottery.weights_of(net), fraction=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     es.lottery.save_masks(masks, f"{folder}/masks.safetensors")
        ...     method = es.Ticket(f"{folder}/masks.safetensors")
        ...     pruner = es.Pruner(net, torch.optim.SGD(net.parameters(), lr=0.1), method, total_steps=10)
        >>> pruner.sparsity
        0.5
    """

    masks: str | Path = field(repr=False)
    sparsity: float | None = None
    kind: str = field(default="", repr=False)
    digest: str = ""
    share: float = field(init=False, repr=False)
    scope: str = field(default="global", init=False, repr=False)  # the rest is decided by the masks
    pattern: Pattern = field(default_factory=Weight, init=False, repr=False)
    criterion: Criterion | str = field(default="magnitude", init=False, repr=False)
    include: Sequence[Entry] | None = field(default=None, init=False, repr=False)
    exclude: Sequence[Entry] = field(default=(), init=False, repr=False)
    every: int = field(default=1, init=False, repr=False)
    tolerance: float = field(default=0.0, init=False, repr=False)

    name: ClassVar[str] = "ticket"

    def __post_init__(self) -> None:
        if not isinstance(self.masks, str | Path):
            raise EspalierError(f"masks is a file that es.lottery.save_masks wrote; got {self.masks!r}.")
        found = load_masks(self.masks)
        share = 1 - density(found)
        if self.sparsity is not None and (isinstance(self.sparsity, bool) or not isinstance(self.sparsity, int | float)):
            raise EspalierError(f"sparsity is the share of zeros in the masks, such as 0.5, or None; got {self.sparsity!r}.")
        if self.sparsity is not None and abs(self.sparsity - share) > _OPEN:
            raise EspalierError(f"The masks {str(self.masks)!r} have a sparsity of {share:.4f}, not {self.sparsity:g}.")
        content = hashlib.sha256()
        for name, mask in found.items():
            content.update(f"{name} {list(mask.shape)} ".encode() + pack_bits(mask).numpy().tobytes())
        digest = content.hexdigest()[:16]
        if self.digest not in ("", digest):
            raise EspalierError(f"The masks {str(self.masks)!r} are not those that are meant: {digest}, not {self.digest}.")
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "share", share)
        super().__post_init__()

    def schedule(self) -> Constant:
        return Constant(self.share)

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        named, masks = dict(model.named_parameters()), load_masks(self.masks)
        for name, mask in masks.items():
            if name not in named or named[name].shape != mask.shape:
                raise EspalierError(
                    f"The masks {str(self.masks)!r} are of another model: {name} of shape {list(mask.shape)} is not in it."
                )
        return {name: p for name, p in named.items() if name in masks}

    def begin(self, site: Site) -> TicketRun:
        return TicketRun(self, site)


class TicketRun(FixedRun):
    """The masks of the file, from construction on."""

    method: Ticket

    @torch.no_grad()
    def _prune_to(self, sparsity: float) -> None:
        """Rank 0's file counts, should others read another."""
        if not self.masks.tensors:
            for name, mask in load_masks(self.method.masks).items():
                weight = self.weights[name]
                bits = pack_bits(mask).to(weight.device)
                broadcast(bits, self.site.process_group)
                self.masks.writable(name).copy_(unpack_bits(bits, weight.shape, weight.device))
            self.in_force = self.sparsity
        self.masks.apply()

    def _follow(self, *, exactly: bool) -> None:
        self._prune_to(self.schedule.final)
