"""Reading recipes: types, overrides, and what is said about mistakes."""

from pathlib import Path

import pytest

import espalier as es
from espalier.errors import EspalierError
from espalier.methods.frame.cutting.structured import BUDGETS
from espalier.recipes.arguments import parse_pattern
from espalier.recipes.experiments.compare import read_entries
from espalier.recipes.pruning import as_prune_at, build_method, for_method, lr_restarts
from espalier.recipes.recipe import load_recipe, parse_recipe, recipe_hash, to_yaml
from espalier.recipes.spec import PruningSpec
from espalier.records import numbers

PLAIN = {"model": "convnet4", "data": "digits"}


def test_shorthand_and_defaults() -> None:
    recipe = parse_recipe(PLAIN | {"pruning": {"method": "ocp", "sparsity": 0.9, "alpha": 13}})
    assert recipe.model.name == "convnet4"
    assert recipe.pruning.args == {"alpha": 13}
    assert recipe.train.checkpoint_every.epochs == 1


def test_overrides_reach_nested_keys_and_keep_the_rest_of_a_section() -> None:
    raw = PLAIN | {"pruning": {"method": "ocp", "sparsity": 0.9}, "data": {"name": "digits", "val_fraction": 0.2}}
    recipe = parse_recipe(raw, ["train.epochs=3", "train.checkpoint_every.steps=7", "pruning=agp", "optimizer.lr=1e-3"])
    assert recipe.train.epochs == 3
    assert recipe.train.checkpoint_every.steps == 7
    assert (recipe.pruning.method, recipe.pruning.sparsity) == ("agp", 0.9)
    assert recipe.optimizer.lr == 0.001
    assert recipe.data.val_fraction == 0.2
    assert parse_recipe(raw, ["train.ema=0.99"]).train.ema == 0.99


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=3"], "unknown key 'epoch' in section 'train': did you mean 'epochs'?"),
        (["trian.epochs=3"], "unknown key 'trian': did you mean 'train'?"),
        (["data.augment.flop=true"], "in section 'data.augment': did you mean 'flip'?"),
        (["train.epochs=many"], "'train.epochs' should be a whole number, but is 'many'"),
        (["train.epochs=2.5"], "'train.epochs' should be a whole number, but is 2.5"),
        (["train.compile=perhaps"], "should be true or false"),
        (["trackers=wandb"], "should be a list such as [a, b]"),
        (["pruning.sparsity=abc"], "should be a number (a share: 0.9 for 90 %)"),
        (["seed=-1"], "greater than or equal to 0"),
        (["seed=99999999999999999999999"], "less than or equal to 1000000000000000"),
        (["seed=!!python/object/apply:os.abort []"], "should be a whole number"),
        (["train.epochs=0"], "'train.epochs' should be greater than 0"),
        (["train.precision=fp8"], "should be 'fp32', 'bf16' or 'fp16', but is 'fp8'"),
        (["pruning.sparsity=1.5"], "'pruning.sparsity' should be less than 1"),
        (["lr_schedule.restart_at=[0.5,0.4]"], "'lr_schedule.restart_at' should be rising shares above 0 and below 1"),
        (["lr_schedule.restart_at=[1.0]"], "'lr_schedule.restart_at' should be rising shares above 0 and below 1"),
        (["optimizer.name=sdg"], "'optimizer.name' should be 'sgd'"),
        (["epochs"], "must have the form key=value"),
        (["seed.epochs=3"], "'seed' is a value, not a section"),
        (["train=3"], "'train' should be a section with keys of its own"),
    ],
)
def test_mistakes_get_one_clear_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(EspalierError) as caught:
        parse_recipe(PLAIN | {"seed": 1}, overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_missing_section_is_named() -> None:
    with pytest.raises(EspalierError, match="lacks the key 'data'"):
        parse_recipe({"model": "convnet4"})


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "twice.yaml").write_text("model: resnet8\ntrain: {epochs: 2}\ntrain: {epochs: 3}\n")
    (tmp_path / "code.yaml").write_text("model: !!python/object/apply:os.abort []\n")
    for name, words in [
        ("none.yaml", "no recipe"),
        ("list.yaml", "must be a mapping"),
        ("empty.yaml", "must be a mapping"),
        ("broken.yaml", r"not valid YAML \(line 2, column 1: "),
        ("twice.yaml", "the key 'train' stands there twice"),
        ("code.yaml", "line 1, column 8: could not determine a constructor"),
    ]:
        with pytest.raises(EspalierError, match=words) as caught:
            load_recipe(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_pattern_is_not_a_number_in_base_60(tmp_path: Path) -> None:
    assert parse_recipe(PLAIN, ["pruning.pattern=2:4"]).pruning.args == {"pattern": "2:4"}
    (tmp_path / "r.yaml").write_text("model: resnet8\ndata: digits\npruning: {pattern: 2:4}\nseed: 12\noptimizer: {lr: 1.5}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.pruning.args, recipe.seed, recipe.optimizer.lr) == ({"pattern": "2:4"}, 12, 1.5)


def test_the_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = parse_recipe(PLAIN | {"name": "x", "pruning": {"method": "ocp", "sparsity": 0.9, "include": ["0.*"]}})
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_hashes_of_recipes_stay_what_they_were() -> None:
    recipes = Path(__file__).resolve().parents[2] / "recipes"
    assert recipe_hash(load_recipe(recipes / "resnet20-cifar10.yaml")) == "b852f9105c44d343"
    assert recipe_hash(load_recipe(recipes / "digits.yaml")) == "b3e8e93f9c94489d"
    assert recipe_hash(load_recipe(recipes / "ocsp-resnet20-cifar10.yaml")) == "dbfb66a0c9ae1b44"
    assert recipe_hash(load_recipe(recipes / "epi-resnet20-cifar10.yaml")) == "3b243aac4ddffd63"


def test_a_key_that_came_later_counts_only_where_it_says_something() -> None:
    one = parse_recipe(PLAIN)
    assert recipe_hash(one) == recipe_hash(parse_recipe(PLAIN, ["lr_schedule.restart_at=null", "lr_schedule.restart_at=[]"]))
    others = (["lr_schedule.restart_at=[0.5]"], ["lr_schedule.restart_at=[0.6]"], ["lr_schedule.restart_scale=0.1"])
    others = (*others, ["data.image_size=8"], ["data.image_size=8", "data.crop_pct=0.875"])
    assert len({recipe_hash(one), *(recipe_hash(parse_recipe(PLAIN, more)) for more in others)}) == 6


@pytest.mark.parametrize(
    "section", [{"method": "one-shot", "sparsity": 0.5}, {"method": "prune-at", "keep_macs": 0.5, "at": 0}]
)
def test_random_criteria_draw_by_the_seed_of_the_run(section: dict[str, object]) -> None:
    spec = PruningSpec(**section, criterion="random")
    assert [build_method(spec, seed=seed).criterion.seed for seed in (0, 3)] == [0, 3]
    if "keep_macs" in section:
        assert build_method(PruningSpec(**section, criterion={"name": "random"}), seed=3).criterion.seed == 3
        assert build_method(PruningSpec(**section, criterion={"name": "random", "seed": 5}), seed=3).criterion.seed == 5


def test_stages_of_a_method_restart_the_learning_rate_on_request() -> None:
    def restarts(section: dict[str, object], *more: str) -> tuple[float, ...]:
        return lr_restarts(parse_recipe(PLAIN | {"pruning": {"keep_macs": 0.5} | section}, more))

    assert restarts({"method": "train-prune-finetune"}) == ()
    assert restarts({"method": "train-prune-finetune", "restart_lr": False}) == ()
    assert restarts({"method": "train-prune-finetune", "restart_lr": True}) == (1 / 3, 2 / 3)
    assert restarts({"method": "prune-at", "at_epoch": 4, "restart_lr": True}, "train.epochs=10") == (0.4,)
    assert restarts({"method": "network-slimming", "at": 0.6, "restart_lr": True}) == (0.6,)
    assert restarts({"method": "greg", "restart_lr": True}) == (0.4,)
    assert restarts({"method": "ocsp"}, "lr_schedule.restart_at=[0.3,0.5]") == (0.3, 0.5)
    with pytest.raises(EspalierError, match=r"lr_schedule.restart_at or pruning.restart_lr, not both"):
        restarts({"method": "greg", "restart_lr": True}, "lr_schedule.restart_at=[0.3]")
    spec = PruningSpec(method="train-prune-finetune", keep_macs=0.5, restart_lr=True)
    assert for_method(spec, "ocsp").args == {"keep_macs": 0.5}
    own = read_entries("train-prune-finetune:restart_lr=true")[0].own
    assert for_method(for_method(spec, "ocsp"), "train-prune-finetune", own=own).args == spec.args
    assert for_method(spec, "train-prune-finetune", keep_macs=0.3).args == {"keep_macs": 0.3, "restart_lr": True}
    assert as_prune_at(spec, 2).args["restart_lr"] is True
    assert restarts({"method": "prune-at", "at_epoch": 0, "restart_lr": True}) == ()


def test_hash_names_the_experiment_not_its_circumstances() -> None:
    one = parse_recipe(PLAIN)
    same = parse_recipe(PLAIN, ["name=other", "train.threads=2", "train.checkpoint_every.steps=5", "data.workers=0"])
    assert recipe_hash(one) == recipe_hash(parse_recipe(PLAIN, ["train.latency=false"]))
    assert recipe_hash(one) == recipe_hash(same)
    assert recipe_hash(one) != recipe_hash(parse_recipe(PLAIN, ["seed=1"]))


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        ({"method": "opc", "sparsity": 0.9}, "did you mean 'ocp'?"),
        ({"method": "ocp"}, "needs pruning.sparsity"),
        ({"method": "ocp", "sparsity": 0.9, "alfa": 3}, "did you mean 'alpha'?"),
        ({"method": "ocp", "sparsity": 0.9, "pattern": "hexagon"}, "pattern 'hexagon' is unknown"),
        ({"method": "ocp", "sparsity": 0.9, "pattern": 124}, "pattern '124' is unknown"),
        ({"method": "ocp", "sparsity": 0.9, "include": 5}, "pruning.include must be a list"),
        ({"method": "ocp", "sparsity": 0.9, "criterion": 5}, "pruning.criterion must be a name"),
        ({"method": "ocp", "sparsity": 0.5, "pattern": "2:4"}, "gradual"),
        ({"method": "ocp", "sparsity": 0.5, "scope": "galactic"}, "scope"),
        ({"method": "dense", "sparsity": 0.5}, "takes no pruning.sparsity: to train it, set pruning.sparsity=null"),
        ({"method": "ocsp", "sparsity": 0.5, "keep_macs": 0.5}, "give a budget such as pruning.keep_macs=0.5, and set"),
        (
            {"method": "ocp", "sparsity": 0.5, "keep_macs": 0.5},
            "takes no pruning.keep_macs: that is a budget of methods that cut",
        ),
        ({"method": "ocsp"}, "ocsp needs a budget"),
        ({"method": "ocsp", "keep_macs": 50}, "a share above 0 and at most 1"),
        ({"method": "ocsp", "keep_macs": 0.5, "progresive": 4}, "did you mean 'progressive'?"),
        ({"method": "ocsp", "keep_macs": 0.5, "check_per_epoch": 4}, "did you mean 'checks_per_epoch'?"),
        ({"method": "ocsp", "keep_macs": 0.5, "checks_per_epoch": 0}, "a number above 0; got 0"),
        ({"method": "ocsp", "keep_macs": 0.5, "checks_per_epoch": 2, "check_every": 9}, "pruning.check_every, not both"),
        ({"method": "prune-at", "keep_macs": 0.5, "at": 0.5, "at_epoch": 9}, "pruning.at_epoch or pruning.at, not both"),
        ({"method": "ocsp", "keep_macs": 0.5, "at_epoch": 9}, "no argument 'at_epoch'"),
        ({"method": "ocsp", "keep_macs": 0.5, "criterion": "bn-scales"}, "did you mean 'bn-scale'?"),
        (
            {"method": "ocsp", "keep_macs": 0.5, "criterion": {"name": "magnitude", "q": 2}},
            "criterion 'magnitude' has no argument",
        ),
        ({"method": "ocsp", "keep_macs": 0.5, "indicator": "jacard"}, "did you mean 'jaccard'?"),
        ({"method": "ocsp", "keep_macs": 0.5, "indicator": {"lag": 2}}, "pruning.indicator needs a name"),
        ({"method": "ocsp", "keep_macs": 0.5, "indicator": {"name": "jaccard", "lags": 2}}, "did you mean 'lag'?"),
        ({"method": "ocsp", "keep_macs": 0.5, "indicator": {"name": "jaccard", "lag": "two"}}, "lag counts checks"),
        ({"method": "ocsp", "keep_macs": 0.5, "latest": "soon"}, "are shares; got 'soon'"),
        ({"method": "ocsp", "keep_macs": 0.5, "restart_lr": True}, "'ocsp' has no stages that are known beforehand"),
        ({"method": "ocp", "sparsity": 0.5, "restart_lr": True}, "'ocp' has no stages that are known beforehand"),
        ({"method": "greg", "keep_macs": 0.5, "restart_lr": 3}, "pruning.restart_lr is true or false; got 3"),
    ],
)
def test_pruning_mistakes(pruning: dict[str, object], words: str) -> None:
    with pytest.raises(EspalierError, match=words.replace("?", r"\?")) as caught:
        build_method(parse_recipe(PLAIN | {"pruning": pruning}).pruning)
    assert "\n" not in str(caught.value)


