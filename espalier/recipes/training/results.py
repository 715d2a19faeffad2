"""The record of a finished run: what `result.json` holds."""

from __future__ import annotations

import platform
from typing import Any

import torch

from espalier.methods import Shrinkage
from espalier.recipes.recipe import recipe_hash
from espalier.recipes.spec import Recipe
from espalier.recipes.training.runs import machine
from espalier.recipes.training.setup import Training, steps_per_epoch


def make_result(
    parts: Training,
    report: Any,
    tested: tuple[float, float],
    rows: list[dict[str, Any]],
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Gather the record. Accuracies and sparsities are shares, `seconds` adds up all resumed parts of the run."""
    recipe = parts.recipe
    last = rows[-1] if rows else {}
    per_epoch = steps_per_epoch(parts.data, recipe)
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "data": parts.data.info.name,
        "method": recipe.pruning.method,
        "sparsity_target": recipe.pruning.sparsity
        or (round(parts.pruner.run.goal, 4) if "ratios" in recipe.pruning.args else 0.0),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "test_acc": tested[1],
        "test_loss": tested[0],
        "val_acc": last.get("val_acc"),
        "val_loss": last.get("val_loss"),
        "sparsity": report.sparsity,
        "sparsity_all": report.sparsity_all,
        "layers": [{"name": x.name, "shape": list(x.shape), "total": x.total, "zeros": x.zeros} for x in report.layers],
        "params": sum(p.numel() for p in parts.model.parameters()),
        "images": dict(parts.data.info.sizes),
        "seconds": seconds,
        "steps": steps,
        "recipe_hash": recipe_hash(recipe),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": machine(parts.device) | {"processes": parts.processes.world},
        **({"rounds": [rounded(made.to_plain()) for made in report.rounds]} if report.rounds else {}),
        **({} if report.shrinkage is None else shrinkage_record(recipe, report.shrinkage, per_epoch)),
    }


def rounded(thing: Any) -> Any:
    """The same with six digits of every fraction, as plain mappings and lists."""
    if isinstance(thing, dict):
        return {key: rounded(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [rounded(value) for value in thing]
    return float(f"{thing:.6g}") if isinstance(thing, float) else thing


def shrinkage_record(recipe: Recipe, made: Shrinkage, per_epoch: int) -> dict[str, Any]:
    """What a method that cuts leaves in the record; MACs are those of one image, epochs count from 0 at the start."""
    return {
        "budget": recipe.pruning.budget,
        "macs": made.macs,
        "dense_macs": made.dense_macs,
        "params": made.params,
        "dense_params": made.dense_params,
        "keep_macs": made.keep_macs,
        "keep_params": made.keep_params,
        "widths": {name: list(pair) for name, pair in made.widths.items()},
        "cuts": [
            {"step": x.step, "epoch": x.step / per_epoch, "reason": x.reason, "macs": x.macs, "params": x.params}
            | ({} if x.norms is None else {"norms": x.norms.content()})
            for x in made.cuts
        ],
        "checks": [[check.step, check.similarity, check.score] for check in made.checks],
    }
