"""What training scripts also do: load weights late, nest optimizers, reload old states, checkpoint their own way, diverge."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import espalier as es
from espalier.surgery import reshaping
from tests.helpers.cutting import CutAt
from tests.pruner.conftest import Around, batch, sgd, train_step


def constant(**kwargs):
    return es.Follow(es.schedules.Constant(0.75), **kwargs)


def zeros(weight):
    return float((weight == 0).float().mean())


def test_start_weights_that_are_loaded_after_construction_are_ranked_anew(make_net):
    net, pretrained = make_net(), make_net(seed=7)
    expected = make_net(seed=7)
    es.Pruner(expected, sgd(expected), constant(), total_steps=3)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, constant(), total_steps=3)
    net.load_state_dict(pretrained.state_dict())
    train_step(net, optimizer, 0)
    assert zeros(net.conv2.weight) == pruner.sparsity == 0.75
    assert torch.equal(net.conv2.weight == 0, expected.conv2.weight == 0)


def test_dense_weights_that_are_loaded_under_way_are_masked_again(make_net):
    net = make_net()
    dense = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, constant(), total_steps=5)
    train_step(net, optimizer, 0)
    net.load_state_dict(dense)
    train_step(net, optimizer, 1)
    assert zeros(net.conv2.weight) == pruner.sparsity == 0.75


def test_finish_refuses_weights_that_are_not_zero_for_being_nan(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=1)
    train_step(net, optimizer, 0)
    net.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(es.EspalierError, match="NaN or infinite"):
        pruner.finish()


def test_counts_follow_a_state_of_before_the_first_mask(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OneShot(0.75, at=0.2), total_steps=10)
    dense = pruner.state_dict()
    for step in range(5):
        train_step(net, optimizer, step)
    assert pruner.sparsity == 0.75
    pruner.load_state_dict(dense)
    assert pruner.sparsity == 0


def test_numbers_of_numpy_do_not_reach_the_state(make_net):
    net = make_net()
    optimizer = sgd(net)
    es.Pruner(net, optimizer, es.OCP(np.float32(0.5)), total_steps=4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["espalier"]["run"]["in_force"] > 0


def test_gradients_count_once_and_unscaled_with_two_optimizers(make_net):
    memories = []
    for scale, several in ((1.0, False), (1.0, True), (2.0**12, True)):
        net = make_net()
        parts = [net.conv1.parameters(), [*net.conv2.parameters(), *net.head.parameters()]]
        optimizers = [torch.optim.SGD(part, lr=0.0) for part in (parts if several else [net.parameters()])]
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        pruner = es.Pruner(net, optimizers, constant(criterion="movement"), total_steps=4)
        x, y = batch(0)
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        memories.append(pruner.run.memories)
    for other in memories[1:]:
        for name, memory in memories[0].items():
            torch.testing.assert_close(other[name], memory)


def test_sparse_gradients_are_observed():
    net = nn.Sequential(nn.Embedding(20, 8, sparse=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = es.Pruner(net, optimizer, es.OCP(0.5, include=["*"], criterion="movement"), total_steps=4)
    net(torch.arange(20)).square().sum().backward()
    optimizer.step()
    assert pruner.run.memories["0.weight"].any()


def test_half_precision_products_do_not_underflow():
    net = nn.Linear(4, 4, bias=False).half()
    net.weight.data.fill_(1e-4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = es.Pruner(net, optimizer, es.OCP(0.5, include=["*"], criterion="movement"), total_steps=4)
    net.weight.grad = torch.full_like(net.weight, 1e-5)
    optimizer.step()
    assert pruner.run.memories["weight"].any()


def test_a_criterion_with_memory_finishes_rightly_after_a_change_of_format(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, criterion="weight-gradient"), total_steps=10)
    for step in range(3):
        train_step(net, optimizer, step)
    net.to(memory_format=torch.channels_last)
    pruner.finish(allow_early=True)
    mask, memory = pruner.run.masks.tensors["conv2.weight"], pruner.run.memories["conv2.weight"].abs()
    assert memory[mask == 0].max() <= memory[mask == 1].min()


def test_a_new_pruner_keeps_its_binding_when_it_takes_over(make_net):
    net = make_net()
    first = es.Pruner(net, sgd(net), CutAt(1, 4), total_steps=4)  # held, or the garbage collector may be there before
    with pytest.warns(UserWarning, match="earlier Pruner"):
        second = es.Pruner(net, sgd(net), CutAt(1, 4), total_steps=4)
    assert net in reshaping._bound
    assert first is not second


def test_after_a_stranger_a_pruner_with_both_optimizers_can_be_built(make_net):
    net = make_net()
    ours, stranger = sgd(net), torch.optim.Adam(net.parameters())
    es.Pruner(net, ours, es.OCP(0.75), total_steps=4)
    with pytest.raises(es.EspalierError, match="Adam that the Pruner does not ride on"):
        train_step(net, stranger, 0)
    es.Pruner(net, [ours, stranger], es.OCP(0.75), total_steps=4)


def test_an_optimizer_inside_ours_is_no_stranger(make_net):
    net = make_net()
    outer = Around(sgd(net))
    pruner = es.Pruner(net, outer, es.OCP(0.75), total_steps=3)
    for step in range(3):
        train_step(net, outer, step)
    assert pruner.step == 3
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_quantised_states_and_preconditioners_are_left_alone():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("state1", torch.full(p.shape, 127, dtype=torch.uint8))
                self.state[p].setdefault("precond_0", torch.eye(len(p)))

    net = nn.Linear(8, 8, bias=False)
    optimizer = Odd(net.parameters(), lr=0.1, momentum=0.9)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, include=["*"]), total_steps=4)
    for _ in range(3):
        net(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state, mask = optimizer.state[net.weight], pruner.run.masks.tensors["weight"]
    assert state["state1"].eq(127).all()
    assert torch.equal(state["precond_0"], torch.eye(8))
    assert not state["momentum_buffer"][mask == 0].any()


@pytest.mark.parametrize("make", [sgd, lambda net: torch.optim.AdamW(net.parameters(), lr=0.01)], ids=["sgd", "adamw"])
def test_distributed_checkpoints_resume_exactly_with_the_state_beside_them(make_net, make):
    net = make_net()
    optimizer = make(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, criterion="weight-gradient"), total_steps=8)
    get_optimizer_state_dict(net, optimizer)
    assert pruner.step == 0, "torch takes a step at lr 0 to see what the state looks like"
    for step in range(8):
        if step == 3:
            state = pruner.state_dict()
            weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            moments = get_optimizer_state_dict(net, optimizer)
            moments = torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, moments)
        train_step(net, optimizer, step)
    again = make_net(seed=3)
    optimizer = make(again)
    pruner = es.Pruner(again, optimizer, es.OCP(0.75, criterion="weight-gradient"), total_steps=8)
    with pytest.raises(es.EspalierError, match=r"pruner\.load_state_dict first"):
        set_optimizer_state_dict(again, optimizer, moments)
    again.load_state_dict(weights)
    pruner.load_state_dict(state)
    set_optimizer_state_dict(again, optimizer, moments)
    for step in range(3, 8):
        train_step(again, optimizer, step)
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(es.EspalierError, match="saved without a Pruner"):
        set_optimizer_state_dict(again, optimizer, moments)
