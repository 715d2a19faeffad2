"""What every method promises, over every method. A new method joins by one row in ``METHODS``."""

import copy
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.optim import swa_utils

import espalier as es
from espalier.masks import ranking
from espalier.methods.frame.splitting.masks import SplitRun
from tests.helpers.host import no_reads
from tests.pruner.conftest import DATA, batch, train_step

_FILES = tempfile.TemporaryDirectory()


def ticket() -> es.Ticket:
    """Fixed masks of the small net, a quarter of each weight at random places."""
    shapes = {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (16, 8, 3, 3)}
    quarter = {name: (torch.arange(torch.Size(shape).numel()) % 4 == 0).view(shape) for name, shape in shapes.items()}
    path = Path(_FILES.name) / "masks.safetensors"
    es.lottery.save_masks(es.lottery.random_masks(quarter), path)
    return es.Ticket(path, sparsity=0.75)


METHODS = {
    "dense": (es.Dense(), 0.0),
    "one-shot": (es.OneShot(0.75), 0.75),
    "iterative": (es.Iterative(0.75), 0.75),
    "agp": (es.AGP(0.75), 0.75),
    "ocp": (es.OCP(0.75), 0.75),
    "follow-cosine": (es.Follow(es.schedules.Cosine(0.75)), 0.75),
    "follow-dsd": (es.Follow(es.schedules.DenseSparseDense(0.75)), 0.0),
    "ocp-global": (es.OCP(0.75, scope="global"), 0.75),
    "ocp-erk": (es.OCP(0.75, scope="erk"), 0.75),
    "ocp-everything": (es.OCP(0.75, include=["*"]), 0.75),
    "ocp-kernel": (es.OCP(0.75, pattern=es.patterns.Kernel()), 0.75),
    "ocp-filter": (es.OCP(0.5, pattern=es.patterns.Filter()), 0.5),
    "ocp-block": (es.OCP(0.75, pattern=es.patterns.Block(2, 3)), 0.75),
    "one-shot-2:4": (es.OneShot(0.5, pattern=es.patterns.NM(2, 4), exclude=["conv1"]), 0.5),
    "ocp-weight-gradient": (es.OCP(0.75, criterion="weight-gradient"), 0.75),
    "ocp-movement": (es.OCP(0.75, criterion="movement"), 0.75),
    "ocp-kernel-squared": (es.OCP(0.75, criterion="squared", pattern=es.patterns.Kernel()), 0.75),
    "ocp-random": (es.OCP(0.75, criterion="random"), 0.75),
    "one-shot-ratios": (es.OneShot({"Conv2d": 0.8, "conv1": 0.5}), (108 + 922) / 1368),
    "slr": (es.SLR(0.75, check_every=3, start=0.1, hard_prune_at=0.8), 0.75),
    "slr-to-the-end": (es.SLR(0.75, check_every=1, scope="global"), 0.75),
    "slr-kernel-erk": (es.SLR(0.75, check_every=2, scope="erk", pattern=es.patterns.Kernel(), norm="layers"), 0.75),
    "slr-2:4": (es.SLR(0.5, check_every=2, pattern=es.patterns.NM(2, 4), exclude=["conv1"], numerator="previous"), 0.5),
    "slr-column": (
        es.SLR(0.5, check_every=2, start=0.3, pattern=es.patterns.Column(), hard_prune_at=0.9, exclude=["conv1"]),
        0.5,
    ),
    "admm": (es.ADMM(0.75, check_every=2, hard_prune_at=0.6), 0.75),
    "admm-input-channel": (es.ADMM(0.5, pattern=es.patterns.InputChannel(), exclude=["conv1"]), 0.5),
    "admm-kernel-shape": (es.ADMM(0.4444, check_every=2, pattern=es.patterns.KernelShape()), 4 / 9),
    "admm-ratios": (es.ADMM({"Conv2d": 0.8, "conv1": 0.5}, check_every=2), (108 + 922) / 1368),
    "random-at-start": (es.OneShot(0.75, at=0, criterion="random", scope="global"), 0.75),
    "magnitude-at-start": (es.OneShot(0.75, at=0, scope="global"), 0.75),
    "snip": (es.SNIP(0.75), 0.75),
    "snip-iterative": (es.SNIP(0.75, rounds=3, batches_per_round=2, include=["*"]), 0.75),
    "snip-force": (es.SNIP(0.75, rounds=3, returns=True, scope="erk"), 0.75),
    "snip-2:4": (es.SNIP(0.5, scope="local", pattern=es.patterns.NM(2, 4), exclude=["conv1"]), 0.5),
    "grasp": (es.GraSP(0.75, batches_per_round=2), 0.75),
    "grasp-kernel": (es.GraSP(0.75, pattern=es.patterns.Kernel(), scope="local"), 0.75),
    "ticket": (ticket(), 0.75),
    "synflow": (es.SynFlow(0.75, rounds=5), 0.75),
    "synflow-filter": (es.SynFlow(0.5, rounds=3, pattern=es.patterns.Filter(), scope="local"), 0.5),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
}
STEPS = 12

methods = pytest.mark.parametrize("key", list(METHODS))


