"""Methods at initialisation in recipes: trained, stopped and resumed bit for bit, and compared with the others."""

from pathlib import Path

import pytest

from espalier.recipes.experiments.compare import plan, read_entries
from espalier.recipes.training import engine
from tests.recipes.conftest import tiny

__all__ = ["tiny"]


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_trains_stops_and_resumes(tmp_path: Path, tiny, method, monkeypatch) -> None:
    recipe = tiny(f"pruning.method={method}", "train.epochs=1", *(["pruning.rounds=3"] if method != "grasp" else []))
    whole = engine.train(recipe, tmp_path / "whole", quiet=True)
    assert whole["sparsity"] == pytest.approx(0.8, abs=1e-3)
    stop_after(monkeypatch, 3)
    with pytest.raises(engine.Interrupted):
        engine.train(recipe, tmp_path / "parts", quiet=True)
    monkeypatch.undo()
    assert engine.train(recipe, tmp_path / "parts", quiet=True)["test_loss"] == whole["test_loss"]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert first == second


def stop_after(monkeypatch, steps: int) -> None:
    after = engine.Engine._after_step

    def watched(self, *, ends_epoch: bool) -> None:
        self._stop.asked = self.position.step == steps
        after(self, ends_epoch=ends_epoch)

    monkeypatch.setattr(engine.Engine, "_after_step", watched)


def test_controls_at_initialisation_are_one_shot_at_0(tmp_path: Path, tiny) -> None:
    text = "snip:rounds=5:returns=true,one-shot:at=0:scope=global,one-shot:at=0:criterion=random:scope=global"
    planned = plan(tiny("pruning.include=[Conv2d,Linear]"), read_entries(text), [0.9], [0], [1], tmp_path)
    assert [run.recipe.pruning.method for run in planned] == ["snip", "one-shot", "one-shot"]
    assert all(run.recipe.pruning.args["include"] == ["Conv2d", "Linear"] for run in planned)
