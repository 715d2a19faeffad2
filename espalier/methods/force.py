"""Structural pruning at initialisation by iterative SNIP and FORCE.

Verdenius, Stol, Forré: "Pruning via Iterative Ranking of Sensitivity Statistics", 2020, arXiv 2006.00896 (iterative SNIP);
de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: "Progressive Skeletonization: Trimming More Fat from a Network at Initialization",
ICLR 2021, arXiv 2006.09081 (FORCE). Channels in place of weights, as in the comparison of EPI's paper; for weights there is
``es.SNIP(rounds=..., returns=True)``.

Before the first step, in n rounds. A gate of 1 on channel c has the gradient

    dL/dgate_c = sum over the weights w that read channel c of  w dL/dw,        S(c) = |dL/dgate_c|

summed over batches before the absolute value is taken (SNIP). Round k keeps the best channels under the budget^(k/n) of the
dense cost. Channels outside have their gates closed for the next round: with FORCE they still get a gradient and may come
back (``returns``), with iterative SNIP they are out. After the last round they leave; widths are multiples that run fast
(``round_to=1`` for any).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espalier.criteria.channels import ChannelCriterion
from espalier.criteria.slices import readers, slice_products
from espalier.distributed import all_or_none, is_leader
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.methods.frame.base import Site
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.frame.recalibration import undisturbed


@dataclass(frozen=True, kw_only=True)
class Force(Structured):
    """Structural FORCE (ICLR 2021) or iterative SNIP, at initialisation. Needs ``batches`` and ``loss_fn``.

    Args:
        rounds: n; 1 is plain SNIP.
        batches_per_round: batches to sum gradients over.
        returns: whether channels may come back (FORCE), or not (iterative SNIP).

    The other arguments are those of ``Structured``; ``criterion`` is not used.

    Example:
        >>> import torch, espalier as es
        >>> from torch.nn.functional import cross_entropy
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> batch = torch.randn(32, 8), torch.randint(2, (32,))
        >>> pruner = es.Pruner(
        ...     net, optimizer, es.Force(keep_macs=0.5), total_steps=100, example_inputs=batch[0][:1],
        ...     batches=[batch], loss_fn=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        ... )
        >>> net[0]
        Linear(in_features=8, out_features=32, bias=True)
    """

    criterion: ChannelCriterion | str = "magnitude"
    rounds: int = 10
    batches_per_round: int = 1
    returns: bool = True

    name: ClassVar[str] = "force"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "batches_per_round"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise EspalierError(f"{name} is a whole number of at least 1; got {value!r}.")

    def begin(self, site: Site) -> ForceRun:
        if site.batches is None or site.loss_fn is None:
            raise EspalierError(
                "force looks at gradients before training: give es.Pruner(..., batches=loader, loss_fn=f), f(model, batch) "
                "being the loss."
            )
        return ForceRun(self, site, indicator=None, latest=0.0)


class ForceRun(StructuredRun):
    """Everything happens before the first step."""

    method: Force
    _part = 1.0  # of the way to the budget

    def start(self) -> None:
        self._part, self._out = 1.0, torch.zeros(self.layout.total, dtype=torch.bool)
        super().start()  # the whole budget once, so that one that cannot be met is refused before any work
        for turn in range(1, self.method.rounds + 1):
            self._part = turn / self.method.rounds
            with all_or_none(self.site.process_group, self._observed.device, "score the channels"):
                self._sensitivity = self._gate_gradients() if is_leader(self.site.process_group) else torch.zeros(0)
            self.look()
        self._part = 1.0
        self.remove("start")

    def scores(self) -> Tensor:
        return super().scores() if not hasattr(self, "_sensitivity") else self._sensitivity

    def selected(self) -> None:
        if hasattr(self, "_sensitivity"):
            stays: dict[Group, Tensor] = {group: torch.zeros(group.size, dtype=torch.bool) for group in self.layout.groups}
            for group, kept in self.keep.items():
                stays[group] = torch.ones(group.size, dtype=torch.bool).index_fill_(0, kept, False)
            self._out = self.layout.join(stays)

    def _budget(self) -> dict[str, float]:
        """The budget^(k/n): MACs, parameters and channels shrink geometrically over the rounds."""
        budget = super()._budget()
        for unit in ("macs", "params"):
            if f"max_{unit}" in budget:
                whole = self.dense[unit]
                budget[f"max_{unit}"] = whole * (budget[f"max_{unit}"] / whole) ** self._part
        if "prune_channels" in budget:
            budget["prune_channels"] = 1 - (1 - budget["prune_channels"]) ** self._part
        return budget

    def _gate_gradients(self) -> Tensor:
        """|dL/dgate| of every channel, (total,), with the gates of the channels that are out closed."""
        model, places = self.site.model, readers(self.site.model, self.layout).to(self._observed.device)
        named = dict(model.named_parameters())
        names = list(dict.fromkeys(name for name, _ in places.keys))
        whole = {name: named[name].detach().clone() for name in names}
        total = torch.zeros(self.layout.total, device=self._observed.device)
        with undisturbed(model), torch.enable_grad():
            self._close_gates(named, places)
            for batch in self._batches():
                assert self.site.loss_fn is not None
                loss = self.site.loss_fn(model, batch)
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    raise EspalierError("loss_fn(model, batch) must return the loss as a tensor of one number.")
                found = torch.autograd.grad(loss, [named[name] for name in names], allow_unused=True)
                gradients = {name: grad.detach() for name, grad in zip(names, found, strict=True) if grad is not None}
                total += places.gather(slice_products(whole, gradients, places.keys))
        with torch.no_grad():
            for name in names:
                named[name].copy_(whole[name])
        scores = total.abs()
        if not self.method.returns:
            scores = scores.masked_fill(self._out.to(scores.device), -1.0)  # below everything that is still in
        if not torch.isfinite(scores).all():
            raise EspalierError("The gradients before training are not finite: check loss_fn and the batches.")
        return scores

    def _close_gates(self, named: dict[str, nn.Parameter], places: Any) -> None:
        """A closed gate is the same as zeros in all weights that read the channel."""
        with torch.no_grad():
            for (name, dim), out in places.spread(self._out.float().to(self._observed.device)).items():
                shape = [1] * named[name].dim()
                shape[dim] = -1
                named[name].mul_((out == 0).to(named[name].dtype).view(shape))

    def _batches(self) -> Iterator[Any]:
        assert self.site.batches is not None
        found = 0
        for batch in islice(iter(self.site.batches), self.method.batches_per_round):
            found += 1
            yield batch
        if not found:
            raise EspalierError("batches gave nothing: give an iterable that can be read anew, such as a DataLoader.")
