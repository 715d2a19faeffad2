"""Start weights under methods that cut: read, trained, cut, resumed and evaluated like any other run."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import espalier as es
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine, runs
from espalier.recipes.training.evaluate import evaluate, evaluate_file
from espalier.recipes.training.processes import Processes
from espalier.recipes.training.setup import build_dense_model, build_training
from tests.recipes.test_resume import interrupt, metrics
from tests.recipes.test_structured import EPI, OCSP, cutting

Tiny = Callable[..., Recipe]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dense run of the same model."""
    from espalier.recipes.recipe import parse_recipe
    from tests.recipes.conftest import TINY

    folder = tmp_path_factory.mktemp("dense")
    more = ("model.width=16", "train.threads=1", "train.epochs=12", "optimizer.lr=0.2", "pruning={method: dense}")
    engine.train(parse_recipe(TINY, more), folder, quiet=True)
    state = es.load(folder / "model.safetensors").state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "torchs.pt")
    return folder


def from_file(tiny: Tiny, file: Path, pruning: str = OCSP, *more: str) -> Recipe:
    return cutting(tiny, pruning, f"model.weights={file}", "optimizer.lr=0.005", *more)


@pytest.mark.parametrize("name", ["model.safetensors", "torchs.pt"])
@pytest.mark.parametrize("pruning", [OCSP, EPI, "pruning={method: train-prune-finetune, keep_macs: 0.5}"])
def test_a_cut_starts_from_the_weights_of_a_file(tmp_path: Path, tiny: Tiny, start: Path, name: str, pruning: str) -> None:
    recipe = from_file(tiny, start / name, pruning)
    parts = build_training(recipe, Processes())
    there = es.load(start / "model.safetensors")
    assert all(torch.equal(tensor, there.state_dict()[key]) for key, tensor in parts.model.state_dict().items())
    known = evaluate(parts.model, parts.data.test.epoch(0), Processes(), parts.autocast)[1]
    assert known == runs.read_result(start)["test_acc"]
    result = engine.train(recipe, tmp_path, quiet=True)
    assert result["keep_macs"] <= 0.5
    assert runs.read_metrics(tmp_path)[-1]["val_acc"] > 0.5  # a net from random weights is at 0.25 by then
    assert evaluate_file(tmp_path / "model.safetensors", None, [], Processes())["test_acc"] == result["test_acc"]


def test_killed_around_the_cut_a_run_from_weights_resumes_exactly(tmp_path: Path, tiny: Tiny, start: Path) -> None:
    recipe = from_file(tiny, start / "model.safetensors", OCSP, "train.checkpoint_every.steps=1", "train.ema=0.9")
    whole = engine.train(recipe, tmp_path / "whole", quiet=True)
    assert interrupt(recipe, tmp_path / "killed", whole["cuts"][0]["step"]) == -signal.SIGKILL
    assert interrupt(recipe, tmp_path / "killed", -1) == 0
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_a_network_that_was_cut_before_is_cut_again(tmp_path: Path, tiny: Tiny, start: Path) -> None:
    """Shares count from the network in the file."""
    first = engine.train(from_file(tiny, start / "model.safetensors"), tmp_path / "first", quiet=True)
    again = from_file(tiny, tmp_path / "first/model.safetensors", EPI, "train.ema=0.9", "train.checkpoint_every.steps=1")
    second = engine.train(again, tmp_path / "second", quiet=True)
    assert second["dense_macs"] == first["macs"]
    assert second["macs"] <= 0.5 * first["macs"]
    assert {name: pair[0] for name, pair in second["widths"].items()} == {
        name: pair[1] for name, pair in first["widths"].items()
    }
    for name, accuracy in (("model.safetensors", "test_acc"), ("model_ema.safetensors", "test_acc_ema")):
        found = evaluate_file(tmp_path / "second" / name, None, [], Processes())
        assert found["test_acc"] == second[accuracy]
    assert interrupt(again, tmp_path / "killed", second["cuts"][0]["step"] + 1) == -signal.SIGKILL
    assert interrupt(again, tmp_path / "killed", -1) == 0
    assert (tmp_path / "second/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()


def test_what_the_cut_has_bought_is_measured_against_the_network_in_the_file(tmp_path: Path, tiny: Tiny, start: Path) -> None:
    first = engine.train(from_file(tiny, start / "model.safetensors"), tmp_path / "first", quiet=True)
    file = tmp_path / "first/model.safetensors"
    again = from_file(tiny, file, OCSP, "train.latency=true")
    parts = build_training(again, Processes())
    assert sum(p.numel() for p in build_dense_model(again, parts.data).parameters()) == first["params"]
    result = engine.train(again, tmp_path / "second", quiet=True)
    assert [row["batch"] for row in result["latency"]["rows"]] == [1, 32]
    file.unlink()
    assert sum(p.numel() for p in build_dense_model(again, parts.data).parameters()) == first["dense_params"]
