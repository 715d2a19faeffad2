"""The Pruner rides on ``optimizer.step()`` in all its shapes: closures, scalers, compile, several optimizers, strangers."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import espalier as es
from tests.pruner.conftest import Around, batch, masked_weights_are_zero, sgd, train_step


def test_sparsity_in_force_stays_with_the_schedule_at_every_step(make_net):
    net = make_net(width=64)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.9), total_steps=100)
    for step in range(100):
        assert pruner.sparsity == pytest.approx(pruner.stats()["sparsity_target"], abs=0.001)
        assert pruner.sparsity == pytest.approx(es.schedules.OneCycle(0.9)(step / 100), abs=0.001)
        train_step(net, optimizer, step)
    assert sum(x.zeros for x in pruner.layers()) == sum(int(0.9 * x.total + 0.5) for x in pruner.layers())


def test_tolerance_zero_follows_the_log_of_the_authors(make_net):
    net = make_net(width=64)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.95, tolerance=0), total_steps=10)
    seen = []
    for step in range(10):
        train_step(net, optimizer, step)
        seen.append(100 * next(x for x in pruner.layers() if x.name == "conv2.weight").sparsity)
    expected = [2.53, 9.48, 29.46, 61.34, 83.69, 91.94, 94.24, 94.82, 94.96, 95.00]
    assert seen == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("as_keyword", [False, True])
def test_closures_see_masked_gradients(make_net, as_keyword):
    net = make_net()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe")
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=6)
    for step in range(6):
        x, y = batch(step)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
        assert torch.is_tensor(loss)
        assert masked_weights_are_zero(pruner)
    assert pruner.step == 6
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_a_closure_that_raises_does_not_stop_the_counting(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=4)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    for step in range(4):
        train_step(net, optimizer, step)
    assert pruner.step == 4
    pruner.finish()


def test_a_subclass_that_calls_super_step_counts_once(make_net):
    class Loud(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    net = make_net()
    optimizer = Loud(net.parameters(), lr=0.05, momentum=0.9)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=3)
    for step in range(3):
        train_step(net, optimizer, step)
        assert pruner.step == step + 1
        assert masked_weights_are_zero(pruner)
    pruner.finish()


def test_an_optimizer_that_moves_weights_without_gradients_is_masked_after_its_step(make_net):
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.ones_like(p), alpha=1e-3)

    net = make_net()
    optimizer = Noisy(net.parameters(), lr=0.05)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=5)
    for step in range(5):
        train_step(net, optimizer, step)
        assert masked_weights_are_zero(pruner)
    pruner.finish()


def test_muon_is_masked(make_net):
    net = make_net()
    muon = torch.optim.Muon([net.head.weight], lr=0.01)
    rest = torch.optim.SGD([p for n, p in net.named_parameters() if n != "head.weight"], lr=0.05)
    pruner = es.Pruner(net, [muon, rest], es.OCP(0.5, include=["*"]), total_steps=5)
    for step in range(5):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        for optimizer in (muon, rest):
            optimizer.step()
            optimizer.zero_grad()
        assert masked_weights_are_zero(pruner)
    assert pruner.step == 5
    pruner.finish()


def test_several_optimizers_count_as_the_busiest_one(make_net):
    net = make_net()
    often, seldom = torch.optim.SGD(net.conv1.parameters(), lr=0.1), torch.optim.SGD(net.conv2.parameters(), lr=0.1)
    pruner = es.Pruner(net, [often, seldom], es.OCP(0.5), total_steps=6)
    for step in range(6):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        often.step()
        if step % 3 == 2:
            seldom.step()
        net.zero_grad()
    assert pruner.step == 6
    pruner.finish()


def test_a_compiled_model_and_a_wrapped_one_are_unwrapped(make_net):
    net = make_net()
    compiled = torch.compile(net, backend="eager")
    optimizer = sgd(net)
    pruner = es.Pruner(compiled, optimizer, es.OCP(0.75), total_steps=3)
    for step in range(3):
        train_step(compiled, optimizer, step)
    assert pruner.model is net
    assert [layer.name for layer in pruner.finish().layers] == ["conv1.weight", "conv2.weight"]


def test_copies_are_plain_and_nothing_is_dragged_along(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=4)
    twin = copy.deepcopy(net)
    pickle.loads(pickle.dumps(net))
    train_step(twin, torch.optim.SGD(twin.parameters(), lr=0.1), 0)
    assert pruner.step == 0
    alive = weakref.ref(pruner)
    pruner.detach()
    del pruner
    gc.collect()
    assert alive() is None


def test_a_stranger_that_steps_our_weights_is_noticed_at_its_first_step(make_net):
    net = make_net()
    ours = sgd(net)
    es.Pruner(net, ours, es.OCP(0.75), total_steps=4)  # lives as long as its optimizer
    stranger = torch.optim.Adam(net.parameters())
    with pytest.raises(es.EspalierError, match="Adam that the Pruner does not ride on has stepped 2"):
        train_step(net, stranger, 0)


def test_an_optimizer_around_ours_is_no_stranger(make_net):
    net = make_net()
    inner = sgd(net)
    pruner = es.Pruner(net, inner, es.OCP(0.75), total_steps=3)
    outer = Around(inner)
    for step in range(3):
        train_step(net, outer, step)
    assert pruner.step == 3
    pruner.finish()


def test_after_finish_the_model_trains_freely_again(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=2)
    for step in range(2):
        train_step(net, optimizer, step)
    report = pruner.finish()
    assert pruner.finish() is report
    assert "espalier" not in optimizer.state_dict()
    train_step(net, torch.optim.Adam(net.parameters()), 2)
    es.Pruner(net, optimizer, es.OCP(0.75), total_steps=2)


def test_overshooting_warns_once_and_keeps_the_target(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=2)
    for step in range(2):
        train_step(net, optimizer, step)
    with pytest.warns(UserWarning, match="after the 2 steps"):
        train_step(net, optimizer, 2)
    train_step(net, optimizer, 3)
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_a_run_that_is_99_percent_done_finishes_silently(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=200)
    for step in range(198):
        train_step(net, optimizer, step)
    assert pruner.finish().steps == 198


def test_masked_regions_stay_reachable_for_movement(make_net):
    """Scores move on after masking, so a mask can change its mind."""
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.Follow(es.schedules.Constant(0.5), criterion="movement", tolerance=0), total_steps=8)
    first = {n: m.clone() for n, m in pruner.run.masks.tensors.items()}
    for step in range(8):
        train_step(net, optimizer, step)
    pruner.finish()
    assert first


def test_timm_averages_are_masked_too(make_net):
    vision = pytest.importorskip("espalier.tasks.vision")
    try:
        timm = vision.timm()
    except es.EspalierError:
        pytest.skip("timm is not installed")
    net = make_net()
    ema = timm.utils.ModelEmaV3(net, decay=0.9)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=6, followers=[ema])
    for step in range(6):
        train_step(net, optimizer, step)
        ema.update(net, step=step)
    pruner.finish()
    averaged = dict(ema.module.named_parameters())
    for name, mask in pruner.run.masks.tensors.items():
        assert mask.eq(0).any()
        assert not averaged[name][mask == 0].any()


def test_a_notebook_cell_that_runs_twice_takes_the_weights_over(make_net):
    net = make_net()
    first = es.Pruner(net, sgd(net), es.OCP(0.75), total_steps=4)
    optimizer = sgd(net)
    with pytest.warns(UserWarning, match="earlier Pruner of these weights"):
        second = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=4)
    for step in range(4):
        train_step(net, optimizer, step)
    assert (first.step, second.step) == (0, 4)
    assert second.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_numbers_of_numpy_are_numbers(make_net):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(np.float32(0.5)), total_steps=np.int64(2))
    for step in range(2):
        train_step(net, optimizer, step)
    assert pruner.finish().sparsity == pytest.approx(0.5, abs=0.001)
