"""SLR and ADMM in the engine: batches and loss for the conditions, the curve of projected weights, records, exact resume."""

import json
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import espalier as es
from espalier.errors import EspalierError
from espalier.recipes.experiments.compare import Entry, default_methods, plan
from espalier.recipes.pruning import as_prune_at, build_method, for_method
from espalier.recipes.spec import PruningSpec, Recipe
from espalier.recipes.training import engine, runs
from espalier.records.reading import read_run
from tests.recipes.test_resume import interrupt, metrics

Tiny = Callable[..., Recipe]
SPLIT = "pruning={{method: {}, sparsity: 0.8, start: 0.3, checks_per_epoch: 3, hard_prune_at_epoch: 2}}"


def split(tiny: Tiny, method: str, *more: str) -> Recipe:
    return tiny("train.threads=1", SPLIT.format(method), *more)


@pytest.mark.parametrize("method", ["slr", "admm"])
def test_a_run_records_its_rounds_and_the_projected_weights(tmp_path: Path, tiny: Tiny, method: str) -> None:
    result = engine.train(split(tiny, method), tmp_path, quiet=True)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (result["sparsity_target"], result["sparsity"]) == (0.8, pytest.approx(0.8, abs=0.001))
    made = [es.methods.Round.from_plain(plain) for plain in result["rounds"]]
    assert [one.step for one in made] == [12, 15, 18]
    assert all(one.gap > 0 and set(one.gaps) == {layer["name"] for layer in result["layers"]} for one in made)
    assert all((one.loss is not None) == (method == "slr") for one in made)
    rows = runs.read_metrics(tmp_path)
    assert ["val_acc_projected" in row for row in rows] == [True, False, False]  # afterwards they are the live ones
    assert [row["rounds"] for row in rows] == [0, 3, 3]
    assert rows[-1]["gap"] == pytest.approx(made[-1].gap, rel=1e-5)
    assert [row["sparsity"] > 0.79 for row in rows] == [False, True, True]
    read = read_run(tmp_path)
    assert read.metrics[0].val_acc_projected == rows[0]["val_acc_projected"]
    assert read.metrics[-1].step_size == rows[-1]["step_size"]


@pytest.mark.parametrize("method", ["slr-channels", "admm-channels"])
def test_channels_are_projected_and_then_cut(tmp_path: Path, tiny: Tiny, method: str) -> None:
    pruning = f"{{method: {method}, keep_macs: 0.6, start: 0.3, checks_per_epoch: 3, hard_prune_at_epoch: 2}}"
    result = engine.train(tiny("train.threads=1", f"pruning={pruning}"), tmp_path, quiet=True)
    made = [es.methods.Round.from_plain(plain) for plain in result["rounds"]]
    assert [one.step for one in made] == [12, 15, 18]
    assert [(cut["epoch"], cut["reason"]) for cut in result["cuts"]] == [(2, "planned")]
    assert result["keep_macs"] <= 0.6
    rows = runs.read_metrics(tmp_path)
    assert ["val_acc_projected" in row for row in rows] == [True, False, False]
    assert [row["keep_macs"] < 1 for row in rows] == [False, True, True]


