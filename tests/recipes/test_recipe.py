"""Reading recipes: types, overrides, and what is said about mistakes."""

from pathlib import Path

import pytest

import espalier as es
from espalier.errors import EspalierError
from espalier.recipes.pruning import build_method, for_method, parse_pattern
from espalier.recipes.recipe import load_recipe, parse_recipe, recipe_hash, to_yaml

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


def test_hash_names_the_experiment_not_its_circumstances() -> None:
    one = parse_recipe(PLAIN)
    same = parse_recipe(PLAIN, ["name=other", "train.threads=2", "train.checkpoint_every.steps=5", "data.workers=0"])
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
    ],
)
def test_pruning_mistakes(pruning: dict[str, object], words: str) -> None:
    with pytest.raises(EspalierError, match=words.replace("?", r"\?")):
        build_method(parse_recipe(PLAIN | {"pruning": pruning}).pruning)


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
