"""Scores at initialisation against plain autograd and the papers' properties, by independent computations."""

import copy

import pytest
import torch
from torch import nn

import espalier as es
from espalier.methods.frame.base import Clock, Site
from tests.pruner.conftest import SmallNet, batch, batch_loss

BATCHES = [batch(1), batch(2), batch(3)]


def site(net, batches=BATCHES, **more):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return Site(net, (optimizer,), (), Clock(10), batches=batches, loss_fn=batch_loss, **more)


def scores_of(method, net, **more):
    """The method's scores of the dense network."""
    weights = method.weights(net)
    with torch.enable_grad():
        return method.scores(site(net, **more), weights, {n: w.detach().clone() for n, w in weights.items()})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet()


def test_snip_is_weight_times_the_gradient_of_the_summed_loss(net):
    found = scores_of(es.SNIP(0.5, include=["*"], batches_per_round=3), copy.deepcopy(net))
    net.train()
    sum(batch_loss(net, data) for data in BATCHES).backward()
    for name, score in found.items():
        weight = net.get_parameter(name)
        torch.testing.assert_close(score, (weight * weight.grad).abs().detach(), rtol=1e-4, atol=1e-7)


def test_snip_is_the_derivative_with_respect_to_gates(net):
    """|dL/dc| at c = 1, with real gates."""
    found = scores_of(es.SNIP(0.5, include=["*"]), copy.deepcopy(net))
    weights = {name: net.get_parameter(name) for name in found}
    gates = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    gated = {name: weight.detach() * gates[name] for name, weight in weights.items()}
    x, y = BATCHES[0]
    nn.functional.cross_entropy(torch.func.functional_call(net.train(), gated, (x,)), y).backward()
    for name, gate in gates.items():
        torch.testing.assert_close(found[name], gate.grad.abs(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3])
def test_grasp_is_minus_weight_times_hessian_times_gradient(count):
    """The Hessian row by row, in float64, on a net small enough for it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(108, 4)).double()
    batches = [(x.double(), y) for x, y in BATCHES[:count]]
    method = es.GraSP(0.5, include=["0.weight", "3.weight"], batches_per_round=count)
    found = scores_of(method, net, batches=batches)
    sizes = [net[0].weight.numel(), net[3].weight.numel()]

    def loss(flat):
        parts = dict(zip(("0.weight", "3.weight"), torch.split(flat, sizes), strict=True))
        own = {name: part.view(net.get_parameter(name).shape) for name, part in parts.items()}
        return sum(nn.functional.cross_entropy(torch.func.functional_call(net, own, (x,)) / 200, y) for x, y in batches)

    flat = torch.cat([net[0].weight.reshape(-1), net[3].weight.reshape(-1)]).detach()
    gradient = torch.func.grad(loss)(flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    removed = -flat * (hessian @ gradient)  # S(-w): the highest go
    mine = -torch.cat([score.reshape(-1) for score in found.values()]).double()  # ours: the highest stay
    torch.testing.assert_close(mine, removed, rtol=1e-4, atol=1e-12)


def test_grasp_leaves_no_hook_and_its_temperature_matters(net):
    divided, plain = (scores_of(es.GraSP(0.5, temperature=t), net) for t in (200.0, 1.0))
    assert not net._forward_hooks
    assert not torch.allclose(divided["conv1.weight"] * 200**2, plain["conv1.weight"], rtol=0.05)


def chain(depth=4):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.ReLU(), nn.Flatten()]
    layers.append(nn.Linear(5 * 36, 7, bias=False))
    for _ in range(depth):
        layers += [nn.ReLU(), nn.Linear(7, 7, bias=False)]
    return nn.Sequential(*layers)


def test_synflow_conserves_flow_from_layer_to_layer():
    found = scores_of(es.SynFlow(0.5, include=["*"]), chain(), example_inputs=torch.randn(5, 3, 8, 8))
    flows = torch.stack([score.sum() for score in found.values()])
    assert len(flows) == 7
    torch.testing.assert_close(flows, flows[0].expand(7), rtol=1e-12, atol=0)


def test_synflow_conserves_flow_at_every_hidden_neuron():
    net = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False))
    found = scores_of(es.SynFlow(0.5, include=["*"]), net, example_inputs=torch.randn(1, 6))
    torch.testing.assert_close(found["0.weight"].sum(1), found["2.weight"].sum(0))


def test_synflow_is_the_paper_s_formula_with_batch_norm_as_found(net):
    """By hand on a copy whose whole state is made positive, in evaluation mode, as in the authors' code."""
    net(torch.randn(16, 3, 8, 8))  # running statistics that are not those of the start
    found = scores_of(es.SynFlow(0.5, include=["*"]), net, example_inputs=torch.randn(2, 3, 8, 8))
    by_hand = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        for value in by_hand.state_dict().values():
            value.abs_()
    by_hand(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    expected = {name: (by_hand.get_parameter(name).grad * by_hand.get_parameter(name)).detach() for name in found}
    highest = max(value.max() for value in expected.values())
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name] / highest, rtol=1e-9, atol=1e-15)


