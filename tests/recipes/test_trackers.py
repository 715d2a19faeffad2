"""Trackers: one small protocol, imported only when asked for."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import EspalierError
from espalier.recipes.spec import Recipe
from espalier.recipes.training import engine, trackers
from espalier.recipes.training.trackers import open_trackers

Tiny = Callable[..., Recipe]


def test_none_is_imported_unless_asked() -> None:
    names = "tensorboard", "mlflow", "wandb"
    code = f"import sys, espalier.recipes.training.engine; print([name for name in {names} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: Recipe, folder: Path) -> Any:
        raise RuntimeError("No API key.\nLog in.")

    monkeypatch.setitem(trackers._TRACKERS, "wandb", refuse)
    with pytest.raises(EspalierError, match=r"'wandb' cannot start \(No API key. Log in\)"):
        open_trackers(tiny("trackers=[wandb]"), tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_sentence(tmp_path: Path, tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(module: str, package: str | None = None) -> Any:
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(module)
        return real(module, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EspalierError, match=r"pip install 'espalier\[track\]'"):
        open_trackers(tiny(f"trackers=[{name}]"), tmp_path)


def test_tensorboard_writes_event_files(tmp_path: Path, tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    engine.train(tiny("trackers=[tensorboard]", "train.epochs=1"), tmp_path, quiet=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"val_acc", "train_loss", "sparsity"} <= set(events.Tags()["scalars"])


def test_mlflow_records_a_run(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        engine.train(tiny("trackers=[mlflow]", "train.epochs=1"), tmp_path / "run", quiet=True)
        assert list((tmp_path / "mlruns").rglob("metrics/val_acc"))
    finally:
        mlflow.set_tracking_uri(None)


def test_a_tracker_that_fails_is_left_behind(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        rows = 0

        def log(self, row: dict[str, Any], step: int) -> None:
            Gone.rows += 1
            raise ConnectionError("the server is gone")

        def close(self) -> None:
            raise AssertionError("it was given up")

    monkeypatch.setitem(trackers._TRACKERS, "wandb", lambda recipe, folder: Gone())
    with pytest.warns(UserWarning, match=r"'wandb' failed \(the server is gone\)"):
        engine.train(tiny("trackers=[wandb]", "train.epochs=2"), tmp_path, quiet=True)
    assert Gone.rows == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