def test_a_schedules_name_is_a_method_too() -> None:
    recipe = parse_recipe(PLAIN | {"pruning": {"method": "cosine", "sparsity": 0.9, "scope": "global"}})
    assert build_method(recipe.pruning).schedule() == es.schedules.Cosine(0.9)
    spec = for_method(recipe.pruning, "linear", 0.8)
    assert (spec.sparsity, spec.args) == (0.8, {"scope": "global"})
    curve = {"method": "follow", "sparsity": 0.9, "curve": {"name": "cosine", "end": 0.7}}
    assert build_method(parse_recipe(PLAIN | {"pruning": curve}).pruning).schedule() == es.schedules.Cosine(0.9, end=0.7)


def test_patterns_are_read_from_text() -> None:
    assert parse_pattern("2:4") == parse_pattern("n:m")
    assert parse_pattern("block:2x8").__dict__ == {"rows": 2, "columns": 8}


def test_comparing_keeps_where_and_drops_a_methods_own_arguments() -> None:
    spec = parse_recipe(PLAIN | {"pruning": {"method": "ocp", "sparsity": 0.9, "alpha": 13, "scope": "global"}}).pruning
    assert for_method(spec, "agp", 0.8).args == {"scope": "global"}
    assert for_method(spec, "ocp", 0.8).args == {"scope": "global", "alpha": 13}
    assert for_method(spec, "dense", 0.8).sparsity is None


