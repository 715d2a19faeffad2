"""Sums over all channels of all groups, and their way back, against loops over members."""

import pytest
import torch
from torch import nn

import espalier as es
from espalier.criteria.slices import parameters
from espalier.graph.layout import Layout


class Attention(nn.Module):
    """Channels in rows and columns of the same weights, a token, a flatten."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(3 * 8, 2)

    def forward(self, x):
        x = torch.cat((self.token.expand(len(x), 1, 8), self.embed(x)), 1)
        x = x + self.mix(self.norm(x))
        return self.head((x + self.down(torch.relu(self.up(x)))).flatten(1))


@pytest.fixture
def layout():
    net = Attention()
    return net, Layout(es.trace(net, torch.randn(2, 2, 6)).groups)


def wanted(group, member):
    return not member.name.endswith("bias")


def test_gather_adds_up_what_each_channel_has(layout):
    net, layout = layout
    places = layout.places(parameters(net), wanted)
    vectors = [torch.rand(net.get_parameter(name).shape[dim], dtype=torch.float64) for name, dim in places.keys]
    mine = layout.split(places.gather(vectors))
    for group in layout.groups:
        sums, carried = [0.0] * group.size, [0] * group.size
        for member in group.members:
            if member.name not in dict(net.named_parameters()) or not wanted(group, member):
                continue
            vector = vectors[places.keys.index((member.name, member.dim))]
            for position, channel in enumerate(member.index.tolist()):
                if channel >= 0:
                    sums[channel] += float(vector[position])
            for channel in set(member.index.tolist()) - {-1}:
                carried[channel] += 1
        assert mine[group].tolist() == pytest.approx(sums)
        assert layout.split(places.carriers)[group].tolist() == carried


def test_weighted_gather_uses_one_weight_for_each_entry(layout):
    net, layout = layout
    places = layout.places(parameters(net), wanted)
    vectors = [torch.ones(net.get_parameter(name).shape[dim]) for name, dim in places.keys]
    torch.testing.assert_close(places.gather(vectors, torch.full_like(places.counts, 2.0)), 2 * places.gather(vectors))


def test_spread_brings_a_row_back_to_every_index(layout):
    net, layout = layout
    places = layout.places(parameters(net), wanted)
    row = torch.rand(layout.total, dtype=torch.float64)
    parts, spread = layout.split(row), places.spread(row)
    assert set(spread) == set(places.keys)
    expected = {key: torch.zeros(net.get_parameter(key[0]).shape[key[1]], dtype=torch.float64) for key in places.keys}
    for group in layout.groups:
        for member in group.members:
            if (member.name, member.dim) in expected and wanted(group, member):
                for position, channel in enumerate(member.index.tolist()):
                    if channel >= 0:
                        expected[member.name, member.dim][position] += parts[group][channel]
    for key, vector in spread.items():
        torch.testing.assert_close(vector, expected[key])


def test_split_and_join_are_inverse(layout):
    _, layout = layout
    row = torch.rand(layout.total)
    assert torch.equal(layout.join(layout.split(row)), row)
    assert layout.total == sum(group.size for group in layout.groups)


def test_refusals(layout):
    net, layout = layout
    with pytest.raises(es.EspalierError, match="at least one group"):
        Layout([])
    with pytest.raises(es.EspalierError, match="None of the parameters"):
        layout.places(parameters(net), lambda group, member: False)
