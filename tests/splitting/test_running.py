"""SLR and ADMM through a training: when things happen, looking ahead, hard pruning, what is refused and what is told."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

import espalier as es
from espalier.methods import Round
from tests.helpers.ranks import in_two_ranks
from tests.pruner.conftest import DATA, SmallNet, batch, batch_loss, sgd, train_step

SPLIT = {"slr": es.SLR, "admm": es.ADMM}
both = pytest.mark.parametrize("kind", list(SPLIT))


def trained_net(net, steps=40):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        for part in (900, 901):
            batch_loss(net, batch(part)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


@both
@pytest.mark.usefixtures("quiet")
def test_rounds_come_between_start_and_hard_pruning(make_net, kind):
    net = make_net()
    optimizer = sgd(net)
    method = SPLIT[kind](0.75, start=0.2, hard_prune_at=0.7, check_every=3)
    pruner = es.Pruner(net, optimizer, method, total_steps=20, **DATA)
    for step in range(20):
        train_step(net, optimizer, step)
        taken = step + 1
        assert pruner.run.coupling.tied == (4 < taken < 14)
        assert pruner.sparsity == pytest.approx(0.75 if taken >= 14 else 0.0, abs=0.001)
        assert pruner.stats()["rounds"] == len([at for at in (7, 10, 13) if at <= taken])
    rounds = pruner.finish().rounds
    assert [made.step for made in rounds] == [7, 10, 13]
    for made in rounds:
        assert set(made.gaps) == {"conv1.weight", "conv2.weight"}
        assert made.gap == pytest.approx(sum(gap**2 for gap in made.gaps.values()) ** 0.5)
        assert Round.from_plain(made.to_plain()) == made
        assert (len(made.held), made.loss is None) == ((2, False) if kind == "slr" else (0, True))
    assert pruner.stats()["gap"] == rounds[-1].gap


@both
def test_a_hundred_rounds_unless_told(make_net, kind):
    net = make_net()
    run = es.Pruner(net, sgd(net), SPLIT[kind](0.5, start=0.2, hard_prune_at=0.7), total_steps=10_000, **DATA).run
    assert sum(run.iteration.is_due(step) for step in range(10_001)) == 100


@both
@pytest.mark.usefixtures("quiet")
def test_hard_pruning_keeps_the_largest_of_w_whatever_z_is(make_net, kind):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, SPLIT[kind](0.75, check_every=2), total_steps=9, **DATA)
    for step in range(8):
        train_step(net, optimizer, step)
    pair = pruner.run.coupling
    before = {name: w.detach().clone() for name, w in pruner.run.weights.items()}
    support = {name: (pair.centres[name] + pair.multipliers[name]).abs() > 1e-7 for name in before}
    pruner.finish(allow_early=True)
    differ = False
    for name, weight in pruner.run.weights.items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
        differ |= bool((kept != support[name]).any())
    assert differ, "else the test tells nothing"


@both
def test_looking_ahead_and_coming_back(make_net, kind):
    net = trained_net(make_net())
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, SPLIT[kind](0.75, check_every=2, hard_prune_at=0.8), total_steps=10, **DATA)
    for step in range(5):
        train_step(net, optimizer, step)
    before, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    with contextlib.suppress(KeyError), pruner.projected():
        for name, weight in pruner.run.weights.items():
            zeros = weight == 0
            assert int(zeros.sum()) == round(0.75 * weight.numel())
            assert torch.equal(weight[~zeros], before[name][~zeros])
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert str(optimizer.state_dict()["state"]) == str(moments)
    with pruner.projected():
        ahead = {name: w.detach().clone() for name, w in pruner.run.weights.items()}
    report = pruner.finish(allow_early=True)
    assert all(torch.equal(ahead[name], w) for name, w in pruner.run.weights.items())
    assert report.sparsity == pytest.approx(0.75, abs=0.001)
    with pruner.projected():
        assert all(torch.equal(ahead[name], w) for name, w in pruner.run.weights.items())


@both
def test_an_untrained_network_is_told_of_and_a_trained_one_is_not(make_net, kind, recwarn):
    net = make_net()
    optimizer = sgd(net)
    es.Pruner(net, optimizer, SPLIT[kind](0.5), total_steps=100, **DATA)
    with pytest.warns(UserWarning, match=r"hardly trained, and \w+ wants a trained one"):
        train_step(net, optimizer, 0)
    recwarn.clear()
    for net, start in ((trained_net(make_net()), 0.0), (make_net(), 0.5)):
        optimizer = sgd(net)
        es.Pruner(net, optimizer, SPLIT[kind](0.5, start=start), total_steps=100, **DATA)
        train_step(net, optimizer, 0)
    late = make_net(seed=3)
    optimizer = sgd(late)
    es.Pruner(late, optimizer, SPLIT[kind](0.5), total_steps=100, **DATA)
    late.load_state_dict(trained_net(make_net()).state_dict())  # weights that come after the Pruner, before the first step
    train_step(late, optimizer, 0)
    assert not recwarn.list


@both
@pytest.mark.usefixtures("quiet")
def test_z_begins_with_weights_that_were_loaded_after_construction(make_net, kind):
    net, other = make_net(), make_net(seed=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = es.Pruner(net, optimizer, SPLIT[kind](0.75), total_steps=1000, **DATA)
    net.load_state_dict(other.state_dict())
    train_step(net, optimizer, 0)
    centre = pruner.run.coupling.centres["conv2.weight"]
    assert torch.equal(centre[centre != 0], other.conv2.weight[centre != 0])


@pytest.mark.usefixtures("quiet")
def test_looking_at_the_loss_leaves_no_trace(make_net):
    """Modes, batch-norm statistics and random state are those of a training under ADMM, which looks at nothing."""
    states = []
    for look in (False, True):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        loss = DATA["loss_fn"] if look else (lambda model, data: torch.tensor(1.0))
        pruner = es.Pruner(
            net, optimizer, es.SLR(0.5, check_every=1, start=0.1), total_steps=20, batches=[batch(5)], loss_fn=loss
        )
        torch.manual_seed(7)
        for step in range(8):
            train_step(net, optimizer, step)
        assert net.training
        assert len(pruner.run.rounds()) == 6
        states.append([*net.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.usefixtures("quiet")
def test_a_cut_in_the_search_takes_z_and_u_along(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.SLR(0.5, check_every=2, start=0.1), total_steps=20, **DATA)
    for step in range(7):
        train_step(net, optimizer, step)
    graph = es.trace(net, DATA["example_inputs"])
    group = next(group for group in graph.groups if group.size == 8)
    centre = pruner.run.coupling.centres["conv1.weight"].clone()
    es.cut(net, {group: torch.tensor([0, 2, 3, 5])}, optimizer=optimizer)
    pair = pruner.run.coupling
    assert torch.equal(pair.centres["conv1.weight"], centre[[0, 2, 3, 5]])
    assert pair.multipliers["conv2.weight"].shape == net.conv2.weight.shape == (16, 4, 3, 3)
    for step in range(7, 20):
        train_step(net, optimizer, step)
    assert pruner.finish().sparsity == 0.5


@pytest.mark.usefixtures("quiet")
def test_other_batches_after_resuming_are_told_of(make_net):
    net = make_net()
    pruner = es.Pruner(net, sgd(net), es.SLR(0.5), total_steps=20, **DATA)
    state = pruner.state_dict()
    again = make_net()
    other = es.Pruner(again, sgd(again), es.SLR(0.5), total_steps=20, **(DATA | {"batches": [batch(3)]}))
    with pytest.warns(UserWarning, match="batches are other ones"):
        other.load_state_dict(state)


METHOD_ERRORS = [
    ({"rho": 0.0}, "rho is a number above 0"),
    ({"rho": float("nan")}, "rho is a number above 0"),
    ({"rho": "0.1"}, "rho is a number above 0"),
    ({"check_every": 0}, "check_every is a whole number"),
    ({"check_every": 1.5}, "check_every is a whole number"),
    ({"start": 0.5, "hard_prune_at": 0.5}, "start and hard_prune_at are shares"),
    ({"hard_prune_at": 1.1}, "start and hard_prune_at are shares"),
    ({"norm": "l1"}, "norm is 'global' or 'layers'"),
    ({"sparsity": 0.0}, "needs a sparsity above 0"),
    ({"sparsity": 1.0}, "sparsity"),
    ({"sparsity": {"conv1": 1.0}}, "shares of at least 0 and less than 1"),
    ({"sparsity": {"conv1": True}}, "shares of at least 0 and less than 1"),
    ({"sparsity": {}}, "at least one share above 0"),
    ({"sparsity": {"conv1": 0.0}}, "at least one share above 0"),
    ({"sparsity": {"conv1": 0.5}, "include": ["*"]}, "leave include out"),
    ({"sparsity": {"conv1": 0.5}, "scope": "global"}, "leave scope out"),
    ({"sparsity": {"conv1": 0.5, "conv2": 0.6}, "pattern": es.patterns.NM(2, 4)}, "means a sparsity of 0.5"),
    ({"sparsity": 0.4, "pattern": es.patterns.KernelShape()}, "means a sparsity of 0.444"),
]
SLR_ERRORS = [
    ({"s0": 0.0}, "s0 is a number above 0"),
    ({"s0": -1.0}, "s0 is a number above 0"),
    ({"M": 0.5}, "M is a number above 1"),
    ({"M": 1}, "M is a number above 1"),
    ({"r": 0.0}, "r is a number between 0 and 1"),
    ({"r": 1.0}, "r is a number between 0 and 1"),
    ({"conditions": "epoch"}, "conditions is 'batches' or 'mean'"),
    ({"numerator": "last"}, "numerator is"),
    ({"check_batches": 0}, "check_batches is a whole number"),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [*(("admm", *row) for row in METHOD_ERRORS), *(("slr", *row) for row in METHOD_ERRORS + SLR_ERRORS)],
)
def test_arguments_that_make_no_sense_are_refused(kind, arguments, words):
    with pytest.raises(es.EspalierError, match=words):
        SPLIT[kind](**({"sparsity": 0.5} | arguments))


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        (es.SLR(0.5), {"batches": None}, r"give es\.Pruner\(\.\.\., batches=loader, loss_fn=f\)"),
        (es.SLR(0.5), {"loss_fn": None}, r"give es\.Pruner\(\.\.\., batches=loader, loss_fn=f\)"),
        (es.SLR(0.5), {"batches": []}, "batches gave nothing"),
        (es.SLR(0.5, check_every=11), {}, "leaves no round in the 10 of 10 steps"),
        (es.ADMM({"nothing": 0.5}), {}, "'nothing' matches no weight"),
        (es.OneShot({"nothing": 0.5}), {}, "'nothing' matches no weight"),
        (es.ADMM({"conv1": 0.999}), {}, "would remove all 216 units of conv1"),
        (es.ADMM(0.5, include=["none*"]), {}, "matches no weight"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_training(make_net, method, given, words):
    net = make_net()
    with pytest.raises(es.EspalierError, match=words):
        es.Pruner(net, sgd(net), method, total_steps=10, **(DATA | given))


@pytest.mark.parametrize(("s0", "warned"), [(0.1, True), (0.05, False)])
def test_a_first_step_that_overshoots_is_pointed_out(make_net, s0, warned):
    net = make_net()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        es.Pruner(net, sgd(net), es.SLR(0.5, rho=0.1, s0=s0, start=0.5), total_steps=20, **DATA)
    assert any("Take a tenth of rho" in str(warning.message) for warning in said) == warned


def test_a_loss_that_is_not_finite_before_the_first_step_is_refused(make_net):
    net = make_net()
    optimizer = sgd(net)
    es.Pruner(net, optimizer, es.SLR(0.5), total_steps=10, batches=[0], loss_fn=lambda model, _: torch.tensor(float("nan")))
    with pytest.raises(es.EspalierError, match="loss on the batches is nan before any pruning"):
        train_step(net, optimizer, 0)


def split_on_ranks(rank):
    """Ranks with data of their own, also for the conditions."""
    outcome = {}
    for kind, method in {
        "slr": es.SLR(0.75, check_every=2, start=0.1),
        "admm": es.ADMM(0.75, check_every=2, start=0.1),
    }.items():
        torch.manual_seed(0)
        net = SmallNet()
        model = nn.parallel.DistributedDataParallel(net)
        optimizer = sgd(net)
        group = torch.distributed.group.WORLD
        data = DATA | {"batches": [batch(50 + rank)]}
        pruner = es.Pruner(model, optimizer, method, total_steps=20, process_group=group, **data)
        for step in range(15):
            x, y = batch(2 * step + rank)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        with pruner.projected():
            outcome[f"{kind}-ahead"] = net.conv2.weight.detach().clone()
        outcome[kind] = {**pruner.run.coupling.multipliers, "rounds": [made.to_plain() for made in pruner.run.rounds()]}
        pruner.detach()
    return outcome


def test_two_ranks_take_the_same_decisions():
    first, second = in_two_ranks(split_on_ranks)
    for kind in SPLIT:
        assert first[kind]["rounds"] == second[kind]["rounds"]
        assert len(first[kind]["rounds"]) == 6
        assert torch.equal(first[kind]["conv2.weight"], second[kind]["conv2.weight"])
        assert torch.equal(first[f"{kind}-ahead"], second[f"{kind}-ahead"])
