"""What goes on over the cut: optimizer states, averages, schedules, closures, scalers, formats, wrappers."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from espalier.surgery import structure_of
from tests.structured.nets import METHODS, OPTIMIZERS, STEPS, Training, at, batch, differences, early, loss_of, net, quiet

HALF = at(at=0.5)


def narrowed(name, tensor, structure):
    """What the structure keeps of a dense tensor."""
    for dim in range(tensor.dim()):
        kept = structure.kept.get((name, dim))
        if kept is not None:
            tensor = tensor.index_select(dim, torch.tensor(kept))
    return tensor


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_cut_keeps_weights_states_averages_and_the_schedule_as_they_were(optimizer):
    average = swa_utils.get_ema_multi_avg_fn(0.9)
    dense = net()
    ema = swa_utils.AveragedModel(dense, multi_avg_fn=average)
    rider = OPTIMIZERS[optimizer](dense.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(rider, 0.1, total_steps=STEPS + 1)

    model = net()
    follower = swa_utils.AveragedModel(model, multi_avg_fn=average)
    training = Training(HALF, optimizer, model=model, followers=[follower])
    kept_schedule = torch.optim.lr_scheduler.OneCycleLR(training.optimizer, 0.1, total_steps=STEPS + 1)
    for step in range(STEPS // 2):
        loss_of(dense, batch(step)).backward()
        rider.step()
        rider.zero_grad()
        training.train(step, step + 1)
        if step < STEPS // 2 - 1:
            ema.update_parameters(dense)
            follower.update_parameters(model)
            schedule.step()
            kept_schedule.step()
    assert training.run.made
    structure = structure_of(model)
    assert structure_of(follower.module) == structure
    for one, other in ((dense, model), (ema.module, follower.module)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(narrowed(name, tensor, structure), other.state_dict()[name]), name
    for (name, old), new in zip(dense.named_parameters(), model.parameters(), strict=True):
        for key, value in rider.state[old].items():
            expected = narrowed(name, value, structure) if value.shape == old.shape else value
            assert torch.equal(expected, training.optimizer.state[new][key]), (name, key)
    for step in range(STEPS // 2, STEPS):
        training.train(step, step + 1)
        follower.update_parameters(model)
        schedule.step()
        kept_schedule.step()
        assert kept_schedule.get_last_lr() == schedule.get_last_lr() == [training.optimizer.param_groups[0]["lr"]]
    training.finish()
    assert follower.module.eval()(batch(0)[0]).shape == (8, 4)
    assert es.cost(es.trace(follower.module, batch(0)[0])).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("key", ["ocsp", "ocsp-gradient-penalty", "epi-taylor", "prune-at-half"])
def test_closures(key):
    training = Training(METHODS[key], lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2))
    for step in range(STEPS):

        def closure(step=step):
            training.optimizer.zero_grad()
            loss = loss_of(training.net, batch(step))
            loss.backward()
            return loss

        with quiet():
            training.optimizer.step(closure)
    assert training.pruner.step == STEPS
    assert training.finish().shrinkage.keep_macs <= 0.5


def test_accumulated_gradients_and_a_loss_that_is_kept_alive():
    training, losses = Training(METHODS["ocsp"]), []
    for step in range(STEPS):
        for part in range(2):
            losses.append(loss_of(training.net, batch(2 * step + part)))
            losses[-1].backward()
        with quiet():
            training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=False)
    assert training.pruner.step == STEPS
    assert training.finish().shrinkage.keep_macs <= 0.5


@pytest.mark.parametrize("key", ["ocsp", "ocsp-gradient-penalty", "epi-taylor"])
@pytest.mark.parametrize("optimizer", ["sgd-foreach", "adamw-fused"])
def test_bf16_autocast_and_channels_last(key, optimizer):
    training = Training(METHODS[key], optimizer, model=net().to(memory_format=torch.channels_last))
    for step in range(STEPS):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(training.net, (x.to(memory_format=torch.channels_last), y))
        loss.backward()
        with quiet():
            training.optimizer.step()
        training.optimizer.zero_grad()
        assert all(factor.stride() == w.stride() for w, factor in zip(pulled(training), factors(training), strict=True))
    assert training.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert training.finish().shrinkage.keep_macs <= 0.5


def pulled(training):
    return training.run.pull.weights if hasattr(training.run, "pull") and training.run.searching else []


def factors(training):
    return training.run.pull.factors if hasattr(training.run, "pull") and training.run.searching else []


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor", "greg", "slr-channels"])
def test_bf16_weights(key):
    fixed = [(x.bfloat16(), y) for x, y in (batch(900), batch(901))]
    training = Training(METHODS[key], model=net().bfloat16(), example_inputs=fixed[0][0], batches=fixed)
    for step in range(STEPS):
        x, y = batch(step)
        nn.functional.cross_entropy(training.net(x.bfloat16()).float(), y).backward()
        with quiet():
            training.optimizer.step()
        training.optimizer.zero_grad()
    assert training.finish().shrinkage.keep_macs <= 0.5


def scaled(key, optimizer, scale, infinite=None):
    """Train with a GradScaler; None for without. In double precision: rounding must not decide what is learned."""
    training = Training(METHODS[key], optimizer, model=net().double())
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    for step in range(STEPS):
        loss = loss_of(training.net, batch(step))
        with quiet():
            if scaler is None:
                loss.backward()
                training.optimizer.step()
            else:
                scaler.scale(loss * math.inf if step == infinite else loss).backward()
                scaler.step(training.optimizer)
                scaler.update(scale)
        training.optimizer.zero_grad()
    return training


@pytest.mark.parametrize("key", ["ocsp", "ocsp-gradient-penalty", "epi-taylor", "greg", "network-slimming", "slr-channels"])
@pytest.mark.parametrize("optimizer", ["sgd-loop", "sgd-fused"])
def test_a_loss_scale_changes_nothing(key, optimizer, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "sgd-fused", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True))
    plain, other = scaled(key, optimizer, None), scaled(key, optimizer, 2.0**10)
    assert structure_of(plain.net) == structure_of(other.net)
    for (name, one), two in zip(plain.net.named_parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor"])
def test_a_step_that_a_fused_optimizer_skips_is_no_step(key):
    training = scaled(key, "adamw-fused", 2.0**10, infinite=4)
    assert training.pruner.step == STEPS - 1
    assert training.run.made
    assert [check.step for check in training.run.checks] == sorted({check.step for check in training.run.checks})
    assert all(torch.isfinite(p).all() for p in training.net.parameters())


def halves(model, make):
    """Two optimizers; the last layers, which share no group with the others' filters, are the second's."""
    late = ("wide", "norm3", "head")
    parts = [[p for n, p in model.named_parameters() if n.startswith(late) is second] for second in (False, True)]
    return [make(part) for part in parts]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def train_two(method, last, scale=2.0**12):
    """Two optimizers under one scaler, which unscales the second's gradients only after the first has stepped."""
    model = net()
    optimizers, scaler = halves(model, sgd), torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    pruner = es.Pruner(model, optimizers, method, total_steps=STEPS, example_inputs=batch(0)[0])
    with quiet():
        for step in range(last):
            scaler.scale(loss_of(model, batch(step))).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
    assert pruner.step == last
    return model, pruner


