"""What is saved comes back bit by bit, sparse files are smaller, and nothing damaged or foreign is let in."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import espalier as es
from espalier.surgery import structure_of
from tests.helpers.cutting import cut_channels
from tests.pruner.conftest import SmallNet


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


@pytest.fixture
def good(tmp_path):
    es.save(masked_net(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_files_are_refused(good, share):
    data = good.read_bytes()
    good.write_bytes(data[: int(share * len(data))])
    with pytest.raises(es.EspalierError, match="damaged or no safetensors file"):
        es.load(good, SmallNet(width=32))


def test_foreign_and_missing_files_are_refused(tmp_path):
    with pytest.raises(es.EspalierError, match="There is no file"):
        es.load(tmp_path / "none", SmallNet())
    torch.save({"a": 1}, tmp_path / "pickle.pt")
    with pytest.raises(es.EspalierError, match="no safetensors file"):
        es.load(tmp_path / "pickle.pt", SmallNet())
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(es.EspalierError, match="was not written by espalier"):
        es.load(tmp_path / "plain.safetensors", SmallNet())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: SmallNet(width=16), "in the file and torch.float32"),
        (lambda: nn.Linear(2, 2), "does not fit this Linear"),
        (lambda: SmallNet(width=32).double(), "torch.float32 .* in the file and torch.float64"),
    ],
)
def test_files_of_other_models_are_refused(good, model, words):
    with pytest.raises(es.EspalierError, match=words):
        es.load(good, model())


def rewrite(path, change):
    """Change the espalier header of a file and put it back."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    content = json.loads(header["__metadata__"]["espalier"])
    change(content)
    header["__metadata__"]["espalier"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["sparse"].update({"conv1.weight": [10**9, 10**9]}),
        lambda c: c["sparse"].update({"conv1.weight": [-1, 4]}),
        lambda c: c["sparse"].update({"conv1.weight": "big"}),
        lambda c: c["sparse"].update({"nothing": [4]}),
        lambda c: c["aliases"].update({"conv1.weight": "nothing"}),
        lambda c: c.pop("structure"),
        lambda c: c.update(format="9"),
        lambda c: c.update(structure="{}"),
        lambda c: c.update(
            structure=json.dumps({"version": 1, "shapes": {"x": [9]}, "kept": {"x": {"0": [1]}}, "integers": {}})
        ),
    ],
)
def test_hostile_headers_are_refused(good, change):
    rewrite(good, change)
    with pytest.raises(es.EspalierError):
        es.load(good, SmallNet(width=32))


def test_a_place_that_cannot_be_written_is_one_sentence_and_the_old_file_stays(good):
    with pytest.raises(es.EspalierError, match="could not be written"):
        es.save(SmallNet(), good.parent / "no" / "folder" / "m.safetensors")
