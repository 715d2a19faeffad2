"""What the report says of methods with multipliers."""

import json
from pathlib import Path

import pytest

from espalier.errors import EspalierError
from espalier.records import read_run, read_runs
from espalier.records.rounds import Round
from espalier.records.summary import summarise
from espalier.report import save_plots
from espalier.report.plots import assign_slots
from espalier.report.plots.common import decade_axis
from espalier.report.plots.rounds import gaps, layer_gaps, multipliers, projected
from espalier.report.svg import Chart, Series
from tests.report.fabricate import write_comparison, write_split_run
from tests.report.test_page import kinds, page

KINDS = ["projected", "gap", "layergap", "multipliers"]


def drawn(chart: Chart) -> dict[str, Series]:
    return {series.label: series for series in chart.series}


def test_rounds_are_read(tmp_path: Path) -> None:
    folder = write_split_run(tmp_path)
    run = read_run(folder)
    assert len(run.rounds) == 12
    gaps_of_second = {"conv1.weight": 2.0, "bn1.bias": 0.1, "fc.weight": 3.5}
    assert run.rounds[1] == Round(22, 4.0, gaps_of_second, 0.02, 0.995, (False, True), 1.0)
    result = json.loads((folder / "result.json").read_text())
    del result["rounds"][0]["gap"]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(EspalierError, match="complete record"):
        read_run(folder)


def test_the_page_shows_them_where_there_are_some(tmp_path: Path) -> None:
    write_comparison(tmp_path / "others", seeds=1)
    assert not set(KINDS) & set(kinds(page(tmp_path)))
    write_split_run(tmp_path / "slr", epochs=25)
    assert [kind for kind in kinds(page(tmp_path)) if kind in KINDS] == KINDS
    written = save_plots([tmp_path], tmp_path / "plots", KINDS)
    assert [path.name for path in written] == [
        *("projected.svg", "gap.svg", "layergap.svg"),
        *(f"multipliers-{n}.svg" for n in (1, 2, 3, 4)),
    ]


def test_curves_are_means_over_seeds_at_the_right_epochs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_split_run(tmp_path, seed=seed)
    write_split_run(tmp_path, "admm")
    rows = summarise(read_runs([tmp_path]))
    slots = assign_slots(rows)

    (chart,) = projected(rows, (), slots).charts
    found = drawn(chart)
    assert set(found) == {"slr, live", "slr, projected", "admm, live", "admm, projected"}
    assert [point.x for point in found["slr, projected"].points] == [1, 2, 3, 4, 5]
    assert [point.x for point in found["slr, live"].points] == list(range(1, 11))
    metrics = [run.metrics[2] for row in rows if row.method == "slr" for run in row.runs]
    mean = sum(epoch.val_acc_projected or 0.0 for epoch in metrics) / 2
    assert found["slr, projected"].points[2].y == pytest.approx(mean)

    (chart,) = gaps(rows, (), slots).charts
    assert [(point.x, point.y) for point in drawn(chart)["slr"].points] == [(n / 2, pytest.approx(8 / n)) for n in range(1, 13)]

    sizes, alphas, first, second = multipliers(rows, slots).charts
    assert set(drawn(sizes)) == {"slr", "admm"}
    assert set(drawn(alphas)) == set(drawn(first)) == {"slr"}
    assert [point.y for point in drawn(first)["slr"].points][:4] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert {point.y for point in drawn(second)["slr"].points} == {1.0}

    admm, slr = sorted(layer_gaps(rows, slots).charts, key=lambda chart: chart.series[0].label)
    assert [series.label for series in slr.series] == ["slr: first round", "slr: middle round", "slr: last round"]
    assert len({series.slot for series in slr.series}) == 3
    assert [point.x for point in slr.series[0].points] == [4.0, 7.0]  # of the norm's bias nothing is shown
    assert [point.x for point in slr.series[2].points] == pytest.approx([4 / 12, 7 / 12])
    assert admm.title == slr.title == "90 % zeros, 10 epochs"


def test_unfinished_runs_show_what_their_epochs_have_told(tmp_path: Path) -> None:
    write_split_run(tmp_path, stop_after=3)
    rows = summarise(read_runs([tmp_path]), finished=False)
    slots = assign_slots(rows)
    (chart,) = gaps((), rows, slots).charts
    assert [(point.x, point.y) for point in drawn(chart)["slr (unfinished)"].points] == [
        (1, 8),
        (2, 4),
        (3, pytest.approx(8 / 3)),
    ]
    assert len(projected((), rows, slots).charts) == 1
    assert multipliers((), slots).missing == layer_gaps((), slots).missing == "no finished run has recorded its rounds"


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.01, 0.03), (3.0, 9.0), (1e-4, 20.0), (0.95, 1.05), (1e-9, 1e9)])
def test_an_axis_of_ratios_has_ticks_inside(low: float, high: float) -> None:
    axis = decade_axis(low, high, "gap")
    assert axis.low < low <= high < axis.high
    assert 1 <= len(axis.ticks) <= 6
    assert all(axis.low <= place <= axis.high for place, _ in axis.ticks)
