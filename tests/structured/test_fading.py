"""What has faded under either penalty, parts that leave nothing to the last cut, and groups that can never lose a channel."""

import math

import pytest
import torch
from torch import nn

import espalier as es
from espalier.indicators import CountStability, JaccardStability
from tests.structured.nets import STEPS, Training, batch, differences, early, quiet

MEASURED = {"start": 0.05, "progressive": 3, "faded": 0.1, "penalty": "gradient", "exposure": 3.0, "latest": 0.9}


def test_under_a_gradient_penalty_fading_is_measured() -> None:
    training = Training(early(**MEASURED))
    run, seen = training.run, []

    def note(step: int) -> None:
        if run.searching and not run.made:
            seen.append((run._norms().clone(), run._leaving(), run.fading.clone(), run.began))

    training.train(each=note)
    whole, learning = seen[0][0], False
    for now, leaving, fading, began in seen:
        whole = torch.where(leaving, whole, now) if learning else now
        learning = began is not None  # from the look after the one that has started it
        expected = torch.where(leaving, (whole / now).log().clamp(min=0), torch.zeros(()))
        assert torch.allclose(fading, expected, atol=1e-5)
    assert any(fading.max() > 0.2 for _, _, fading, _ in seen)


def test_parts_leave_under_a_gradient_penalty_only_where_norms_are_down() -> None:
    method = early(**(MEASURED | {"faded": 0.3}))
    training = Training(method)
    gone: list[float] = []
    whole = training.run.leave

    def leave(why: str):
        keep = whole(why)
        if why == "faded":
            for group, part in training.run.layout.split(training.run.fading).items():
                out = torch.ones(group.size, dtype=torch.bool).index_fill_(0, keep[group], False)
                gone.extend(part[out].tolist())
        return keep

    training.run.leave = leave
    left = training.train().finish().shrinkage
    assert left.keep_macs <= 0.5
    assert left.cuts[0].reason == "faded", "else this test says nothing"
    assert all(down >= -math.log(0.3) / 2 for down in gone)


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_measured_fading_resumes_bit_equal(stop: int) -> None:
    one = Training(early(**MEASURED)).train(0, stop)
    file = one.saved()
    other = Training(early(**MEASURED), seed=9).load(file).train(stop)
    one.train(stop)
    assert differences(dict(one.net.state_dict()), dict(other.net.state_dict())) == []
    assert one.finish().shrinkage == other.finish().shrinkage


def test_where_all_has_left_in_parts_the_last_cut_says_that_it_took_nothing() -> None:
    method = early(start=0.05, progressive=1, exposure=30.0, latest=0.9, faded=0.5, recalibrate=2)
    training = Training(method)
    before = []
    training.train(each=lambda step: before.append({name: t.clone() for name, t in training.net.named_buffers()}))
    left = training.finish().shrinkage
    assert left.keep_macs <= 0.5
    parts, last = left.cuts
    assert (parts.reason, last.reason, last.macs) == ("faded", "stable", parts.macs)
    assert sum(parts.norms.removed) > sum(last.norms.removed) == 0
    assert f"cut after step {last.step} (stable): {left.keep_macs:.2%} of the MACs, nothing was left" in left.summary()
    assert left.summary().count("nothing was left") == 1
    steps = [int(buffers["norm.num_batches_tracked"]) for buffers in before]
    assert steps[parts.step] == 2, "renewed after the part"
    assert steps[last.step] == 2 + last.step - parts.step, "and not again where nothing left"
    assert not training.run.searching


class Tight(nn.Module):
    """The first layer is as wide as its floor, the second is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 4), nn.Linear(4, 64), nn.Linear(64, 48)
        self.head = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))


def looks(indicator: es.indicators.Indicator, **kwargs: object) -> list[float]:
    torch.manual_seed(0)
    net = Tight()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = es.EPI(
        keep_macs=0.5, latest=0.9, criterion="taylor-weights", round_to=1, indicator=indicator, check_every=1, **kwargs
    )
    with quiet():
        pruner = es.Pruner(net, optimizer, method, total_steps=STEPS, example_inputs=torch.zeros(1, 8))
        for _ in range(8):
            net(torch.randn(4, 8)).sum().backward()
            optimizer.step()
    return [check.score for check in pruner.run.checks if check.score is not None]


@pytest.mark.parametrize("indicator", [JaccardStability(lag=1, window=1, threshold=1), CountStability(r=1, threshold=1)])
def test_a_group_as_wide_as_its_floor_does_not_count_as_settled(indicator: es.indicators.Indicator) -> None:
    """With it in the mean the scores would lie half-way between these and 1."""
    floored, excluded = (looks(indicator, **more) for more in ({"min_channels": 4}, {"exclude": ["first"], "min_channels": 4}))
    assert floored == excluded
    assert min(floored) < 1


@pytest.mark.parametrize("size", [1, 8])
def test_cost_weighting_of_the_paper_does_not_depend_on_the_batch(size: int) -> None:
    def scores(size: int) -> torch.Tensor:
        method = early(cost_weighting="paper", start=0.1)
        return Training(method, example_inputs=batch(0)[0][:1].repeat(size, 1, 1, 1)).run.scores()

    assert torch.equal(scores(size), scores(2))
