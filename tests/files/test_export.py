"""An exported file computes what the model computes, or it is not there."""

import sys

import pytest
import torch
from torch import nn

import espalier as es
from espalier.exporting import formats, runtimes
from tests.helpers.cutting import cut_channels
from tests.pruner.conftest import SmallNet

PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": (), ".xml": ("onnx", "onnxscript", "openvino")}


def require(suffix):
    for package in PACKAGES[suffix]:
        pytest.importorskip(package) if package != "openvino" else runtimes.needed(package)


def onnx_outputs(path, *inputs):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
    return [torch.from_numpy(output) for output in outputs]


class Words(nn.Module):
    """Keyword arguments, token ids, attention, and outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids, *, scale, bias=None):
        hidden = self.layer(self.embed(ids))
        return {"scaled": hidden * scale[:, None, None], "more": (hidden.mean(1), ids + 1), "none": bias}


@pytest.mark.parametrize("suffix", PACKAGES)
def test_a_pruned_model_runs_elsewhere_at_any_batch_size(tmp_path, suffix):
    require(suffix)
    net = SmallNet()
    cut_channels(net, [1, 2, 6])
    for step in range(3):  # statistics of batch norm that are worth exporting
        net(torch.randn(4, 3, 8, 8) + step)
    done = es.export(net, tmp_path / f"small{suffix}", torch.randn(2, 3, 8, 8))
    assert done.dynamic_batch
    assert done.max_relative < 1e-5
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in done.files}
    assert done.bytes == sum(file.stat().st_size for file in done.files)
    assert (done.opset is None) == (suffix == ".pt2")
    assert str(done).startswith(f"{done.path}: {done.format}")
    assert "any batch size" in str(done)
    assert "\n" not in str(done)
    run = formats.FORMATS[suffix].open(done.path)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(formats.Call.of(x))[0], net.eval()(x))


def test_a_second_runtime_agrees_without_our_help(tmp_path):
    require(".onnx")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(3, 3, 8, 8)
    es.export(net, tmp_path / "m.onnx", x[:1], opset=21)
    torch.testing.assert_close(onnx_outputs(tmp_path / "m.onnx", x)[0], net(x).detach())


def test_keywords_ids_attention_and_nested_outputs(tmp_path):
    require(".onnx")
    inputs = {"scale": torch.rand(2), "ids": torch.randint(10, (2, 5))}
    done = es.export(Words(), tmp_path / "words.onnx", inputs)
    assert done.dynamic_batch
    assert done.max_relative < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


def test_batch_sizes_that_cannot_vary_are_fixed_unless_asked_for(tmp_path):
    stuck = nn.Sequential(nn.Flatten(0), nn.Linear(8, 3))
    done = es.export(stuck, tmp_path / "m.pt2", torch.randn(2, 4))
    assert not done.dynamic_batch
    assert "this batch size only" in str(done)
    assert not es.export(nn.Linear(4, 2), tmp_path / "m.pt2", torch.randn(2, 4), dynamic_batch=False).dynamic_batch
    with pytest.raises(es.EspalierError, match="cannot be exported"):
        es.export(stuck, tmp_path / "m.pt2", torch.randn(2, 4), dynamic_batch=True)


def test_the_model_is_left_as_it_was(tmp_path):
    net = SmallNet()
    net.train()
    net.bn1.eval()
    calls = []
    net.conv1.register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    flags = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    gradients = [p.grad for p in net.parameters()]
    random = torch.get_rng_state()
    es.export(net, tmp_path / "m.pt2", torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(net.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert len(net.conv1._forward_hooks) == 1


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_wrapped_models_are_unwrapped(tmp_path, wrap):
    assert es.export(wrap(SmallNet()), tmp_path / "m.pt2", torch.randn(2, 3, 8, 8)).max_absolute == 0.0


def test_the_users_data_is_not_in_the_file(tmp_path):
    es.export(nn.Linear(4, 2), tmp_path / "m.pt2", torch.randn(2, 4))
    assert torch.export.load(tmp_path / "m.pt2").example_inputs is None


class Moody(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_file_with_other_outputs_never_takes_the_place_of_the_old_one(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"old")
    with pytest.raises(es.EspalierError, match=r"differ from the model's by .* it was not written"):
        es.export(Moody(), tmp_path / "m.pt2", torch.zeros(2, 4))
    assert (tmp_path / "m.pt2").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    assert es.export(Moody(), tmp_path / "m.pt2", torch.zeros(2, 4), tolerance=9.0).max_absolute > 0


def test_large_onnx_models_keep_their_weights_beside(tmp_path, monkeypatch):
    require(".onnx")
    monkeypatch.setattr(formats, "EXTERNAL_ABOVE", 0)
    net, x = nn.Linear(64, 64), torch.randn(2, 64)
    done = es.export(net, tmp_path / "m.onnx", x)
    assert [file.name for file in done.files] == ["m.onnx.data", "m.onnx"]
    torch.testing.assert_close(onnx_outputs(tmp_path / "m.onnx", x)[0], net(x).detach())


def test_openvino_is_imported_without_its_telemetry():
    before = "openvino_telemetry" in sys.modules
    try:
        runtimes.needed("openvino")
    except es.EspalierError:
        pytest.skip("openvino is not installed")
    assert ("openvino_telemetry" in sys.modules) == before


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(es.EspalierError, match=r"Exporting needs onnx.*pip install 'espalier\[export\]'"):
        es.export(nn.Linear(4, 2), tmp_path / "m.onnx", torch.randn(2, 4))


@pytest.mark.parametrize(
    ("model", "name", "inputs", "options", "words"),
    [
        (nn.Linear(4, 2), "m.tflite", torch.randn(2, 4), {}, "choose one of .onnx, .pt2, .xml"),
        (nn.Linear(4, 2), "no/m.pt2", torch.randn(2, 4), {}, "could not be written"),
        (nn.Linear(4, 2), "m.pt2", torch.randn(2, 5), {}, "cannot be exported"),
        (nn.Linear(4, 2), "m.pt2", (), {}, "must hold a tensor"),
        (nn.Linear(4, 2), "m.pt2", (torch.randn(2, 4), 3), {}, "got a int"),
        (nn.Linear(4, 2), "m.pt2", torch.randn(2, 4), {"opset": 18}, "no opset"),
        (nn.Linear(4, 2), "m.onnx", torch.randn(2, 4), {"opset": 9}, "opset 18 to"),
        (nn.Linear(4, 2), "m.pt2", torch.randn(2, 4), {"tolerance": -1}, "tolerance is a share of at least 0"),
        ("resnet20", "m.pt2", torch.randn(2, 4), {}, "torch.nn.Module is needed here"),
        (nn.Linear(4, 2, device="meta"), "m.pt2", torch.randn(2, 4), {}, "meta device"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, model, name, inputs, options, words):
    if name.endswith(".onnx"):
        require(".onnx")
    with pytest.raises(es.EspalierError, match=words) as refusal:
        es.export(model, tmp_path / name, inputs, **options)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
