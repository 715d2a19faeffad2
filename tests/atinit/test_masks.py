"""What masks at initialisation promise: exact counts, rounds, what may return, and a model left as it was found."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

import espalier as es
from espalier.methods.frame.masking import atinit
from tests.helpers.ranks import in_two_ranks
from tests.pruner.conftest import DATA, SmallNet, batch, batch_loss, sgd, train_step

METHODS = {
    "snip": es.SNIP(0.9),
    "iterative snip": es.SNIP(0.9, rounds=4),
    "force": es.SNIP(0.9, rounds=4, returns=True),
    "grasp": es.GraSP(0.9),
    "synflow": es.SynFlow(0.9, rounds=4),
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def start(net, method, **more):
    return es.Pruner(net, sgd(net), method, total_steps=10, **(DATA | more))


def masks(pruner):
    return {name: mask.clone() for name, mask in pruner.run.masks.tensors.items()}


@every
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_counts_are_exact_in_one_ranking(make_net, method, sparsity):
    net = make_net()
    pruner = start(net, dataclasses.replace(method, sparsity=sparsity))
    total = sum(layer.total for layer in pruner.layers())
    assert sum(layer.zeros for layer in pruner.layers()) == int(sparsity * total + 0.5)
    assert sum(int((net.get_parameter(layer.name) == 0).sum()) for layer in pruner.layers()) == int(sparsity * total + 0.5)


@every
@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_are_left_as_found(make_net, method, training):
    net = nn.Sequential(make_net(), nn.Dropout(0.5))
    net.train(training)
    net[0].bn1.train(not training)
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    pruner = start(net, method)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        mask = pruner.run.masks.tensors.get(name)
        kept = before[name] if mask is None else before[name] * mask
        assert torch.equal(value, kept), name


@every
def test_masks_never_change_in_training(make_net, method):
    net = make_net()
    pruner = start(net, method)
    first = masks(pruner)
    optimizer = pruner.site.optimizers[0]
    for step in range(10):
        train_step(net, optimizer, step)
    pruner.finish()
    assert all(torch.equal(first[name], mask) for name, mask in masks(pruner).items())


@every
def test_start_weights_loaded_after_construction_are_scored(make_net, method):
    other = make_net(seed=7)
    expected = start(make_net(seed=7), method)
    net = make_net(seed=1)
    pruner = start(net, method)
    different = masks(pruner)
    net.load_state_dict(other.state_dict())
    train_step(net, pruner.site.optimizers[0], 0)
    found = masks(pruner)
    assert all(torch.equal(found[name], mask) for name, mask in masks(expected).items())
    assert any(not torch.equal(found[name], mask) for name, mask in different.items())


@every
def test_a_resumed_training_scores_nothing_again(make_net, method, monkeypatch):
    net = make_net()
    pruner = start(net, method)
    optimizer = pruner.site.optimizers[0]
    train_step(net, optimizer, 0)
    saved = copy.deepcopy({"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    kept = masks(pruner)
    net = make_net(seed=3)
    pruner = start(net, method)
    monkeypatch.setattr(atinit.AtInitRun, "_in_rounds", None)
    net.load_state_dict(saved["model"])
    optimizer = pruner.site.optimizers[0]
    optimizer.load_state_dict(saved["optimizer"])
    train_step(net, optimizer, 1)
    assert all(torch.equal(kept[name], mask) for name, mask in masks(pruner).items())


class Rounds:
    """Collects the masks after every round."""

    def __init__(self, monkeypatch):
        self.masks = []
        choose = atinit.AtInitRun._choose

        def watched(run, scores, sparsity):
            keep = choose(run, scores, sparsity)
            self.masks.append(torch.cat([units.reshape(-1) for units in keep.values()]))
            return keep

        monkeypatch.setattr(atinit.AtInitRun, "_choose", watched)


def test_what_iterative_snip_removes_stays_out_and_force_lets_it_return(make_net, monkeypatch):
    returned = {}
    for returns in (False, True):
        seen = Rounds(monkeypatch)
        start(make_net(), es.SNIP(0.98, rounds=8, returns=returns))
        assert len(seen.masks) == 8
        pairs = zip(seen.masks[:-1], seen.masks[1:], strict=True)
        returned[returns] = sum(int((~before & after).sum()) for before, after in pairs)
        monkeypatch.undo()
    assert returned[False] == 0
    assert returned[True] > 0


def test_rounds_thin_out_geometrically(make_net, monkeypatch):
    seen = Rounds(monkeypatch)
    start(make_net(), es.SynFlow(0.9, rounds=5))
    total = len(seen.masks[0])
    assert [int(keep.sum()) for keep in seen.masks] == [total - int((1 - 0.1 ** (k / 5)) * total + 0.5) for k in range(1, 6)]
    assert all(not (~before & after).any() for before, after in zip(seen.masks, seen.masks[1:], strict=False))


def test_one_round_of_force_is_snip_and_synflow_needs_its_rounds(make_net):
    """Scored once, SynFlow empties the widest layer almost wholly; in a hundred rounds it keeps more of it."""
    torch.manual_seed(0)
    least = {}
    for rounds in (1, 100):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 4))
        method = es.SynFlow(0.99, rounds=rounds, include=["*"])
        pruner = es.Pruner(net, sgd(net), method, total_steps=2, example_inputs=torch.ones(1, 20))
        least[rounds] = min(layer.total - layer.zeros for layer in pruner.layers())
    assert least[100] > least[1]


@pytest.mark.parametrize("scope", ["local", "global", "erk"])
@pytest.mark.parametrize(
    "pattern", [es.patterns.Kernel(), es.patterns.Filter(), es.patterns.Block(2, 3), es.patterns.Weight()], ids=repr
)
@pytest.mark.parametrize("kind", [es.SNIP, es.GraSP, es.SynFlow])
def test_every_pattern_in_every_scope(make_net, kind, pattern, scope):
    pruner = start(make_net(), kind(0.5, pattern=pattern, scope=scope))
    sizes = {layer.name: pattern.unit_size(layer.shape) for layer in pruner.layers()}
    units, removed = (
        sum(getattr(layer, what) // sizes[layer.name] for layer in pruner.layers()) for what in ("total", "zeros")
    )
    assert removed == units // 2


@pytest.mark.parametrize(("pattern", "share"), [(es.patterns.KernelShape(), 4 / 9), (es.patterns.NM(2, 4), 0.5)], ids=repr)
@pytest.mark.parametrize("returns", [False, True])
def test_patterns_of_one_sparsity_are_reached_in_rounds(make_net, monkeypatch, pattern, share, returns):
    seen, on_the_way = [], atinit.AtInitRun._on_the_way

    def watched(run, scores, sparsity):
        masks = on_the_way(run, scores, sparsity)
        seen.append({name: mask.clone() for name, mask in masks.items()})
        return masks

    monkeypatch.setattr(atinit.AtInitRun, "_on_the_way", watched)
    method = es.SNIP(share, rounds=10, returns=returns, pattern=pattern, scope="local", exclude=["conv1"])
    pruner = start(make_net(channels_last=True), method)
    rounds = [*seen, masks(pruner)]
    assert len(rounds) == 10
    for number, made in enumerate(rounds, start=1):
        for mask in made.values():
            assert int((mask == 0).sum()) == pytest.approx((1 - (1 - share) ** (number / 10)) * mask.numel(), abs=1)
    if not returns:
        for before, after in itertools.pairwise(rounds):
            assert all(not ((before[name] == 0) & (mask != 0)).any() for name, mask in after.items())
    for mask in masks(pruner).values():
        groups = mask.reshape(-1, 9) if share < 0.5 else mask.movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) == (5 if share < 0.5 else 2)).all()


def test_synflow_keeps_kernels_together_in_its_hundred_rounds(make_net):
    """At equal flows the best shape is that of the largest weights: no matter of chance."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False))
    method = es.SynFlow(4 / 9, pattern=es.patterns.KernelShape(), scope="local")
    whole = net[0].weight.detach().abs()
    pruner = es.Pruner(net, sgd(net), method, total_steps=2, example_inputs=torch.ones(1, 3, 3, 3))
    best = es.patterns.KernelShape().reduce(whole).view_as(whole)
    assert torch.equal(masks(pruner)["0.weight"], best)


