"""Loss scales, half precision and formats: what a mask must survive besides the plain float32 step."""

import pytest
import torch
from torch import nn

import espalier as es
from tests.pruner.conftest import batch, masked_weights_are_zero, sgd


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_no_step(make_net, fused):
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, criterion="weight-gradient"), total_steps=10)
    before = None
    for step in range(10):
        x, y = batch(step)
        if step == 4:
            x = x * float("inf")
            before = {name: memory.clone() for name, memory in pruner.run.memories.items()}
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step == 4:
            net.load_state_dict({k: torch.nan_to_num(v) for k, v in net.state_dict().items()})  # BN statistics took the inf
            assert pruner.step == 4
            if not fused:
                assert all(torch.equal(before[n], m) for n, m in pruner.run.memories.items())
            assert all(torch.isfinite(m).all() for m in pruner.run.memories.values())
    assert pruner.step == 9
    with pytest.raises(es.EspalierError, match="stopped after 9 of 10 steps"):
        pruner.finish()
    assert pruner.finish(allow_early=True).sparsity == pytest.approx(0.75, abs=0.001)


def test_gradient_criteria_see_unscaled_gradients(make_net):
    memories = []
    for scale in (1.0, 2.0**12):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        pruner = es.Pruner(net, optimizer, es.OCP(0.5, criterion="weight-gradient"), total_steps=4)
        x, y = batch(0)
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        scaler.step(optimizer)
        memories.append(pruner.run.memories["conv2.weight"])
    torch.testing.assert_close(memories[0], memories[1])


def test_bf16_autocast_and_channels_last(make_net):
    net = make_net(channels_last=True)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=5)
    for step in range(5):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x.to(memory_format=torch.channels_last)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert masked_weights_are_zero(pruner)
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    pruner.finish()


def test_bf16_weights(make_net):
    net = make_net().bfloat16()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=3)
    for step in range(3):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x.bfloat16()).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


@pytest.mark.parametrize("criterion", ["magnitude", "weight-gradient"])
def test_a_model_that_changes_format_or_dtype_under_way_stays_masked(make_net, criterion):
    net = make_net()
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, criterion=criterion), total_steps=8)
    in_force = pruner.run.in_force
    changes = {2: lambda: net.to(memory_format=torch.channels_last), 5: net.double}
    for step in range(8):
        changes.get(step, lambda: None)()
        x, y = batch(step)
        nn.functional.cross_entropy(net(x.to(net.head.weight.dtype)), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert masked_weights_are_zero(pruner)
        if pruner.run.in_force == in_force:
            continue
        in_force = pruner.run.in_force
        memories = pruner.run.memories or {name: weight.detach() for name, weight in pruner.run.weights.items()}
        for name, mask in pruner.run.masks.tensors.items():
            assert memories[name].abs()[mask == 0].max() <= memories[name].abs()[mask == 1].min()
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_fp16_autocast_with_a_scaler(make_net):
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=5)
    for step in range(5):
        x, y = batch(step)
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(net(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert masked_weights_are_zero(pruner)
    assert pruner.step == 5
    pruner.finish()
