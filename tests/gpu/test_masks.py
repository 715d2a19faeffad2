"""Every method of masks on a GPU: no step waits for it, targets are met, runs resume, files open on a CPU."""

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import espalier as es
from tests.gpu.conftest import needs_gpu, on_gpu
from tests.pruner.conftest import DATA, SmallNet, batch
from tests.pruner.test_contract import METHODS, OPTIMIZERS, STEPS, assert_masked_state_is_zero, in_round

pytestmark = needs_gpu
methods = pytest.mark.parametrize("key", list(METHODS))


@contextmanager
def unwaited() -> Iterator[None]:
    """Whatever makes the host wait for the device raises: the driver's own word, not a list of calls."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Training:
    def __init__(self, key, optimizer="sgd-foreach", seed=0, channels_last=False):
        torch.manual_seed(seed)
        self.net = SmallNet().cuda()
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        given = {name: value if callable(value) else on_gpu(value) for name, value in DATA.items()}
        self.pruner = es.Pruner(self.net, self.optimizer, METHODS[key][0], total_steps=STEPS, **given)

    def backward(self, step):
        x, y = on_gpu(batch(step))
        nn.functional.cross_entropy(self.net(x), y).backward()

    def train(self, first=0, last=STEPS):
        for step in range(first, last):
            self.backward(step)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def saved(self):
        file = io.BytesIO()
        torch.save({"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()


@methods
@pytest.mark.parametrize("optimizer", ["sgd-foreach", "adamw-fused"])
def test_no_step_waits_for_the_device(key, optimizer):
    training = Training(key, optimizer).train(0, 1)  # the first step gives the optimizer its states
    for step in range(1, STEPS):
        training.backward(step)
        with nullcontext() if in_round(training.pruner.run, step) else unwaited():
            training.optimizer.step()
        training.optimizer.zero_grad()
        assert_masked_state_is_zero(training.pruner, training.optimizer)
    assert training.pruner.finish().sparsity == pytest.approx(METHODS[key][1], abs=0.001)


@methods
def test_files_open_on_a_cpu(key, tmp_path):
    training = Training(key, channels_last=True).train()
    training.pruner.finish()
    es.save(training.net, tmp_path / "model.safetensors")
    loaded = es.load(tmp_path / "model.safetensors", SmallNet())
    for (name, mine), theirs in zip(loaded.state_dict().items(), training.net.state_dict().values(), strict=True):
        assert mine.device.type == "cpu"
        assert torch.equal(mine, theirs.cpu()), name


@methods
def test_resumes_bit_equal(key):
    reference = Training(key).train(0, 5)
    file = reference.saved()
    reference.train(5)
    resumed = Training(key, seed=99)
    state = torch.load(io.BytesIO(file), weights_only=True)
    resumed.net.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.train(5)
    for (name, mine), theirs in zip(resumed.net.state_dict().items(), reference.net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_back():
    state = torch.load(io.BytesIO(Training("ocp").train(0, 6).saved()), weights_only=True, map_location="cpu")
    torch.manual_seed(1)
    net = SmallNet()
    optimizer = OPTIMIZERS["sgd-foreach"](net.parameters())
    pruner = es.Pruner(net, optimizer, METHODS["ocp"][0], total_steps=STEPS, **DATA)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for step in range(6, 9):
        x, y = batch(step)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    back = Training("ocp", seed=2)
    back.net.load_state_dict(net.state_dict())
    back.optimizer.load_state_dict(optimizer.state_dict())
    back.train(9)
    assert pruner.step == 9
    assert back.pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


def test_a_model_that_moves_to_the_gpu_after_the_pruner_was_built():
    net = SmallNet()
    optimizer = OPTIMIZERS["sgd-foreach"](net.parameters())
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=4)
    net.cuda()  # the same Parameter objects, elsewhere
    for step in range(4):
        x, y = on_gpu(batch(step))
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.finish().sparsity == pytest.approx(0.75, abs=0.001)


@pytest.mark.parametrize(("fused", "dtype"), itertools.product([False, True], [torch.float16, torch.bfloat16]))
def test_mixed_precision_with_a_scaler_that_skips_a_step(fused, dtype):
    torch.manual_seed(0)
    net = SmallNet().cuda()
    ema = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75, criterion="weight-gradient"), total_steps=10, followers=[ema])
    for step in range(10):
        x, y = on_gpu(batch(step))
        with torch.autocast("cuda", dtype):
            loss = nn.functional.cross_entropy(net(x).float(), y)
        scaler.scale(loss * float("inf") if step == 4 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update_parameters(net)
    assert pruner.step == 9
    assert all(torch.isfinite(memory).all() for memory in pruner.run.memories.values())
    assert pruner.finish(allow_early=True).sparsity == pytest.approx(0.75, abs=0.001)
    for name, mask in pruner.run.masks.tensors.items():
        assert not dict(ema.module.named_parameters())[name][mask == 0].any()


def test_compiled_models_are_masked_and_train():
    torch.manual_seed(0)
    net = SmallNet().cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    pruner = es.Pruner(net, optimizer, es.OCP(0.75), total_steps=STEPS)
    model = torch.compile(net)
    for step in range(STEPS):
        x, y = on_gpu(batch(step))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert_masked_state_is_zero(pruner, optimizer)
    pruner.finish()
