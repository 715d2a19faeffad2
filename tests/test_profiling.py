"""What a profile says is true of the calls it made, and the model does not notice."""

import pytest
import torch
from torch import nn

import espalier as es
from espalier.profiling import Profile, Row, Spread
from tests.pruner.conftest import SmallNet

QUICK = {"seconds": 0.01}
IMAGES = torch.zeros(4, 3, 8, 8)


def test_batch_one_and_the_batch_of_the_inputs():
    found = es.profile(SmallNet(), IMAGES, **QUICK)
    assert [row.batch for row in found.rows] == [1, 4]
    assert [row.batch for row in es.profile(SmallNet(), IMAGES[:1], **QUICK).rows] == [1]
    assert [row.batch for row in es.profile(SmallNet(), IMAGES, batches=(2, 9), **QUICK).rows] == [2, 9]
    for row in found.rows:
        assert 0 < row.seconds.low <= row.seconds.median <= row.seconds.high
        assert row.seconds.samples >= 11
        assert row.ratio is None
    assert (found.device, found.threads, found.train) == ("cpu", torch.get_num_threads(), False)


def test_what_is_called_and_how():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x, *, scale):
            seen.append((len(x), len(scale), self.training, torch.is_grad_enabled()))
            return super().forward(x) * scale.mean()

    inputs = {"scale": torch.ones(7), "x": torch.ones(4, 3)}  # the batch is the first tensor's
    es.profile(Spy(3, 3), inputs, batches=(7,), **QUICK)
    assert set(seen) == {(4, 7, False, False)}
    seen.clear()
    es.profile(Spy(3, 3), {"x": torch.ones(4, 3), "scale": torch.ones(7)}, train=True, **QUICK)
    assert set(seen) == {(4, 7, True, True)}


@pytest.mark.parametrize("train", [False, True])
def test_the_model_is_left_as_it_was(train):
    class Counting(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Dropout(0.5), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU())
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return super().forward(x)

    net, x = Counting(), torch.ones(4, 3, 5)
    net(x).sum().backward()
    net[2].eval()
    flags = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in net.parameters()]
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    found = es.profile(net, x, train=train, threads=2, **QUICK)
    assert found.threads == 2
    assert torch.get_num_threads() == threads
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is own and torch.equal(own, kept) for p, (own, kept) in zip(net.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_memory_is_what_was_allocated():
    """One matrix of 256 x 256: weights and input stay, the output comes on top; training adds the gradients."""
    layer, x = nn.Linear(256, 256, bias=False), torch.zeros(8, 256)
    weights, values = 256 * 256 * 4, 8 * 256 * 4
    (_, row) = es.profile(layer, x, **QUICK).rows
    assert row.memory == weights + 2 * values
    (row,) = es.profile(layer, x, train=True, **QUICK).rows
    assert 2 * weights + 2 * values <= row.memory < 2 * weights + 6 * values


def test_memory_counts_what_lives_at_a_time():
    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(10):
                x = x.sigmoid()
            return x

    x = torch.zeros(1, 10_000)
    (row,) = es.profile(Chain(), x, **QUICK).rows
    assert row.memory == 3 * x.numel() * 4  # the input, and never more than two results


def test_two_models_are_compared_call_by_call():
    order = []

    class Named(nn.Module):
        def __init__(self, name, work):
            super().__init__()
            self.name, self.work = name, work

        def forward(self, x):
            order.append(self.name)
            for _ in range(self.work):
                x = x @ x
            return x

    x = torch.zeros(1, 200, 200)
    found = es.profile(Named("small", 1), x, against=Named("large", 4), **QUICK)
    (row,) = found.rows
    assert row.ratio.samples == row.seconds.samples == row.other_seconds.samples
    assert 0 < row.ratio.low <= row.ratio.median <= row.ratio.high
    starts = [index for index in range(1, len(order)) if order[index] != order[index - 1]]
    assert len(starts) > 6  # in turn
    assert "other / this" in str(found)


def test_it_reads_as_a_small_table():
    rows = (Row(1, Spread(0.002, 0.001, 0.003, 20), 45_000_000), Row(32, Spread(1.5, 1.25, 2.0, 11), None))
    assert str(Profile("cpu", 1, False, rows)).splitlines() == [
        "forward, evaluation mode; cpu, 1 thread; median (quartiles)",
        "batch           latency  per item  peak memory",
        "    1      2 ms (1 - 3)      2 ms        45 MB",
        "   32  1.5 s (1.25 - 2)   46.9 ms  not counted",
    ]


def test_compiled_models_are_measured_as_they_are():
    calls = []
    compiled = torch.compile(SmallNet(), backend=lambda graph, _: calls.append(1) or graph.forward)
    es.profile(compiled, IMAGES, **QUICK)
    assert calls


@pytest.mark.parametrize(
    ("model", "inputs", "options", "words"),
    [
        (nn.Linear(3, 3), torch.ones(2, 4), {}, "Linear does not run at batch 1 on these inputs"),
        (nn.BatchNorm1d(3), torch.ones(1, 3), {"train": True}, "does not run at batch 1"),
        (nn.Linear(3, 3).requires_grad_(False), torch.ones(2, 3), {"train": True}, "no output depends on a parameter"),
        (nn.Linear(3, 3), torch.ones(2, 3), {"batches": (0,)}, "at least 1"),
        (nn.Linear(3, 3), torch.ones(2, 3), {"batches": ()}, "at least 1"),
        (nn.ReLU(), torch.tensor(1.0), {}, "need a batch dimension"),
        (nn.Linear(3, 3), torch.ones(2, 3), {"threads": 0}, "threads"),
        (nn.Linear(3, 3), "x", {}, "got a str"),
        ("resnet20", torch.ones(2, 3), {}, "measures torch.nn.Modules; got str"),
        (nn.Linear(3, 3), torch.ones(2, 3), {"against": "resnet20"}, "measures torch.nn.Modules; got str"),
        (nn.Linear(3, 3), torch.ones(2, 3), {"batches": 4}, "batches is a list"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(model, inputs, options, words):
    with pytest.raises(es.EspalierError, match=words) as refusal:
        es.profile(model, inputs, **options, **QUICK)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    layer, x = nn.Linear(256, 256, bias=False).cuda(), torch.zeros(8, 256, device="cuda")
    found = es.profile(layer, x, train=True, **QUICK)
    assert found.device == torch.cuda.get_device_name()
    assert found.rows[0].memory >= 2 * 256 * 256 * 4
