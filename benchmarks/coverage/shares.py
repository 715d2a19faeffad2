"""How much of a model a graph leaves uncut, and why; and how a model is made to show every mistake."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

REACHES_OUTPUT = "reaches the model's output"
NO_GROUP = "in no group"


def shares(model: nn.Module, graph: Any) -> dict[str, Any]:
    """Parts of the parameters, by number of elements.

    The head is what makes the output: parameters whose dim 0 cannot change because it reaches it. Of the rest, a parameter
    is frozen if none of its dims belongs to a group that can be cut; ``reasons`` gives each reason's part of the rest.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    free = {member.name for group in graph.groups for member in group.members}
    head = {
        member.name
        for group in graph.frozen
        if REACHES_OUTPUT in group.reason
        for member in group.members
        if member.dim == 0 and member.name in sizes
    }
    rest = sum(size for name, size in sizes.items() if name not in head)
    frozen = {name for name in sizes if name not in head and name not in free}
    reasons: Counter[str] = Counter()
    for name in frozen:
        reasons[reason_of(name, graph)] += sizes[name]
    return {
        "groups": len(graph.groups),
        "head_share": share(sum(sizes[name] for name in head), sum(sizes.values())),
        "frozen_share": share(sum(sizes[name] for name in frozen), rest),
        "reasons": {reason: share(count, rest) for reason, count in reasons.most_common()},
        "largest_frozen": sorted(frozen, key=lambda name: -sizes[name])[:5],
    }


def share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), 4)


def reason_of(name: str, graph: Any) -> str:
    """The reason of the longest frozen group that a dim of the parameter belongs to."""
    found = [group for group in graph.frozen for member in group.members if member.name == name]
    return max(found, key=lambda group: group.size).reason if found else NO_GROUP


def enliven(model: nn.Module) -> None:
    """Give constant parameters and statistics varied values.

    Fresh models start norms at one, biases at zero and layer scales at 1e-6: a wrong slice of those would change nothing.
    """
    made = torch.Generator().manual_seed(2)

    def fill(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=made) * (high - low) + low)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                fill(parameter, *((-0.2, 0.2) if "bias" in name.rpartition(".")[2] else (0.5, 1.0)))
            elif parameter.numel() == 1 and parameter.item() == 0:
                parameter.fill_(0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                fill(buffer, -0.2, 0.2)
            elif name.endswith("running_var"):
                fill(buffer, 0.5, 1.5)
