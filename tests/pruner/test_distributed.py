"""Two gloo ranks agree on masks and weights; ranks that start apart are refused by name."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import espalier as es
from tests.helpers.ranks import in_two_ranks
from tests.pruner.conftest import DATA, SmallNet, batch
from tests.pruner.test_contract import METHODS

STEPS = 6


def train_all(rank):
    outcome = {}
    for key, (method, _) in METHODS.items():
        torch.manual_seed(0)
        net = SmallNet()
        model = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        pruner = es.Pruner(model, optimizer, method, total_steps=STEPS, process_group=dist.group.WORLD, **DATA)
        for step in range(STEPS):
            x, y = batch(2 * step + rank)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        sparsity = pruner.finish().sparsity
        outcome[key] = {"weights": {n: p.detach().clone() for n, p in net.named_parameters()}, "sparsity": sparsity}
    return outcome


def start_apart(rank):
    torch.manual_seed(rank)
    net = SmallNet()
    try:
        es.Pruner(net, torch.optim.SGD(net.parameters(), lr=0.1), es.OCP(0.5), total_steps=2, process_group=dist.group.WORLD)
    except es.EspalierError as error:
        return {"error": str(error)}
    return {"error": ""}


def test_two_ranks_agree_under_every_method():
    first, second = in_two_ranks(train_all)
    for key, (_, target) in METHODS.items():
        assert first[key]["sparsity"] == pytest.approx(target, abs=0.001), key
        for name, weight in first[key]["weights"].items():
            assert torch.equal(weight, second[key]["weights"][name]), (key, name)


def test_ranks_that_start_from_different_weights_are_refused_on_both():
    for outcome in in_two_ranks(start_apart):
        assert "differ between rank 0 and rank 1" in outcome["error"]
