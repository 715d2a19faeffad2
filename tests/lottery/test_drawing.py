"""`espalier lottery`: rounds as ordinary runs, rewinding to a step, controls, and going on after a stop."""

import json
import re
from pathlib import Path

import pytest
import torch

import espalier as es
from espalier import EspalierError, lottery
from espalier.recipes.experiments.carrying import Ended, Place
from espalier.recipes.experiments.lottery import Draw, draw, draws_of
from espalier.recipes.experiments.lottery_results import by_chance, collect, write_results
from espalier.recipes.experiments.lottery_settings import Settings
from espalier.recipes.recipe import load_recipe, parse_recipe, recipe_hash
from espalier.recipes.training import engine, runs
from espalier.recipes.training.checkpoint import read_checkpoint
from espalier.recipes.training.rewinding import keep_start, plant, read_start
from espalier.records import read_runs
from espalier.records.summary import summarise
from espalier.tasks.classification.models import build_model
from tests.recipes.conftest import TINY

SMALL = ("train.epochs=2", "data.limit=160", "pruning.method=dense", "pruning.sparsity=null", "pruning.include=[Conv2d,Linear]")


class Here(Place):
    """Runs one after the other, in this process; stops when it has run `limit` of them."""

    slots = 1

    def __init__(self, limit: int = 1000) -> None:
        self.limit, self.done, self._over = limit, [], []

    def start(self, run, slot):
        if len(self.done) == self.limit:
            raise KeyboardInterrupt
        engine.train(load_recipe(run.folder / runs.RECIPE), run.folder, quiet=True)
        self.done.append(run.folder.name)
        self._over.append(Ended(slot))

    def ended(self):
        over, self._over = self._over, []
        return over

    def stop(self):
        pass


def settings(**more) -> Settings:
    return Settings(parse_recipe(TINY, SMALL), **({"rounds": 2, "rewind": "3"} | more))


def carry(made: Settings, out: Path, seeds=(0,), limit: int = 1000):
    place = Here(limit)
    outcomes = list(draw(made, seeds, out, place))
    return place, outcomes, draws_of(made, seeds, out)


