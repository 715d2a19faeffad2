"""What is saved comes back bit by bit, sparse files are smaller, and nothing damaged or foreign is let in."""

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import espalier as es
from espalier.files import read_metadata
from espalier.surgery import structure_of
from tests.helpers.cutting import CutAt, cut_channels
from tests.pruner.conftest import SmallNet, train_step


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("tensor", tensor)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


VALUES = st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e-40, 0.0, 0.0, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=80), st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
)
@example([0.0, float("nan")], torch.bfloat16)  # a NaN with all bits set
def test_every_bit_comes_back(tmp_path_factory, values, dtype):
    path = tmp_path_factory.mktemp("f") / "m.safetensors"
    tensor = torch.tensor(values).to(dtype)
    es.save(Holder(tensor), path)
    loaded = es.load(path, Holder(torch.ones_like(tensor)))
    assert torch.equal(bits(loaded.tensor), bits(tensor))


@pytest.mark.parametrize(
    "value", [torch.tensor(3), torch.zeros(0), torch.zeros(4, 0, 2), torch.arange(5), torch.tensor([True])]
)
def test_odd_tensors_come_back(tmp_path, value):
    es.save(Holder(value), tmp_path / "m.safetensors")
    assert torch.equal(es.load(tmp_path / "m.safetensors", Holder(torch.ones_like(value))).tensor, value)


def masked_net(seed=0):
    torch.manual_seed(seed)
    net = SmallNet(width=32)
    pruner = es.Pruner(net, torch.optim.SGD(net.parameters(), lr=0.1), es.OCP(0.95, include=["*"]), total_steps=1)
    pruner.finish(allow_early=True)
    return net


def test_sparse_files_are_smaller_and_exact(tmp_path):
    net = masked_net()
    es.save(net, tmp_path / "sparse.safetensors")
    es.save(SmallNet(width=32), tmp_path / "dense.safetensors")
    sparse, dense = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("sparse", "dense"))
    assert sparse < dense / 5
    loaded = es.load(tmp_path / "sparse.safetensors", SmallNet(width=32))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))


def test_equal_models_give_equal_bytes(tmp_path):
    for name in "ab":
        es.save(masked_net(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    es.save(masked_net(seed=1), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_cut_model_loads_into_a_dense_one_and_memory_formats_stay(tmp_path):
    net = SmallNet().to(memory_format=torch.channels_last)
    cut_channels(net, [1, 2, 6])
    es.save(net, tmp_path / "m.safetensors")
    loaded = es.load(tmp_path / "m.safetensors", SmallNet().to(memory_format=torch.channels_last))
    assert structure_of(loaded) == structure_of(net)
    assert loaded.conv1.out_channels == 3
    assert loaded.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), net.eval()(x))


def test_shared_tensors_are_stored_once(tmp_path):
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    net[1].weight = net[0].weight
    es.save(net, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 1.5 * 64 * 64 * 4
    fresh = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert torch.equal(es.load(tmp_path / "m.safetensors", fresh)[1].weight, net[0].weight)


def test_another_process_needs_only_torch_espalier_and_the_constructor(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    es.save(net, tmp_path / "m.safetensors")
    code = (
        "import torch, espalier as es, sys; from torch import nn\n"
        "net = es.load(sys.argv[1], nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))\n"
        "print(float(net[0].weight.detach().double().sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.safetensors")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == float(net[0].weight.detach().double().sum())


def test_a_model_in_training_takes_its_optimizer_and_average_along(tmp_path):
    net = SmallNet()
    cut_channels(net, [1, 2])
    es.save(net, tmp_path / "m.safetensors")
    live = SmallNet()
    optimizer = torch.optim.SGD(live.parameters(), lr=0.1, momentum=0.9)
    ema = torch.optim.swa_utils.AveragedModel(live)
    es.Pruner(live, optimizer, CutAt(at=30, width=2), total_steps=90, followers=[ema])
    train_step(live, optimizer, 0)
    es.load(tmp_path / "m.safetensors", live)
    assert ema.module.conv1.weight.shape[0] == 2
    train_step(live, optimizer, 1)


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_cut_models_are_saved_out_of_their_wrappers(tmp_path, wrap):
    net = SmallNet()
    cut_channels(net, [1, 2])
    es.save(wrap(net), tmp_path / "m.safetensors")
    assert torch.equal(es.load(tmp_path / "m.safetensors", SmallNet()).conv1.weight, net.conv1.weight)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = torch.tensor(0.0)

    def get_extra_state(self):
        return self.count.clone()

    def set_extra_state(self, state):
        self.count = state


def test_extra_state_of_modules_is_handed_back_to_them(tmp_path):
    counter = Counter()
    counter.count += 7
    es.save(counter, tmp_path / "m.safetensors")
    assert es.load(tmp_path / "m.safetensors", Counter()).count == 7


def test_metadata_rides_along(tmp_path):
    es.save(SmallNet(), tmp_path / "m.safetensors", metadata={"model": "small", "args": [1, None]})
    assert read_metadata(tmp_path / "m.safetensors") == {"model": "small", "args": [1, None]}
    es.save(SmallNet(), tmp_path / "m.safetensors")
    assert read_metadata(tmp_path / "m.safetensors") == {}
    with pytest.raises(es.EspalierError, match="JSON can hold"):
        es.save(SmallNet(), tmp_path / "m.safetensors", metadata={"model": object()})


def test_a_model_whose_only_child_is_called_module_keeps_its_own_parameters(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.tensor(value))

    es.save(Scaled(7.0), tmp_path / "m.safetensors")
    assert float(es.load(tmp_path / "m.safetensors", Scaled(1.0)).scale.detach()) == 7.0


@pytest.mark.parametrize(("name", "ratio"), [("resnet20", 9.7), ("resnet18", 12.1)])
def test_the_file_sizes_of_the_readme(tmp_path, name, ratio):
    from espalier.tasks.classification.models import build_model

    model = build_model(name, num_classes=10)
    es.save(model, tmp_path / "dense")
    es.Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), es.OCP(0.95), total_steps=1).finish(allow_early=True)
    es.save(model, tmp_path / "sparse")
    assert (tmp_path / "dense").stat().st_size / (tmp_path / "sparse").stat().st_size == pytest.approx(ratio, abs=0.1)
