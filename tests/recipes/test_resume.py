"""A run that is killed and continued ends bit for bit like one that was never stopped."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from espalier.errors import EspalierError
from espalier.recipes.recipe import to_yaml
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine

TIMES = {"seconds", "images_per_second"}


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def interrupt(recipe: Recipe, folder: Path, forwards: int, number: int = signal.SIGKILL) -> int:
    """Run in a process of its own that gets a signal after so many forward passes (-1: never)."""
    file = folder.parent / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    script = Path(__file__).parent / "interrupted.py"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script), str(file), str(folder), str(forwards), str(int(number))]
    return subprocess.run(command, cwd=root, env=_environment(root), timeout=300, check=False).returncode


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}


@pytest.mark.parametrize(
    "extra",
    [
        ("train.accumulate=4", "train.checkpoint_every.steps=2", "train.ema=0.9"),
        ("optimizer={name: adamw, lr: 0.003}", "train.checkpoint_every.epochs=null", "train.checkpoint_every.steps=5"),
    ],
    ids=["accumulate-ema", "adamw"],
)
def test_kill_9_at_random_steps_changes_nothing(tmp_path: Path, tiny: Callable[..., Recipe], extra: tuple[str, ...]) -> None:
    recipe = tiny("train.threads=1", "train.epochs=7", *extra)
    engine.train(recipe, tmp_path / "whole", quiet=True)
    places = random.Random(len(extra)).sample(range(3, 14), 5)
    for place in places:
        assert interrupt(recipe, tmp_path / "killed", place) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "result.json").exists()
    assert interrupt(recipe, tmp_path / "killed", -1) == 0
    for name in ("model.safetensors", *(["model_ema.safetensors"] if recipe.train.ema else [])):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_sigterm_saves_before_it_stops(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.threads=1", "train.checkpoint_every.epochs=null")
    engine.train(recipe, tmp_path / "whole", quiet=True)
    assert interrupt(recipe, tmp_path / "stopped", 12, signal.SIGTERM) == 130
    saved = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert saved["position"]["step"] == 13
    engine.train(recipe, tmp_path / "stopped", quiet=True)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "stopped/model.safetensors").read_bytes()


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.threads=1")
    assert interrupt(recipe, tmp_path / "run", 15) == -signal.SIGKILL
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half a li')
    engine.train(recipe, tmp_path / "run", quiet=True)
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(EspalierError, match="cannot be read"):
        engine.train(tiny(), tmp_path / "run", quiet=True)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.threads=1")
    interrupt(recipe, tmp_path / "run", 15)
    checkpoint = tmp_path / "run/checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    del content["optimizer"]
    torch.save(content, checkpoint)
    with pytest.raises(EspalierError, match="cannot be read"):
        engine.train(recipe, tmp_path / "run", quiet=True)


def test_a_damaged_line_of_metrics_is_refused_before_training(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.threads=1")
    interrupt(recipe, tmp_path / "run", 25)
    file = tmp_path / "run/metrics.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"x" * (len(first) - 1) + b"\n" + b"".join(rest))
    with pytest.raises(EspalierError, match=r"Line 1 of .* remove that line"):
        engine.train(recipe, tmp_path / "run", quiet=True)
    file.write_bytes(b"".join(rest))  # as the message says
    assert engine.train(recipe, tmp_path / "run", quiet=True)["epochs"] == 3


@pytest.mark.parametrize("content", ['{"a":', "[1]", "{}"])
def test_a_damaged_result_is_refused(tmp_path: Path, tiny: Callable[..., Recipe], content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(EspalierError, match="is damaged: delete it"):
        engine.train(tiny(), tmp_path, quiet=True)