def model_of(path: Path):
    model = build_model("convnet4", num_classes=10, in_channels=1, width=4)
    return es.load(path, model)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One whole lottery with everything in it, two seeds."""
    out = tmp_path_factory.mktemp("lottery")
    made = settings(siblings=True, finders=("one-shot",))
    place, outcomes, draws = carry(made, out, seeds=(0, 1))
    write_results(made, draws, out / made.folder_name)
    return made, out, place, outcomes, draws


def test_masks_are_nested_and_counts_exact(played):
    *_, draws = played
    for one in draws:
        first, second = (lottery.load_masks(one.masks(number)) for number in (1, 2))
        assert all(not (mask & ~first[name]).any() for name, mask in second.items())
        total = sum(mask.numel() for mask in first.values())
        left = lottery.remaining_after(total, 0.2)
        assert sum(int(mask.sum()) for mask in first.values()) == left
        assert sum(int(mask.sum()) for mask in second.values()) == lottery.remaining_after(left, 0.2)


def test_every_run_is_finished_at_its_density(played):
    _, _, place, outcomes, draws = played
    assert {outcome.state for outcome in outcomes} == {"done"}
    expected = ["round-00", "found-one-shot-0.36", "sibling-00", "ticket-one-shot-0.36"]
    expected += [f"{kind}-{n:02}" for n in (1, 2) for kind in ("round", "random-init", "random-masks", "sibling")]
    assert sorted(place.done) == sorted(expected * 2)
    for one in draws:
        for number in (1, 2):
            share = lottery.density(lottery.load_masks(one.masks(number)))
            for kind in ("round", "random-init", "random-masks", "sibling"):
                folder = one.folder / f"{kind}-{number:02}"
                assert runs.read_result(folder)["sparsity"] == pytest.approx(1 - share, abs=1e-9)
    masks = lottery.load_masks(draws[0].masks("one-shot"))
    assert runs.read_result(draws[0].folder / "ticket-one-shot-0.36")["sparsity"] == pytest.approx(1 - lottery.density(masks))


def test_trained_tickets_are_zero_where_their_masks_are(played):
    *_, draws = played
    for one in draws:
        masks = lottery.load_masks(one.masks(2))
        model = model_of(one.run(2).folder / runs.WEIGHTS)
        for name, mask in masks.items():
            assert not model.get_parameter(name)[~mask].any()


def test_results_hold_every_run_and_the_tables_say_so(played):
    made, out, _, _, draws = played
    content = json.loads((out / made.folder_name / "lottery.json").read_text())
    assert content == json.loads(json.dumps(collect(made, draws)))
    kinds = [row["kind"] for row in content["rows"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "dense": 2, "ticket": 4, "random-init": 4, "random-masks": 4, "found": 2, "found-ticket": 2,
    }  # fmt: skip
    assert len(content["overlap"]) == 3
    assert all(0 < row["jaccard"] <= 1 for row in content["overlap"])
    assert len(content["instability"]) == 6
    for row in content["instability"]:
        folder = out / made.folder_name / f"s{row['seed']}"
        ends = [runs.read_result(folder / f"{kind}-{row['round']:02}")["test_acc"] for kind in ("round", "sibling")]
        assert [row["points"][0]["test_acc"], row["points"][-1]["test_acc"]] == pytest.approx(ends)
    text = (out / made.folder_name / "lottery.md").read_text()
    assert "| round | weights left % | n | ticket | random re-init | random masks |" in text
    assert re.search(r"\| one-shot \| 6[34]\.", text)
    assert "rewound to step 3" in text


def test_reports_tell_tickets_from_controls(played):
    """`espalier report` and `espalier table` read the same folders."""
    made, out, *_ = played
    rows = summarise(read_runs([out / made.folder_name]))
    labels = {row.label for row in rows if row.sparsity_target == pytest.approx(0.2, abs=0.01)}
    assert labels == {f"ticket (kind={kind})" for kind in ("found", "random-init", "random-masks", "sibling")}
    assert all(len(row.runs) == 2 for row in rows if not row.dense)


def test_the_same_again_runs_nothing(played):
    made, out, *_ = played
    place, outcomes, _ = carry(made, out, seeds=(0, 1))
    assert place.done == []
    assert {outcome.state for outcome in outcomes} == {"kept"}


def test_siblings_start_alike_and_end_apart(played):
    *_, draws = played
    one = draws[0]
    ends = [model_of(one.folder / f"{kind}-01" / runs.WEIGHTS).state_dict() for kind in ("round", "sibling")]
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    recipes = [load_recipe(one.folder / f"{kind}-01" / runs.RECIPE) for kind in ("round", "sibling")]
    assert recipes[0].seed != recipes[1].seed
    assert recipes[0].pruning.args["masks"] == recipes[1].pruning.args["masks"]


# -- rewinding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moment", "place"), [("0", (0, 0, 0)), ("3", (0, 3, 3)), ("1ep", (1, 0, 5)), ("7", (1, 2, 7))])
def test_the_start_is_the_run_s_own_state_at_that_step(tmp_path, moment, place):
    """Against a run that is stopped there by other means, and then goes on to the same end as one never stopped."""
    recipe = parse_recipe(TINY, SMALL)
    start, folder = tmp_path / "start.safetensors", tmp_path / "run"
    keep_start(recipe, folder, moment, start)
    found = read_start(start)
    assert (found.epoch, found.batch, found.step) == place
    if found.step:
        content, position = read_checkpoint(folder / runs.CHECKPOINT, recipe_hash(recipe))
        assert position.step == found.step
        assert all(torch.equal(value, content["model"][name]) for name, value in model_of(start).state_dict().items())
    keep_start(recipe, folder, moment, start)
    went_on, whole = (engine.train(recipe, tmp_path / name, quiet=True) for name in ("run", "whole"))
    assert went_on["test_loss"] == whole["test_loss"]


def test_rewound_survivors_are_the_saved_weights_bit_for_bit(tmp_path):
    made = settings(rounds=1, controls=())
    one = Draw(made, 0, tmp_path)
    for run in one.stage(0):
        engine.train(run.recipe, run.folder, quiet=True)
    (run,) = one.stage(1)
    content, position = read_checkpoint(run.folder / runs.CHECKPOINT, recipe_hash(run.recipe))
    saved, masks = model_of(one.start).state_dict(), lottery.load_masks(one.masks(1))
    assert position.step == 3
    for name, value in content["model"].items():
        stays = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[stays], saved[name][stays]), name
        assert not value[~stays].any()
    assert content["pruner"]["taken"] == [3]
    assert content["optimizer"]["state"] == {}


def test_rewinding_to_0_is_training_the_masked_initialisation(tmp_path):
    """A planted run and an ordinary one, from the same seed with the same masks, are the same run."""
    one = Draw(settings(rewind="0", rounds=1, controls=()), 0, tmp_path / "draw")
    for number in (0, 1):
        for run in one.stage(number):
            planted = engine.train(run.recipe, run.folder, quiet=True)
    ordinary = engine.train(one.run(1).recipe, tmp_path / "ordinary", quiet=True)
    assert ordinary["test_loss"] == planted["test_loss"]


def test_learning_rate_rewinding_keeps_the_trained_weights(tmp_path):
    made = settings(rounds=1, controls=(), keep_weights=True)
    one = Draw(made, 0, tmp_path)
    for run in one.stage(0):
        engine.train(run.recipe, run.folder, quiet=True)
    (run,) = one.stage(1)
    content, position = read_checkpoint(run.folder / runs.CHECKPOINT, recipe_hash(run.recipe))
    trained, masks = model_of(one.run(0).folder / runs.WEIGHTS).state_dict(), lottery.load_masks(one.masks(1))
    assert position.step == 3
    for name, mask in masks.items():
        assert torch.equal(content["model"][name], trained[name] * mask), name


def test_a_rewound_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    one = Draw(settings(rounds=1, controls=("random-masks",)), 0, tmp_path)
    for run in one.stage(0):
        engine.train(run.recipe, run.folder, quiet=True)
    (run, _) = one.stage(1)
    planted = (run.folder / runs.CHECKPOINT).read_bytes()
    whole = engine.train(run.recipe, run.folder, quiet=True)
    weights = (run.folder / runs.WEIGHTS).read_bytes()
    parts = tmp_path / "parts"
    runs.open_run(parts, run.recipe)
    (parts / runs.CHECKPOINT).write_bytes(planted)
    after = engine.Engine._after_step

    def stop_at_7(self, *, ends_epoch):
        self._stop.asked = self.position.step == 7
        after(self, ends_epoch=ends_epoch)

    monkeypatch.setattr(engine.Engine, "_after_step", stop_at_7)
    with pytest.raises(engine.Interrupted, match="step 7"):
        engine.train(run.recipe, parts, quiet=True)
    monkeypatch.undo()
    assert engine.train(run.recipe, parts, quiet=True)["test_loss"] == whole["test_loss"]
    assert (parts / runs.WEIGHTS).read_bytes() == weights


def test_averaged_models_are_rewound_too(tmp_path):
    recipe = parse_recipe(TINY, [*SMALL, "train.ema=0.9"])
    one = Draw(Settings(recipe, rounds=1, controls=(), rewind="3"), 0, tmp_path)
    for run in one.stage(0):
        engine.train(run.recipe, run.folder, quiet=True)
    (run,) = one.stage(1)
    content, _ = read_checkpoint(run.folder / runs.CHECKPOINT, recipe_hash(run.recipe))
    for name, value in content["model"].items():
        assert torch.equal(content["ema"][f"module.{name}"], value), name


def test_given_densities_replace_rounds(tmp_path):
    made = settings(densities=(0.8333, 0.6667, 0.5), controls=())
    _, _, (one,) = carry(made, tmp_path)
    for number, share in enumerate((0.8333, 0.6667, 0.5), start=1):
        masks = lottery.load_masks(one.masks(number))
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == round(share * total)


def test_overlap_by_chance_is_that_of_random_masks_with_the_layers_densities():
    first = {"thin": torch.arange(20000) < 400, "thick": torch.arange(3000) < 2400}
    second = {"thin": torch.arange(20000) < 800, "thick": torch.arange(3000) < 1500}
    drawn = [lottery.random_masks(masks, seed) for seed, masks in enumerate((first, second))]
    assert by_chance(first, second) == pytest.approx(lottery.overlap(*drawn)[""], abs=0.01)
    even = {name: torch.arange(len(mask)) < len(mask) // 5 for name, mask in first.items()}
    assert by_chance(even, even) == pytest.approx(0.2 / 1.8)


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_stopped_anywhere_and_started_again_it_ends_alike(tmp_path):
    made = settings(controls=("random-masks",))
    _, _, draws = carry(made, tmp_path / "whole")
    whole = collect(made, draws)
    for limit in (0, 1, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            carry(made, tmp_path / "parts", limit=limit)
    _, _, draws = carry(made, tmp_path / "parts")
    parts = collect(made, draws)
    for row in (*whole["rows"], *parts["rows"]):
        row.pop("seconds")
    assert parts == whole


def test_a_lottery_goes_on_under_another_path_and_after_it_was_moved(tmp_path, monkeypatch):
    made = settings(controls=("random-masks",))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        carry(made, Path("lot"), limit=2)
    with pytest.raises(KeyboardInterrupt):
        carry(made, tmp_path / "lot", limit=1)
    (tmp_path / "lot").rename(tmp_path / "moved")
    place, outcomes, (one,) = carry(made, tmp_path / "moved")
    assert place.done == ["round-02", "random-masks-02"]
    assert {outcome.state for outcome in outcomes} == {"kept", "done"}
    for number in (1, 2):
        kept = load_recipe(one.run(number).folder / runs.RECIPE)
        assert kept.pruning.args["masks"] == str(one.masks(number))
    lottery.save_masks(lottery.random_masks(lottery.load_masks(one.masks(2))), one.masks(2))
    with pytest.raises(es.EspalierError, match="another recipe"):
        carry(made, tmp_path / "moved")


def test_a_failed_round_ends_its_seed_and_the_others_go_on(tmp_path):
    class Failing(Here):
        def start(self, run, slot):
            if run.folder.parts[-2:] == ("s0", "round-01"):
                self._over.append(Ended(slot, 1, "it broke"))
            else:
                super().start(run, slot)

    made = settings(controls=())
    place = Failing()
    outcomes = list(draw(made, (0, 1), tmp_path, place))
    assert [o.error for o in outcomes if o.state == "failed"] == ["it broke"]
    assert place.done.count("round-02") == 1


def test_a_seed_is_drawn_by_one_process_at_a_time(tmp_path):
    made = settings()
    for one in draws_of(made, [0], tmp_path):
        one.folder.mkdir(parents=True)
        with runs.locked(one.folder), pytest.raises(EspalierError, match=r"Another process is writing to .*s0"):
            carry(made, tmp_path)


def test_planting_leaves_a_run_that_has_begun_alone(tmp_path):
    recipe = parse_recipe(TINY, SMALL)
    keep_start(recipe, tmp_path / "run", "3", tmp_path / "start.safetensors")
    before = (tmp_path / "run" / runs.CHECKPOINT).read_bytes()
    plant(recipe, tmp_path / "run", tmp_path / "start.safetensors")
    assert (tmp_path / "run" / runs.CHECKPOINT).read_bytes() == before


REFUSED = {
    "moment": ({"rewind": "soon"}, "A moment to rewind to"),
    "densities": ({"densities": (0.5, 0.8)}, "each below the one before"),
    "fraction": ({"fraction": 1.0}, "fraction a share"),
    "control": ({"controls": ("luck",)}, "known are random-init, random-masks"),
    "finder": ({"finders": ("ocsp",)}, "finds no tickets"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_are_refused_in_one_sentence(case):
    given, words = REFUSED[case]
    with pytest.raises(es.EspalierError, match=words) as caught:
        settings(**given)
    assert "\n" not in str(caught.value)


def test_rewinding_beyond_the_training_is_refused(tmp_path):
    with pytest.raises(es.EspalierError, match="beyond the 10 steps"):
        list(draw(settings(rewind="10"), (0,), tmp_path, Here()))
