"""SLR and ADMM on channels: the projection, the zeros that a cut would leave, the cut, and what is refused."""

import copy

import pytest
import torch

import espalier as es
from tests.structured.nets import STEPS, Training, batch, loss_of, net, pulled, quiet

KINDS = {"slr": es.SLRChannels, "admm": es.ADMMChannels}
both = pytest.mark.parametrize("kind", list(KINDS))
pytestmark = pytest.mark.usefixtures("quiet")


def energies(group, tensors):
    """Sum of squares of every channel over all its members, entry by entry."""
    found = [0.0] * group.size
    for member in group.members:
        if member.name in tensors:
            for place, channel in enumerate(member.index.tolist()):
                if channel >= 0:
                    found[channel] += float(tensors[member.name].select(member.dim, place).double().square().sum())
    return found


def gone_by_hand(model, tensors, share, round_to=8):
    """Group -> channels that leave when each loses at least this share and widths are multiples."""
    graph, gone = es.trace(model, batch(0)[0]), {}
    for group in graph.groups:
        stay = -(-round(group.size * (1 - share)) // round_to) * round_to
        order = sorted(range(group.size), key=energies(group, tensors).__getitem__)
        gone[group] = order[: group.size - stay]
    return gone


def zeroed(tensors, gone):
    """Copies with zeros in all members of these channels."""
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    for group, channels in gone.items():
        for member in group.members:
            if member.name in made:
                for place, channel in enumerate(member.index.tolist()):
                    if channel in channels:
                        made[member.name].select(member.dim, place).zero_()
    return made


@both
def test_the_projection_is_that_by_hand_and_other_weights_stay(kind):
    method = pulled(KINDS[kind], prune_channels=0.5, scope="group", hard_prune_at=1.0)
    training = Training(method).train(0, 9)
    pair = training.run.coupling
    points = {name: pair.point(name) for name in pair.weights}
    assert set(points) == {name for name, _ in training.net.named_parameters()} - {"head.bias"}
    expected = zeroed(points, gone_by_hand(training.net, points, 0.5))
    found = training.run.projection()
    for name, z in found.items():
        assert torch.equal(z, expected[name]), name
    assert not found["stem.weight"].flatten(1).any(1).all(), "else the test tells nothing"
    assert found["conv1.weight"].any()


@both
def test_looking_ahead_shows_what_the_cut_leaves(kind):
    training = Training(pulled(KINDS[kind])).train(0, 11)
    before = copy.deepcopy(training.net.state_dict())
    with training.pruner.projected():
        copied = copy.deepcopy(training.net).eval()
        ahead = copied(batch(5)[0])
        zeros = {name: p.detach().clone() for name, p in training.net.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in training.net.state_dict().items())
    dense = training.net.eval()(batch(5)[0])
    training.net.train()
    training.finish(allow_early=True)
    torch.testing.assert_close(training.net.eval()(batch(5)[0]), ahead)
    assert (dense - ahead).abs().max() > 1e-3
    assert sum(p.numel() for p in training.net.parameters()) < sum(p.numel() for p in zeros.values())
    assert not training.run.looks_ahead


@both
def test_rounds_come_until_the_cut_and_then_no_more(kind):
    training = Training(pulled(KINDS[kind]))
    tied = []
    training.train(each=lambda step: tied.append(training.run.coupling.tied))
    report = training.finish()
    assert [made.step for made in report.rounds] == [5, 8, 11]
    assert tied == [3 <= step < 12 for step in range(STEPS)]
    assert [(cut.step, cut.reason) for cut in report.shrinkage.cuts] == [(12, "planned")]
    assert report.shrinkage.keep_macs <= 0.5
    assert training.pruner.stats()["rounds"] == 3
    assert all(made.gap > 0 and "stem.weight" in made.gaps for made in report.rounds)


def trained():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(40):
        loss_of(model, batch(step % 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return copy.deepcopy(model)  # of which that optimizer knows nothing


@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_the_gap_closes_and_the_cut_costs_less_than_without(rho):
    """From one trained net, with the same data, steps and moment for both."""
    losses, gaps = {}, []
    steps = 120
    for method in (
        es.ADMMChannels(keep_macs=0.4, rho=rho, check_every=10),
        es.PruneAt(at=1, keep_macs=0.4, criterion="squared"),
    ):
        training = Training(method, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), steps=steps, model=trained())
        for step in range(steps):
            loss_of(training.net, batch(step % 4)).backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
        report = training.finish()
        gaps = gaps or [made.gap for made in report.rounds]
        training.net.eval()
        with torch.no_grad():
            losses[method.name] = float(sum(loss_of(training.net, batch(step)) for step in range(4)) / 4)
    assert gaps[-1] < 0.7 * gaps[0]
    assert losses["admm-channels"] < losses["prune-at"]


def test_a_group_that_is_left_out_is_not_pulled():
    training = Training(pulled(es.ADMMChannels, exclude=["wide"], prune_channels=0.3)).train(0, 6)
    names = set(training.run.coupling.weights)
    assert "head.weight" not in names
    assert "stem.weight" in names
    z = training.run.projection()["wide.weight"]  # its columns are channels of another group
    assert z.flatten(1).any(1).all()


def test_frozen_weights_are_cut_but_not_pulled():
    model = net()
    model.stem.weight.requires_grad_(False)
    training = Training(pulled(es.SLRChannels, prune_channels=0.5, scope="group"), model=model).train(0, 6)
    assert "stem.weight" not in training.run.coupling.weights
    training.train(6).finish()
    assert training.net.stem.weight.shape[0] == 8
    model = net().requires_grad_(False)
    model.head.bias.requires_grad_(True)
    with pytest.raises(es.EspalierError, match="weights while they train, and those of the groups are all frozen"):
        Training(pulled(es.SLRChannels), model=model)


def test_a_cut_in_the_search_takes_z_and_u_along():
    training = Training(pulled(es.SLRChannels)).train(0, 7)
    centre = training.run.coupling.centres["head.weight"].clone()
    group = es.trace(training.net, batch(0)[0]).group("wide")
    with quiet():
        es.cut(training.net, {group: list(range(24))}, optimizer=training.optimizer)
    pair = training.run.coupling
    assert torch.equal(pair.centres["head.weight"], centre.view(4, 32, 4)[:, :24].flatten(1))
    assert training.train(7).finish().shrinkage.keep_macs <= 0.5


@both
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs a budget: give one of keep_macs"),
        ({"keep_macs": 50}, "share above 0 and at most 1"),
        ({"keep_macs": 0.5, "rho": 0.0}, "rho is a number above 0"),
        ({"keep_macs": 0.5, "check_every": 0}, "check_every is a whole number"),
        ({"keep_macs": 0.5, "start": 0.5, "hard_prune_at": 0.4}, "start and hard_prune_at are shares"),
        ({"keep_macs": 0.5, "norm": "l1"}, "norm is 'global' or 'layers'"),
        ({"keep_macs": 0.5, "sparsity": 0.5}, "has no argument 'sparsity'"),
        ({"keep_macs": 0.5, "criterion": "magnitude"}, "has no argument 'criterion'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kind, arguments, words):
    with pytest.raises(es.EspalierError, match=words):
        KINDS[kind](**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"s0": 0.0}, "s0 is a number above 0"), ({"M": 1}, "M is a number"), ({"r": 1.0}, "r is a number")],
)
def test_settings_of_the_step_size_are_checked_too(arguments, words):
    with pytest.raises(es.EspalierError, match=words):
        es.SLRChannels(keep_macs=0.5, **arguments)


def test_what_does_not_fit_is_refused_before_training():
    with pytest.raises(es.EspalierError, match="leaves no round in the 10 of 16 steps"):
        Training(pulled(es.ADMMChannels, check_every=11))
    with pytest.raises(es.EspalierError, match=r"give es\.Pruner\(\.\.\., batches=loader, loss_fn=f\)"):
        Training(pulled(es.SLRChannels), loss_fn=None)
    with pytest.raises(es.EspalierError, match=r"keep_macs=0\.01 asks for at most"):
        Training(pulled(es.ADMMChannels, keep_macs=0.01))
    with pytest.raises(es.EspalierError, match="has to see the model run once"):
        Training(pulled(es.ADMMChannels), example_inputs=None)
