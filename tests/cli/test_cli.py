"""The command line from outside: what it prints, what it writes, how it refuses."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
import yaml

from espalier.cli import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "model": {"name": "convnet4", "width": 4},
    "data": {"name": "digits", "limit": 320},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 1, "batch_size": 32, "device": "cpu", "threads": 1},
    "pruning": {"method": "ocp", "sparsity": 0.8, "alpha": 13},
}


class Espalier(Protocol):
    """Runs the command in this process and returns what it printed on both streams."""

    def __call__(self, *arguments: str, code: int = 0) -> str: ...


@pytest.fixture
def espalier(capfd: pytest.CaptureFixture[str]) -> Espalier:
    def run(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        out, err = capfd.readouterr()
        assert left.value.code == code, out + err
        return out + err

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return str(file)


def test_train_then_evaluate(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    said = espalier("train", recipe, "--runs", str(tmp_path / "runs"), "train.epochs=3")
    assert len(re.findall(r"^epoch +\d/3 .*images/s.*left$", said, re.MULTILINE)) == 3
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"written to {folder}" in said
    result = json.loads((folder / "result.json").read_text())
    found = json.loads(espalier("evaluate", str(folder / "model.safetensors"), "--json"))
    assert found["test_acc"] == result["test_acc"]
    assert f"accuracy {result['test_acc']:.2%}" in espalier("evaluate", str(folder / "model.safetensors"), "data=digits")


def test_compare_makes_a_balanced_table_and_runs_nothing_twice(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    out = tmp_path / "runs"
    command = ["compare", recipe, "--methods", "dense,ocp", "--sparsity", "0.5,0.8", "--seeds", "0,1"]
    command += ["--out", str(out), "--jobs", "2"]
    said = espalier(*command)
    assert said.count(" done ") == 6  # two seeds of: dense once, one method at two sparsities
    rows = list(csv.DictReader((out / "compare-small.csv").open()))
    assert [(r["sparsity"], r["method"], r["n"]) for r in rows] == [
        ("0.0", "dense", "2"),
        ("0.5", "ocp", "2"),
        ("0.8", "ocp", "2"),
    ]
    assert all(float(r["test_acc_std"]) >= 0 and float(r["seconds"]) > 0 for r in rows)
    assert float(rows[-1]["selected"]) == pytest.approx(0.8, abs=0.002)
    assert "| ocp |" in (out / "compare-small.md").read_text()
    results = [json.loads(p.read_text()) for p in out.glob("*/result.json")]
    assert {r["machine"]["threads"] for r in results} == {1}
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("*/result.json")}
    (out / next(iter(out.glob("*-ocp-0.8-s1-*"))).name / "result.json").unlink()
    again = espalier(*command)
    assert again.count(" kept ") == 5
    assert again.count(" done ") == 1
    assert sum(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()) == 5


def test_compare_cuts_beside_masks(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    out = tmp_path / "runs"
    methods = "dense,ocp,ocsp:progressive=2:checks_per_epoch=4,ocsp,force:prune_channels=0.25"
    command = ["compare", recipe, "--methods", methods, "--sparsity", "0.8", "--keep-macs", "0.5,0.7", "--prune-at", "0,1"]
    command += ["--seeds", "0", "--out", str(out), "model.width=16", "train.epochs=2"]
    said = espalier(*command)
    rows = list(csv.DictReader((out / "compare-small.csv").open()))
    at_half = [row for row in rows if row["budget"] == "50 % of the MACs"]
    assert [row["method"] for row in rows if not row["budget"]] == ["dense", "ocp"]
    assert [row["method"] for row in at_half] == [
        "ocsp",
        "ocsp (checks_per_epoch=4, progressive=2)",
        "prune-at (at_epoch=0)",
        "prune-at (at_epoch=1)",
    ]
    assert [row["budget"] for row in rows if row["method"] == "force"] == ["25 % of the channels gone"]
    assert len(rows) == 2 + 2 * 4 + 1
    assert all(float(row["keep_macs"]) <= 0.5 for row in at_half)
    assert [(float(row["cut_epoch"]), row["reason"]) for row in at_half[2:]] == [(0, "start"), (1, "planned")]
    table = (out / "compare-small.md").read_text()
    assert "| 2 | 0.8 | ocp |" in table
    assert "| 2 | 50 % of the MACs | prune-at (at_epoch=1) |" in table
    assert table.count("| dense |") == 2  # the reference stands in both tables
    assert "cut after" in said
    assert "dense, seed 0" in said
    recipes = [yaml.safe_load(p.read_text())["pruning"] for p in out.glob("*-prune-at-*/recipe.yaml")]
    assert {one["max_ratio"] for one in recipes} == {0.75}  # the cap of the method that they are compared with
    assert espalier(*command).count(" kept ") == len(rows)


def test_report_writes_page_plots_and_table(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    runs = str(tmp_path / "runs")
    espalier("train", recipe, "--runs", runs)
    page, plots, table = tmp_path / "page.html", tmp_path / "plots", tmp_path / "table.md"
    espalier("report", runs, "--out", str(page), "--plots", str(plots), "--table", str(table))
    assert "<svg" in page.read_text()
    assert list(plots.glob("*.svg"))
    assert "| ocp" in table.read_text()


def test_budgets_are_an_axis(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    command = ["compare", recipe, "--methods", "ocp", "--sparsity", "0.8", "--seeds", "0", "--budgets", "1,3"]
    espalier(*command, "--out", str(tmp_path / "runs"))
    rows = list(csv.DictReader((tmp_path / "runs/compare-small.csv").open()))
    assert [r["epochs"] for r in rows] == ["1", "3"]


def test_a_failed_run_is_recorded_and_the_rest_goes_on(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    command = ["compare", recipe, "--methods", "ocp,dense", "--seeds", "0", "--out", str(tmp_path / "runs")]
    said = espalier(*command, "optimizer.lr=1.0e+38", "lr_schedule=constant", code=1)
    assert said.count("not finite") == 2
    assert "2 of 2 runs failed" in said
    failures = list((tmp_path / "runs").glob("*/failed.json"))
    assert len(failures) == 2
    assert "not finite" in json.loads(failures[0].read_text())["error"]
    assert [r["failed"] for r in csv.DictReader((tmp_path / "runs/compare-small.csv").open())] == ["1", "1"]


def test_a_stopped_comparison_stops_its_runs_and_continues(tmp_path: Path, recipe: str, espalier: Espalier) -> None:
    command = ["compare", recipe, "--methods", "ocp", "--seeds", "0", "--out", str(tmp_path / "runs"), "train.epochs=200"]
    process = subprocess.Popen([sys.executable, "-m", "espalier", *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/checkpoint.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (folder,) = (tmp_path / "runs").glob("*/")
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < before < 200
    assert "the same command continues" in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "resnet2-cifar10"), "did you mean 'resnet20-cifar10'?"),
        (("train", "digits", "train.epoch=1"), "did you mean 'epochs'?"),
        (("train", "digits", "pruning.method=opc"), "did you mean 'ocp'?"),
        (("train", "digits", "data=nothing"), "digits"),
        (("train", "resnet20-cifar10", "data.path=/nowhere"), "/nowhere"),
        (("compare", "digits", "--methods", "ocp,what"), "'what' is unknown"),
        (("compare", "resnet20-cifar10", "data.path=/nowhere"), "/nowhere"),
        (("compare", "digits", "data=digit"), "did you mean"),
        (("compare", "digits", "--sparsity", "0.9;0.95"), "--sparsity takes numbers separated by commas"),
        (("compare", "digits", "--sparsity", "90"), "90"),
        (("compare", "digits", "--methods", "epi,dense", "--sparsity", "0.5"), "None of epi, dense takes --sparsity"),
        (("compare", "digits", "--methods", "ocp,dense", "--keep-macs", "0.5"), "None of ocp, dense takes --keep-macs"),
        (("compare", "digits", "--epochs", "2", "--budgets", "3"), "not both"),
        (("compare", "digits", "--epochs", "0"), "at least 1 epoch"),
        (("compare", "digits", "--budgets", ""), "nothing to compare"),
        (("compare", "digits", "--seeds=-1"), "whole number of at least 0"),
        (("compare", "digits", "--methods", "dense,ocsp"), "give --keep-macs 0.5"),
        (("compare", "digits", "--methods", "ocsp:progressive"), "METHOD:KEY=VALUE"),
        (("compare", "digits", "--methods", "ocsp:progresive=4", "--keep-macs", "0.5"), "did you mean 'progressive'?"),
        (("compare", "digits", "--methods", "ocp:sparsity=2"), "a sparsity is a share below 1"),
        (("compare", "digits", "--keep-macs", "50"), "a share above 0 and at most 1"),
        (("compare", "digits", "--keep-macs", "0.5", "--prune-at", "21"), "training of 20 epochs"),
        (("compare", "digits", "--keep-macs", "0.5", "--prune-at", "-1"), "pruning.at_epoch is a number"),
        (("train", "digits", "pruning=ocsp"), "takes no pruning.sparsity: give a budget such as pruning.keep_macs=0.5"),
        (("train", "digits", "pruning.keep_macs=0.5"), "takes no pruning.keep_macs"),
        (("train", "digits", "data.path=images"), "not read from data.path"),
        (("train", "digits", "model=torchvision:nosuch"), "no torchvision model 'nosuch'."),
        (("train", "digits", "model=vgg16_bn"), "set data.image_size=32"),
        (("train", "digits", "model.width=abc"), "does not fit the model 'resnet8'"),
        (("train", "digits", "model.width=-1"), "does not fit the model 'resnet8'"),
        (("evaluate", "none.safetensors"), "no file 'none.safetensors'"),
        (("list", "colours"), "known are models, data"),
        (("report", "nowhere"), "'nowhere'"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...], words: str, espalier: Espalier) -> None:
    if arguments[0] in ("train", "compare"):
        arguments = (*arguments, "--runs" if arguments[0] == "train" else "--out", str(tmp_path))
    said = espalier(*arguments, code=2)
    assert words in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_list_shows_what_recipes_can_name(espalier: Espalier) -> None:
    said = espalier("list")
    for word in ("resnet20", "digits", "ocp", "one-cycle", "magnitude", "n:m", "resnet20-cifar10"):
        assert word in said
    methods = [line.split(maxsplit=1) for line in espalier("list", "methods").splitlines()]
    assert [name for name, *_ in methods][:5] == ["dense", "one-shot", "iterative", "agp", "ocp"]
    assert ["ocp", "sparsity"] in methods
    assert ["ocsp", "keep_macs, keep_params, max_macs, max_params, prune_channels, max_latency"] in methods
    assert "jaccard" in espalier("list", "indicators")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_ready_recipes_are_valid(path: Path) -> None:
    from espalier.recipes.pruning import build_method
    from espalier.recipes.recipe import load_recipe

    recipe = load_recipe(path)
    assert recipe.name == path.stem
    method = build_method(recipe.pruning, epochs=recipe.train.epochs, steps_per_epoch=100)
    targets = recipe.pruning.budget or {"sparsity": recipe.pruning.args.get("ratios") or recipe.pruning.sparsity}
    assert {key: getattr(method, key) for key in targets} == targets
    assert method.cuts == bool(recipe.pruning.budget)
    assert path.read_text().startswith("# ")
