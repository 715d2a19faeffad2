"""What the report says of methods that cut channels."""

import json
from pathlib import Path

import pytest

from espalier.errors import EspalierError
from espalier.records import read_run, read_runs
from espalier.records.norms import NormHistogram
from espalier.records.summary import summarise
from espalier.report import markdown_table, save_plots
from espalier.report.plots.norms import norms
from espalier.report.tables import cut_rows, cut_words
from tests.report.fabricate import NORMS, write_comparison, write_cut_run, write_run
from tests.report.test_page import kinds, outline, page

CUT_KINDS = ["tradeoff", "training", "stability", "macs", "speed", "norms", "widths"]


def test_record_of_a_cut_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_cut_run(tmp_path, cut_after=(2.0, 4.0)))
    assert run.budget == (("keep_macs", 0.5),)
    assert run.shrunk is not None
    assert (run.shrunk.macs, run.shrunk.dense_macs, run.shrunk.keep_macs) == (20_000_000, 40_000_000, 0.5)
    assert [(cut.step, cut.epoch, cut.reason) for cut in run.shrunk.cuts] == [(44, 2.0, "faded"), (88, 4.0, "stable")]
    assert run.shrunk.checks[0] == (0, None, None)
    assert run.shrunk.widths["conv1"] == (16, 11)
    assert [speed.batch for speed in run.shrunk.speeds] == [1, 64]
    assert run.metrics[-1].keep_macs == 0.5
    assert read_run(write_run(tmp_path / "masks")).shrunk is None


def test_unfinished_run_knows_its_budget_from_its_recipe(tmp_path: Path) -> None:
    run = read_run(write_cut_run(tmp_path, keep_macs=0.3, stop_after=2))
    assert (run.budget, run.shrunk) == ((("keep_macs", 0.3),), None)


def test_incomplete_record_of_a_cut_is_refused(tmp_path: Path) -> None:
    folder = write_cut_run(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    del result["widths"]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(EspalierError, match="complete record"):
        read_run(folder)


def test_rows_are_kept_apart_by_budget_and_sorted_by_the_size_of_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, "dense")
    for keep in (0.3, 0.5):
        write_cut_run(tmp_path / str(keep), keep_macs=keep)
        for epoch in (10, 2, 0):
            write_cut_run(tmp_path / f"{keep}-{epoch}", "prune-at", keep, settings={"at_epoch": epoch})
    rows = summarise(read_runs([tmp_path]))
    assert [(row.aim, row.label) for row in rows] == [
        ("dense", "dense"),
        *(
            (aim, label)
            for aim in ("30 % of the MACs", "50 % of the MACs")
            for label in ("ocsp", "prune-at (at_epoch=0)", "prune-at (at_epoch=2)", "prune-at (at_epoch=10)")
        ),
    ]


def test_table_states_what_is_left_and_what_it_costs_against_dense(tmp_path: Path) -> None:
    write_run(tmp_path, "dense", test_acc=0.9, seconds=100.0)
    write_cut_run(tmp_path, seed=0, test_acc=0.89, seconds=70.0)
    write_cut_run(tmp_path, seed=1, test_acc=0.88, seconds=90.0, cut_after=(4.0,), reason="latest")
    dense, cut = cut_rows(summarise(read_runs([tmp_path])))
    assert dense.cells() == ("dense", "–", "10", "90.00", "–", "1", "100", "100", "–", "–", "1 min 40 s")
    assert cut.cells() == (
        "ocsp",
        "50 % of the MACs",
        "10",
        "88.50 ± 0.71",
        "−1.50",
        "2",
        "50.00",
        "35.36",
        "3.5 (stable, latest)",
        "31 ms for 64, 1.45x",
        "1 min 20 s, 0.80 of dense",
    )


def test_markdown_has_a_table_for_masks_and_one_for_cuts(tmp_path: Path) -> None:
    write_run(tmp_path, "dense")
    write_cut_run(tmp_path, test_acc=0.5)
    write_cut_run(tmp_path, "epi", test_acc=0.6, measured=False)
    text = markdown_table(summarise(read_runs([tmp_path])))
    assert len(text.split("\n\n")) == 1
    assert "**60.00**" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    write_run(tmp_path, "ocp", 0.9)
    masks, cuts = markdown_table(summarise(read_runs([tmp_path]))).split("\n\n")
    assert "| ocp |" in masks
    assert "ocsp" not in masks
    assert "| ocsp |" in cuts
    assert masks.count("| dense |") == cuts.count("| dense |") == 1


