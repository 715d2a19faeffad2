"""A module that takes note of its runs, for tests of what is run in which mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espalier as es

ran: list[tuple[str, bool]] = []  # module and mode, of every forward below


class Noted(nn.Module):
    """A linear layer whose code is not torch's, and that takes note of its runs."""

    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.name, self.layer = name, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        ran.append((self.name, self.__dict__["training"]))  # not a read that the trace could see
        return self.layer(x)


def groups_of(model: nn.Module) -> list[set[tuple[str, int]]]:
    return [{(member.name, member.dim) for member in group.members} for group in es.trace(model, torch.zeros(2, 4)).groups]
