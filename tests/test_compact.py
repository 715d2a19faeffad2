"""``compact`` on real and generated networks: whatever goes, the outputs in evaluation mode stay."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import swa_utils

import espalier as es
from espalier.tasks.classification.models import build_model
from espalier.tasks.vision import torchvision
from tests.graph.random_networks import JOINS, KINDS, PIXELS, Choice, build
from tests.pruner.conftest import SmallNet, sgd, train_step


@torch.no_grad()
def trained_norms(net):
    """Batch norms as training leaves them: no shift, mean or variance is zero or one."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net


@torch.no_grad()
def zero_filters(net, share):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            count = len(module.weight)
            module.weight[torch.randperm(count)[: int(count * share)]] = 0
    return net


@torch.no_grad()
def compacted(net, x, **kwargs):
    """``compact``, with the outputs on other inputs held against those of before."""
    flags = [module.training for module in net.modules()]
    others = 2 * torch.randn(3, *x.shape[1:], dtype=x.dtype)
    before = copy.deepcopy(net).eval()(others)
    identities = [id(parameter) for parameter in net.parameters()]
    result = es.compact(net, x, **kwargs)
    assert [module.training for module in net.modules()] == flags
    assert [id(parameter) for parameter in net.parameters()] == identities
    assert sum(parameter.numel() for parameter in net.parameters()) == result.params_after
    after = copy.deepcopy(net).eval()(others)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    return result


def kept_for(result, words):
    return [kept for kept in result.kept if words in kept.reason]


# -- real networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "share"), [("resnet20", 0.4), ("vgg16_bn", 0.4), ("mobilenetv1", 0.3), ("mobilenetv2", 0.3)])
def test_zero_filters_of_own_models_go(name, share):
    width = 0.25 if "mobile" in name else 8
    net = zero_filters(trained_norms(build_model(name, num_classes=10, width=width)), share)
    result = compacted(net, torch.randn(1, 3, 32, 32))
    assert result.params_after < 0.8 * result.params_before
    assert result.macs_after < 0.9 * result.macs_before
    assert result.params_after == es.cost(es.trace(net, torch.randn(1, 3, 32, 32))).params


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_zero_filters_of_torchvision_models_go(name):
    net = zero_filters(trained_norms(torchvision().models.get_model(name, weights=None, num_classes=10)), 0.4)
    result = compacted(net, torch.randn(1, 3, 48, 48))
    assert result.params_after < 0.9 * result.params_before


def test_after_a_training_with_masked_filters():
    net = build_model("resnet8", num_classes=4)
    optimizer = sgd(net)
    pruner = es.Pruner(net, optimizer, es.OCP(sparsity=0.6, pattern=es.patterns.Filter()), total_steps=8)
    for step in range(8):
        train_step(net, optimizer, step)
    with pytest.raises(es.EspalierError, match=r"call its finish\(\) before compact"):
        es.compact(net, torch.randn(1, 3, 8, 8))
    pruner.finish()
    result = compacted(net, torch.randn(1, 3, 8, 8), optimizer=optimizer)
    assert result.channels > 20
    for step in range(8, 11):
        train_step(net, optimizer, step)
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_unstructured_masks_that_happen_to_leave_channels_dead():
    net = trained_norms(build_model("resnet8", num_classes=4))
    pruner = es.Pruner(net, sgd(net), es.OneShot(sparsity=0.99, at=0.0), total_steps=1)
    pruner.finish(allow_early=True)
    result = compacted(net, torch.randn(1, 3, 16, 16))
    assert result.channels > 20


# -- what is constant, and where it can go -------------------------------------------------------------------------


class Chain(nn.Sequential):
    """conv - norm - ReLU - conv; filters 1, 3, 4 of the first are zero."""

    def __init__(self, *, padding=0, bias=True, shift=0.5, after=()):
        second = nn.Conv2d(6, 5, 3, padding=padding, bias=bias)
        super().__init__(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), second, *after, nn.Conv2d(5, 2, 1))
        trained_norms(self)
        with torch.no_grad():
            self[0].weight[[1, 3, 4]] = 0
            self[0].bias[[1, 3, 4]] = 0
            self[1].running_mean.zero_()
            self[1].bias.fill_(shift)


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_a_constant_goes_into_the_bias():
    net = Chain()
    bias = net[3].bias.clone()
    result = compacted(net, X)
    assert result.removed == {"0": (1, 3, 4)}
    assert not result.kept or not kept_for(result, "constant")
    assert not torch.allclose(net[3].bias, bias)


def test_a_constant_goes_into_the_running_mean_behind_a_layer_without_bias():
    net = Chain(bias=False, after=[nn.BatchNorm2d(5), nn.ReLU()])
    mean = net[4].running_mean.clone()
    assert compacted(net, X).removed == {"0": (1, 3, 4)}
    assert not torch.allclose(net[4].running_mean, mean)