def test_methods_that_cut_are_built_from_names_and_mappings() -> None:
    indicator = {"name": "jaccard", "lag": 1, "threshold": 0.9}
    section = {"method": "ocsp", "keep_macs": 0.5, "indicator": indicator, "criterion": "bn-scale", "checks_per_epoch": 2}
    method = build_method(parse_recipe(PLAIN | {"pruning": section}).pruning, epochs=3, steps_per_epoch=11)
    assert method.indicator == es.indicators.JaccardStability(lag=1, threshold=0.9)
    assert method.criterion == es.criteria.BatchNormScale()
    assert (method.keep_macs, method.check_every) == (0.5, 6)
    section = {"method": "epi", "prune_channels": 0.3, "criterion": {"name": "group-saliency", "p": 1.0}, "indicator": "count"}
    method = build_method(PruningSpec(**section))
    assert (method.criterion, method.indicator) == (es.criteria.GroupSaliency(p=1.0), es.indicators.CountStability())


@pytest.mark.parametrize("method", [name for name, kind in es.METHODS.items() if kind.cuts])
def test_every_method_that_cuts_takes_a_budget_from_a_recipe(method: str) -> None:
    at = {"at_epoch": 5} if method == "prune-at" else {}
    built = build_method(PruningSpec(method=method, keep_macs=0.5, **at), epochs=20)
    assert built.keep_macs == 0.5
    assert {*BUDGETS, "max_latency"} == set(numbers.BUDGETS)


