"""The part of a structured run that knows where channels live: the trace, and what is fixed between two cuts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch

from espalier.criteria.channels import channel_criterion
from espalier.errors import EspalierError
from espalier.graph import ChannelGraph, Group, trace
from espalier.graph.layout import Layout
from espalier.inputs import Call
from espalier.methods.frame.base import Run, Site
from espalier.methods.frame.cutting.structured import Structured
from espalier.surgery import changes_made, last_change


class TracedRun(Run):
    """Keeps the graph of the model, and the layout of the channels that may go, up to date.

    Attributes:
        searching: whether there are channels still to be removed.
        graph: of the model as it is.
        layout: the groups that ``include`` and ``exclude`` leave.
        groups: those of them that the criterion has scores for.
        sizes: their names and first widths.
    """

    def __init__(self, method: Structured, site: Site) -> None:
        super().__init__(site)
        self.method = method
        self.criterion = channel_criterion(method.criterion)
        self.searching = True
        self.sizes: dict[str, int] = {}
        self._cutting = False
        self._check_inputs()
        self._trace()
        self.sizes = {group.name: group.size for group in self.groups}

    @abstractmethod
    def look(self) -> None:
        """Choose the channels that would stay now, and compare the choice with earlier ones."""

    @abstractmethod
    def forget(self) -> None:
        """Earlier choices speak of other channels."""

    def reshaped(self) -> None:
        """Somebody else cut the model: look at it anew."""
        if not self._cutting:
            self._trace()
            self.forget()
            if self.searching:
                self.look()

    def _keep_up(self) -> None:
        """A state dict of other shapes may have been loaded, without the optimizer's that would have told us."""
        if self._changes != changes_made():
            last = self._last_change
            self._note_changes()
            if self._last_change != last:
                self.reshaped()

    def _note_changes(self) -> None:
        self._changes, self._last_change = changes_made(), last_change(self.site.model.parameters())

    def _trace(self) -> None:
        self._note_changes()
        self.graph: ChannelGraph = trace(self.site.model, self.site.example_inputs)
        if self.searching:
            self._lay_out()
            names = set(self.layout.names())
            self.weights = {name: p for name, p in self.site.model.named_parameters() if name in names}

    def _lay_out(self) -> None:
        """Everything that is fixed between two cuts."""
        device = next(self.site.model.parameters()).device
        self.layout = Layout(self._wanted_groups())
        self._places = self.criterion.places(self.site.model, self.layout).to(device)
        self._names = list(dict.fromkeys(name for name, _ in self._places.keys))
        if self.criterion.uses_gradients:
            first = set(self._names)
            beside = {f"{name.removesuffix('weight')}bias" for name in self._names}
            self._names += [name for name, _ in self.site.model.named_parameters() if name in beside - first]
        scored = self.layout.split(self._places.carriers)
        self.groups = [group for group in self.layout.groups if bool((scored[group] > 0).all())]
        if not self.groups:
            raise EspalierError(f"The criterion {self.criterion.name!r} has no score for any group: choose another.")
        self._observed = torch.zeros(self.layout.total, device=device)
        self._seen = 0

    def _wanted_groups(self) -> list[Group]:
        names = [group.name for group in self.graph.groups]
        for pattern in (*(self.method.include or ()), *self.method.exclude):
            if not self.sizes and not any(fnmatchcase(name, pattern) for name in names):  # later they may have gone
                shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
                raise EspalierError(f"{pattern!r} matches no group that can be cut; there are {shown}.")
        wanted = [
            group
            for group in self.graph.groups
            if (self.method.include is None or any(fnmatchcase(group.name, p) for p in self.method.include))
            and not any(fnmatchcase(group.name, p) for p in self.method.exclude)
        ]
        if not wanted:
            reasons = "; ".join(dict.fromkeys(str(group.reason) for group in self.graph.frozen[:3]))
            raise EspalierError(
                "The model has no group of channels that may be cut: "
                + ("include and exclude leave none." if names else f"all are frozen ({reasons}).")
            )
        return wanted

    def _check_inputs(self) -> None:
        if self.site.example_inputs is None:
            raise EspalierError(
                f"{self.method.name} has to see the model run once: give es.Pruner(..., example_inputs=x), x being a batch."
            )
        device = next(self.site.model.parameters()).device
        if device.type == "meta":
            raise EspalierError(
                "The model is on the meta device, where its weights have no values: move it to a real one first."
            )
        for tensor in Call.of(self.site.example_inputs).tensors:
            if tensor.device != device:
                raise EspalierError(
                    f"example_inputs are on {tensor.device} and the model is on {device}: move them to the same device."
                )
        if not isinstance(self.site.batches, Iterable | None):
            raise EspalierError(
                f"batches must be data that can be read anew, such as a DataLoader or a list; got {self.site.batches!r}."
            )
        if self.method.recalibrate and self.site.batches is None:
            raise EspalierError("recalibrate needs data: give es.Pruner(..., batches=loader).")
