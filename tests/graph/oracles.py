"""What a cut is compared with: the dense model with zeroed slices, and the file of the cut model in a newly built one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph import ChannelGraph, Group

Keep = Mapping[Group, Sequence[int]]


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """No weight or statistic is zero or one, so that mistakes show."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            if tensor.dim() > 1:
                tensor.normal_(0, 0.4)
            else:
                tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var", "gamma")) else tensor.uniform_(-0.5, 0.5)
    return model.eval()


@torch.no_grad()
def zeroed(model: nn.Module, keep: Keep) -> Any:
    """A copy in which every slice of the removed channels is zero, variances excepted; by the graph before the cut."""
    dense = copy.deepcopy(model)
    tensors = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for group, channels in keep.items():
        gone = torch.tensor(sorted(set(range(group.size)) - set(channels)))
        for member in group.members:
            if not member.name.endswith("running_var"):
                where = torch.isin(member.index, gone)
                tensors[member.name].movedim(member.dim, 0)[where] = 0
    return dense


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal to 1e-5 of the largest entry."""
    error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    assert error <= 1e-5, f"{what}: off by {error:.2e} of the largest output"


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The first tensor of the output."""
    with torch.no_grad():
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
        out = model(*args, **kwargs)
    return out if isinstance(out, Tensor) else out[0]


def every_other(group: Group) -> list[int]:
    return list(range(1, group.size, 2))


def check_groups(build: Callable[[], nn.Module], inputs: Any, folder: Path) -> ChannelGraph:
    """Cut each group alone, then all; compare with zeroed slices and with the file loaded into a model newly built."""
    model = lively(build())
    count = len(es.trace(model, inputs).groups)
    for chosen in [*([number] for number in range(count)), list(range(count))]:
        graph = es.trace(model, inputs)
        keep = {graph.groups[number]: every_other(graph.groups[number]) for number in chosen}
        what = ", ".join(group.name for group in keep)
        expected = call(zeroed(model, keep), inputs) if all(group.exact for group in keep) else None
        narrow = copy.deepcopy(model)
        es.cut(narrow, keep)
        found = call(narrow, inputs)
        if expected is not None:
            assert_close(found, expected, f"zeroed {what}")
        es.save(narrow, folder / "narrow.safetensors")
        loaded = es.load(folder / "narrow.safetensors", build()).eval()
        assert torch.equal(call(loaded, inputs), found), what
    return es.trace(model, inputs)


def sizes(graph: ChannelGraph) -> list[int]:
    """Sizes of the groups that can be cut, in order of size."""
    return sorted(group.size for group in graph.groups)