def test_comparing_methods_that_cut_keeps_budget_and_place_but_no_ranking() -> None:
    section = {
        "method": "ocsp",
        "keep_macs": 0.5,
        "round_to": 8,
        "criterion": "magnitude",
        "progressive": 4,
        "checks_per_epoch": 2,
    }
    spec = PruningSpec(**section)
    assert for_method(spec, "epi").args == {"keep_macs": 0.5, "round_to": 8, "checks_per_epoch": 2}
    assert for_method(spec, "epi", keep_macs=0.3).budget == {"keep_macs": 0.3}
    assert for_method(spec, "epi", keep_macs=0.3, own=["prune_channels=0.2"]).budget == {"prune_channels": 0.2}
    assert for_method(spec, "ocsp", own=["check_every=7"]).args == {
        "keep_macs": 0.5,
        "round_to": 8,
        "criterion": "magnitude",
        "progressive": 4,
        "check_every": 7,
    }
    assert for_method(spec, "ocsp", own=["indicator={name: jaccard}", "indicator.lag=3"]).args["indicator"]["lag"] == 3
    assert for_method(spec, "agp", 0.9).args == {}
    masks = PruningSpec(method="ocp", sparsity=0.9, scope="global", include=["layer1.*"])
    assert for_method(masks, "ocsp", keep_macs=0.5).args == {"keep_macs": 0.5}


