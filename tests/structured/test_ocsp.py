"""OCSPruner in particular: the exposure, lambda, the start, cost weighting, caps, and cutting in parts."""

import math

import pytest
import torch

import espalier as es
from espalier.cost.evaluation import channel_costs
from tests.structured.nets import STEPS, Training, batch, early, net, quiet


class Never(es.indicators.JaccardStability):
    """Does not fire."""

    def fires(self, scores):
        return False


PARTS = {"start": 0.05, "exposure": 12.0, "faded": 0.1, "indicator": Never(), "latest": 0.9}  # fades and is cut by the time-out


def searching(steps, last, method=None, optimizer=None, **kwargs):
    """A training that has not cut yet, after ``last`` of ``steps`` steps, and what each step shrank."""
    method = method or es.OCSP(keep_macs=0.5, indicator=Never(), latest=1.0, **kwargs)
    training = Training(method, optimizer or (lambda p: torch.optim.SGD(p, lr=0.01)), steps=steps)
    amounts, run = [], training.run
    shrink = run.pull.shrink
    run.pull.shrink = lambda amount: (amounts.append(amount), shrink(amount))
    training.train(0, last)
    return training, amounts


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("rate", [0.1, 0.001])
def test_the_exposure_follows_the_share_of_the_training_whatever_its_length_and_rate(steps, rate):
    last = steps * 2 // 5
    training, amounts = searching(
        steps, last, optimizer=lambda p: torch.optim.SGD(p, lr=rate), start=0.1, exposure=0.5, check_every=1
    )
    began = training.run.began
    assert began == steps // 10
    assert training.run.exposed == pytest.approx(0.5 * ((0.4 - 0.1) / 0.21) ** 2)
    assert sum(amounts) == pytest.approx(training.run.exposed)
    assert amounts == sorted(amounts)


def test_one_step_never_takes_more_than_a_weight():
    _, amounts = searching(10, 6, start=0.1, exposure=50.0)
    assert max(amounts) == 0.5


@pytest.mark.parametrize(("start", "began", "lambdas"), [(0, 0, [0.1, 0.3, 0.5]), (0.25, 4, [0.1, 0.3])])
def test_published_constants_grow_at_every_check_from_the_first(start, began, lambdas):
    constants = {"exposure": None, "lambda_start": 0.1, "lambda_step": 0.2, "check_every": 4}
    training, amounts = searching(16, 12, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), start=start, **constants)
    assert training.run.began == began
    assert amounts == pytest.approx([0.5 * value for value in lambdas for _ in range(4)])


def test_lambda_goes_with_the_learning_rate_of_each_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = es.OCSP(keep_macs=0.5, start=0, exposure=None, lambda_start=0.1, check_every=100, latest=1.0, indicator=Never())
    training = Training(method, lambda p: optimizer, model=model)
    seen = []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.5 / (step + 1)
        before = training.run.exposed
        training.train(step, step + 1)
        seen.append(training.run.exposed - before)
    assert seen == pytest.approx([0.05, 0.05 / 2, 0.05 / 3])


def gone(run):
    """Name of a group -> mask of the channels that are to go."""
    masks = {}
    for group, kept in run.keep.items():
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[kept] = False
        masks[group.name] = mask
    return masks


