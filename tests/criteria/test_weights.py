"""Scores of single weights."""

import torch
from torch import nn

import espalier as es


def test_random_masks_of_equal_layers_know_nothing_of_each_other():
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(3)))
    masks = {}
    for seed in (0, 0, 1):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = es.Pruner(net, optimizer, es.OneShot(0.5, at=0, criterion=es.criteria.Random(seed)), total_steps=1)
        masks.setdefault(seed, []).append(torch.stack([mask.flatten() != 0 for mask in pruner.run.masks.tensors.values()]))
        pruner.detach()
    assert torch.equal(*masks[0])
    drawn = torch.cat([masks[0][0], masks[1][0]])
    overlap = (drawn[:, None] & drawn[None]).sum(2) / drawn.shape[1]
    assert ((overlap - 0.25).abs() < 0.05)[~torch.eye(6, dtype=torch.bool)].all()  # of two halves at random, a quarter
