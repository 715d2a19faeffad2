"""Projections against brute force: no other choice of units comes nearer."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import espalier as es
from espalier.criteria import Squared
from espalier.masks.patterns import kernel_shapes
from espalier.masks.ranking import keep_best
from tests.pruner.conftest import DATA, sgd

P = es.patterns
# pattern, shape, indices of the weights of each unit
UNITS = {
    "weight": (P.Weight(), (3, 3), lambda i: i.reshape(9, 1)),
    "filter": (P.Filter(), (6, 2, 2, 2), lambda i: i.reshape(6, 8)),
    "input-channel": (P.InputChannel(), (3, 6, 2, 1), lambda i: i.transpose(0, 1).reshape(6, 6)),
    "input-channel-linear": (P.InputChannel(), (3, 6), lambda i: i.T),
    "column": (P.Column(), (3, 4, 1, 2), lambda i: i.reshape(3, 8).T),
    "kernel": (P.Kernel(), (2, 4, 3, 3), lambda i: i.reshape(8, 9)),
    "block": (P.Block(2, 2), (4, 3, 1, 2), lambda i: i.reshape(2, 2, 3, 2).transpose(1, 2).reshape(6, 4)),
}
seeds = st.integers(0, 2**31)


def numbers(seed, shape, *, channels_last=False):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else values


def projected(pattern, weight, drop):
    mask = torch.empty_like(weight)
    pattern.expand(keep_best(pattern.reduce(Squared().score(weight, None)), drop), mask)
    return weight * mask


@pytest.mark.parametrize("key", list(UNITS))
@settings(max_examples=25)
@given(seed=seeds, drop=st.integers(0, 6), channels_last=st.booleans())
def test_keeping_the_best_units_is_the_nearest_point(key, seed, drop, channels_last):
    pattern, shape, view = UNITS[key]
    weight = numbers(seed, shape, channels_last=channels_last)
    units = weight.reshape(-1)[view(torch.arange(weight.numel()).reshape(shape))]
    assert pattern.units(shape) == len(units)
    assert pattern.unit_size(shape) == units.shape[1]
    z = projected(pattern, weight, drop)
    assert torch.equal(z[z != 0], weight[z != 0])
    zeroed = (z.reshape(-1)[view(torch.arange(z.numel()).reshape(shape))] == 0).all(1)
    assert int(zeroed.sum()) == drop
    costs = units.square().sum(1)
    least = min(float(costs[list(gone)].sum()) for gone in itertools.combinations(range(len(units)), drop))
    assert float((weight - z).square().sum()) == pytest.approx(least, rel=1e-5, abs=1e-6)


@settings(max_examples=25)
@given(seed=seeds, n=st.integers(1, 3))
def test_n_of_m(seed, n):
    weight = numbers(seed, (3, 8))
    z = projected(P.NM(n, 4), weight, round(weight.numel() * (1 - n / 4)))
    for before, after in zip(weight.view(-1, 4), z.view(-1, 4), strict=True):
        assert int((after != 0).sum()) == n
        least = min(float(before[list(gone)].square().sum()) for gone in itertools.combinations(range(4), 4 - n))
        assert float((before - after).square().sum()) == pytest.approx(least, rel=1e-5, abs=1e-6)


@settings(max_examples=25)
@given(seed=seeds, channels_last=st.booleans())
def test_kernel_shapes_are_chosen_best(seed, channels_last):
    weight = numbers(seed, (3, 2, 3, 3), channels_last=channels_last)
    z = projected(P.KernelShape(), weight, weight.numel() * 4 // 9)
    for before, after in zip(weight.reshape(-1, 9), z.reshape(-1, 9), strict=True):
        assert tuple(int(v != 0) for v in after) in kernel_shapes()
        least = min(float(before[torch.tensor(shape) == 0].square().sum()) for shape in kernel_shapes())
        assert float((before - after).square().sum()) == pytest.approx(least, rel=1e-5, abs=1e-6)


def test_there_are_13_shapes_closed_under_turning_and_mirroring():
    shapes = {frozenset(i for i in range(9) if shape[i]) for shape in kernel_shapes()}
    assert len(shapes) == 13
    for shape in shapes:
        assert len(shape) == 5
        assert 4 in shape
        assert frozenset(3 * (c % 3) + 2 - c // 3 for c in shape) in shapes
        assert frozenset(3 * (c // 3) + 2 - c % 3 for c in shape) in shapes
    assert frozenset({1, 3, 4, 5, 7}) in shapes  # the cross


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (4, 3, 5, 5), (4, 3)])
def test_kernel_shapes_want_3_by_3(shape):
    with pytest.raises(es.EspalierError, match="no 3 x 3 kernels"):
        P.KernelShape().check("conv", shape)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x[:, :2]) + self.b(x)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_one_ranking_over_layers_is_the_nearest_point_that_leaves_each_layer_something(seed):
    net = Two()
    for number, weight in enumerate((net.a.weight, net.b.weight)):
        weight.data = numbers(seed + number, weight.shape) * (1 + 3 * number)
    pruner = es.Pruner(net, sgd(net), es.ADMM(0.6, include=["*"], scope="global"), total_steps=4)
    z = pruner.run.projection()
    pruner.detach()
    everything = torch.cat([net.a.weight.flatten(), net.b.weight.flatten()]).detach()
    found = torch.cat([z["a.weight"].flatten(), z["b.weight"].flatten()])
    allowed = [
        gone
        for gone in itertools.combinations(range(10), 6)
        if not set(range(4)) <= set(gone) and not set(range(4, 10)) <= set(gone)
    ]
    least = min(float(everything[list(gone)].square().sum()) for gone in allowed)
    assert float((everything - found).square().sum()) == pytest.approx(least, rel=1e-5)


def test_the_run_projects_with_the_ratios_of_its_layers(make_net):
    net = make_net()
    method = es.SLR({"Conv2d": 0.8, "conv1": 0.5, "head": 0.25}, check_every=2)
    run = es.Pruner(net, sgd(net), method, total_steps=10, **DATA).run
    shares = {name: float((z == 0).float().mean()) for name, z in run.projection().items()}
    assert shares == pytest.approx({"conv1.weight": 0.5, "conv2.weight": 922 / 1152, "head.weight": 0.25})
    assert run.method.highest == 0.8
    assert math.isclose(run._overall(0.8), (108 + 922 + 16) / (216 + 1152 + 64))
