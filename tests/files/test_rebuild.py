"""A file that records how its model was built needs no constructor, and can ask for nothing but a listed name."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import espalier as es
from espalier.builder import Builder
from espalier.files import read_builder
from espalier.rebuild import build
from espalier.surgery import structure_of
from espalier.tasks.classification.models import build_model, builder_of
from espalier.tasks.vision import torchvision
from tests.files.test_refusals import rewrite
from tests.helpers.cutting import cut_channels
from tests.pruner.conftest import SmallNet

OWN = {"library": "espalier", "name": "convnet4", "arguments": {"num_classes": 7, "width": 4}}
NAMES = ["convnet4", "timm:test_resnet", "torchvision:shufflenet_v2_x0_5"]


@pytest.fixture
def _offline(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("weights were fetched")

    torchvision()  # importing it first would fail where its compiled half does
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_comes_back_from_the_file_alone(tmp_path, name):
    model = build_model(name, num_classes=7)
    es.save(model, tmp_path / "m.safetensors", builder=builder_of(name, num_classes=7))
    random = torch.get_rng_state()
    again = es.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), random)
    assert type(again) is type(model)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_cut_model_comes_back_cut(tmp_path, monkeypatch):
    from espalier.tasks.classification import models

    monkeypatch.setitem(models.MODELS, "small", SmallNet)
    net = SmallNet(width=8)
    cut_channels(net, [1, 2, 6])
    es.save(net, tmp_path / "m.safetensors", builder={"library": "espalier", "name": "small", "arguments": {"width": 8}})
    again = es.load(tmp_path / "m.safetensors")
    assert structure_of(again) == structure_of(net)
    assert again.conv1.out_channels == 3


def test_a_fresh_process_has_only_torch_espalier_and_the_file(tmp_path):
    es.save(build_model("convnet4", num_classes=7, width=4), tmp_path / "m.safetensors", builder=OWN)
    code = (
        "import sys, espalier as es\n"
        "net = es.load(sys.argv[1])\n"
        "print(type(net).__name__, net.head.out_features)\n"
        "print([name for name in ('timm', 'torchvision', 'pydantic', 'typer', 'onnx', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.safetensors")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["ConvNet4 7", "[]"]


def test_a_given_model_is_filled_whatever_the_record_says(tmp_path):
    net = build_model("convnet4", num_classes=7, width=4)
    es.save(net, tmp_path / "m.safetensors", builder=OWN)
    mine = build_model("convnet4", num_classes=7, width=4)
    assert es.load(tmp_path / "m.safetensors", mine) is mine
    assert torch.equal(mine.head.weight, net.head.weight)


def test_files_without_a_record_ask_for_the_model(tmp_path):
    es.save(nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert read_builder(tmp_path / "m.safetensors") is None
    with pytest.raises(es.EspalierError, match="does not say how its model is built: pass the model"):
        es.load(tmp_path / "m.safetensors")


def test_a_record_of_another_model_does_not_fit(tmp_path):
    es.save(nn.Linear(2, 2), tmp_path / "m.safetensors", builder=OWN)
    with pytest.raises(es.EspalierError, match="does not fit this ConvNet4"):
        es.load(tmp_path / "m.safetensors")


@pytest.mark.usefixtures("_offline")
def test_backbones_are_built_without_their_weights():
    detector = build(Builder("torchvision", "ssdlite320_mobilenet_v3_large", {"num_classes": 3}))
    assert isinstance(detector, nn.Module)


HOSTILE = [
    {"library": "os", "name": "system"},
    {"library": "torch.hub", "name": "load"},
    {"library": "timm"},
    {"library": "timm", "name": "resnet18", "code": "print()"},
    {"library": ["timm"], "name": "resnet18"},
    "timm/resnet18",
    5,
    None,
    *({"library": "timm", "name": name} for name in (
        "hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/model", "/tmp/model", "../model", "resnet18.a1_in1k",
        "resnet18\n", "", " resnet18", 18, ["resnet18"], "x" * 101,
    )),
    *({"library": "timm", "name": "resnet18", "arguments": {name: value}} for name, value in (
        ("pretrained", True), ("pretrained_cfg", "a"), ("pretrained_cfg_overlay", "a"), ("checkpoint_path", "a"),
        ("cache_dir", "a"), ("weights", "DEFAULT"), ("weights_backbone", "DEFAULT"), ("file", "a"), ("url", "a"),
        ("model_dir", "a"), ("state_dict", "a"), ("PRETRAINED", True), ("__class__", 1), ("a b", 1), ("", 1),
        ("act_layer", "https://a"), ("act_layer", "/etc/passwd"), ("act_layer", "weights.pt"), ("act_layer", "x" * 65),
        ("layers", {"a": 1}), ("layers", ["a"]), ("layers", [[1]]), ("layers", [1] * 65), ("num_classes", 10**12),
        ("num_classes", 10**400), ("drop_rate", float("nan")), ("drop_rate", float("inf")),
    )),
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE, ids=repr)
def test_records_that_ask_for_more_than_a_name_are_refused_when_read_and_written(tmp_path, content):
    path = tmp_path / "m.safetensors"
    es.save(nn.Linear(2, 2), path)
    rewrite(path, lambda header: header.update(builder=content))
    with pytest.raises(es.EspalierError) as refusal:
        es.load(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 600
    assert es.load(path, nn.Linear(2, 2)) is not None  # a given model needs no record
    if content is not None:  # which means: no record
        with pytest.raises(es.EspalierError):
            es.save(nn.Linear(2, 2), tmp_path / "new.safetensors", builder=content)
        assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("library", "name", "words"),
    [
        ("timm", "resnet19", "no timm model 'resnet19': did you mean"),
        ("torchvision", "resnet19", "no torchvision model 'resnet19': did you mean"),
        ("torchvision", "ResNet18", "no torchvision model 'ResNet18'"),
        ("espalier", "convnet5", "no espalier model 'convnet5': did you mean 'convnet4'"),
    ],
)
def test_names_that_nobody_lists_are_refused(library, name, words):
    with pytest.raises(es.EspalierError, match=words):
        build(Builder(library, name))


@pytest.mark.parametrize("name", ["convnet4", "timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
def test_arguments_that_the_constructor_does_not_know_are_one_sentence(name):
    with pytest.raises(es.EspalierError, match="does not take the arguments"):
        build(builder_of(name, num_classes=3, wings=2))


def test_arguments_of_real_models_are_let_through():
    arguments = {
        "drop_path_rate": 0.1,
        "act_layer": "gelu",
        "layers": [2, 2],
        "weight_init": "jax",
        "flag": None,
        "stem": "a-b",
    }
    builder = Builder("timm", "vit_tiny_patch16_224", arguments)
    assert Builder.read(builder.content()) == builder
    assert Builder("timm", "vit_tiny_patch16_224", {"img_size": (64, 64)}).arguments == {"img_size": [64, 64]}
    assert builder_of("convnet4", num_classes=3, width={"a": 1}) is None