def test_selected_rows_and_columns_shrink_and_twice_where_both_meet():
    method = early(start=0, check_every=100, exposure=0.2, indicator=Never(), latest=1.0, keep_macs=0.3, round_to=4)
    training = Training(method, lambda p: torch.optim.SGD(p, lr=0.0))
    before = {name: p.detach().clone() for name, p in training.net.named_parameters()}
    masks = gone(training.run)
    training.train(0, 1)
    amount = training.run.exposed
    assert amount == pytest.approx(0.2 / (0.21 * STEPS) ** 2)
    rows = {
        "stem": "stem",
        "norm": "stem",
        "norm2": "stem",
        "conv2": "stem",
        "conv1": "conv1",
        "norm1": "conv1",
        "wide": "wide",
        "norm3": "wide",
    }
    columns = {"conv1": "stem", "conv2": "conv1", "wide": "stem"}
    names = {group.name: group for group in training.run.groups}
    assert set(names) == {"stem", "conv1", "wide"}
    for name, old in before.items():
        layer, _, kind = name.partition(".")
        factor = torch.ones_like(old)
        if kind == "weight" and layer in rows:
            factor -= amount * masks[rows[layer]].float().view(-1, *[1] * (old.dim() - 1))
        if kind == "weight" and layer in columns:
            factor -= amount * masks[columns[layer]].float().view(1, -1, *[1] * (old.dim() - 2))
        if name == "head.weight":
            factor -= amount * masks["wide"].float().repeat_interleave(4)
        torch.testing.assert_close(training.net.get_parameter(name), old * factor, msg=lambda m, name=name: f"{name}: {m}")
    assert any(mask.any() for mask in masks.values())


