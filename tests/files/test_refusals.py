"""Nothing damaged, foreign or hostile is let in, and nothing half done is left behind."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import espalier as es
from tests.helpers.cutting import cut_channels
from tests.pruner.conftest import SmallNet


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("tensor", tensor)


def masked_net():
    torch.manual_seed(0)
    net = SmallNet(width=32)
    pruner = es.Pruner(net, torch.optim.SGD(net.parameters(), lr=0.1), es.OCP(0.95, include=["*"]), total_steps=1)
    pruner.finish(allow_early=True)
    return net


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
        (lambda: SmallNet(width=16), r"conv1.weight is \[32, 3, 3, 3\] in the file and \[16, 3, 3, 3\] in the model"),
        (lambda: nn.Linear(2, 2), "does not fit this Linear"),
        (lambda: SmallNet(width=32).double(), "torch.float32 in the file and torch.float64"),
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
        lambda c: c["sparse"].update({"conv1.weight": [0, 10**30]}),
        lambda c: c["sparse"].update({"conv1.weight": [1] * 5000}),
        lambda c: c["sparse"].update({"conv1.weight": [32.0, 3.0, 3.0, 3.0]}),
        lambda c: c["sparse"].update({"nothing": [4]}),
        lambda c: c.update(sparse=None),
        lambda c: c["aliases"].update({"conv1.weight": "conv1.weight"}),
        lambda c: c["aliases"].update({"conv1.weight": ["conv2.weight"]}),
        lambda c: c.update(structure="[" * 100_000),
        lambda c: c.update(structure=5),
        lambda c: c["aliases"].update({"conv1.weight": "nothing"}),
        lambda c: c.pop("structure"),
        lambda c: c.update(format="9"),
        lambda c: c.update(structure="{}"),
        lambda c: c.update(
            structure=json.dumps({"version": 1, "shapes": {"x": [9]}, "kept": {"x": {"0": [1]}}, "integers": {}})
        ),
    ],
)
def test_hostile_headers_are_refused_and_the_model_is_as_it_was(good, change):
    rewrite(good, change)
    net = SmallNet(width=32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(es.EspalierError) as refusal:
        es.load(good, net)
    assert str(good) in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("part", ["mask", "values"])
def test_masks_that_do_not_belong_to_their_values_are_refused(good, part):
    tensors = load_file(good)
    name = f"conv1.weight\x1f{part}"
    tensors[name] = torch.full_like(tensors[name], 255) if part == "mask" else tensors[name][:-1].clone()
    with safe_open(good, framework="pt") as file:
        header = file.metadata()
    save_file(tensors, good, metadata=header)
    with pytest.raises(es.EspalierError, match="do not belong together"):
        es.load(good, SmallNet(width=32))


def test_a_file_that_does_not_fit_leaves_the_model_uncut(tmp_path):
    net = SmallNet()
    cut_channels(net, [1, 2])
    net.bn2 = nn.BatchNorm2d(16, affine=False)
    es.save(net, tmp_path / "m.safetensors")
    fresh = SmallNet()
    before = fresh.conv1.weight.detach().clone()
    with pytest.raises(es.EspalierError, match=r"the file lacks bn2\.bias"):
        es.load(tmp_path / "m.safetensors", fresh)
    assert torch.equal(fresh.conv1.weight, before)


def test_a_part_that_was_cut_on_its_own_is_not_saved_inside_a_whole(tmp_path):
    whole = nn.Sequential(SmallNet(), nn.Identity())
    cut_channels(whole[0], [1, 2])
    with pytest.raises(es.EspalierError, match="'0' was cut on its own"):
        es.save(whole, tmp_path / "m.safetensors")


def test_models_without_values_are_refused(tmp_path):
    with torch.device("meta"):
        net = SmallNet()
    with pytest.raises(es.EspalierError, match="no values to save"):
        es.save(net, tmp_path / "m.safetensors")
    es.save(SmallNet(), tmp_path / "m.safetensors")
    with pytest.raises(es.EspalierError, match="to_empty"):
        es.load(tmp_path / "m.safetensors", net)


def test_tensors_that_the_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(es.EspalierError, match="safetensors cannot hold"):
        es.save(Holder(torch.zeros(2, dtype=torch.complex128)), tmp_path / "m.safetensors")


def test_a_place_that_cannot_be_written_is_one_sentence_and_the_old_file_stays(good):
    with pytest.raises(es.EspalierError, match="could not be written"):
        es.save(SmallNet(), good.parent / "no" / "folder" / "m.safetensors")
    with pytest.raises(es.EspalierError, match="could not be written"):
        es.save(SmallNet(), good / "m.safetensors")
    with pytest.raises(es.EspalierError, match="could not be written"):
        es.save(SmallNet(), good.parent)
    assert [path.name for path in good.parent.iterdir()] == [good.name]


def test_something_else_than_a_model_is_refused(good):
    for wrong in ("resnet20", nn.Linear, SmallNet().state_dict()):
        with pytest.raises(es.EspalierError, match=r"torch\.nn\.Module is needed here"):
            es.save(wrong, good.parent / "m.safetensors")
        with pytest.raises(es.EspalierError, match=r"torch\.nn\.Module is needed here"):
            es.load(good, wrong)