def assert_masked_state_is_zero(pruner, optimizer):
    for name, mask in pruner.run.masks.tensors.items():
        weight = pruner.run.weights[name]
        dead = mask == 0
        assert not weight[dead].any(), name
        for key, value in optimizer.state[weight].items():
            if value.shape == weight.shape:
                assert not value[dead].any(), (name, key)


def in_round(run, step):
    """Whether the optimizer step after ``step`` others begins or ends with a look at numbers."""
    return isinstance(run, SplitRun) and (run.iteration.first == step or run.iteration.is_due(step + 1))


@methods
def test_trains_meets_its_target_and_leaves_a_plain_module(make_net, key):
    method, target = METHODS[key]
    net = make_net()
    names = list(net.state_dict())
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    pruner = es.Pruner(net, optimizer, method, total_steps=STEPS, **DATA)
    for step in range(STEPS):
        train_step(net, optimizer, step)
        assert_masked_state_is_zero(pruner, optimizer)
    report = pruner.finish()
    assert report.sparsity == pytest.approx(target, abs=0.001)
    zeros = sum(int((p == 0).sum()) for n, p in net.named_parameters() if n in {x.name for x in report.layers})
    if key != "follow-dsd":  # its last weights come back as zeros at the last step
        assert zeros == sum(layer.zeros for layer in report.layers)
    assert list(net.state_dict()) == names
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    copy.deepcopy(net)


@methods
@pytest.mark.parametrize("optimizer_name", ["sgd-foreach", "adamw-fused"])
def test_no_step_reads_on_the_host(make_net, key, optimizer_name, monkeypatch):
    """New masks included: ranking, selection and zeroing stay on the device. Here the CPU ranks as an accelerator does.

    A round of SLR and ADMM decides by numbers, so it may read; the steps between rounds may not.
    """
    monkeypatch.setattr(ranking, "_keep_best_on_cpu", ranking._keep_best_unread)
    net = make_net()
    optimizer = OPTIMIZERS[optimizer_name](net.parameters())
    pruner = es.Pruner(net, optimizer, METHODS[key][0], total_steps=STEPS, **DATA)
    train_step(net, optimizer, 0)  # gives the optimizer its states
    for step in range(1, STEPS):
        x, y = batch(step)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        with nullcontext() if in_round(pruner.run, step) else no_reads():
            optimizer.step()
        optimizer.zero_grad()
    assert pruner.step == STEPS


@methods
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw-fused"])
def test_resumes_bit_equal_from_any_step(make_net, key, optimizer_name, tmp_path):
    method, _ = METHODS[key]
    reference = make_net()
    optimizer = OPTIMIZERS[optimizer_name](reference.parameters())
    pruner = es.Pruner(reference, optimizer, method, total_steps=STEPS, **DATA)
    for step in range(STEPS):
        torch.save({"model": reference.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"{step}.pt")
        train_step(reference, optimizer, step)
    pruner.finish()
    for stop in (0, 1, 5, 11):
        saved = torch.load(tmp_path / f"{stop}.pt", weights_only=True)
        net = make_net(seed=99)
        optimizer = OPTIMIZERS[optimizer_name](net.parameters())
        pruner = es.Pruner(net, optimizer, method, total_steps=STEPS, **DATA)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        assert pruner.step == stop
        for step in range(stop, STEPS):
            train_step(net, optimizer, step)
        pruner.finish()
        for (name, mine), theirs in zip(net.state_dict().items(), reference.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), (stop, name)


@methods
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer_name", list(OPTIMIZERS))
def test_weights_and_moments_are_zero_under_every_optimizer(make_net, key, optimizer_name, channels_last):
    method, _ = METHODS[key]
    net = make_net(channels_last=channels_last)
    optimizer = OPTIMIZERS[optimizer_name](net.parameters())
    pruner = es.Pruner(net, optimizer, method, total_steps=6, **DATA)
    for step in range(6):
        train_step(net, optimizer, step)
        assert_masked_state_is_zero(pruner, optimizer)
    pruner.finish()


@methods
def test_followers_are_masked_too(make_net, key):
    method, target = METHODS[key]
    net = make_net()
    ema = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = OPTIMIZERS["adamw-foreach"](net.parameters())
    pruner = es.Pruner(net, optimizer, method, total_steps=6, followers=[ema], **DATA)
    for step in range(6):
        train_step(net, optimizer, step)
        ema.update_parameters(net)
    report = pruner.finish()
    averaged = dict(ema.module.named_parameters())
    for name, mask in pruner.run.masks.tensors.items():
        assert not averaged[name][mask == 0].any()
    if target:
        assert any(averaged[layer.name].eq(0).any() for layer in report.layers)
    assert any(not torch.equal(averaged[n], p) for n, p in net.named_parameters()), "the average is its own model"


@methods
def test_gradient_accumulation_and_several_param_groups(make_net, key):
    method, target = METHODS[key]
    net = make_net()
    groups = [
        {"params": [net.conv1.weight], "lr": 0.01},
        {"params": [p for n, p in net.named_parameters() if n != "conv1.weight"]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    pruner = es.Pruner(net, optimizer, method, total_steps=5, **DATA)
    for step in range(5):
        train_step(net, optimizer, step, accumulate=3)
    assert pruner.step == 5
    assert pruner.finish().sparsity == pytest.approx(target, abs=0.001)