@pytest.mark.parametrize(("method", "conditions"), [("slr", "batches"), ("slr", "mean"), ("admm", None)])
def test_killed_in_the_search_changes_nothing(tmp_path: Path, tiny: Tiny, method: str, conditions: str | None) -> None:
    more = [f"pruning.conditions={conditions}"] if conditions else []
    recipe = split(tiny, method, "train.checkpoint_every.steps=1", *more)
    whole = engine.train(recipe, tmp_path / "whole", quiet=True)
    folder = tmp_path / "killed"
    for forwards in (11, 3, 4):  # before the first round, at one, between two
        assert interrupt(recipe, folder, forwards) == -signal.SIGKILL
        assert (folder / "checkpoint.pt").exists()
    assert interrupt(recipe, folder, -1) == 0
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert json.loads((folder / "result.json").read_text())["rounds"] == whole["rounds"]
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_from_a_dense_model_that_was_trained_here(tmp_path: Path, tiny: Tiny) -> None:
    engine.train(tiny("train.threads=1", "pruning=dense"), tmp_path / "dense", quiet=True)
    pruning = "pruning={method: slr, sparsity: 0.5, checks_per_epoch: 5, hard_prune_at_epoch: 1}"
    recipe = tiny("train.threads=1", pruning, "train.epochs=2", f"model.weights={tmp_path / 'dense' / 'model.safetensors'}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it was trained
        result = engine.train(recipe, tmp_path / "slr", quiet=True)
    assert [one["step"] for one in result["rounds"]] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("method", ["slr", "admm", "one-shot"])
def test_ratios_by_name_pattern(tmp_path: Path, tiny: Tiny, method: str) -> None:
    pruning = f"pruning={{method: {method}, ratios: {{'Conv2d': 0.75, 'features.0': 0.5}}}}"
    recipe = tiny("train.threads=1", pruning, "train.epochs=1", "train.keep_best=true")
    folder = tmp_path / runs.run_name(recipe)
    assert "-ratios-" in folder.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = engine.train(recipe, folder, quiet=True)
    shares = {layer["name"]: layer["zeros"] / layer["total"] for layer in result["layers"]}
    assert shares.pop("features.0.weight") == 0.5
    assert set(shares.values()) == {0.75}
    assert result["sparsity_target"] == pytest.approx(result["sparsity"], abs=1e-4)
    assert read_run(folder).sparsity_target == result["sparsity_target"]


def test_comparing_on_the_same_terms() -> None:
    args = {"rho": 0.2, "s0": 0.1, "checks_per_epoch": 3, "hard_prune_at_epoch": 4, "start": 0.1, "include": ["layer1.*"]}
    spec = PruningSpec(method="slr", sparsity=0.9, **args)
    assert for_method(spec, "admm", 0.8).args == {key: value for key, value in args.items() if key != "s0"}
    assert for_method(spec, "one-shot", 0.8, own=["at_epoch=4"]).args == {"include": ["layer1.*"], "at_epoch": 4}
    cut = {"keep_macs": 0.5, "rho": 0.2, "hard_prune_at_epoch": 4, "start": 0.1, "max_ratio": 0.8, "s0": 0.1}
    spec = PruningSpec(method="slr-channels", **cut)
    assert for_method(spec, "admm-channels").args == {key: value for key, value in cut.items() if key != "s0"}
    assert for_method(spec, "epi").args == {"keep_macs": 0.5, "max_ratio": 0.8}
    assert as_prune_at(spec, 4).args["criterion"] == "squared"
    ratios = PruningSpec(method="slr", ratios={"conv1": 0.5})
    assert for_method(ratios, "admm").args == {"ratios": {"conv1": 0.5}}
    assert for_method(ratios, "admm", 0.8).args == {}
    assert for_method(ratios, "admm", own=["sparsity=0.8"]).sparsity == 0.8
    assert for_method(ratios, "ocp").args == for_method(ratios, "dense").args == {}
    own = for_method(spec, "admm", 0.8, own=["ratios={conv1: 0.5}"])
    assert (own.sparsity, own.args["ratios"]) == (None, {"conv1": 0.5})


def test_a_recipe_with_ratios_is_compared_at_its_ratios_unless_a_sparsity_is_given(tmp_path: Path, tiny: Tiny) -> None:
    recipe = tiny("pruning={method: slr, ratios: {Conv2d: 0.75}}")

    def planned(methods: list[str], sparsities: list[float]) -> list[tuple[str, float | None, object]]:
        entries = [Entry.read(text) for text in methods]
        specs = [one.recipe.pruning for one in plan(recipe, entries, sparsities, [0], [4], tmp_path)]
        return [(spec.method, spec.sparsity, spec.args.get("ratios")) for spec in specs]

    ratios = {"Conv2d": 0.75}
    assert default_methods(recipe, cutting=False, ratios=True) == ["dense", "one-shot", "slr"]
    assert planned(["dense", "slr", "one-shot"], []) == [
        ("dense", None, None),
        ("slr", None, ratios),
        ("one-shot", None, ratios),
    ]
    assert planned(["dense", "slr"], [0.8]) == [("dense", None, None), ("slr", 0.8, None)]
    assert planned(["slr", "ocp:sparsity=0.75"], []) == [("slr", None, ratios), ("ocp", 0.75, None)]
    with pytest.raises(EspalierError, match="which 'ocp' does not take: give --sparsity, ocp:sparsity="):
        planned(["slr", "ocp"], [])


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        ({"method": "slr"}, "needs pruning.sparsity"),
        ({"method": "slr", "sparsity": 0.5, "ratios": {"a": 0.5}}, "not both"),
        ({"method": "ocp", "ratios": {"a": 0.5}}, "takes no pruning.ratios: those that do are one-shot, slr, admm"),
        ({"method": "slr", "ratios": 0.5}, "is a mapping such as"),
        ({"method": "slr", "sparsity": 0.5, "hard_prune_at_epoch": 11}, "hard_prune_at_epoch=11 comes after the end"),
        ({"method": "slr", "sparsity": 0.5, "rho": -1}, "rho is a number above 0"),
        ({"method": "admm", "sparsity": 0.5, "s0": 1}, "no argument 's0'"),
        ({"method": "slr", "sparsity": 0.5, "criterion": "random"}, "no argument 'criterion'"),
    ],
)
def test_mistakes(pruning: dict[str, object], words: str) -> None:
    with pytest.raises(EspalierError, match=words):
        build_method(PruningSpec(**pruning), epochs=10)
