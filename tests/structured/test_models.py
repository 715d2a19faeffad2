"""Other models under the same methods: attention, groups of one channel, frozen parts, late changes of format."""

import pytest
import torch
from torch import nn

import espalier as es
from tests.structured.nets import METHODS, STEPS, Training, at, batch, differences, early, net

ANY = {"min_channels": 1, "round_to": 1, "max_ratio": 1.0}


class Transformer(nn.Module):
    """Patches, one block of attention and an MLP, on 8 x 8 images."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 4, width) * 0.02)
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


def transformer(seed=0):
    torch.manual_seed(seed)
    return Transformer()


@pytest.mark.parametrize(
    "key", ["ocsp", "ocsp-progressive", "epi-taylor", "epi-magnitude", "prune-at-half", "greg", "slr-channels"]
)
def test_attention_is_cut_and_resumed(key):
    reference = Training(METHODS[key], "adamw-fused", model=transformer())
    files = []
    reference.train(each=lambda step: files.append(reference.saved()))
    cut = reference.run.made[-1].step
    assert reference.run.shrinkage().macs == es.cost(es.trace(reference.net, batch(0)[0])).macs
    for stop in (cut - 1, cut):
        other = Training(METHODS[key], "adamw-fused", model=transformer(9)).load(files[stop]).train(stop)
        assert differences(dict(other.net.state_dict()), dict(reference.net.state_dict())) == [], stop
    left = reference.finish().shrinkage
    assert left.keep_macs <= 0.5 or METHODS[key].keep_macs is None
    assert reference.net(batch(0)[0]).shape == (8, 4)


@pytest.mark.parametrize("key", ["ocsp", "epi-taylor", "prune-at-0"])
def test_groups_of_one_channel_are_saved_and_resumed(key):
    method = METHODS[key]
    few = type(method)(
        **{
            **vars(method),
            "keep_macs": 0.01,
            "include": ["stem", "conv1", "wide"],
            "min_channels": 1,
            "round_to": 1,
            "max_ratio": 1.0,
        }
    )
    reference, files = Training(few), []
    reference.train(each=lambda step: files.append(reference.saved()))
    assert min(now for _, now in reference.run.shrinkage().widths.values()) == 1
    other = Training(few, seed=9).load(files[-1]).train(STEPS - 1)
    assert differences(dict(other.net.state_dict()), dict(reference.net.state_dict())) == []
    assert other.finish().shrinkage == reference.finish().shrinkage


def test_a_part_that_leaves_a_group_with_one_channel_is_resumed():
    method = early(
        start=0.05,
        progressive=3,
        exposure=20.0,
        latest=0.95,
        keep_macs=0.05,
        min_channels=1,
        round_to=1,
        max_ratio=1.0,
        include=["*"],
    )
    reference, files = Training(method), []
    reference.train(each=lambda step: files.append(reference.saved()))
    for stop in range(STEPS):
        other = Training(method, seed=9).load(files[stop]).train(stop)
        assert other.finish().shrinkage.keep_macs <= 0.05


@pytest.mark.parametrize("method", [early(keep_macs=1.0), early(es.EPI, keep_macs=1.0), at(at=0, keep_macs=1.0)])
def test_a_budget_of_everything_leaves_everything(method):
    left = Training(method).train().finish().shrinkage
    assert left.keep_macs == left.keep_params == 1
    assert len(left.cuts) == 1


@pytest.mark.parametrize("key", ["ocsp", "ocsp-gradient-penalty", "epi-taylor", "train-prune-finetune"])
def test_a_model_that_changes_its_format_or_dtype_under_way(key):
    training = Training(METHODS[key]).train(0, 3)
    training.net.to(memory_format=torch.channels_last)
    training.train(3, 4)
    training.net.double()
    for step in range(4, STEPS):
        x, y = batch(step)
        nn.functional.cross_entropy(training.net(x.double()), y).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    assert training.finish().shrinkage.keep_macs <= 0.5


def test_frozen_parameters_are_cut_along():
    model = net()
    for p in (*model.stem.parameters(), *model.norm.parameters()):
        p.requires_grad_(False)
    training = Training(METHODS["epi-taylor-weights"], model=model, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    assert training.train().finish().shrinkage.keep_macs <= 0.5


def test_include_and_exclude():
    left = Training(early(start=0.1, include=["wide", "conv*"], exclude=["conv1"], keep_macs=0.9)).train().finish().shrinkage
    assert set(left.widths) == {"wide"}
    assert left.keep_macs <= 0.9
    everything = Training(at(at=0, exclude=["stem"], keep_macs=0.6)).finish(allow_early=True).shrinkage
    assert set(everything.widths) == {"conv1", "wide"}