def test_the_first_batches_are_summed_up_and_no_others(make_net):
    one, two = batch(1), batch(2)
    both = start(make_net(), es.SNIP(0.9, batches_per_round=2), batches=[one, two, batch(3)])
    same = start(make_net(), es.SNIP(0.9, batches_per_round=2), batches=[one, two])
    first = start(make_net(), es.SNIP(0.9), batches=[one, two])
    assert all(torch.equal(masks(same)[name], mask) for name, mask in masks(both).items())
    assert any(not torch.equal(masks(first)[name], mask) for name, mask in masks(both).items())


def test_a_cut_in_mid_training_keeps_what_is_left_of_the_masks(make_net):
    net = make_net()
    pruner = start(net, es.SNIP(0.5))
    optimizer = pruner.site.optimizers[0]
    train_step(net, optimizer, 0)
    before = masks(pruner)
    graph = es.trace(net, torch.randn(2, 3, 8, 8))
    group = next(group for group in graph.groups if group.size == 8)
    es.cut(net, {group: [0, 2, 3, 5]})
    assert torch.equal(masks(pruner)["conv1.weight"], before["conv1.weight"][[0, 2, 3, 5]])
    for step in range(1, 10):
        train_step(net, optimizer, step)
    report = pruner.finish()
    assert report.sparsity == pytest.approx(pruner.run.target)


