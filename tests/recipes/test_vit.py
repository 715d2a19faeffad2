"""Vision transformers from a recipe: heads, their widths, MLPs and the embedding are cut, and the file needs nothing else."""

from pathlib import Path

import pytest

import espalier as es
from espalier.recipes.recipe import load_recipe
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine
from espalier.recipes.training.evaluate import evaluate_file
from espalier.recipes.training.processes import Processes
from espalier.recipes.training.setup import build_training

RECIPES = ("ocsp-vit-cifar10", "ocsp-vit-small-cifar10")
FEW = (
    "data={name: digits, image_size: 32, limit: 16, val_fraction: 0.02}",
    "data.path=null",
    "train.epochs=1",
    "train.batch_size=8",
    "train.latency=false",
    "train.device=cpu",
    "pruning.checks_per_epoch=2",
)
KINDS = ("num_heads", "head_dim", "mlp.fc1", "patch_embed.proj")


def ready(project: Path, name: str, *more: str) -> Recipe:
    return load_recipe(project / "recipes" / f"{name}.yaml", [*FEW, *more])


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_finds_all_parts_of_the_transformer(project: Path, name: str) -> None:
    parts = build_training(ready(project, name), Processes())
    widths = parts.pruner.run.shrinkage().widths
    blocks = len(parts.model.blocks)
    assert [sum(kind in group for group in widths) for kind in KINDS] == [blocks, blocks, blocks, 1]
    assert parts.recipe.pruning.method == "ocsp"


def test_two_steps_of_the_small_one_cut_it(project: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="had not settled after 1 of 2 steps"):
        result = engine.train(ready(project, RECIPES[1]), tmp_path, quiet=True)
    assert 0.45 < result["keep_macs"] <= 0.5
    assert [(cut["step"], cut["reason"]) for cut in result["cuts"]] == [(1, "latest")]
    heads = {name: pair for name, pair in result["widths"].items() if "num_heads" in name}
    assert any(now < before for before, now in heads.values())
    model = es.load(tmp_path / "model.safetensors")
    assert [block.attn.num_heads for block in model.blocks] == [now for _, now in heads.values()]
    assert evaluate_file(tmp_path / "model.safetensors", None, [], Processes())["test_acc"] == result["test_acc"]


def test_a_small_budget_takes_from_every_part(project: Path, tmp_path: Path) -> None:
    parts = build_training(ready(project, RECIPES[1], "pruning.keep_macs=0.2"), Processes())
    left = parts.pruner.finish(allow_early=True).shrinkage
    assert left.keep_macs <= 0.2
    for kind in KINDS:
        assert all(now < before for name, (before, now) in left.widths.items() if kind in name), kind
