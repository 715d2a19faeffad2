"""Every criterion of channels against a slow reference in plain Python: a residual sum, a flatten, a concat."""

import pytest
import torch
from torch import nn

import espalier as es
from espalier.criteria import CHANNEL_CRITERIA, ChannelMagnitude, ChannelTaylor, DepGraphNorm, GateTaylor, GroupSaliency
from espalier.criteria.slices import parameters, weights
from espalier.graph.layout import Layout


class Net(nn.Module):
    """conv-BN, a residual sum, a concat with a convolution without norm, a flatten, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.side = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(7 * 4, 5)
        for norm in (self.norm, self.norm1):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.norm1(self.conv(x))
        x = torch.cat((x, self.side(torch.relu(x))), 1)
        return self.head(x.flatten(1))


@pytest.fixture
def found():
    torch.manual_seed(1)
    net = Net()
    graph = es.trace(net, torch.randn(2, 3, 2, 2))
    layout = Layout(graph.groups)
    return net, graph, layout


def slices(net):
    """Group -> for each channel the slices of every weight that goes with it: (name, values)."""
    p = {name: tensor.detach() for name, tensor in net.named_parameters()}
    head = p["head.weight"].view(5, 7, 4)
    residual = [
        {
            "stem": p["stem.weight"][c],
            "norm": p["norm.weight"][c],
            "conv out": p["conv.weight"][c],
            "conv in": p["conv.weight"][:, c],
            "norm1": p["norm1.weight"][c],
            "side in": p["side.weight"][:, c],
            "head": head[:, c],
        }
        for c in range(4)
    ]
    side = [{"side out": p["side.weight"][c], "head": head[:, 4 + c]} for c in range(3)]
    return {"stem": residual, "side": side}


def scores(net, layout, criterion, observed=None):
    places = criterion.places(net, layout)
    row = criterion.score(parameters(net), places, observed)
    return {group.name: values.tolist() for group, values in layout.split(row).items()}


def check(found, criterion, expected):
    net, _, layout = found
    mine = scores(net, layout, criterion)
    assert set(mine) == {"stem", "side"}
    for name, channels in slices(net).items():
        assert mine[name] == pytest.approx([expected(parts) for parts in channels], rel=1e-5), name


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def power(tensor, p):
    return sum(abs(value) ** p for value in tensor.flatten().tolist())


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_group_saliency_is_that_of_ocspruners_code(found, p):
    check(found, GroupSaliency(p=p), lambda parts: mean(power(w, p) / w.numel() ** 0.5 for w in parts.values()))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_group_saliency_with_the_root_of_the_paper(found, p):
    expected = lambda parts: mean(power(w, p) ** (1 / p) / w.numel() ** 0.5 for w in parts.values())  # noqa: E731
    check(found, GroupSaliency(p=p, root=True), expected)


def test_depgraph_is_the_mean_of_the_sums(found):
    check(found, DepGraphNorm(), lambda parts: mean(power(w, 2) for w in parts.values()))


def test_magnitude_is_the_norm_of_the_filters_summed_over_coupled_layers(found):
    makers = ("stem", "conv out", "side out")
    check(found, ChannelMagnitude(), lambda parts: sum(power(parts[m], 2) ** 0.5 for m in makers if m in parts))


def test_scale_of_batch_norm_and_groups_without_one(found):
    net, _, layout = found
    criterion = CHANNEL_CRITERIA["bn-scale"]()
    assert scores(net, layout, criterion)["stem"] == pytest.approx(
        [mean(abs(float(parts[n])) for n in ("norm", "norm1")) for parts in slices(net)["stem"]]
    )
    carriers = layout.split(criterion.places(net, layout).carriers)
    assert [values.tolist() for values in carriers.values()] == [[2] * 4, [0] * 3] or [
        values.tolist() for values in carriers.values()
    ] == [[0] * 3, [2] * 4]


def test_carriers_and_counts(found):
    net, _, layout = found
    places = weights(net, layout)
    carriers = {group.name: values.tolist() for group, values in layout.split(places.carriers).items()}
    assert carriers == {"stem": [7.0] * 4, "side": [2.0] * 3}
    parts = (torch.split(tensor, list(places.lengths)) for tensor in (places.index, places.counts))
    for key, index, count in zip(places.members, *parts, strict=True):
        name, dim = places.keys[key]
        if name == "head.weight":  # four columns of five rows for each channel
            assert set(count[index < layout.total].tolist()) == {20.0}
        elif dim == 0:
            assert set(count.tolist()) == {net.get_parameter(name).numel() / len(count)}


def test_random_is_fixed_by_its_seed(found):
    net, _, layout = found
    kind = CHANNEL_CRITERIA["random"]
    torch.manual_seed(5)
    one = scores(net, layout, kind())
    assert one == scores(net, layout, kind())
    assert one != scores(net, layout, kind(seed=1))


def train_once(net, step):
    torch.manual_seed(step)
    net.zero_grad()
    net(torch.randn(4, 3, 2, 2)).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def expected_taylor(net, gradients, squared, gates):
    """Sum over coupled layers first, then the absolute value or square."""
    p = dict(net.named_parameters())

    def product(name, c):
        return float((p[name].detach()[c] * gradients[name][c]).sum())

    names = ["norm.weight", "norm.bias", "norm1.weight", "norm1.bias"] if gates else ["stem.weight", "conv.weight"]
    stem = [sum(product(name, c) for name in names) for c in range(4)]
    side = [product("side.weight", c) for c in range(3)]
    return (
        {"stem": stem, "side": side}
        if squared is None
        else {name: [abs(v) ** (2 if squared else 1) for v in values] for name, values in (("stem", stem), ("side", side))}
    )


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", [GateTaylor, ChannelTaylor])
def test_taylor_scores_are_summed_over_coupled_layers_before_the_absolute_value(found, kind, squared):
    net, _, layout = found
    criterion = kind(squared=squared)
    gradients = train_once(net, 0)
    places = criterion.places(net, layout)
    row = criterion.contribution(parameters(net), gradients, places)
    for group, values in layout.split(row).items():
        expected = expected_taylor(net, gradients, squared, kind is GateTaylor)[group.name]
        assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", [GateTaylor, ChannelTaylor])
def test_taylor_ranks_by_magnitude_before_the_first_gradient_and_by_the_mean_after(found, kind):
    net, _, layout = found
    before = scores(net, layout, kind())
    if kind is ChannelTaylor:
        assert before == scores(net, layout, ChannelMagnitude())
    else:
        gates = [abs(float(parts["norm"])) + abs(float(parts["norm1"])) for parts in slices(net)["stem"]]
        assert before["stem"] == pytest.approx(gates, rel=1e-5)
    observed = torch.rand(layout.total)
    after = scores(net, layout, kind(), observed)
    assert after == {group.name: values.tolist() for group, values in layout.split(observed).items()}


@pytest.mark.parametrize("scale", [None, 2.0**10])
@pytest.mark.parametrize("criterion", ["taylor", "taylor-weights"])
def test_a_training_ranks_by_the_mean_of_unscaled_gradients_since_the_last_check(found, criterion, scale):
    net, _, _ = found
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, fused=True)
    method = es.EPI(keep_macs=0.9, criterion=criterion, check_every=3, latest=1.0, min_channels=1)
    pruner = es.Pruner(net, optimizer, method, total_steps=100, example_inputs=torch.randn(2, 3, 2, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    seen = []
    for step in range(5):
        torch.manual_seed(step)
        scaler.scale(net(torch.randn(4, 3, 2, 2)).square().sum()).backward()
        gradients = {name: p.grad / (scale or 1.0) for name, p in net.named_parameters()}
        seen.append(expected_taylor(net, gradients, False, criterion == "taylor"))
        scaler.step(optimizer)
        optimizer.zero_grad()
        scaler.update(scale) if scale else None
    mine = {group.name: values.tolist() for group, values in pruner.run.layout.split(pruner.run.scores()).items()}
    for name in ("stem", "side"):
        expected = [(a + b) / 2 for a, b in zip(seen[3][name], seen[4][name], strict=True)]  # check after step 3
        assert mine[name] == pytest.approx(expected, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in CHANNEL_CRITERIA if name != "random"])
def test_other_dtypes_are_summed_in_float32_at_least(found, name, dtype):
    net, _, layout = found
    criterion = CHANNEL_CRITERIA[name]()
    expected = scores(net.to(dtype).float(), layout, criterion)
    mine = scores(net.to(dtype), layout, criterion)
    for group in mine:
        assert mine[group] == pytest.approx(expected[group], rel=1e-4)
