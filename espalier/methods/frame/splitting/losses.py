"""f(W), the loss that optimality conditions compare from round to round."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from espalier.distributed import all_or_none, average, is_leader
from espalier.errors import EspalierError
from espalier.methods.frame.base import Site
from espalier.methods.frame.recalibration import undisturbed


class Loss(ABC):
    """f of the weights as they are, as a tensor of one number; the mean over all ranks."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def _device(self) -> torch.device:
        """Where the model is now: it may have moved since construction."""
        return next(self.site.model.parameters()).device

    @abstractmethod
    def read(self) -> Tensor:
        """f(W). Nothing is read on the host."""

    def observe(self, loss: Tensor) -> None:
        """The training loss of a batch was reported."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors that the next value depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what ``state_dict`` gave."""


class FixedLoss(Loss):
    """The mean loss on the first ``count`` of the Pruner's ``batches``, always the same ones.

    The model runs in evaluation mode, batch norm with the running statistics of the moment: f is the loss of the network as it
    would be used. Modes, buffers and random state are left as they were found. f is read once at construction, so that a
    loss_fn that cannot be read in that mode is refused before training, on every rank.
    """

    def __init__(self, site: Site, count: int, method: str) -> None:
        super().__init__(site)
        if site.batches is None or site.loss_fn is None:
            raise EspalierError(
                f"{method} compares the loss from round to round on batches that stay the same: give es.Pruner(..., "
                f"batches=loader, loss_fn=f), f(model, batch) being the loss, or set conditions='mean' and report the training "
                f"loss with pruner.observe(loss) at every step."
            )
        with undisturbed(site.model):  # a loader that shuffles draws random numbers
            self.batches = list(islice(iter(site.batches), count))
        if not self.batches:
            raise EspalierError("batches gave nothing: give an iterable that can be read anew, such as a DataLoader.")
        self.read()

    @torch.no_grad()
    def read(self) -> Tensor:
        with all_or_none(self.site.process_group, self._device, "read its loss"):
            mean = self._mine()
        average(mean, self.site.process_group)
        return mean

    @torch.no_grad()
    def _mine(self) -> Tensor:
        """f on the batches of this rank."""
        model = self.site.model
        with undisturbed(model):
            model.eval()
            return torch.stack([self._loss_of(batch) for batch in self.batches]).mean()

    def _loss_of(self, batch: Any) -> Tensor:
        assert self.site.loss_fn is not None
        try:
            loss = self.site.loss_fn(self.site.model, batch)
        except EspalierError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or ["no message"])[0].rstrip(".")
            raise EspalierError(
                f"loss_fn(model, batch) failed, which is read with the model in evaluation mode ({type(error).__name__}: "
                f"{reason}): let it take what the model returns in that mode."
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise EspalierError("loss_fn(model, batch) must return the loss as a tensor of one number.")
        return loss.detach().float().reshape(())

    @torch.no_grad()
    def read_shuffled(self, weights: Mapping[str, nn.Parameter]) -> Tensor:
        """f with the numbers inside each of these weights in another order: what the network has learned is gone."""
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        order = torch.Generator().manual_seed(0)
        try:
            for weight in weights.values():
                places = torch.randperm(weight.numel(), generator=order).to(weight.device)
                weight.copy_(weight.flatten()[places].view(weight.shape))
            return self.read()
        finally:
            for name, weight in weights.items():
                weight.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._checksum()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not is_leader(self.site.process_group):
            return  # other ranks have batches of their own, and the checksum is rank 0's
        if abs(state["batches"] - self._checksum()) > 1e-6 * abs(state["batches"]):
            warnings.warn(
                "The batches are other ones than before the training was resumed, so the next condition compares losses on "
                "different data: give batches that come in the same order every time, such as a loader without shuffling.",
                stacklevel=2,
            )

    def _checksum(self) -> float:
        return sum(float(tensor.float().abs().sum()) for tensor in _tensors_in(self.batches))


class MeanLoss(Loss):
    """The mean of the training losses that were reported since the last value was read; over the ranks, of their means.

    The sums are those of one rank. A checkpoint holds the sums of the rank that saved it, and every rank goes on with those:
    the first value after resuming has rank 0's losses from before in the place of the others'. (All ranks cannot put their
    sums together for a checkpoint, which rank 0 may well write alone.)
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sums = torch.zeros(2, device=self._device)  # losses, how many
        self._reported = False

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        device = self._device
        if self._sums.device != device:
            self._sums = self._sums.to(device)
        loss = loss.detach().float().mean()
        self._sums[0] += loss if loss.device.type == "cpu" else loss.to(device)  # a number of the host goes along unwaited for
        self._sums[1] += 1
        self._reported = True

    @torch.no_grad()
    def read(self) -> Tensor:
        mean = self._sums[0] / self._sums[1].clamp(min=1)
        # All ranks meet here whether they were told of a loss or not, so that none waits for one that has given up.
        row = torch.stack([mean, torch.full_like(mean, float(not self._reported))])
        average(row, self.site.process_group)
        if not self._reported or (self.site.process_group is not None and bool(row[1] > 0)):
            raise EspalierError(
                "conditions='mean' needs the training loss: call pruner.observe(loss) at every step (distributed: on every "
                "rank), or give batches and loss_fn and leave conditions out."
            )
        self._sums.zero_()
        self._reported = False
        return row[0]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums.clone(), "reported": self._reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = state["sums"].to(self._device, copy=True)  # the caller's tensor is not ours to add to
        self._reported = state["reported"]


def _tensors_in(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing.detach()
    elif isinstance(thing, Mapping):
        for part in thing.values():
            yield from _tensors_in(part)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _tensors_in(part)
