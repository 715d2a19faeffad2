"""Methods that cut channels, in the engine: records, exact resume around the cut, files of cut models."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import espalier as es
from espalier.errors import EspalierError
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine, runs
from espalier.recipes.training.evaluate import evaluate_file
from espalier.recipes.training.processes import Processes
from espalier.recipes.training.setup import TrainingBatches, batch_loss, build_training
from tests.recipes.test_resume import interrupt, metrics

Tiny = Callable[..., Recipe]
OCSP = "pruning={method: ocsp, keep_macs: 0.5, checks_per_epoch: 5, start: 0.1, latest: 0.4}"
EPI = "pruning={method: epi, keep_macs: 0.5, checks_per_epoch: 5, latest: 0.4}"


def cutting(tiny: Tiny, pruning: str = OCSP, *more: str) -> Recipe:
    return tiny("model.width=16", "train.threads=1", "train.latency=false", pruning, *more)


def test_a_cut_leaves_its_record(tmp_path: Path, tiny: Tiny) -> None:
    recipe = cutting(tiny, OCSP, "train.latency=true", "train.keep_best=true")
    result = engine.train(recipe, tmp_path, quiet=True)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["budget"] == {"keep_macs": 0.5}
    assert 0.3 < result["keep_macs"] <= 0.5
    assert result["keep_macs"] == result["macs"] / result["dense_macs"]
    assert result["keep_params"] == result["params"] / result["dense_params"]
    (cut,) = result["cuts"]
    assert cut["epoch"] == cut["step"] / 10
    assert (cut["reason"], cut["macs"], cut["params"]) == ("latest", result["macs"], result["params"])
    assert [step for step, _, _ in result["checks"]] == list(range(0, cut["step"] + 1, 2))
    assert any(before > now for before, now in result["widths"].values())
    rows = runs.read_metrics(tmp_path)
    assert [row["keep_macs"] for row in rows] == [1.0, result["keep_macs"], result["keep_macs"]]
    assert all(0 <= row["stability"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert (tmp_path / "best.safetensors").exists()  # of an epoch after the cut
    assert es.load(tmp_path / "best.safetensors").head.in_features == result["widths"]["features.9"][1]
    latency = result["latency"]
    assert [row["batch"] for row in latency["rows"]] == [1, 32]
    assert all(row["speedup"] > 0 and row["dense_seconds"] > 0 for row in latency["rows"])
    assert latency["threads"] == 1


def test_macs_are_those_of_one_image(tmp_path: Path, tiny: Tiny) -> None:
    parts = build_training(cutting(tiny), Processes())
    graph = es.trace(parts.model, torch.zeros(1, 1, 8, 8))
    assert parts.pruner.run.shrinkage().dense_macs == es.cost(graph).macs


def test_a_file_of_a_cut_model_needs_nothing_else(tmp_path: Path, tiny: Tiny) -> None:
    result = engine.train(cutting(tiny, OCSP, "train.ema=0.9"), tmp_path, quiet=True)
    found = evaluate_file(tmp_path / "model.safetensors", None, [], Processes())
    assert (found["test_acc"], found["test_loss"]) == (result["test_acc"], result["test_loss"])
    averaged = evaluate_file(tmp_path / "model_ema.safetensors", None, [], Processes())
    assert averaged["test_acc"] == result["test_acc_ema"]
    assert sum(p.numel() for p in es.load(tmp_path / "model.safetensors").parameters()) == result["params"]


def test_batches_can_be_read_anew_and_disturb_nothing(tiny: Tiny) -> None:
    parts = build_training(cutting(tiny), Processes())
    batches = TrainingBatches(parts.data)
    underway = parts.data.train.epoch(0)
    next(underway)
    state = torch.get_rng_state()
    first, again = (next(iter(batches)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(next(underway)[0], list(batches)[1][0])
    assert len(batches) == len(list(batches))


def test_the_loss_for_methods_is_the_trained_one(tiny: Tiny) -> None:
    recipe = cutting(tiny, OCSP, "train.label_smoothing=0.1", "train.precision=bf16")
    parts = build_training(recipe, Processes())
    images, labels = next(iter(TrainingBatches(parts.data)))
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.nn.functional.cross_entropy(parts.model(images), labels, label_smoothing=0.1)
    assert torch.equal(batch_loss(recipe, parts.model, (images, labels)), expected)


@pytest.mark.parametrize("method", [name for name, kind in es.METHODS.items() if kind.cuts])
def test_every_method_that_cuts_trains_from_a_recipe(tmp_path: Path, tiny: Tiny, method: str) -> None:
    at = ", at_epoch: 1" if method == "prune-at" else ""
    recipe = cutting(tiny, f"pruning={{method: {method}, keep_macs: 0.6, recalibrate: 2{at}}}", "train.epochs=2")
    result = engine.train(recipe, tmp_path, quiet=True)
    assert result["keep_macs"] <= 0.6
    assert result["cuts"]


@pytest.mark.parametrize(
    ("pruning", "extra"),
    [
        (OCSP, ("train.ema=0.9",)),
        (
            EPI,
            ("optimizer=adamw", "train.precision=bf16"),
        ),
        ("pruning={method: ocsp, keep_macs: 0.5, checks_per_epoch: 5, start: 0, progressive: 3, faded: 0.5, exposure: 9}", ()),
    ],
    ids=["ocsp-ema", "epi-adamw", "progressive"],
)
def test_killed_just_before_and_just_after_the_cut_changes_nothing(
    tmp_path: Path, tiny: Tiny, pruning: str, extra: tuple[str, ...]
) -> None:
    recipe = cutting(tiny, pruning, "train.checkpoint_every.steps=1", *extra)
    whole = engine.train(recipe, tmp_path / "whole", quiet=True)
    step = whole["cuts"][0]["step"]
    assert 1 < step < whole["steps"]
    for forwards, cuts in ((step - 1, 0), (1, 1)):  # in the forward pass of the step that cuts, and of the one after it
        assert interrupt(recipe, tmp_path / "killed", forwards) == -signal.SIGKILL
        saved = torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)
        assert len(saved["pruner"]["run"]["cuts"]) == cuts
    assert saved["position"]["step"] == step
    assert interrupt(recipe, tmp_path / "killed", -1) == 0
    for name in ("model.safetensors", *(["model_ema.safetensors"] if recipe.train.ema else [])):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    again = json.loads((tmp_path / "killed/result.json").read_text())
    assert {key: again[key] for key in again if key != "seconds"} == {key: whole[key] for key in whole if key != "seconds"}


def test_a_cut_before_training_resumes_too(tmp_path: Path, tiny: Tiny) -> None:
    recipe = cutting(tiny, "pruning={method: prune-at, keep_macs: 0.5, at: 0}", "train.ema=0.9")
    whole = engine.train(recipe, tmp_path / "whole", quiet=True)
    assert [(cut["step"], cut["reason"]) for cut in whole["cuts"]] == [(0, "start")]
    assert interrupt(recipe, tmp_path / "killed", 13) == -signal.SIGKILL
    assert interrupt(recipe, tmp_path / "killed", -1) == 0
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_an_epoch_stands_for_its_share_of_the_training(tmp_path: Path, tiny: Tiny) -> None:
    result = engine.train(cutting(tiny, "pruning={method: prune-at, keep_macs: 0.5, at_epoch: 2}"), tmp_path, quiet=True)
    assert [(cut["step"], cut["epoch"], cut["reason"]) for cut in result["cuts"]] == [(20, 2.0, "planned")]


def test_three_stages_each_with_a_schedule_of_its_own(tmp_path: Path, tiny: Tiny) -> None:
    pruning = "pruning={method: train-prune-finetune, keep_macs: 0.5, restart_lr: true, checks_per_epoch: 5}"
    more = ("lr_schedule={name: cosine, restart_scale: 0.5}", "optimizer.lr=0.08", "train.checkpoint_every.steps=1")
    recipe = cutting(tiny, pruning, *more)
    result = engine.train(recipe, tmp_path / "whole", quiet=True)
    assert [(cut["step"], cut["reason"]) for cut in result["cuts"]] == [(20, "planned")]
    curve = build_training(recipe, Processes()).curve
    assert [round(curve.lr_at(step), 4) for step in (0, 5, 10, 15, 20, 25)] == [0.08, 0.04, 0.04, 0.02, 0.04, 0.02]
    rates = [row["lr"] for row in runs.read_metrics(tmp_path / "whole")]  # of the last step of each epoch
    assert rates == pytest.approx([curve.lr_at(step) for step in (9, 19, 29)])
    assert interrupt(recipe, tmp_path / "killed", 21) == -signal.SIGKILL
    assert interrupt(recipe, tmp_path / "killed", -1) == 0
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        ("{method: ocsp}", "needs a budget"),
        ("{method: ocsp, keep_macs: 0.000001}", "least"),
        ("{method: ocsp, keep_macs: 0.5, include: [nothing.*]}", "matches no group"),
        ("{method: prune-at, keep_macs: 0.5, at_epoch: 9}", "training of 3 epochs"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path: Path, tiny: Tiny, pruning: str, words: str) -> None:
    with pytest.raises(EspalierError, match=words) as caught:
        engine.train(cutting(tiny, f"pruning={pruning}"), tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()
