"""``es.DistributedDataParallel`` on two gloo ranks: a cut, and the training goes on as on one process with the joined batch."""

import contextlib
import copy
import itertools
import pickle
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel as Foreign

import espalier as es
from espalier.surgery import cut, reshaping, shape_to, structure_of
from tests.helpers.cutting import CutAt, cut_channels
from tests.helpers.ranks import failures, in_two_ranks
from tests.pruner.conftest import SmallNet, batch

KEPT = [0, 2, 3, 6, 7]


class Net(nn.Module):
    """No batch norm: two ranks with half a batch each compute what one computes with the whole."""

    def __init__(self, *, spare=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.spare = nn.Linear(6, 4) if spare else None

    def forward(self, x):
        x = nn.functional.silu(self.conv1(x))
        return self.head(nn.functional.silu(self.conv2(x)).mean((2, 3)))


def narrow(net, kept, **kwargs):
    places = {("conv1.weight", 0): kept, ("conv1.bias", 0): kept, ("conv2.weight", 1): kept}
    cut(net, places, integers={"conv1.out_channels": len(kept), "conv2.in_channels": len(kept)}, **kwargs)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def backward(model, images, labels):
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss


def everyone(tensor):
    found = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(found, tensor.contiguous())
    return found


def compare(net, alone):
    """Gradients are those of the joined batch, on every rank the same bits."""
    for (name, mine), other in zip(net.named_parameters(), alone.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(*everyone(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])))


class Pair:
    """The wrapped net and its twin on one process with the joined batch."""

    def __init__(self, rank, spare=False, wrap=es.DistributedDataParallel, **kwargs):
        self.rank, self.net = rank, Net(spare=spare)
        self.alone = copy.deepcopy(self.net)
        self.model = wrap(self.net, **kwargs)
        self.optimizers = sgd(self.net), sgd(self.alone)
        self.losses = []
        self.numbers = itertools.count()

    def accumulate(self, *, sync=True):
        images, labels = batch(next(self.numbers))
        mine = slice(4 * self.rank, 4 * self.rank + 4)
        with contextlib.nullcontext() if sync else self.model.no_sync():
            self.losses.append(backward(self.model, images[mine], labels[mine]))
        if not sync:
            assert not torch.equal(*everyone(self.net.conv1.weight.grad)), "gradients were averaged inside no_sync"
        self.losses.append(backward(self.alone, images, labels))

    def update(self, set_to_none=True):
        compare(self.net, self.alone)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)

    def train(self, steps, **kwargs):
        for _ in range(steps):
            self.accumulate()
            self.update(**kwargs)

    def cut(self, kept=KEPT):
        for net, optimizer in zip((self.net, self.alone), self.optimizers, strict=True):
            narrow(net, kept, optimizers=[optimizer])


def trains_on(rank, before=2, keep_loss=True, set_to_none=True, **kwargs):
    pair = Pair(rank, **kwargs)
    reducer = pair.model.reducer
    pair.train(before, set_to_none=set_to_none)
    if not keep_loss:
        pair.losses.clear()
    pair.cut()
    pair.train(3, set_to_none=set_to_none)
    assert pair.model.reducer is not reducer
    second = pair.model.reducer
    pair.cut([0, 3])
    pair.train(1, set_to_none=set_to_none)
    assert pair.model.reducer is not second
    assert pair.net.conv1.weight.grad is None or pair.net.conv1.weight.grad.shape[0] == 2


def does_nothing_where_nothing_was_cut(rank):
    pair, other = Pair(rank), Net()
    reducer = pair.model.reducer
    narrow(other, KEPT)
    pair.train(2)
    assert pair.model.reducer is reducer


def accumulates_across_the_cut(rank, **kwargs):
    pair = Pair(rank, **kwargs)
    pair.train(2)
    pair.accumulate(sync=False)
    pair.cut()
    pair.accumulate()
    pair.update()
    pair.accumulate(sync=False)
    pair.accumulate()
    pair.update()


def accumulates_on_after_the_cut(rank, **kwargs):
    pair = Pair(rank, **kwargs)
    pair.train(2)
    pair.accumulate(sync=False)
    pair.cut()
    pair.accumulate(sync=False)
    pair.accumulate()
    pair.update()


def keeps_a_comm_hook(rank):
    calls = []

    def hook(state, bucket):
        calls.append(state)
        return default_hooks.allreduce_hook(None, bucket)

    pair = Pair(rank)
    pair.model.register_comm_hook("mine", hook)
    pair.train(2)
    pair.cut()
    calls.clear()
    pair.train(1)
    assert calls
    assert set(calls) == {"mine"}


def keeps_a_builtin_hook(rank):
    pair = Pair(rank)
    pair.model._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    pair.train(1)
    pair.cut()
    pair.train(2)


