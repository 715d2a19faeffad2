"""Bad input ends at construction, in one sentence that says what to do."""

import copy

import pytest
import torch
from torch import nn

import espalier as es
from tests.pruner.conftest import train_step


def build(net, method=None, optimizer=None, **kwargs):
    optimizer = optimizer if optimizer is not None else torch.optim.SGD(net.parameters(), lr=0.1)
    return es.Pruner(net, optimizer, method if method is not None else es.OCP(0.5), **{"total_steps": 10, **kwargs})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: es.OCP(90), "looks like a percentage"),
        (lambda n: es.OCP(1.0), r"\[0, 1\)"),
        (lambda n: es.OCP(-0.5), r"\[0, 1\)"),
        (lambda n: es.OCP(0.9, scope="lokal"), "scope must be one of local, global, erk"),
        (lambda n: es.OCP(0.9, criterion="magnitud"), "criterion must be one of"),
        (lambda n: es.OCP(0.9, include="conv1"), "take lists"),
        (lambda n: es.OCP(0.9, include=nn.Conv2d), "take lists"),
        (lambda n: es.OCP(0.9, include=(name for name in ["conv1"])), "take lists"),
        (lambda n: es.OCP(0.9, pattern="kernel"), "pattern must be an object"),
        (lambda n: es.OCP(0.9, pattern=es.patterns.Kernel), "pattern must be an object"),
        (lambda n: es.OCP(0.9, criterion=es.criteria.Movement), "criterion must be one of"),
        (lambda n: es.OCP(0.9, every=1.5), "every must be a whole number"),
        (lambda n: es.OCP(0.9, beta=900), "beta, the offset"),
        (lambda n: es.Iterative(0.5, steps=2.5), "and whole ones"),
        (lambda n: es.AGP(0.5, start="a"), "0 <= start < end <= 1"),
        (lambda n: build(n, es.OCP(0.5, include=[])), "include is empty"),
        (lambda n: build(n, es.OCP(0.5, exclude=["Conv2d"])), "exclude removes them all"),
        (lambda n: es.OCP(0.5, pattern=es.patterns.NM(2, 4)), "cannot follow the gradual schedule OneCycle"),
        (lambda n: es.Iterative(0.5, pattern=es.patterns.NM(2, 4)), "means a sparsity of 0.5"),
        (lambda n: es.OneShot(0.9, pattern=es.patterns.NM(2, 4)), "means a sparsity of 0.5"),
        (lambda n: es.OneShot(0.5, scope="global", pattern=es.patterns.NM(2, 4)), "scope='local'"),
        (lambda n: es.Follow("cosine"), "takes a schedule"),
        (lambda n: build(n, es.OneShot(0.5, pattern=es.patterns.NM(2, 4))), "conv1.weight has 3 input channels"),
        (lambda n: build(n, es.OCP(0.5, include=["Linear"], pattern=es.patterns.Kernel())), "no kernels"),
        (lambda n: build(n, es.OCP(0.5, pattern=es.patterns.Block(3, 4))), "do not tile"),
        (lambda n: build(n, es.OCP(0.99, pattern=es.patterns.Filter())), "would remove all 8 units of conv1.weight"),
        (lambda n: build(n, es.OCP(0.01, pattern=es.patterns.Filter())), "rounds to none of the 8 units"),
        (lambda n: build(n, es.OCP(0.95, pattern=es.patterns.Filter(), scope="global")), "would empty a layer"),
        (lambda n: build(n, es.OCP(0.5, include=["nothing"])), "'nothing' matches no weight"),
        (lambda n: build(nn.Sequential(nn.Linear(4, 4))), "the model has no convolution"),
        (lambda n: build(n, method=es.OCP), "not the class: write es.OCP"),
        (lambda n: build(n, method="ocp"), "method must be one of es.Dense, es.OneShot"),
        (lambda n: build(n, total_steps=0), "total_steps must be"),
        (lambda n: build(n, total_steps=10.0), "total_steps must be"),
        (lambda n: build(n, optimizer=[]), "at least one optimizer"),
        (
            lambda n: build(n, optimizer=torch.optim.lr_scheduler.StepLR(torch.optim.SGD(n.parameters()), 1)),
            "torch.optim.Optimizer",
        ),
        (lambda n: build(n, optimizer=torch.optim.SGD(copy.deepcopy(n).parameters())), "holds none of the model's"),
        (lambda n: build(n, optimizer=torch.optim.SGD(n.conv1.parameters())), "in no optimizer, conv2.weight the first"),
        (lambda n: build(n, followers=[nn.Linear(2, 2)]), "other parameters than the model"),
        (lambda n: build(n, followers=[n]), "shares its parameters"),
        (lambda n: es.Pruner("net", torch.optim.SGD(n.parameters()), es.OCP(0.5), total_steps=1), "must be a torch.nn.Module"),
    ],
)
def test_refused_before_training(make_net, make, words):
    with pytest.raises(es.EspalierError, match=words):
        make(make_net())


def test_a_second_pruner_on_one_optimizer_is_refused(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = build(net, optimizer=optimizer)
    with pytest.raises(es.EspalierError, match="already has a Pruner"):
        build(net, optimizer=optimizer)
    first.detach()
    build(net, optimizer=optimizer)


def test_stopping_early_raises_unless_allowed(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = build(net, optimizer=optimizer)
    train_step(net, optimizer, 0)
    with pytest.raises(es.EspalierError, match="stopped after 1 of 10 steps"):
        pruner.finish()
    assert pruner.finish(allow_early=True).sparsity == pytest.approx(0.5, abs=0.001)


def test_states_of_other_trainings_are_refused(make_net):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = optimizer.state_dict()
    pruner = build(net, optimizer=optimizer)
    with pytest.raises(es.EspalierError, match="saved without a Pruner"):
        optimizer.load_state_dict(plain)
    saved = pruner.state_dict()
    pruner.detach()
    other = build(net, method=es.AGP(0.5), optimizer=optimizer)
    with pytest.raises(es.EspalierError, match="belongs to OCP"):
        other.load_state_dict(saved)
    other.detach()
    longer = build(net, optimizer=optimizer, total_steps=20)
    with pytest.raises(es.EspalierError, match="training of 10 steps"):
        longer.load_state_dict(saved)
    for other_net in (make_net(width=16), nn.Sequential(nn.Conv2d(3, 4, 3))):
        another = build(other_net)
        with pytest.raises(es.EspalierError, match=r"mask of conv1\.weight that fits no weight here"):
            another.load_state_dict(saved)
        assert another.step == 0
    with pytest.raises(es.EspalierError, match="no state of a Pruner"):
        longer.load_state_dict({"step": 3})


def test_a_frozen_weight_is_named(make_net):
    net = make_net()
    net.conv1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(es.EspalierError, match=r"frozen, requires_grad=False\), conv1.weight"):
        build(net, optimizer=optimizer)
    build(net, es.OCP(0.5, exclude=["conv1"]), optimizer=optimizer)