# -- two ranks ---------------------------------------------------------------------------------------------------------


def own_data(rank):
    import torch.distributed as dist

    outcome = {}
    for key, method in METHODS.items():
        torch.manual_seed(0)
        pruner = start(SmallNet(), method, batches=[batch(rank)], process_group=dist.group.WORLD)
        outcome[key] = masks(pruner)
    try:
        bad = [batch(0)] if rank else []
        start(SmallNet(), es.SNIP(0.5), batches=bad, process_group=dist.group.WORLD)
    except es.EspalierError as error:
        outcome["error"] = str(error)
    return outcome


def test_rank_0_decides_and_its_failure_reaches_all():
    first, second = in_two_ranks(own_data)
    for key in METHODS:
        assert all(torch.equal(mask, second[key][name]) for name, mask in first[key].items()), key
    assert "batches gave nothing" in first["error"]
    assert "Another rank could not score" in second["error"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def no_second_derivative(model, data):
    steps = model(data[0]).log_softmax(-1)[:, None]
    return nn.functional.ctc_loss(steps, torch.tensor([[1, 2]]), torch.tensor([len(steps)]), torch.tensor([2]))


def nan_net():
    net = SmallNet()
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] = float("nan")
    return net


REFUSED = {
    "snip without batches": (lambda: start(SmallNet(), es.SNIP(0.5), batches=None), "give es.Pruner.*batches=loader"),
    "grasp without loss": (lambda: start(SmallNet(), es.GraSP(0.5), loss_fn=None), "loss_fn=f"),
    "synflow without inputs": (lambda: start(SmallNet(), es.SynFlow(0.5), example_inputs=None), "example_inputs=x"),
    "empty batches": (lambda: start(SmallNet(), es.SNIP(0.5), batches=[]), "batches gave nothing"),
    "loss without gradient": (lambda: start(SmallNet(), es.SNIP(0.5), loss_fn=lambda m, b: 1.0), "must return the loss"),
    "empties a layer": (lambda: start(SmallNet(), es.SNIP(0.9999)), "would empty a layer"),
    "empties a layer locally": (lambda: start(SmallNet(), es.SNIP(0.9999, scope="local")), "would remove all"),
    "nan": (lambda: start(nan_net(), es.SNIP(0.5)), "are not finite before training"),
    "nan in synflow": (lambda: start(nan_net(), es.SynFlow(0.5)), "are not finite before training"),
    "no rounds": (lambda: es.SynFlow(0.5, rounds=0), "rounds is a whole number"),
    "one round of FORCE": (lambda: es.SNIP(0.5, returns=True), "later round"),
    "no temperature": (lambda: es.GraSP(0.5, temperature=0), "temperature is a number above 0"),
    "n:m in one ranking": (lambda: es.SNIP(0.5, pattern=es.patterns.NM(2, 4)), "use scope='local'"),
    "no second derivative": (
        lambda: start(SmallNet(), es.GraSP(0.5), loss_fn=no_second_derivative),
        "needs second derivatives",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case):
    do, words = REFUSED[case]
    with pytest.raises(es.EspalierError, match=words) as caught:
        do()
    assert "\n" not in str(caught.value)


def test_a_refused_model_is_left_whole(make_net):
    net = make_net()
    before = copy.deepcopy(net.state_dict())

    def fails_in_the_second_round(model, data):
        loss = batch_loss(model, data)
        return loss * float("nan") if (net.conv2.weight == 0).any() else loss

    with pytest.raises(es.EspalierError, match="not finite"):
        start(net, es.SNIP(0.9, rounds=3), loss_fn=fails_in_the_second_round)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    start(net, es.SNIP(0.9))


def test_grasp_takes_models_that_return_no_tensor_without_temperature(make_net):
    class Named(SmallNet):
        def forward(self, x):
            return {"logits": super().forward(x)}

    def loss(model, data):
        return nn.functional.cross_entropy(model(data[0])["logits"], data[1])

    with pytest.raises(es.EspalierError, match="temperature=1"):
        start(Named(), es.GraSP(0.5), loss_fn=loss)
    assert start(Named(), es.GraSP(0.5, temperature=1), loss_fn=loss).sparsity == pytest.approx(0.5, abs=1e-3)