def test_a_grid_search_cuts_as_the_method_does() -> None:
    spec = as_prune_at(PruningSpec(method="ocsp", keep_macs=0.5, round_to=8, progressive=4, checks_per_epoch=2), 5.0)
    assert spec.args == {"keep_macs": 0.5, "round_to": 8, "checks_per_epoch": 2, "max_ratio": 0.75, "at_epoch": 5}
    spec = as_prune_at(PruningSpec(method="epi", prune_channels=0.5), 2.5)
    assert spec.args == {"prune_channels": 0.5, "criterion": "taylor", "at_epoch": 2.5}
    assert as_prune_at(PruningSpec(method="prune-at", at=0.5, keep_macs=0.5), 1).args == {"keep_macs": 0.5, "at_epoch": 1}


def test_methods_to_compare_are_read_with_their_arguments() -> None:
    entries = read_entries("dense, ocp:pattern=2:4 ,ocsp:include=[a.*,b.*]:progressive=4:indicator={name: jaccard, lag: 1},epi")
    assert [(entry.method, entry.own) for entry in entries] == [
        ("dense", ()),
        ("ocp", ("pattern=2:4",)),
        ("ocsp", ("include=[a.*,b.*]", "progressive=4", "indicator={name: jaccard, lag: 1}")),
        ("epi", ()),
    ]
