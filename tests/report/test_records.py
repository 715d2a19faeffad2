"""Reading run folders and summing them up."""

import json
from pathlib import Path

import pytest

from espalier.errors import EspalierError
from espalier.records import find_runs, read_run, read_runs
from espalier.records.summary import method_order, summarise
from tests.report.fabricate import write_comparison, write_run


def test_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "ocp", 0.9, seed=3, epochs=4, test_acc=0.5))
    assert (run.method, run.sparsity_target, run.seed, run.epochs, run.finished) == ("ocp", 0.9, 3, 4, True)
    assert run.test_acc == 0.5
    assert [epoch.epoch for epoch in run.metrics] == [1, 2, 3, 4]
    assert run.layers[0].sparsity == pytest.approx(0.9, abs=1e-3)
    assert run.settings["train.batch_size"] == 64


def test_unfinished_run_is_known_from_its_recipe(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "agp", 0.95, seed=1, epochs=9, stop_after=2))
    assert (run.model, run.data, run.method, run.sparsity_target, run.epochs) == ("resnet8", "digits", "agp", 0.95, 9)
    assert not run.finished
    assert run.test_acc is None


def test_unfinished_run_takes_the_proper_name_of_its_data(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, data="digits")
    for path in tmp_path.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "Handwritten digits"}))
    write_run(tmp_path, seed=1, data="digits", stop_after=1)
    assert {run.data for run in read_runs([tmp_path])} == {"Handwritten digits"}


def test_failure_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stop_after=1)
    (folder / "failed.json").write_text('{"error": "The loss is not finite."}')
    assert read_run(folder).failure == "The loss is not finite."


def test_half_written_last_line_and_repeated_epochs_are_no_harm(tmp_path: Path) -> None:
    folder = write_run(tmp_path, epochs=3, stop_after=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "val_acc": 0.25, "val_loss": NaN}\n{"epoch": 3, "val')
    metrics = read_run(folder).metrics
    assert [epoch.epoch for epoch in metrics] == [1, 2]
    assert metrics[1].val_acc == 0.25
    assert metrics[1].val_loss is None


def test_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, epochs=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "half", lines[2]]))
    with pytest.raises(EspalierError, match=r"Line 2 of .*metrics\.jsonl"):
        read_run(folder)


def test_broken_result_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "result.json").write_text('{"name": ')
    with pytest.raises(EspalierError, match=r"result\.json.*repeated"):
        read_run(folder)


def test_incomplete_layer_record_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, layers=[("conv", 10)])
    (folder / "result.json").write_text('{"layers": [{"name": "conv"}]}')
    with pytest.raises(EspalierError, match="complete record"):
        read_run(folder)


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a" / "b", seed=0), write_run(tmp_path / "c", seed=1)
    assert sorted(find_runs([tmp_path, first, tmp_path / "c"])) == sorted([first, second])


def test_missing_and_empty_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match="no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(EspalierError, match="No runs in"):
        find_runs([tmp_path])
    with pytest.raises(EspalierError, match="not a run folder"):
        read_run(tmp_path)


def test_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        write_run(tmp_path, seed=seed, test_acc=accuracy, seconds=10.0 + seed)
    (row,) = summarise(read_runs([tmp_path]))
    assert row.n == 3
    assert row.acc_mean == pytest.approx(0.93)
    assert row.acc_std == pytest.approx(0.0360555, abs=1e-6)
    assert row.seconds == pytest.approx(11.0)


def test_single_run_has_no_spread(tmp_path: Path) -> None:
    write_run(tmp_path)
    (row,) = summarise(read_runs([tmp_path]))
    assert (row.n, row.acc_std) == (1, None)


def test_rows_keep_models_sparsities_and_budgets_apart_in_a_fixed_order(tmp_path: Path) -> None:
    write_comparison(tmp_path, (0.9, 0.95), seeds=2, epochs=(3, 6))
    rows = summarise(read_runs([tmp_path]))
    assert [(row.sparsity_target, row.epochs, row.method) for row in rows] == [
        *((0.0, epochs, "dense") for epochs in (3, 6)),
        *((s, e, m) for s in (0.9, 0.95) for e in (3, 6) for m in ("one-shot", "iterative", "agp", "ocp")),
    ]
    assert all(row.n == 2 for row in rows)


def test_runs_of_different_settings_are_not_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "a", seed=seed)
        write_run(tmp_path / "b", seed=seed, settings={"scope": "global"})
    rows = summarise(read_runs([tmp_path]))
    assert [(row.variant, row.n) for row in rows] == [("", 2), ("scope=global", 2)]


def test_unfinished_runs_stay_out_of_the_rows(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, stop_after=2)
    runs = read_runs([tmp_path])
    assert [row.n for row in summarise(runs)] == [1]
    assert [row.n for row in summarise(runs, finished=False)] == [1]


def test_own_methods_follow_the_known_ones(tmp_path: Path) -> None:
    for method in ("zen", "ocp", "dense", "alpha"):
        write_run(tmp_path, method)
    assert method_order(read_runs([tmp_path])) == ["dense", "ocp", "alpha", "zen"]