def test_a_negative_constant_dies_in_the_relu():
    net = Chain(padding=1, bias=False, shift=-0.5)
    weight = net[3].weight[:, [0, 2, 5]].clone()
    assert compacted(net, X).removed == {"0": (1, 3, 4)}
    assert torch.equal(net[3].weight, weight)


@pytest.mark.parametrize(("padding", "bias", "why"), [(1, True, "pads with zeros"), (0, False, "has no bias")])
def test_where_a_constant_cannot_be_folded_one_channel_does_the_work_of_all(padding, bias, why):
    result = compacted(net := Chain(padding=padding, bias=bias), X)
    assert len(result.removed["0"]) == 2
    (kept,) = kept_for(result, "constant")
    assert why in kept.reason
    assert "took over 2 others" in kept.reason
    assert {*kept.channels, *result.removed["0"]} == {1, 3, 4}
    assert net[0].out_channels == net[3].in_channels == 4
    assert not compacted(net, X).removed


def test_scale_zero_of_a_norm_leaves_its_shift():
    net = trained_norms(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 1)))
    with torch.no_grad():
        net[1].weight[[0, 5]] = 0
    assert compacted(net, X).removed == {"0": (0, 5)}


def test_padding_upstream_makes_a_constant_uneven():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[2] = 0
    result = compacted(net, X)
    assert not result.removed
    (kept,) = kept_for(result, "differs from place to place where 2 reads it")
    assert kept.channels == (2,)
    with torch.no_grad():
        net[0].bias[2] = 0
    assert compacted(net, X).removed == {"0": (2,)}


def test_flattened_channels_are_constant_place_by_place():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Flatten())
    net.append(nn.Linear(4 * 81, 3))
    with torch.no_grad():
        net[0].weight[[0, 3]] = 0  # uneven behind the padded depthwise convolution, and folded all the same
    assert compacted(net, X).removed == {"0": (0, 3)}
    assert net[-1].in_features == 2 * 81


def test_dead_chains_unravel():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 2))
    with torch.no_grad():
        net[3].weight[:, 1] = 0  # nothing reads channel 1 of layer 2, so nothing but it reads channel 4 of layer 1
        net[2].weight[[0, 2, 3, 4, 5], 4] = 0
        net[0].weight[5] = 0
        net[1].weight[2, :5] = 0  # reads a constant only
    assert compacted(net, torch.randn(2, 6)).removed == {"0": (5,), "1": (2, 4), "2": (1,)}


def test_several_readers_and_a_shared_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 2)

        def forward(self, x):
            y = self.first(x)
            return self.out(self.one(y.relu()) + self.one(y.relu() * 1.0) + self.two(y.sigmoid()))

    net = Net()
    with torch.no_grad():
        net.first.weight[[2, 3]] = 0
        net.two.weight[:, 0] = 0  # one reader is not enough
    assert compacted(net, torch.randn(2, 4)).removed == {"first": (2, 3)}


# -- what must stay ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(functional.relu(x + self.body(x)))


def test_a_residual_stream_loses_a_channel_only_if_all_writers_are_dead():
    net = Residual()
    with torch.no_grad():
        net.stem.weight[[1, 2]] = 0
        net.body.weight[[2, 3]] = 0
    result = compacted(net, torch.randn(2, 4))
    assert result.removed == {"stem": (2,)}
    (kept,) = kept_for(result, "write to these channels too")
    assert kept.channels == (1, 3)


def test_norms_and_softmax_over_channels_keep_them():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[2].weight[:, 1] = 0
    result = compacted(net, torch.randn(2, 4))
    assert not result.removed
    assert kept_for(result, "norm, softmax or mean")
    assert "no dead channel can go" in str(result)


def test_a_sum_over_channels_is_noticed_by_its_outputs():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.one(x)
            return self.two(y) + y.sum(1, keepdim=True)

    net = Summed()
    with torch.no_grad():
        net.two.weight[:, 3] = 0
    result = compacted(net, torch.randn(2, 4))
    assert not result.removed
    assert kept_for(result, "without them an output changes")


def test_a_relu_that_is_off_on_the_data_is_not_dead():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].bias.fill_(-1000.0)
    result = compacted(net, torch.randn(2, 4))
    assert not result.removed
    assert not result.kept
    assert str(result) == "nothing removed: the model has no dead channels"


def test_a_group_keeps_one_channel():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    result = compacted(net, torch.randn(2, 4))
    assert len(result.removed["0"]) == 5
    assert kept_for(result, "at least one")


