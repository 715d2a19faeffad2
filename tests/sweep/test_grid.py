"""Grid files: which runs they stand for, and what is refused before anything starts."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import EspalierError
from espalier.recipes.experiments.grid import expand, refuse_missing_files
from espalier.recipes.experiments.sweep import plan_sweep
from espalier.recipes.recipe import parse_recipe
from espalier.recipes.training.runs import run_name
from tests.sweep.conftest import RECIPE, TWELVE, WriteGrid, read


def test_the_first_key_varies_slowest_and_blocks_lie_inside(write_grid: WriteGrid) -> None:
    runs = expand(read(write_grid(**TWELVE)))
    found = [(r.recipe.seed, r.recipe.pruning.method, r.recipe.pruning.sparsity) for r in runs]
    one_seed = [("dense", None), ("ocp", 0.5), ("ocp", 0.9), ("agp", 0.5)]
    assert found == [(seed, *rest) for seed in (0, 1, 2) for rest in one_seed]
    assert runs[1].words == "seed=0, method=ocp, sparsity=0.5"


def test_folders_are_named_as_a_single_training_names_them(write_grid: WriteGrid) -> None:
    (run,) = plan_sweep(expand(read(write_grid(set={"pruning.sparsity": 0.9}, grid={"seed": [3]}))), Path("runs"))
    alone = parse_recipe(RECIPE | {"name": "tiny"}, ["pruning.sparsity=0.9", "seed=3"])
    assert run.folder == Path("runs") / run_name(alone)


def test_equal_recipes_are_one_run(write_grid: WriteGrid) -> None:
    grid = write_grid(grid={"pruning": [{"method": "dense"}, {"method": "dense", "sparsity": None}], "seed": [0, 1]})
    assert len(plan_sweep(expand(read(grid)), Path("runs"))) == 2


def test_a_mapping_replaces_a_section_and_a_name_keeps_its_other_keys(write_grid: WriteGrid) -> None:
    runs = expand(read(write_grid(grid={"pruning": ["agp", {"method": "agp", "sparsity": 0.3}]})))
    assert [run.recipe.pruning.sparsity for run in runs] == [0.8, 0.3]


def test_command_line_goes_before_set_and_the_grid_before_both(write_grid: WriteGrid) -> None:
    grid = read(write_grid(set={"train.epochs": 5, "optimizer.lr": 0.2}, grid={"seed": [4]}))
    (run,) = expand(grid, [("train.epochs", 7)])
    assert (run.recipe.train.epochs, run.recipe.optimizer.lr, run.recipe.seed) == (7, 0.2, 4)


def test_exclude_and_include(write_grid: WriteGrid) -> None:
    grid = write_grid(
        grid={"pruning.method": ["ocp", "agp"], "seed": [0, 1, 2]},
        exclude=[{"pruning.method": "agp", "seed": [1, 2]}],
        include=[{"pruning": {"method": "dense"}, "seed": 9}],
    )
    found = [(run.recipe.pruning.method, run.recipe.seed) for run in expand(read(grid))]
    assert found == [("ocp", 0), ("ocp", 1), ("ocp", 2), ("agp", 0), ("dense", 9)]


def test_runs_of_other_models_are_not_named_after_the_recipe(write_grid: WriteGrid) -> None:
    runs = plan_sweep(expand(read(write_grid(grid={"model": ["resnet8", "convnet4"]}))), Path("runs"))
    assert [run.folder.name.split("-ocp")[0] for run in runs] == ["resnet8-digits", "convnet4-digits"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gird": {"seed": [0]}}, "has an unknown key 'gird': did you mean 'grid'?"),
        ({"recipe": 3}, "needs the key 'recipe'"),
        ({"recipe": "resnet2-cifar10"}, "did you mean 'resnet20-cifar10'?"),
        ({"grid": {"train.epoch": [1]}}, "trial.yaml, epoch=1: The recipe has an unknown key 'epoch' in section 'train': did"),
        ({"grid": {"seed": 3}}, "needs a list of values for 'seed', such as seed: [3]"),
        ({"grid": {"seed": []}}, "needs a list of values"),
        ({"grid": ["seed"]}, "'grid' must be a mapping"),
        ({"runs": {"set": {}}}, "The key 'runs' of trial.yaml must be a list"),
        ({"runs": [{"sets": {}}]}, "block 1 of 'runs', has an unknown key 'sets': did you mean 'set'?"),
        ({"grid": {"pruning.method": ["opc"]}}, "method=opc: The method 'opc' is unknown: did you mean 'ocp'?"),
        ({"grid": {"pruning.alhpa": [3]}}, "did you mean 'alpha'?"),
        ({"grid": {"pruning.method": ["dense", "ocp"]}}, "get a block of their own under 'runs'"),
        ({"grid": {"model": ["resnet9"]}}, "model=resnet9: There is no model 'resnet9': did you mean"),
        ({"grid": {"model.width": ["wide"]}}, "does not fit the model 'convnet4'"),
        ({"grid": {"data.name": ["digit"]}}, "There is no data set 'digit': did you mean 'digits'?"),
        ({"grid": {"seed": [0, -1]}}, "seed=-1: The recipe's 'seed' should be"),
        ({"exclude": [{"sed": 1}]}, "excludes by an unknown key 'sed': did you mean 'seed'?"),
        ({"exclude": [{"seed": 5}]}, "which no run is"),
        ({"exclude": [{"seed": 0}]}, "leaves nothing to run"),
        ({"paper": {"numbers": [{"test_acc": 79.3, "tag": "P"}]}}, "a share, 0.9 for 90 %"),
        ({"paper": {"numbers": [{"test_acc": 0.7}]}}, "and a tag, one of P, L"),
        ({"grid": {"optimizer.lr": [float("inf")]}}, "trial.yaml has the value inf for 'optimizer.lr': give a finite number"),
        ({"set": {"pruning": {"alpha": float("nan")}}}, "has the value nan for 'alpha'"),
        ({"set": {"model.width": b"4"}}, "has a value for 'model.width' that is no number, text, list or mapping"),
        (
            {"grid": {"train.threads": [1, 2]}},
            "varies 'train.threads', but runs that differ in nothing else are one",
        ),
        ({"runs": [{"grid": {"train.checkpoint_every.steps": [1, 2]}}]}, "varies 'train.checkpoint_every.steps'"),
        ({"paper": [1]}, "must have the keys 'source', a text, and 'numbers'"),
    ],
)
def test_mistakes_are_said_in_one_sentence_before_anything_starts(
    keys: dict[str, Any], words: str, write_grid: WriteGrid
) -> None:
    with pytest.raises(EspalierError) as said:
        expand(read(write_grid(**keys)))
    assert words in str(said.value)
    assert "\n" not in str(said.value)


def test_an_override_that_the_grid_would_undo_is_refused(write_grid: WriteGrid) -> None:
    grid = read(write_grid(grid={"seed": [0]}, runs=[{"set": {"pruning": {"method": "dense"}}}]))
    for key in ("seed", "pruning.sparsity"):
        with pytest.raises(EspalierError, match="change it there"):
            expand(grid, [(key, 1)])


@pytest.mark.parametrize(
    ("keys", "override", "words"),
    [
        ({"include": [{"train.epochs": 50}]}, ("train.epochs", 7), "sets 'train.epochs' in 'include': change it there"),
        ({"include": [{"pruning": {"method": "dense"}}]}, ("pruning.sparsity", 0.5), "sets 'pruning' in 'include'"),
        ({"grid": {"pruning.method": ["ocp", "agp"]}}, ("pruning", "agp"), "sets 'pruning.method' itself"),
        ({"grid": {"pruning.sparsity": [0.5]}}, ("pruning", {"method": "ocp", "sparsity": 0.8}), "'pruning.sparsity' itself"),
    ],
)
def test_nothing_undoes_an_override_silently(
    keys: dict[str, Any], override: tuple[str, Any], words: str, write_grid: WriteGrid
) -> None:
    with pytest.raises(EspalierError) as said:
        expand(read(write_grid(**keys)), [override])
    assert words in str(said.value)


def test_an_override_of_what_is_searched_is_refused(write_grid: WriteGrid) -> None:
    ranges = {"maximize": "val_acc", "ranges": {"optimizer.lr": {"low": 0.01, "high": 0.1}}}
    grid = read(write_grid(search=ranges))
    with pytest.raises(EspalierError, match=r"sets 'optimizer.lr' in 'search': change it there"):
        expand(grid, [("optimizer.lr", 0.05)], {"optimizer.lr": 0.01})
    (run,) = expand(grid, [("optimizer.lr", 0.05)])  # not searched now
    assert run.recipe.optimizer.lr == 0.05


def test_dates_are_texts(write_grid: WriteGrid) -> None:
    paper = {"source": datetime.date(2022, 1, 1), "numbers": [{"test_acc": 0.9, "tag": "P", "note": datetime.date(2022, 1, 2)}]}
    grid = read(write_grid(paper=paper))
    assert json.loads(json.dumps(dict(grid.paper.raw))) == grid.paper.raw
    assert (grid.paper.source, grid.paper.numbers[0].note) == ("2022-01-01", "2022-01-02")


def test_arguments_of_the_model_leave_the_folder_the_name_of_a_single_training(write_grid: WriteGrid) -> None:
    (run,) = plan_sweep(expand(read(write_grid(grid={"model.width": [8]}))), Path("runs"))
    assert run.folder == Path("runs") / run_name(parse_recipe(RECIPE | {"name": "tiny"}, ["model.width=8"]))


def test_data_that_is_not_there_is_said_before_the_sweep(write_grid: WriteGrid) -> None:
    runs = expand(read(write_grid(set={"data": {"name": "parquet", "path": "/nowhere"}})))
    with pytest.raises(EspalierError, match="There is no data at '/nowhere'"):
        refuse_missing_files(runs)


def test_start_weights_that_are_not_there_are_said_before_the_sweep(write_grid: WriteGrid) -> None:
    runs = expand(read(write_grid(set={"model.weights": "dense.safetensors"})))
    with pytest.raises(EspalierError, match=r"There are no start weights 'dense.safetensors'"):
        refuse_missing_files(runs)
