"""What a run leaves behind, and how it ends when something goes wrong."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import espalier as es
from espalier.errors import EspalierError
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine, runs
from espalier.recipes.training.evaluate import evaluate_file
from espalier.recipes.training.processes import Processes

Tiny = Callable[..., Recipe]


def test_a_run_leaves_its_record(tmp_path: Path, tiny: Tiny) -> None:
    result = engine.train(tiny(), runs_folder=tmp_path, quiet=True)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("tiny-ocp-0.8-s0-")
    assert {p.name for p in folder.iterdir() if p.name[0] != "."} == {
        "recipe.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["sparsity"] == pytest.approx(0.8, abs=0.002)
    assert result["sparsity_all"] < result["sparsity"]
    assert sum(x["zeros"] for x in result["layers"]) == round(result["sparsity"] * sum(x["total"] for x in result["layers"]))
    rows = runs.read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["step"] == result["steps"]
    assert rows[0]["sparsity"] < rows[1]["sparsity"] < rows[2]["sparsity"] + 1e-9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_a_finished_run_is_not_run_again(tmp_path: Path, tiny: Tiny) -> None:
    first = engine.train(tiny("train.epochs=1"), tmp_path, quiet=True)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert engine.train(tiny("train.epochs=1"), tmp_path, quiet=True) == first
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_the_saved_file_has_the_accuracy_that_the_result_says(tmp_path: Path, tiny: Tiny) -> None:
    result = engine.train(tiny("train.ema=0.9"), tmp_path, quiet=True)
    found = evaluate_file(tmp_path / "model.safetensors", None, [], Processes())
    assert (found["test_acc"], found["test_loss"]) == (result["test_acc"], result["test_loss"])
    assert found["sparsity_all"] == pytest.approx(result["sparsity_all"])
    averaged = evaluate_file(tmp_path / "model_ema.safetensors", None, [], Processes())
    assert averaged["test_acc"] == result["test_acc_ema"]
    assert averaged["sparsity_all"] == pytest.approx(result["sparsity_all"])


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=bf16",),
        ("train.precision=fp16", "train.clip_norm=1.0"),
        ("train.accumulate=4", "train.clip_norm=1.0", "train.label_smoothing=0.1"),
        ("lr_schedule=cosine", "lr_schedule.warmup=0.1", "train.keep_best=true"),
        ("pruning=dense",),
        ("pruning={method: one-shot, sparsity: 0.5, pattern: '2:4', exclude: ['features.0.weight']}",),
        ("optimizer=adam", "optimizer.lr=0.003", "pruning.scope=global"),
    ],
    ids=["bf16", "fp16", "accumulate", "best", "dense", "2:4", "adam-global"],
)
def test_settings_train_to_the_target(tmp_path: Path, tiny: Tiny, overrides: tuple[str, ...]) -> None:
    recipe = tiny("train.epochs=2", *overrides)
    result = engine.train(recipe, tmp_path, quiet=True)
    assert result["sparsity"] == pytest.approx(recipe.pruning.sparsity or 0.0, abs=0.01)
    assert (tmp_path / "best.safetensors").exists() == recipe.train.keep_best


def test_accumulated_batches_make_one_large_batch(tmp_path: Path, tiny: Tiny) -> None:
    """Without batch statistics two batches of 16 give the step of one batch of 32, to rounding."""
    steps = []
    for batch, accumulate in ((32, 1), (16, 2)):
        result = engine.train(
            tiny("train.epochs=1", f"train.batch_size={batch}", f"train.accumulate={accumulate}"),
            tmp_path / str(batch),
            quiet=True,
        )
        steps.append(result["steps"])
    assert steps[0] == steps[1]


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    engine.train(tiny("train.epochs=1"), tmp_path, quiet=True)
    with pytest.raises(EspalierError, match="another recipe"):
        engine.train(tiny("train.epochs=2"), tmp_path, quiet=True)


def test_two_processes_cannot_write_one_folder(tmp_path: Path, tiny: Tiny) -> None:
    runs.open_run(tmp_path, tiny())
    hold = (
        "import sys, pathlib; from espalier.recipes.training.runs import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(EspalierError, match="Another process is writing"):
            engine.train(tiny(), tmp_path, quiet=True)
        holder.stdin.close()
    assert engine.train(tiny("train.epochs=3"), tmp_path, quiet=True)["epochs"] == 3


def test_batch_norm_of_a_single_value_is_one_sentence(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(EspalierError, match=r"set train\.batch_size to at least 2"):
        engine.train(tiny("model={name: resnet18, width: 2}", "train.batch_size=1", "data.limit=40"), tmp_path, quiet=True)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny("train.check_every=2")
    seen = [0]

    def poison(module: nn.Module, inputs: Any, output: Any) -> Any:
        if module.training and isinstance(module, nn.Linear):
            seen[0] += 1
            return output * float("nan") if seen[0] > 13 else output
        return output

    handle = nn.modules.module.register_module_forward_hook(poison)
    try:
        with pytest.raises(EspalierError, match=r"loss is not finite.*optimizer\.lr"):
            engine.train(recipe, tmp_path, quiet=True)
    finally:
        handle.remove()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["position"]["epoch"] == 1
    assert all(t.isfinite().all() for t in saved["model"].values())
    assert engine.train(recipe, tmp_path, quiet=True)["epochs"] == 3


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny("optimizer.lr=1e+38", "lr_schedule=constant", "train.checkpoint_every.steps=1")
    with pytest.raises(EspalierError, match="not finite"):
        engine.train(recipe, tmp_path, quiet=True)
    assert not (tmp_path / "result.json").exists()


def test_a_full_disk_is_one_sentence_and_the_checkpoint_stays(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny()
    real, calls = runs.os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint.pt":
            calls[0] += 1
            if calls[0] == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(runs.os, "replace", replace)
    with pytest.raises(EspalierError, match="disk is full"):
        engine.train(recipe, tmp_path, quiet=True)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["epoch"] == 1
    assert not list(tmp_path.glob(".*.part"))
    assert engine.train(recipe, tmp_path, quiet=True)["epochs"] == 3


def test_same_seed_same_weights_other_seed_others(tmp_path: Path, tiny: Tiny) -> None:
    files = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        engine.train(tiny("train.epochs=1", f"seed={seed}"), tmp_path / place, quiet=True)
        files.append((tmp_path / place / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_start_weights_come_from_a_file(tmp_path: Path, tiny: Tiny) -> None:
    engine.train(tiny("train.epochs=1"), tmp_path / "a", quiet=True)
    weights = tmp_path / "a/model.safetensors"
    recipe = tiny("train.epochs=1", f"model.weights={weights}", "optimizer.lr=1e-12", "pruning.sparsity=0.8")
    engine.train(recipe, tmp_path / "b", quiet=True)
    a, b = (es.load(tmp_path / x / "model.safetensors", _model()) for x in "ab")
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model=convnet5",), "convnet"),
        (("model.widht=3",), "widht"),
        (("model.width=0",), "greater width"),
        (("model=timm:vit_tiny_patch16_224",), "does not take the images of 8 x 8 pixels"),
        (("data=digitz",), "digits"),
        (("train.device=quantum",), "not available"),
        (("train.batch_size=4096",), "batch"),
        (("optimizer={name: sgd, nesterov: true, momentum: 0}",), "momentum"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path: Path, tiny: Tiny, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(EspalierError, match=words) as caught:
        engine.train(tiny(*overrides), tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def _model() -> nn.Module:
    from espalier.tasks.classification.models import build_model

    model: nn.Module = build_model("convnet4", num_classes=10, in_channels=1, width=4)
    return model
