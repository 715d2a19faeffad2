"""Learning rate curves against torch's schedulers, and who gets weight decay."""

import math

import pytest
import torch
from torch import nn

from espalier.recipes.spec import LRScheduleSpec, OptimizerSpec
from espalier.recipes.training.optim import LRCurve, build_optimizer, restart_steps

STEPS = 40


def rates(spec: LRScheduleSpec, lr: float = 0.5) -> list[float]:
    curve = LRCurve(spec, lr, STEPS)
    return [curve.lr_at(step) for step in range(STEPS)]


@pytest.mark.parametrize("warmup", [0.25, 0.3, 0.5])
def test_one_cycle_is_torchs(warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=STEPS, pct_start=warmup, div_factor=25, final_div_factor=1e5 / 25
    )
    curve = LRCurve(LRScheduleSpec(name="one-cycle", warmup=warmup), 0.5, STEPS)
    for step in range(STEPS):
        group = optimizer.param_groups[0]
        assert curve.lr_at(step) == pytest.approx(group["lr"], rel=1e-9)
        assert curve.momentum_at(step) == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    for rate in rates(LRScheduleSpec(name="cosine")):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_multi_step_constant_and_warm_up() -> None:
    steps = rates(LRScheduleSpec(name="multi-step", milestones=(0.5, 0.75), gamma=0.1))
    assert [round(steps[i], 9) for i in (0, 19, 20, 29, 30)] == [0.5, 0.5, 0.05, 0.05, 0.005]
    assert set(rates(LRScheduleSpec(name="constant"))) == {0.5}
    warm = rates(LRScheduleSpec(name="constant", warmup=0.1))
    assert warm[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("name", ["one-cycle", "cosine", "multi-step", "constant"])
def test_restarts_are_schedules_one_after_the_other(name: str) -> None:
    spec = LRScheduleSpec(name=name, restart_scale=0.1)  # type: ignore[arg-type]
    whole = LRCurve(spec, 1.0, 60, restarts=(20, 45))
    parts = [LRCurve(spec, 1.0, 20), LRCurve(spec, 0.1, 25), LRCurve(spec, 0.1, 15)]
    apart = [(part.lr_at(step), part.momentum_at(step)) for part in parts for step in range(part.total_steps)]
    assert [(whole.lr_at(step), whole.momentum_at(step)) for step in range(60)] == apart


def test_a_restart_comes_with_the_first_step_after_a_planned_cut() -> None:
    for total in (7, 30, 999, 7020):
        for share in (0.1, 1 / 3, 0.5, 2 / 3):
            (first,) = restart_steps((share,), total)
            assert first == math.ceil(share * total - 1e-9)
    assert restart_steps((), 30) == restart_steps((0.0, 1.0), 30) == ()


@pytest.mark.parametrize("total", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["one-cycle", "cosine", "multi-step", "constant"])
def test_tiny_budgets_give_sane_rates(name: str, total: int) -> None:
    curve = LRCurve(LRScheduleSpec(name=name), 1.0, total)  # type: ignore[arg-type]
    assert all(0 < curve.lr_at(step) <= 1 for step in range(total))
    curve = LRCurve(LRScheduleSpec(name=name), 1.0, total, restart_steps((0.4, 0.5), total))  # type: ignore[arg-type]
    assert all(0 < curve.lr_at(step) <= 1 for step in range(total))


def test_momentum_cycling_sets_beta1_of_adam() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSpec(name="adamw", betas=(0.9, 0.99)))
    LRCurve(LRScheduleSpec(), 1.0, STEPS).apply(optimizer, 0)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.95, 0.99)}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, spared = build_optimizer(model, OptimizerSpec(name=name, weight_decay=0.1)).param_groups  # type: ignore[arg-type]
    assert (len(decayed["params"]), decayed["weight_decay"]) == (1, 0.1)
    assert (len(spared["params"]), spared["weight_decay"]) == (3, 0.0)
    assert len(build_optimizer(model, OptimizerSpec(weight_decay=0.1, decay_all=True)).param_groups) == 1