def test_code_that_branches_on_values_keeps_its_channels():
    class Branching(nn.Sequential):
        def forward(self, x):
            y = self[0](x)
            return self[1](y if x.mean() > 0 else -y)

    net = Branching(nn.Linear(4, 6), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
    result = compacted(net, torch.randn(2, 4))
    assert not result.removed
    assert kept_for(result, "takes single values out of tensors")


def test_weights_that_are_computed_are_left_alone():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.utils.parametrize.register_parametrization(net[2], "weight", Doubled())
    with torch.no_grad():
        net[0].weight[1] = 0
    result = compacted(net, torch.randn(2, 4))
    assert not result.removed
    assert kept_for(result, "does not follow")


def test_refusals():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with pytest.raises(es.EspalierError, match="not on the meta device"):
        es.compact(net, torch.zeros(1, 4, device="meta"))
    with pytest.raises(es.EspalierError, match="other tensors"):
        es.compact(net, torch.zeros(1, 4), followers=[nn.Linear(4, 2)])


def test_nothing_changes_when_the_optimizer_cannot_be_cut():
    net = Chain()
    optimizer = sgd(net)
    net(X).sum().backward()
    optimizer.step()
    with torch.no_grad():
        net[0].weight[[1, 3, 4]] = 0
    optimizer.state[net[0].weight]["odd"] = torch.zeros(7, 7)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(es.EspalierError):
        es.compact(net, X, optimizer=optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# -- followers, training on, files ---------------------------------------------------------------------------------


def test_an_average_with_constants_of_its_own():
    net = trained_norms(SmallNet(act=torch.relu))
    average = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW(net.parameters())
    train_step(net, optimizer, 0)
    with torch.no_grad():
        for module in (net, average.module):
            module.conv1.weight[[0, 1, 2]] = 0
            module.bn2.weight[[3, 4]] = 0
        average.module.bn2.bias.add_(0.3)
        net.conv1.weight[5] = 0  # alive in the average
    x = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(average).eval()(x)
    result = compacted(net, x, optimizer=optimizer, followers=[average])
    assert result.removed["conv2"] == (3, 4)
    assert 5 not in result.removed["conv1"]
    found = copy.deepcopy(average).eval()(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for step in range(1, 3):
        train_step(net, optimizer, step)
        average.update_parameters(net)
    assert average.module.conv1.weight.shape == net.conv1.weight.shape


def test_saved_and_loaded(tmp_path):
    net = zero_filters(trained_norms(build_model("resnet8", num_classes=4)), 0.4)
    x = torch.randn(2, 3, 16, 16)
    compacted(net, x)
    es.save(net, tmp_path / "small.safetensors")
    loaded = es.load(tmp_path / "small.safetensors", build_model("resnet8", num_classes=4))
    assert torch.equal(loaded.eval()(x), net.eval()(x))


def test_wrapped_and_channels_last():
    net = zero_filters(trained_norms(build_model("resnet8", num_classes=4)), 0.4).to(memory_format=torch.channels_last)
    wrapped = nn.DataParallel(net)
    result = compacted(wrapped, torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last))
    assert result.channels > 10
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    net = Chain().to(dtype).eval()
    assert es.compact(net, X.to(dtype)).removed == {"0": (1, 3, 4)}
    assert net[0].weight.dtype == dtype


# -- generated networks --------------------------------------------------------------------------------------------


@torch.no_grad()
def zero_here_and_there(net, draw):
    """Rows, columns, biases and norms, wholly or in part."""
    named = dict(net.named_parameters())
    for name, weight in named.items():
        if weight.dim() > 1 and draw.random() < 0.8:
            rows = [row for row in range(len(weight)) if draw.random() < draw.choice([0.2, 0.5, 0.9])]
            weight[rows] = 0
            bias = named.get(name.replace("weight", "bias"), weight)
            if bias.dim() == 1 and len(bias) == len(weight) and draw.random() < 0.5:
                bias[rows[::2]] = 0
        if weight.dim() > 1 and draw.random() < 0.4:
            weight[:, [column for column in range(weight.shape[1]) if draw.random() < 0.5]] = 0
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight[[c for c in range(module.num_features) if draw.random() < 0.2]] = 0
            module.bias[[c for c in range(module.num_features) if draw.random() < 0.2]] = 0
        for name, child in module.named_children():
            if isinstance(child, nn.GELU | nn.SiLU) and draw.random() < 0.6:
                setattr(module, name, nn.ReLU())


@pytest.mark.parametrize("start", range(0, 36, 12))
def test_generated_networks_compute_the_same(start):
    removed = 0
    for seed in range(start, start + 12):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        kinds = [*KINDS, *JOINS, "conv", "conv", "depthwise", "add", "residual"]
        choices = [Choice(draw.choice(kinds), draw.randrange(24), draw.randrange(24)) for _ in range(draw.randint(2, 7))]
        net = build(choices, stem=draw.choice([4, 8, 12]), flat=draw.random() < 0.5)
        zero_here_and_there(net, draw)
        x = torch.randn(2, 3, PIXELS, PIXELS, dtype=torch.float64)
        net = net.double().to(memory_format=draw.choice([torch.contiguous_format, torch.channels_last]))
        removed += bool(compacted(net, x).removed)
    assert removed > 6
