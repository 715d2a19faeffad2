"""`espalier profile` and `espalier export` on names and on the files that `espalier train` leaves."""

import json
from pathlib import Path

import pytest
import torch

import espalier as es
from espalier.cli import main
from espalier.recipes.recipe import parse_recipe
from espalier.recipes.training.engine import train

RECIPE = {
    "model": {"name": "convnet4", "width": 4},
    "data": {"name": "digits", "limit": 320},
    "train": {"epochs": 1, "batch_size": 32, "device": "cpu", "ema": 0.9, "keep_best": True},
    "pruning": {"method": "ocp", "sparsity": 0.8},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(parse_recipe(RECIPE), folder, quiet=True)
    return folder


@pytest.fixture
def espalier(capfd):
    def call(*arguments, code=0):
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert left.value.code == code, out + err
        return out if code == 0 else err

    return call


@pytest.mark.parametrize("name", ["model", "model_ema"])
def test_files_of_a_training_need_no_recipe(run, name):
    file = run / f"{name}.safetensors"
    assert es.load(file).eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    from espalier.files import read_builder, read_metadata

    assert read_builder(file).arguments == {"num_classes": 10, "in_channels": 1, "width": 4}
    assert read_metadata(file) == {"input": [1, 8, 8]}


def test_profile_a_file_against_a_model(run, espalier):
    file = run / "model.safetensors"
    said = espalier("profile", file, "--seconds", "0.01", "--batch", "4", "--threads", "1", "--device", "cpu")
    assert f"{file} at 1 x 8 x 8" in said
    assert "cpu, 1 thread" in said
    assert "peak memory" in said
    options = ("--against", "convnet4", "--classes", "10", "--train", "--seconds", "0.01", "--device", "cpu", "--json")
    found = json.loads(espalier("profile", file, *options))
    assert (found["model"], found["against"], found["input"], found["train"]) == (str(file), "convnet4", [1, 8, 8], True)
    assert [row["batch"] for row in found["rows"]] == [32]
    assert found["rows"][0]["ratio"]["median"] > 0


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("pt2", ".pt2")])
def test_export_a_file(run, espalier, form, suffix):
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        pytest.importorskip(package)
    done = json.loads(espalier("export", run / "model.safetensors", "--format", form, "--json"))
    assert Path(done["path"]) == run / f"model{suffix}"
    assert all(Path(file).exists() for file in done["files"])
    assert done["max_relative"] < 1e-4
    assert done["dynamic_batch"]


def test_files_of_a_cut_model_go_everywhere(tmp_path, espalier):
    pruning = {"method": "prune-at", "keep_macs": 0.5, "at_epoch": 0}
    model, train_section = {"name": "convnet4", "width": 16}, RECIPE["train"] | {"latency": False}
    result = train(parse_recipe(RECIPE | {"model": model, "pruning": pruning, "train": train_section}), tmp_path, quiet=True)
    for name in ("model", "model_ema", "best"):
        assert sum(p.numel() for p in es.load(tmp_path / f"{name}.safetensors").parameters()) == result["params"]
    file = tmp_path / "model.safetensors"
    assert f"accuracy {result['test_acc']:.2%}" in espalier("evaluate", file)
    options = ("--against", "convnet4", "--classes", "10", "--seconds", "0.01", "--batch", "2", "--device", "cpu")
    assert "other: convnet4" in espalier("profile", file, *options)
    assert json.loads(espalier("export", file, "--format", "pt2", "--json"))["max_relative"] < 1e-4


def test_export_a_named_model_with_a_fixed_batch(tmp_path, espalier):
    options = ("--input", "3,64,64", "--batch", "1", "--classes", "5")
    said = espalier("export", "convnet4", "--out", tmp_path / "small.pt2", *options)
    assert said.startswith(f"{tmp_path / 'small.pt2'}: torch.export, ")
    assert "this batch size only" in said
    module = torch.export.load(tmp_path / "small.pt2").module()
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("profile", "resnet21"), "no model 'resnet21'"),
        (("profile", "none.safetensors"), "no file 'none.safetensors'"),
        (("profile", "timm/hf-hub:someone/model"), "no name of a timm model"),
        (("profile", "convnet4", "--device", "abacus"), "'abacus' is not available"),
        (("profile", "convnet4", "--input", "3,999999,999999"), "do not fit into memory"),
        (("profile", "convnet4", "--input", "3;8;8"), "--input takes whole numbers"),
        (("export", "convnet4", "--format", "tflite"), "--format is one of onnx, pt2, openvino"),
        (("export", "convnet4", "--format", "onnx", "--out", "m.pt2"), "--format onnx writes a .onnx file"),
        (("export", "convnet4", "--out", "m.zip"), "choose one of .onnx, .pt2, .xml"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, monkeypatch, arguments, words, espalier):
    monkeypatch.chdir(tmp_path)
    said = espalier(*arguments, code=2)
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
