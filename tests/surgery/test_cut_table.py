"""Continuity: channels that are zero already (weights, consumers, moments, statistics) are cut out of the ordinary training
loop, and the next five steps equal those of the uncut run. Every way of writing that loop is a cell of this table."""

import gc
import itertools

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from tests.helpers.cutting import cut_channels, members
from tests.helpers.ranks import failures, in_two_ranks
from tests.pruner.conftest import SmallNet, batch

KEPT = [0, 2, 3, 6, 7]
DEAD = [1, 4, 5]
LOSSES = ["loss kept", "loss deleted"]
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
CELLS = list(itertools.product(LOSSES, OPTIMIZERS, ["foreach", "fused"], FORMATS))


class Loop:
    """A user's loop around one net; subclasses are the contexts of the table."""

    batches = 1  # per step

    def __init__(self, optimizer, kind, layout):
        torch.manual_seed(0)
        # Smooth: at the kink of a ReLU the last bit of a sum decides about a whole gradient.
        self.net = SmallNet(act=nn.functional.silu)
        self.net.conv2.register_parameter("bias", None)  # before a norm its gradient is noise, and Adam makes that a step
        self.net.to(memory_format=FORMATS[layout])
        self.model = self.wrap(self.net)
        make, kwargs = OPTIMIZERS[optimizer]
        self.optimizer = make(self.net.parameters(), **kwargs, **({} if kind == "for-loop" else {kind: True}))
        self.followers = []
        self.losses = []

    def wrap(self, net):
        return net

    def batch(self, number):
        return batch(number)

    def backward(self, number):
        images, labels = self.batch(number)
        self.losses.append(nn.functional.cross_entropy(self.model(images), labels))
        self.scaled(self.losses[-1]).backward()

    def scaled(self, loss):
        return loss

    def update(self):
        self.optimizer.step()

    def step(self, number):
        for part in range(self.batches):
            self.backward(self.batches * number + part)
        self.update()
        self.optimizer.zero_grad()

    def cut(self):
        cut_channels(self.net, KEPT, optimizers=[self.optimizer], followers=self.followers)


class Scaled(Loop):
    def __init__(self, *cell):
        super().__init__(*cell)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def scaled(self, loss):
        return self.scaler.scale(loss)

    def update(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Averaged(Loop):
    def __init__(self, *cell):
        super().__init__(*cell)
        self.followers = [swa_utils.AveragedModel(self.net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))]

    def update(self):
        super().update()
        self.followers[0].update_parameters(self.net)


class Accumulated(Loop):
    """The cut falls between the two batches of one step."""

    batches = 2

    def cut(self):
        pass

    def step(self, number, cut_between=False):
        self.backward(2 * number)
        if cut_between:
            super().cut()
        self.backward(2 * number + 1)
        self.update()
        self.optimizer.zero_grad()


class Compiled(Loop):
    backend = "eager"

    def wrap(self, net):
        return torch.compile(net, backend=self.backend)


class Inductor(Compiled):
    backend = "inductor"


class TwoRanks(Loop):
    def wrap(self, net):
        return es.DistributedDataParallel(net)

    def batch(self, number):
        return batch(2 * number + torch.distributed.get_rank())


def modules(loop):
    return [loop.net, *(follower.module for follower in loop.followers)]


@torch.no_grad()
def kill_channels(loop):
    """Zero whatever belongs to the dead channels, as a pruning method does before it cuts."""
    for (name, dim), _ in members(KEPT).items():
        for module in modules(loop):
            module.state_dict()[name].index_fill_(dim, torch.tensor(DEAD), 0)
        parameter = dict(loop.net.named_parameters()).get(name)
        for state in loop.optimizer.state.get(parameter, {}).values():
            if state.dim():
                state.index_fill_(dim, torch.tensor(DEAD), 0)


def narrowed(name, tensor):
    for (place, dim), kept in members(KEPT).items():
        if place == name and tensor.dim():
            tensor = tensor.index_select(dim, torch.tensor(kept))
    return tensor


def assert_same(dense, small, when):
    for whole, part in zip(modules(dense), modules(small), strict=True):
        for (name, full), tensor in zip(whole.state_dict().items(), part.state_dict().values(), strict=True):
            close(tensor, narrowed(name, full), f"{name} {when}")
    for (name, parameter), twin in zip(dense.net.named_parameters(), small.net.parameters(), strict=True):
        for key, state in dense.optimizer.state[parameter].items():
            close(small.optimizer.state[twin][key], narrowed(name, state), f"{key} of {name} {when}")
    for mine, other in zip(dense.losses[-5:], small.losses[-5:], strict=True):
        close(mine.detach(), other.detach(), f"loss {when}")


def close(tensor, expected, what):
    torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6, msg=lambda message: f"{what}: {message}")


def check(context, loss, optimizer, kind, layout):
    dense, small = (context(optimizer, kind, layout) for _ in range(2))
    identities = [id(p) for p in small.net.parameters()]
    for number in range(2):
        for loop in (dense, small):
            loop.step(number)
    for loop in (dense, small):
        kill_channels(loop)
        if loss == "loss deleted":
            loop.losses.clear()
            gc.collect()
    small.cut()
    for number in range(2, 7):
        dense.step(number)
        if context is Accumulated:
            small.step(number, cut_between=number == 2)
        else:
            small.step(number)
        assert_same(dense, small, f"after step {number}")
    assert small.net.conv1.weight.shape[0] == small.net.conv1.out_channels == len(KEPT)
    assert [id(p) for p in small.net.parameters()] == identities
    for parameter in small.net.parameters():
        assert parameter.dim() < 4 or parameter.is_contiguous(memory_format=FORMATS[layout])
        assert all(s.dim() == 0 or s.stride() == parameter.stride() for s in small.optimizer.state[parameter].values())


@pytest.mark.parametrize("context", [Loop, Scaled, Averaged, Accumulated, Compiled])
@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_the_next_five_steps_equal_those_of_the_uncut_run(cell, context):
    torch.compiler.reset()
    check(context, *cell)


@pytest.mark.parametrize("cell", list(itertools.product(LOSSES, OPTIMIZERS, ["for-loop"], FORMATS)), ids=" ".join)
def test_neither_foreach_nor_fused(cell):
    check(Loop, *cell)


@pytest.mark.slow
def test_with_compiled_kernels():
    torch.compiler.reset()
    check(Inductor, "loss kept", "adamw", "fused", "channels-last")


def all_cells(rank):
    return failures(rank, {" ".join(cell): lambda _, cell=cell: check(TwoRanks, *cell) for cell in CELLS})


@pytest.fixture(scope="module")
def on_two_ranks():
    return in_two_ranks(all_cells)


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_on_two_ranks(on_two_ranks, cell):
    for rank, outcome in enumerate(on_two_ranks):
        assert outcome.get(" ".join(cell), "was not reached") == "", f"rank {rank}"