PENALTIES = {
    "train-prune-finetune": at(es.TrainPruneFinetune, check_every=1000, learn_from=0, at=1, strength=1e-2),
    "network-slimming": at(es.NetworkSlimming, check_every=1000, strength=1e-2, at=1),
}


@pytest.mark.parametrize("scale", [None, 2.0**12])
@pytest.mark.parametrize("key", list(PENALTIES))
def test_a_penalty_acts_once_on_the_weights_of_two_optimizers(key, scale):
    plain = Training(PENALTIES[key], sgd).train(0, 4)
    model, _ = train_two(PENALTIES[key], 4, scale)
    for (name, one), two in zip(plain.net.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor-weights", "epi-taylor"])
def test_two_optimizers_are_cut_between_their_steps(key):
    model, pruner = train_two(METHODS[key], STEPS)
    left = pruner.finish().shrinkage
    assert left.keep_macs <= 0.5
    assert [check.step for check in left.checks] == sorted({check.step for check in left.checks})
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gradients_of_the_other_optimizer_are_left_for_its_own_step():
    model = net()
    optimizers = halves(model, lambda p: torch.optim.SGD(p, lr=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    method = early(es.EPI, criterion="taylor-weights", check_every=100)
    pruner = es.Pruner(model, optimizers, method, total_steps=STEPS, example_inputs=batch(0)[0])
    scaler.scale(loss_of(model, batch(0))).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    alone = Training(method, lambda p: torch.optim.SGD(p, lr=0.0)).train(0, 1)
    torch.testing.assert_close(pruner.run._observed, alone.run._observed, rtol=1e-4, atol=1e-7)


def test_a_tensor_learning_rate():
    training = Training(METHODS["ocsp-constants"], lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), fused=True))
    assert training.train().finish().shrinkage.keep_macs <= 0.5


def test_compiled_models():
    torch._dynamo.reset()
    training = Training(METHODS["ocsp"], wrap=lambda model: torch.compile(model, backend="eager"))
    plain = Training(METHODS["ocsp"]).train()
    training.train()
    assert training.finish().shrinkage == plain.finish().shrinkage
    assert differences(dict(training.net.state_dict()), dict(plain.net.state_dict())) == []


def test_statistics_of_batch_norm_are_those_of_the_batches_and_nothing_else_moves():
    training = Training(at(at=0.5, recalibrate=2)).train(0, STEPS // 2 - 1)
    training.net.conv1.eval()
    plain = Training(HALF).train(0, STEPS // 2 - 1)
    for one in (plain, training):
        torch.manual_seed(3)
        one.train(STEPS // 2 - 1, STEPS // 2)
        one.after = torch.rand(3)
    assert torch.equal(plain.after, training.after)
    for (name, one), two in zip(plain.net.named_parameters(), training.net.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert training.net.norm.momentum == 0.1
    assert [m.training for m in training.net.modules()].count(False) == 1
    stem = copy.deepcopy(training.net.stem)
    images = [batch(900)[0], batch(901)[0]]
    means = torch.stack([stem(x).mean((0, 2, 3)) for x in images]).mean(0)
    variances = torch.stack([stem(x).transpose(0, 1).flatten(1).var(1) for x in images]).mean(0)
    torch.testing.assert_close(training.net.norm.running_mean, means.detach())
    torch.testing.assert_close(training.net.norm.running_var, variances.detach())


def test_group_norm_and_channels_of_any_width_train_on():
    model, method = net(norm="group"), early(start=0.1, round_to=1)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.warns(UserWarning, match="round_to=1 allows odd widths"):
        es.Pruner(model, optimizer, method, total_steps=STEPS, example_inputs=batch(0)[0])
    report = Training(method, model=net(norm="group")).train().finish()
    assert report.shrinkage.keep_macs <= 0.5