def keeps_power_sgd(rank):
    net = Net()
    model = es.DistributedDataParallel(net)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=1)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    optimizer = sgd(net)
    for step in range(10):
        if step == 5:
            assert state.error_dict
            narrow(net, KEPT, optimizers=[optimizer])
        images, labels = batch(2 * step + rank)
        backward(model, images, labels)
        compare(net, net)
        optimizer.step()
        optimizer.zero_grad()
    assert state.error_dict


def keeps_what_users_hang_on_it(rank):
    pair, seen = Pair(rank), []
    pair.model.register_forward_hook(lambda *_: seen.append("forward"))
    pair.model.note = "mine"
    pair.train(1)
    pair.cut()
    pair.model.eval()
    pair.train(1)
    assert not pair.model.training
    assert seen == ["forward"] * 2
    assert pair.model.note == "mine"
    assert all(key.startswith("module.") for key in pair.model.state_dict())
    assert pair.model.state_dict()["module.conv1.weight"].shape[0] == 5


def leaves_evaluation_on_one_rank_alone(rank):
    pair = Pair(rank)
    pair.train(1)
    pair.cut()
    if rank == 0:
        with torch.no_grad():
            pair.model(batch(0)[0])
    pair.train(2)


def buffers_after_the_cut(rank, shared):
    """Batch norm statistics: rank 0's everywhere with torch's default, each rank's own where they are kept apart."""
    net, twin = SmallNet(), SmallNet()
    twin.load_state_dict(net.state_dict())
    model, uncut = (es.DistributedDataParallel(n, forward_sync_buffers=shared) for n in (net, twin))
    for step in range(4):
        if step == 2:
            cut_channels(net, KEPT)
        for each in (model, uncut):
            each(batch(2 * step + rank)[0])
    assert torch.equal(net.bn1.running_mean, twin.bn1.running_mean[KEPT])


def follows_a_cut_of_an_outer_model(rank):
    inner, head = Net(), nn.Linear(4, 4)
    outer = nn.Sequential(es.DistributedDataParallel(inner), head)
    for step in range(4):
        if step == 2:
            kept = KEPT
            places = {("conv1.weight", 0): kept, ("conv1.bias", 0): kept, ("conv2.weight", 1): kept}
            cut(outer, {(f"0.module.{name}", dim): k for (name, dim), k in places.items()})
        backward(outer, *batch(2 * step + rank))
        compare(inner, inner)
        outer.zero_grad()


def follows_a_reshaping_load(rank):
    pair = Pair(rank)
    reshaping.install(pair.net)
    small = copy.deepcopy(pair.net)
    narrow(small, KEPT)
    pair.train(1)
    pair.model.load_state_dict(Prefixed(copy.deepcopy(small)).state_dict())
    assert pair.net.conv1.out_channels == 5
    pair.alone = small
    pair.optimizers = sgd(pair.net), sgd(small)
    pair.train(2)
    shape_to(pair.net, es.structure.Structure())
    shape_to(pair.net, structure_of(small))  # the same shapes again, other tensors
    with torch.no_grad():
        for mine, other in zip(pair.net.parameters(), small.parameters(), strict=True):
            mine.copy_(other)
    pair.optimizers = sgd(pair.net), sgd(small)
    pair.train(2)


class Prefixed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def follows_a_pruner(rank):
    net = SmallNet()
    model = es.DistributedDataParallel(net)
    optimizer = sgd(net)
    pruner = es.Pruner(model, optimizer, CutAt(at=2, width=6, again=4, narrower=3), total_steps=6)
    for step in range(6):
        backward(model, *batch(2 * step + rank))
        compare(net, net)
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    assert net.conv1.out_channels == 3


def compiled_inside(rank):
    trains_on(rank, wrap=lambda net: es.DistributedDataParallel(torch.compile(net, backend="eager")))


def compiled_outside(rank):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pair = Pair(rank)
    wrapped = pair.model
    pair.model = torch.compile(wrapped, backend=backend)
    pair.model.no_sync = wrapped.no_sync
    pair.train(2)
    before = len(graphs)
    assert before
    reducer = wrapped.reducer
    pair.cut()
    pair.train(2)
    assert wrapped.reducer is not reducer
    assert len(graphs) > before


def copies_and_pickles(rank):
    pair = Pair(rank)
    pair.train(1)
    for again in (copy.deepcopy(pair.model), pickle.loads(pickle.dumps(pair.model))):
        narrow(again.module, KEPT)
        backward(again, *batch(rank))
        compare(again.module, again.module)
        assert pair.net.conv1.out_channels == 8


def refuses_ranks_that_cut_differently(rank):
    pair = Pair(rank)
    pair.train(1)
    pair.cut([[0, 1, 2], [0, 1, 3]][rank])
    for _ in range(2):
        with pytest.raises(es.EspalierError, match="differently on rank 0 and rank 1"):
            pair.model(batch(0)[0])