def test_synflow_survives_flows_beyond_float32():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(60)))
    with torch.no_grad():
        for layer in net:
            layer.weight.mul_(20)
    with torch.no_grad():
        positive = copy.deepcopy(net)
        for layer in positive:
            layer.weight.abs_()
        assert torch.isinf(positive(torch.ones(1, 64)).sum()), "the case must need more than float32"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = es.SynFlow(0.9, include=["*"], rounds=3)
    pruner = es.Pruner(net, optimizer, method, total_steps=2, example_inputs=torch.ones(1, 64))
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-5)
    assert max(layer.sparsity for layer in pruner.layers()) < 0.95, "equal layers lose about equally much"


class Attention(nn.Module):
    """With a causal mask in a buffer, and numbers that are given a type on the way."""

    def __init__(self, barred: float, *, types: bool) -> None:
        super().__init__()
        self.query, self.value, self.types = nn.Linear(6, 6), nn.Linear(6, 6), types
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("mask", torch.full((5, 5), barred).triu(1))

    def forward(self, x):
        x = self.norm(x.float() if self.types else x)
        kernel = torch.eye(6) if self.types else torch.eye(6, dtype=x.dtype)
        rows = (self.query(x) @ kernel @ x.mT + self.mask).softmax(-1)
        return rows @ self.value(x)


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("barred", [-torch.inf, -100.0])
def test_synflow_leaves_masks_alone_and_takes_forwards_that_set_types(barred, types):
    torch.manual_seed(0)
    net = Attention(barred, types=types)
    found = scores_of(es.SynFlow(0.5, include=["Linear"]), net, example_inputs=torch.randn(2, 5, 6))
    by_hand = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name, value in by_hand.state_dict().items():
            if name != "mask":
                value.abs_()
    by_hand(torch.ones(1, 5, 6)).sum().backward()
    expected = {name: (by_hand.get_parameter(name).grad * by_hand.get_parameter(name)).abs() for name in found}
    highest = max(value.max() for value in expected.values())
    for name, score in found.items():
        assert score.dtype == (torch.float32 if types else torch.float64)
        torch.testing.assert_close(score.float(), (expected[name] / highest).detach(), rtol=1e-4, atol=1e-5)


def test_synflow_says_in_one_sentence_what_a_model_cannot_run():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    with pytest.raises(es.EspalierError, match="cannot send ones through this model") as caught:
        scores_of(es.SynFlow(0.5, include=["*"]), net, example_inputs=torch.randn(2, 5))
    assert "\n" not in str(caught.value)


def test_synflow_s_scores_that_are_not_finite_are_no_matter_of_batches():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    nn.init.zeros_(net[1].weight)
    with pytest.raises(es.EspalierError, match="some path of weights") as caught:
        es.Pruner(
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            es.SynFlow(0.5, include=["*"]),
            total_steps=2,
            example_inputs=torch.ones(1, 6),
        )
    assert "batches" not in str(caught.value)