def test_page_of_cuts(tmp_path: Path) -> None:
    write_run(tmp_path, "dense", seconds=20.0)
    for seed in (0, 1):
        write_cut_run(tmp_path, seed=seed, test_acc=0.96)
        write_cut_run(tmp_path, "epi", seed=seed, test_acc=0.9, cut_after=(1.5,))
    write_cut_run(tmp_path, "greg", stop_after=4, seed=7)
    html = page(tmp_path)
    outline(html)
    assert kinds(html) == CUT_KINDS
    assert "50 % of the MACs, 10 epochs: ocsp is ahead with 96.00" in html
    assert "greg, 50 % of the MACs, seed 7, 4 of 10 epochs done" in html
    assert "ocsp, seed 0: cut after epoch 3 (stable)" in html
    assert "greg (unfinished)" in html
    assert "layer1.0.conv1: 10.5 of 16 channels" in html
    assert "31 ms for 64, 1.45x" in html
    assert "Sparsity" not in html.partition("<footer")[0].partition("<main>")[2]


def test_page_of_masks_and_cuts_has_both_tables(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=1, epochs=(5, 10))
    write_cut_run(tmp_path, epochs=5)
    write_cut_run(tmp_path, epochs=10)
    html = page(tmp_path)
    assert html.count("<table>") == 2
    assert set(kinds(html)) == {*CUT_KINDS, "sparsity", "budget", "schedules", "layers"}


def test_cut_without_checks_or_latency_is_no_harm(tmp_path: Path) -> None:
    folder = write_cut_run(tmp_path, "force", cut_after=(0.0,), reason="start", measured=False, with_norms=False)
    result = json.loads((folder / "result.json").read_text()) | {"checks": [], "latency": None}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").unlink()
    html = page(tmp_path)
    assert kinds(html) == ["tradeoff", "widths"]
    assert "Stability and cut: no run has recorded looks" in html
    assert "Norms of channels at the cut: no finished run has recorded the norms" in html


def test_plots_of_cuts_are_saved(tmp_path: Path) -> None:
    write_cut_run(tmp_path / "runs")
    files = save_plots([tmp_path / "runs"], tmp_path, ["stability", "widths", "tradeoff"])
    assert sorted(path.name for path in files) == ["stability.svg", "tradeoff.svg", "widths.svg"]
    assert 'stroke-dasharray="2 3"' in (tmp_path / "stability.svg").read_text()


def test_norms_at_the_cut_are_read_and_drawn(tmp_path: Path) -> None:
    """Several cuts of a run: what leaves adds up, the last one says what stays; seeds are averaged."""
    for seed in (0, 1):
        folder = write_cut_run(tmp_path / "runs", seed=seed, cut_after=(2.0, 3.0))
    assert [cut.norms for cut in read_run(folder).shrunk.cuts] == [NormHistogram.from_content(NORMS)] * 2
    (chart,) = norms(summarise(read_runs([tmp_path / "runs"])), {"ocsp": 3}).charts
    leave, stay = chart.series
    assert (leave.label, leave.slot, stay.label, stay.slot) == ("leave", 0, "ocsp: stay", 3)
    assert [point.y for point in leave.points[::2]] == [80, 24, 6, 0, 0]
    assert [point.y for point in stay.points[::2]] == [0, 2, 30, 25, 1]
    assert [point.x for point in stay.points] == [0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0]
    (file,) = save_plots([tmp_path / "runs"], tmp_path, ["norms"])
    assert "50 % of the MACs, 10 epochs" in file.read_text()


def test_a_damaged_histogram_is_refused(tmp_path: Path) -> None:
    folder = write_cut_run(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    result["cuts"][0]["norms"] = {"edges": [0.5, 1.0], "kept": [1, 2], "removed": [1, 2, 3]}
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(EspalierError, match="complete record"):
        read_run(folder)


def test_a_last_cut_of_nothing_is_no_cut_to_the_report(tmp_path: Path) -> None:
    folder = write_cut_run(tmp_path, cut_after=(2.0, 4.0))
    result = json.loads((folder / "result.json").read_text())
    result["cuts"][1]["norms"] = NORMS | {"removed": [0] * 5}
    (folder / "result.json").write_text(json.dumps(result))
    (row,) = summarise(read_runs([tmp_path]))
    assert cut_words(row) == "2 (faded)"
    html = page(tmp_path)
    assert "cut after epoch 2 (faded)" in html
    assert "cut after epoch 4" not in html