def refuses_what_it_cannot_take_back(rank):
    with pytest.raises(es.EspalierError, match="delay_all_reduce_named_params"):
        es.DistributedDataParallel(Net(), delay_all_reduce_named_params=[])


def refuses_a_foreign_wrapper(rank, change=narrow, wrap=Foreign):
    net = Net()
    model = wrap(net)
    untouched = Foreign(Net())
    backward(model, *batch(rank))
    net.zero_grad()
    narrow(net, KEPT)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(es.EspalierError, match=r"use espalier\.DistributedDataParallel"):
            model(batch(rank)[0])
    backward(untouched, *batch(rank))
    backward(Foreign(net), *batch(rank))
    backward(es.DistributedDataParallel(net), *batch(rank))


def refuses_a_foreign_wrapper_in_a_pruner_that_cuts(rank):
    net = SmallNet()
    for model in (Foreign(net), torch.compile(Foreign(net), backend="eager"), Foreign(torch.compile(net, backend="eager"))):
        with pytest.raises(es.EspalierError, match=r"cut-at changes shapes.*es\.DistributedDataParallel"):
            es.Pruner(model, sgd(net), CutAt(at=2, width=6), total_steps=3)
    es.Pruner(Foreign(net), sgd(net), es.OCP(sparsity=0.5), total_steps=3).detach()


def names_the_rank_that_was_not_cut(rank):
    pair = Pair(rank)
    pair.train(1)
    if rank == 0:
        pair.cut()
        store = dist.group.WORLD.get_group_store()
        store.set_timeout(timedelta(seconds=1))
        with pytest.raises(es.EspalierError, match="cut on rank 0, but rank 1 did not come"):
            pair.model(batch(0)[0])
        store.set_timeout(timedelta(seconds=60))


CHECKS = {
    "plain": trains_on,
    "bucket views": partial(trains_on, gradient_as_bucket_view=True),
    "bucket views, gradients zeroed, loss deleted": partial(
        trains_on, keep_loss=False, gradient_as_bucket_view=True, set_to_none=False
    ),
    "cut before the first step": partial(trains_on, before=0),
    "cut after one step": partial(trains_on, before=1, gradient_as_bucket_view=True),
    "unused parameters": partial(trains_on, spare=True, find_unused_parameters=True),
    "static graph": partial(trains_on, static_graph=True),
    "small buckets, arguments by position": partial(
        trains_on, wrap=lambda net: es.DistributedDataParallel(net, None, None, 0, None, True, dist.group.WORLD, 0.0005)
    ),
    "nothing was cut": does_nothing_where_nothing_was_cut,
    "no_sync": accumulates_across_the_cut,
    "no_sync, bucket views": partial(accumulates_across_the_cut, gradient_as_bucket_view=True),
    "no_sync after the cut": accumulates_on_after_the_cut,
    "no_sync after the cut, bucket views": partial(accumulates_on_after_the_cut, gradient_as_bucket_view=True),
    "comm hook": keeps_a_comm_hook,
    "builtin hook": keeps_a_builtin_hook,
    "PowerSGD": keeps_power_sgd,
    "users' things": keeps_what_users_hang_on_it,
    "evaluation on one rank": leaves_evaluation_on_one_rank_alone,
    "shared buffers": partial(buffers_after_the_cut, shared=True),
    "own buffers": partial(buffers_after_the_cut, shared=False),
    "outer model": follows_a_cut_of_an_outer_model,
    "load": follows_a_reshaping_load,
    "pruner": follows_a_pruner,
    "compiled inside": compiled_inside,
    "compiled outside": compiled_outside,
    "copies": copies_and_pickles,
    "ranks differ": refuses_ranks_that_cut_differently,
    "arguments": refuses_what_it_cannot_take_back,
    "foreign": refuses_a_foreign_wrapper,
    "foreign, compiled inside": partial(
        refuses_a_foreign_wrapper, wrap=lambda net: Foreign(torch.compile(net, backend="eager"))
    ),
    "foreign, compiled outside": partial(
        refuses_a_foreign_wrapper, wrap=lambda net: torch.compile(Foreign(net), backend="eager")
    ),
    "foreign, in a Pruner": refuses_a_foreign_wrapper_in_a_pruner_that_cuts,
    "one rank not cut": names_the_rank_that_was_not_cut,
}


def run(rank):
    return failures(rank, CHECKS)


@pytest.fixture(scope="module")
def outcome():
    return in_two_ranks(run)


@pytest.mark.parametrize("name", list(CHECKS))
def test_on_two_ranks(outcome, name):
    for rank, checks in enumerate(outcome):
        assert checks.get(name, "was not reached") == "", f"rank {rank}"
