"""rho (W - Z + U) on the gradients: once per optimizer step, in the scale that they have, whoever computes them."""

import pytest
import torch
from torch import nn

import espalier as es
from tests.pruner.conftest import DATA, SmallNet, batch

pytestmark = pytest.mark.usefixtures("quiet")
METHOD = es.ADMM(0.75, include=["*"], rho=0.3, check_every=2)


@torch.enable_grad()
def penalised_gradients(net, pair, step, accumulate=1):
    """Of f + rho/2 ||W - Z + U||^2, by autograd on a copy."""
    twin = SmallNet().to(next(net.parameters()).dtype)
    twin.load_state_dict(net.state_dict())
    weights = dict(twin.named_parameters())
    loss = 0.0
    for part in range(accumulate):
        x, y = batch(step * accumulate + part)
        loss = loss + nn.functional.cross_entropy(twin(x), y)
    for name, centre in pair.centres.items():
        loss = loss + 0.3 / 2 * (weights[name] - centre).square().sum()
    loss.backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def seen_gradients(net, optimizer):
    """What the optimizer works with, noted after all hooks that were there before."""
    seen = {}

    def note(*_):
        scale = getattr(optimizer, "grad_scale", None)
        seen.update({name: p.grad.clone() / (1.0 if scale is None else scale) for name, p in net.named_parameters()})

    optimizer.register_step_pre_hook(note)
    return seen


def agree(seen, expected, **tolerance):
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "adamw-fused", "channels-last"])
def test_the_penalty_is_added_once_per_step(make_net, kind, accumulate):
    net = make_net(channels_last=kind == "channels-last")
    optimizer = (
        torch.optim.AdamW(net.parameters(), lr=0.01, fused=True) if "fused" in kind else torch.optim.SGD(net.parameters(), 0.1)
    )
    pruner = es.Pruner(net, optimizer, METHOD, total_steps=20)
    seen = seen_gradients(net, optimizer)
    for step in range(6):
        expected = penalised_gradients(net, pruner.run.coupling, step, accumulate) if step else None
        for part in range(accumulate):
            x, y = batch(step * accumulate + part)
            nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if expected is not None:
            agree(seen, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_loss_scale(make_net, fused):
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    pruner = es.Pruner(net, optimizer, METHOD, total_steps=20)
    seen = seen_gradients(net, optimizer)
    for step in range(6):
        expected = penalised_gradients(net, pruner.run.coupling, step) if step else None
        x, y = batch(step)
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if expected is not None:
            agree(seen, expected, rtol=1e-4, atol=1e-5)


def test_a_closure_is_penalised_at_each_of_its_calls(make_net):
    net = make_net()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.01, max_iter=3)
    pruner = es.Pruner(net, optimizer, METHOD, total_steps=20)
    x, y = batch(0)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    calls = []
    inner = pruner.run.before_update

    def watched(gradients):
        pair = pruner.run.coupling
        expected = penalised_gradients(net, pair, 0) if pair.tied else None
        inner(gradients)
        if expected is not None:
            agree({name: p.grad for name, p in net.named_parameters()}, expected, rtol=1e-3, atol=1e-4)
            calls.append(1)

    pruner.run.before_update = watched
    for _ in range(3):
        optimizer.step(closure)
    assert len(calls) >= 6


def test_each_of_two_optimizers_takes_its_own_weights_along(make_net):
    net = make_net()
    first = torch.optim.SGD(net.conv1.parameters(), lr=0.1)
    second = torch.optim.SGD([p for n, p in net.named_parameters() if not n.startswith("conv1")], lr=0.1)
    pruner = es.Pruner(net, [first, second], METHOD, total_steps=20)
    seen = [seen_gradients(net, first), seen_gradients(net, second)]
    for step in range(3):
        expected = penalised_gradients(net, pruner.run.coupling, step) if step == 2 else None  # no round after it
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        first.step()
        second.step()
        if expected is not None:
            agree({"conv1.weight": seen[0]["conv1.weight"]}, {"conv1.weight": expected["conv1.weight"]}, rtol=1e-4, atol=1e-5)
            agree({"conv2.weight": seen[1]["conv2.weight"]}, {"conv2.weight": expected["conv2.weight"]}, rtol=1e-4, atol=1e-5)
        net.zero_grad()


def test_weights_in_half_precision_have_multipliers_in_float32(make_net):
    net = make_net().bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    pruner = es.Pruner(net, optimizer, METHOD, total_steps=6)
    for step in range(6):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x.bfloat16()).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < 5:
            assert {t.dtype for t in pruner.run.coupling.centres.values()} == {torch.float32}
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_a_weight_without_a_gradient_is_left_alone(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    es.Pruner(net, optimizer, METHOD, total_steps=20)
    for step in range(3):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        net.conv1.weight.grad = None
        before = net.conv1.weight.detach().clone()
        optimizer.step()
        assert net.conv1.weight.grad is None
        assert torch.equal(net.conv1.weight, before)


def test_sparse_gradients_are_refused_by_name():
    net = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    es.Pruner(net, optimizer, es.ADMM(0.5, include=["*"]), total_steps=9)
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(es.EspalierError, match=r"0\.weight has sparse gradients"):
        optimizer.step()


def test_what_is_kept_are_two_tensors_a_weight_and_none_after_pruning(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    pruner = es.Pruner(net, optimizer, es.SLR(0.75, check_every=2, hard_prune_at=0.5), total_steps=10, **DATA)
    sizes = []
    for step in range(10):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        pair = pruner.run.coupling
        sizes.append(sum(t.numel() for kept in (pair.centres, pair.multipliers) for t in kept.values()))
    selected = sum(p.numel() for p in pruner.run.weights.values())
    assert sizes == [2 * selected] * 4 + [0] * 6
