"""Every method that cuts channels on a GPU, the structure engine on real models, and the loop around a cut."""

import io
import os

import pytest
import torch
import torch.distributed as dist
from torch.optim import swa_utils

import espalier as es
from espalier.tasks.vision import torchvision
from tests.gpu.conftest import needs_gpu, on_gpu
from tests.gpu.test_masks import unwaited
from tests.graph.oracles import call, every_other, lively, zeroed
from tests.structured import nets
from tests.structured.nets import METHODS, STEPS, at, batch, differences, early, loss_of, net, quiet
from tests.structured.test_steps import BETWEEN

pytestmark = needs_gpu
methods = pytest.mark.parametrize("key", list(METHODS))
MODELS = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "convnext_tiny", "swin_t", "vit_b_16"]


class Training(nets.Training):
    """As on the CPU, with net and data on the GPU."""

    def __init__(self, method, optimizer="sgd-foreach", seed=0, model=None, **kwargs):
        model = net(seed).cuda() if model is None else model
        given = {"example_inputs": batch(0)[0].cuda(), "batches": [on_gpu(batch(900)), on_gpu(batch(901))], **kwargs}
        super().__init__(method, optimizer, model=model, **given)

    def train(self, first=0, last=STEPS, each=lambda step: None):
        with quiet():
            for step in range(first, last):
                each(step)
                loss_of(self.model, on_gpu(batch(step))).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self


def halves(graph):
    """Every other channel of all groups whose cut is exact."""
    return {group: every_other(group) for group in graph.groups if group.exact}


def read(file):
    return torch.load(io.BytesIO(file), weights_only=True, map_location="cpu")


@methods
def test_trains_resumes_around_the_cut_and_opens_on_a_cpu(key, tmp_path):
    training, files = Training(METHODS[key]), []
    training.train(each=lambda step: files.append(training.saved()))
    files.append(training.saved())
    last = training.run.made[-1].step
    for stop in {max(last - 1, 0), min(last, STEPS - 1)}:
        resumed = Training(METHODS[key], seed=99).load(files[stop]).train(stop)
        assert differences(read(resumed.saved()), read(files[-1])) == [], stop
    left = training.finish().shrinkage
    assert left.macs < left.dense_macs
    es.save(training.net, tmp_path / "model.safetensors")
    loaded = es.load(tmp_path / "model.safetensors", net(5)).eval()
    x = batch(0)[0]
    torch.testing.assert_close(loaded(x), training.net.eval()(x.cuda()).cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("key", list(BETWEEN))
def test_no_step_between_two_looks_waits_for_the_device(key):
    training = Training(BETWEEN[key]).train(0, 2)
    loss_of(training.net, on_gpu(batch(2))).backward()
    with unwaited():
        training.optimizer.step()
    assert training.pruner.step == 3


@pytest.mark.parametrize("name", MODELS)
def test_traces_as_on_the_cpu_and_cuts_to_the_same_function(name):
    torch.manual_seed(0)
    model = lively(torchvision().models.get_model(name, weights=None))
    x = torch.randn(2, 3, 224, 224)
    there = [(group.name, group.size, group.exact) for group in es.trace(model, x).groups]
    model, x = model.cuda(), x.cuda()
    graph = es.trace(model, x)
    assert [(group.name, group.size, group.exact) for group in graph.groups] == there
    expected = call(zeroed(model, halves(graph)).double(), x.double())
    es.cut(model, halves(graph))
    assert all(parameter.is_cuda for parameter in model.parameters())
    found = call(model.double(), x.double())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_compiled_model_goes_on_after_the_cut_with_scaler_and_average(dtype):
    model = net().cuda()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    training = Training(early(start=0.1), "adamw-fused", model=model, wrap=torch.compile, followers=[average])
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
    with quiet():
        for step in range(STEPS):
            with torch.autocast("cuda", dtype):
                loss = loss_of(training.model, on_gpu(batch(step)))
            scaler.scale(loss).backward()
            scaler.step(training.optimizer)
            scaler.update()
            training.optimizer.zero_grad()
            average.update_parameters(training.net)
        left = training.finish().shrinkage
    assert left.macs < left.dense_macs
    shapes = [p.shape for p in training.net.parameters()]
    assert shapes == [p.shape for p in average.module.parameters()]
    assert all(torch.isfinite(p).all() for p in training.net.parameters())


def test_a_data_parallel_model_on_nccl_survives_the_cut(tmp_path):
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        alone = Training(at(at=0.5)).train()
        group = dist.group.WORLD
        together = Training(at(at=0.5), wrap=es.DistributedDataParallel, process_group=group).train()
        for mine, theirs in zip(together.net.state_dict().values(), alone.net.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert together.finish().shrinkage == alone.finish().shrinkage
    finally:
        dist.destroy_process_group()


def median_seconds(model, x):
    return es.profile(model, x, batches=[len(x)]).rows[0].seconds.median


def test_a_latency_budget_is_measured_on_the_device():
    model = torchvision().models.get_model("resnet18", weights=None).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 3, 224, 224, device="cuda")
    dense = median_seconds(model, x)
    with quiet():
        pruner = es.Pruner(model, optimizer, at(at=0, max_latency=0.7 * dense, keep_macs=None), total_steps=2, example_inputs=x)
    pruner.detach()
    assert median_seconds(model, x) < 0.85 * dense
