"""A sweep on a real Ray cluster of two nodes on this machine, one of which is killed in mid-run."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier.recipes.experiments.sweep_ray import RayCluster
from espalier.recipes.recipe import load_recipe
from espalier.recipes.training.engine import train
from tests.sweep.conftest import WriteGrid, carry

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=head | {"_system_config": QUICK_TO_NOTICE})
    yield made
    ray.shutdown()
    made.shutdown()


def nodes_of(folder: Path) -> list[str]:
    """The nodes that a run was started on, in order."""
    log = folder / "train.log"
    return re.findall(r"on node .*\((\w+)\)", log.read_text()) if log.exists() else []


def test_a_run_that_loses_its_node_continues_on_another(tmp_path: Path, cluster: Any, write_grid: WriteGrid) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    grid = write_grid(
        grid={"seed": [0, 1]}, set={"train.epochs": 60, "train.checkpoint_every": {"epochs": 1}, "train.check_every": 1}
    )
    out = tmp_path / "out"
    place = RayCluster(cluster.address, cpus=1)
    assert place.slots == 2
    killed: dict[str, int] = {}

    def kill() -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            for folder in out.glob("*/"):
                rows = (folder / "metrics.jsonl").read_text().count("\n") if (folder / "metrics.jsonl").exists() else 0
                if nodes_of(folder) == [second.node_id] and rows >= 3:
                    cluster.remove_node(second, allow_graceful=False)
                    killed[folder.name] = rows
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = carry(grid, out, place)
    killer.join()
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    ((name, rows),) = killed.items()
    assert rows < 60
    assert len(nodes_of(out / name)) == 2  # started again, elsewhere
    assert nodes_of(out / name)[1] != second.node_id
    alone = train(load_recipe(out / name / "recipe.yaml"), tmp_path / "alone", quiet=True)
    resumed = json.loads((out / name / "result.json").read_text())
    assert resumed["test_loss"] == alone["test_loss"]
    epochs = [json.loads(line)["epoch"] for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 61))


def test_a_run_whose_process_is_ended_is_started_again(tmp_path: Path, cluster: Any, write_grid: WriteGrid) -> None:
    grid = write_grid(set={"train.epochs": 60, "train.check_every": 1})
    out = tmp_path / "out"
    place = RayCluster(cluster.address, cpus=1)
    ended: list[int] = []

    def end() -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and not ended:
            for folder in out.glob("*/"):
                if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") >= 3:
                    (process,) = re.findall(r"process (\d+)", (folder / "train.log").read_text())
                    os.kill(int(process), signal.SIGTERM)
                    ended.append(int(process))
            time.sleep(0.02)

    ender = threading.Thread(target=end)
    ender.start()
    (outcome,) = carry(grid, out, place)
    ender.join()
    assert (outcome.state, outcome.error) == ("done", None)
    log = (outcome.run.folder / "train.log").read_text()
    assert "the same command continues from there" in log
    assert len(nodes_of(outcome.run.folder)) == 2
    epochs = [json.loads(line)["epoch"] for line in (outcome.run.folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 61))


def test_failures_come_back_as_sentences_and_stopping_saves(tmp_path: Path, cluster: Any, write_grid: WriteGrid) -> None:
    place = RayCluster(cluster.address, cpus=1)
    keys = {"lr_schedule": "constant", "train.epochs": 1}
    (failed,) = carry(write_grid(set=keys | {"optimizer.lr": 1.0e38}), tmp_path / "failing", place)
    assert failed.state == "failed"
    assert "not finite" in (failed.error or "")

    from espalier.recipes.experiments.grid import expand
    from espalier.recipes.experiments.sweep import plan_sweep
    from espalier.recipes.training.runs import open_run
    from tests.sweep.conftest import read

    (run,) = plan_sweep(expand(read(write_grid(set={"train.epochs": 2000}))), tmp_path / "long")
    open_run(run.folder, run.planned.recipe)
    place.start(run.planned, 0)
    deadline = time.monotonic() + 120
    while not (run.folder / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    place.stop()
    assert run.state == "half-finished"
    assert "the same command continues from there" in (run.folder / "train.log").read_text()