def test_a_gradient_penalty_is_the_derivative_of_the_group_norm():
    method = early(start=0, check_every=100, exposure=0.2, indicator=Never(), latest=1.0, keep_macs=0.3, penalty="gradient")
    rate = 0.1
    training, twin = Training(method, lambda p: torch.optim.SGD(p, lr=rate)), net()
    masks = gone(training.run)
    plain = torch.optim.SGD(twin.parameters(), lr=rate)
    loss = torch.nn.functional.cross_entropy(twin(batch(0)[0]), batch(0)[1])
    amount = 0.2 / (0.21 * STEPS) ** 2
    p = dict(twin.named_parameters())
    head = p["head.weight"].view(4, 32, 4)
    norms = {
        "conv1": lambda c: [p["conv1.weight"][c], p["norm1.weight"][c], p["conv2.weight"][:, c]],
        "wide": lambda c: [p["wide.weight"][c], p["norm3.weight"][c], head[:, c]],
        "stem": lambda c: [
            p["stem.weight"][c],
            p["norm.weight"][c],
            p["conv1.weight"][:, c],
            p["conv2.weight"][c],
            p["norm2.weight"][c],
            p["wide.weight"][:, c],
        ],
    }
    for name, mask in masks.items():
        for channel in mask.nonzero().flatten().tolist():
            loss = loss + amount / rate * torch.cat([part.flatten() for part in norms[name](channel)]).norm()
    loss.backward()
    plain.step()
    training.train(0, 1)
    for (name, mine), theirs in zip(training.net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_control_without_shrinkage_trains_as_if_nothing_were_there():
    training = Training(early(exposure=0.0, latest=1.0, indicator=Never())).train(0, STEPS - 1)
    dense = net()
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for step in range(STEPS - 1):
        torch.nn.functional.cross_entropy(dense(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(dense.state_dict().values(), training.net.state_dict().values(), strict=True))


def test_sparsity_learning_starts_when_the_similarity_has_levelled_off():
    training, began = Training(early(latest=1.0, exposure=1e-6, indicator=Never())), []
    training.train(0, STEPS - 1, each=lambda step: began.append(training.run.began))
    scores = [check.score for check in training.run.checks]
    expected = next(n for n in range(len(scores)) if es.indicators.has_levelled_off(scores[: n + 1]))
    assert training.run.began == expected > 3
    assert began[:expected] == [None] * expected


@pytest.mark.parametrize("kind", ["mean", "paper"])
def test_cost_weighting_is_the_papers_formula(kind):
    item = batch(0)[0][:1]  # the paper's unit is a million MACs of one
    training = Training(early(cost_weighting=kind), example_inputs=item)
    plain = Training(early(), example_inputs=item)
    costs = channel_costs(training.run.graph)
    macs = [costs[group].macs for group in training.run.layout.groups]
    unit = sum(macs) / len(macs) if kind == "mean" else 1e6
    exps = [math.exp(m / unit) for m in macs]
    weights = [1 - e / sum(exps) for e in exps]
    mine, others = (t.run.layout.split(t.run.scores()) for t in (training, plain))
    for (one, other), weight in zip(zip(mine.values(), others.values(), strict=True), weights, strict=True):
        torch.testing.assert_close(one, other * weight)


def test_cost_weighting_leaves_a_single_group_as_it_is():
    method = early(cost_weighting="mean", include=["wide"], keep_macs=0.9)
    mine, plain = Training(method), Training(early(include=["wide"], keep_macs=0.9))
    assert torch.equal(mine.run.scores(), plain.run.scores())


@pytest.mark.parametrize("progressive", [1, 2, 4])
def test_progressive_cuts_end_at_the_same_budget_and_each_width_is_a_multiple(progressive):
    training, widths = Training(early(**PARTS, progressive=progressive, keep_macs=0.35, round_to=2)), []
    training.train(each=lambda step: widths.append([group.size for group in training.run.groups]))
    left = training.finish().shrinkage
    assert 2 <= len(left.cuts) <= progressive + 1
    assert [cut.reason for cut in left.cuts] == ["faded"] * (len(left.cuts) - 1) + ["latest"]
    assert [cut.macs for cut in left.cuts] == sorted((cut.macs for cut in left.cuts), reverse=True)
    assert left.keep_macs <= 0.35
    assert all(width % 2 == 0 for row in widths for width in row)


def test_the_cap_is_a_share_of_the_first_width_after_partial_cuts_too():
    method = early(**PARTS, progressive=3, keep_macs=0.2, max_ratio=0.75, round_to=2)
    left = Training(method).train().finish().shrinkage
    assert len(left.cuts) > 1
    assert all(now >= before // 4 for before, now in left.widths.values())
    assert any(now == before // 4 for before, now in left.widths.values())


@pytest.mark.parametrize(
    "budget", [{"prune_channels": 0.5}, {"keep_params": 0.4}, {"max_params": 4000}, {"max_macs": 1_500_000}]
)
def test_progressive_cuts_under_every_budget(budget):
    method = early(**PARTS, progressive=3, **budget)
    left = Training(method).train().finish().shrinkage
    total, kept = (sum(pair[k] for pair in left.widths.values()) for k in (0, 1))
    assert len(left.cuts) > 1
    assert left.params <= 0.4 * left.dense_params or "keep_params" not in budget
    assert left.params <= budget.get("max_params", left.params)
    assert left.macs <= budget.get("max_macs", left.macs)
    assert kept <= total / 2 or "prune_channels" not in budget


def test_what_has_left_in_parts_is_what_had_been_shrunk():
    method = early(**PARTS, progressive=1, keep_macs=0.4)
    training, last = Training(method), {}

    def note(step):
        if not training.run.made:
            parts = training.run.layout.split(training.run.fading)
            last["fading"] = {group.name: part.clone() for group, part in parts.items()}

    training.train(each=note)
    faded = training.run.made[0]
    assert faded.reason == "faded"
    for name, (before, now) in training.finish().shrinkage.widths.items():
        assert now == before or int((last["fading"][name] > 0).sum()) >= (before - now) // 2


def test_by_default_a_part_leaves_after_three_hundredths_of_the_training_under_shrinkage():
    method = es.OCSP(keep_macs=0.5, check_every=1, start=0.1, indicator=Never(), progressive=4, round_to=1)
    training = searching(100, 20, method)[0]
    assert training.run.began == 10
    assert training.run.made[0].step in (13, 14)


def test_a_second_part_does_not_let_lambda_grow_twice():
    method = early(
        start=0, progressive=4, exposure=None, lambda_start=6.0, lambda_step=0.5, indicator=Never(), latest=0.9, keep_macs=0.4
    )
    training = Training(method)
    training.train(0, 10)
    assert training.run.made[0].reason == "faded"
    assert training.run.lambda_ == pytest.approx(6.0 + 0.5 * 10)


def test_numbers_of_numpy_do_not_reach_the_state():
    import numpy as np

    training = Training(early(start=np.float64(0.1), exposure=np.float32(1.5), keep_macs=np.float32(0.5)))
    with quiet():
        training.train(0, 5)
    assert Training(training.pruner.method).load(training.saved()).pruner.step == 5
