"""Tables of runs: rows and columns by any key, cells over seeds alone, paired tests, published numbers, formats, plots."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from espalier.cli import main
from espalier.errors import EspalierError
from espalier.records import read_runs
from espalier.records.costs import dense_macs, pareto, training_macs
from espalier.records.pairing import compare_paired
from espalier.records.paper import join, read_paper
from espalier.records.pivot import pivot
from espalier.records.reaching import least_budget, most_compression
from espalier.records.settings import resolve_keys
from espalier.records.summary import summarise
from espalier.report.pivots import paired_sheet, published, value_sheet
from tests.report.fabricate import write_cut_run, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of dense, ocp and agp at two sparsities and two budgets; the accuracies are chosen."""
    root = tmp_path / "runs"
    for seed in (0, 1, 2):
        for epochs in (5, 10):
            write_run(root, "dense", seed=seed, epochs=epochs, test_acc=0.9 + 0.001 * epochs + 0.001 * seed)
            for sparsity in (0.8, 0.9):
                base = 0.8 + 0.01 * epochs - 0.1 * (sparsity - 0.8) + 0.01 * seed
                write_run(root, "ocp", sparsity, seed=seed, epochs=epochs, test_acc=base + (0.03, 0.02, 0.01)[seed])
                write_run(root, "agp", sparsity, seed=seed, epochs=epochs, test_acc=base)
    return root


def lines(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["table", *map(str, arguments)])
    said = "".join(capfd.readouterr())
    assert left.value.code == code, said
    return said


def test_cells_are_means_over_seeds_and_dense_stands_in_every_target(runs: Path) -> None:
    made = pivot(read_runs([runs]), ["method"], ["sparsity", "epochs"])
    assert made.row_places == (("dense",), ("agp",), ("ocp",))
    assert made.col_places == ((0.8, 5), (0.8, 10), (0.9, 5), (0.9, 10))
    assert len(made.cells) == 12
    cell = made.cells[("ocp",), (0.9, 10)]
    assert cell.n == 3
    assert cell.mean == pytest.approx(0.8 + 0.1 - 0.01 + 0.01 + 0.02)
    assert cell.spread == pytest.approx(0.0)  # what the seed adds, the method takes away
    dense = [made.cells[("dense",), (sparsity, 5)].by_seed for sparsity in (0.8, 0.9)]
    assert dense[0] == dense[1] == pytest.approx({0: 0.905, 1: 0.906, 2: 0.907})


def test_what_varies_is_found(runs: Path) -> None:
    made = pivot(read_runs([runs]))
    assert (made.rows, made.cols) == (("method",), ("target", "epochs"))
    write_run(runs, "ocp", 0.8, seed=7, epochs=5, settings={"alpha": 9})
    assert pivot(read_runs([runs])).rows == ("method", "pruning.alpha")


def test_differences_are_paired_by_seed(runs: Path) -> None:
    made = pivot(read_runs([runs]), ["method"], ["sparsity", "epochs"])
    found = made.against(made.read_baseline("agp"))
    assert (("agp",), (0.8, 5)) not in found
    one = found[("ocp",), (0.8, 5)]
    assert (one.n, one.difference, one.error) == (3, pytest.approx(0.02), pytest.approx(0.01 / math.sqrt(3)))
    assert one.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt(3) with two degrees of freedom
    assert made.against(made.read_baseline("sparsity=90 %"))[("agp",), (0.8, 5)].difference == pytest.approx(0.01)


def test_a_baseline_needs_no_arguments_that_only_the_others_have(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "dense", seed=seed, test_acc=0.95)
        for alpha in (10, 14):
            more = {"settings": {"alpha": alpha}, "test_acc": 0.9 + alpha / 1000}
            write_run(tmp_path / f"{alpha}", "ocp", seed=seed, **more)  # type: ignore[arg-type]
        write_run(tmp_path, "agp", seed=seed, test_acc=0.9, settings={"begin": 0.1})
    made = pivot(read_runs([tmp_path]), ["method", "alpha", "begin"], ["target"])
    ocp, agp, col = ("ocp", 10, None), ("agp", None, 0.1), ("90 % zeros",)
    against = {name: made.against(made.read_baseline(name)) for name in ("agp", "dense", "ocp", "method=ocp,alpha=14")}
    assert against["agp"][ocp, col].difference == pytest.approx(0.01)
    assert against["dense"][ocp, col].difference == pytest.approx(-0.04)
    assert against["method=ocp,alpha=14"][agp, col].difference == pytest.approx(-0.014)
    assert against["method=ocp,alpha=14"][ocp, col].difference == pytest.approx(-0.004)
    assert "No single cell" not in paired_sheet(made, against["agp"], "agp").note
    assert against["ocp"] == {}  # which of the two?
    note = paired_sheet(made, against["ocp"], "ocp").note
    assert note.endswith("No single cell of the baseline with equal settings and seeds for all of: dense; agp, begin 0.1.")


def test_pairs_need_equal_seeds() -> None:
    assert compare_paired({0: 0.5}, {1: 0.4}) is None
    one = compare_paired({0: 0.5, 2: 0.3}, {0: 0.4})
    assert one is not None
    assert (one.n, one.error, one.p) == (1, None, None)
    same = compare_paired({0: 0.5, 1: 0.5}, {0: 0.4, 1: 0.4})
    assert same is not None
    assert same.p is None  # no spread, no test


def test_the_t_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    ours, other = [0.81, 0.84, 0.79, 0.85], [0.80, 0.79, 0.80, 0.81]
    found = compare_paired(dict(enumerate(ours)), dict(enumerate(other)))
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_rel(ours, other).pvalue)


@pytest.mark.parametrize(
    ("rows", "cols", "words"),
    [
        (["method"], ["sparsity"], "mixes runs that differ in train.epochs (10, 5): add it to --rows or --cols"),
        (["metod"], [], "No run has a setting 'metod': did you mean 'method'?"),
    ],
)
def test_cells_that_would_mix_runs_are_refused(rows: list[str], cols: list[str], words: str, runs: Path) -> None:
    with pytest.raises(EspalierError) as said:
        pivot(read_runs([runs]), rows, cols)
    assert words in str(said.value)


def test_a_path_with_other_images_is_other_data(tmp_path: Path) -> None:
    """Where as many images lie, another path is another name of the same data."""
    for seed, images in enumerate(({"train": 9000}, {"train": 9000}, {"train": 90})):
        write_run(tmp_path, "ocp", 0.9, seed=seed, images=images)
    full, moved, tiny = (
        replace(run, settings={**run.settings, "data.path": f"/x/{run.seed}"}) for run in read_runs([tmp_path])
    )
    (row,) = summarise([full, moved])
    assert row.n == 2
    assert [(row.n, row.variant) for row in summarise([full, tiny])] == [(1, "path=/x/0"), (1, "path=/x/2")]
    assert pivot([full, tiny]).rows == ("method", "data.path")
    with pytest.raises(EspalierError, match=r"mixes runs that differ in data.path \(/x/0, /x/2\)"):
        pivot([full, tiny], ["method"])
    few = replace(tiny, settings={**tiny.settings, "data.limit": 90})
    assert [(row.n, row.variant) for row in summarise([full, moved, few])] == [(2, ""), (1, "limit=90")]


def test_the_end_of_several_keys_is_no_key() -> None:
    with pytest.raises(EspalierError, match=r"'width' may be data.width or model.width: write it out"):
        resolve_keys(["width"], ["model.width", "data.width"])


def test_the_same_run_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "copy", "ocp", 0.8, seed=0, epochs=5)
    with pytest.raises(EspalierError, match="are the same run of the cell"):
        pivot(read_runs([runs, tmp_path / "copy"]))


def test_unfinished_runs_are_left_out(runs: Path) -> None:
    write_run(runs, "agp", 0.5, epochs=5, stop_after=2)
    assert (0.5, 5) not in pivot(read_runs([runs]), ["method"], ["sparsity", "epochs"]).col_places


PAPER: dict[str, Any] = {
    "source": "Table 1",
    "numbers": [
        {"pruning.method": "ocp", "pruning.sparsity": 0.9, "test_acc": 0.9123, "spread": 0.002, "tag": "P"},
        {"method": "agp", "test_acc": 0.88, "tag": "F"},
        {"method": "snip", "test_acc": 0.5, "tag": "P"},
    ],
}


def test_published_numbers_stand_beside_ours(runs: Path) -> None:
    made = pivot(read_runs([runs]), ["method"], ["sparsity", "epochs"])
    there = published(made, read_paper(PAPER, "here"))
    assert set(there.cells) == {(("ocp",), (0.9, epochs)) for epochs in (5, 10)} | {
        (("agp",), (sparsity, epochs)) for sparsity in (0.8, 0.9) for epochs in (5, 10)
    }
    sheet = value_sheet(made, there)
    assert "/ 91.23 ± 0.20 [P]" in sheet.rows[2][3]
    assert "[P] printed in the paper, [F] read off a figure of the authors. Source: Table 1." in sheet.note
    assert "1 of the paper's numbers belong to runs that are not in this table." in sheet.note
    assert join([read_paper(PAPER, "a"), read_paper(PAPER, "b")]).source == "Table 1"


def test_the_numbers_come_from_the_sweeps_folder(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (runs / "sweep.json").write_text(json.dumps({"name": "x", "claim": "OCP is ahead.", "paper": PAPER, "runs": []}))
    said = lines(capfd, runs, "--where", "epochs=5")
    assert said.startswith("# OCP is ahead.\n")
    assert "91.23 ± 0.20 [P]" in said


def test_what_it_takes_to_reach_an_accuracy(runs: Path) -> None:
    rows = summarise(read_runs([runs]))
    least = {(one.label, one.fixed): one.row and one.row.epochs for one in least_budget(rows, 0.895)}
    assert least == {
        ("dense", "dense"): 5,
        ("agp", "80 % zeros"): 10,
        ("ocp", "80 % zeros"): 10,
        ("agp", "90 % zeros"): 10,
        ("ocp", "90 % zeros"): 10,
    }
    most = {(one.label, one.fixed): one.row and one.row.aim for one in most_compression(rows, 0.905)}
    assert most == {
        ("agp", "5 epochs"): None,
        ("agp", "10 epochs"): "80 % zeros",
        ("ocp", "5 epochs"): None,
        ("ocp", "10 epochs"): "90 % zeros",
    }


def test_families_are_told_by_all_settings_and_not_by_a_label(tmp_path: Path) -> None:
    """A label names what differs within one number of epochs: it may differ for one family, and be equal for two."""
    for epochs, alpha, accuracy in ((5, 14, 0.8), (10, 14, 0.9), (10, 10, 0.9)):
        write_run(tmp_path / f"{alpha}", "ocp", 0.9, epochs=epochs, settings={"alpha": alpha}, test_acc=accuracy)
    rows = summarise(read_runs([tmp_path]))
    found = least_budget(rows, 0.8)
    assert {one.label: one.row and one.row.epochs for one in found} == {"ocp (alpha=10)": 10, "ocp (alpha=14)": 5}
    assert {one.label for one in most_compression(rows, 0.8)} == {"ocp (alpha=10)", "ocp (alpha=14)"}


def test_different_settings_at_different_epochs_are_no_family(tmp_path: Path) -> None:
    for epochs, alpha in ((5, 10), (10, 14)):
        write_run(tmp_path, "ocp", 0.9, epochs=epochs, settings={"alpha": alpha}, test_acc=0.9)
    found = least_budget(summarise(read_runs([tmp_path])), 0.8)
    assert {one.label: one.row and one.row.epochs for one in found} == {"ocp (alpha=10)": 5, "ocp (alpha=14)": 10}
    made = pivot(read_runs([tmp_path]))
    assert (made.rows, made.cols) == (("method", "pruning.alpha"), ("epochs",))


def test_training_macs_follow_the_cuts(tmp_path: Path) -> None:
    write_cut_run(tmp_path, "ocsp", 0.5, epochs=10, cut_after=(5.0,))
    write_run(tmp_path, "dense", epochs=10)
    dense, cut = sorted(read_runs([tmp_path]), key=lambda run: run.method)
    known = dense_macs([dense, cut])
    full = 220 * 64 * 40_000_000
    assert training_macs(dense, known) == full
    assert training_macs(cut, known) == pytest.approx(0.75 * full, rel=0.001)
    assert training_macs(dense, {}) is None


@pytest.mark.parametrize(("width", "size", "known"), [(8, 32, True), (16, 32, False), (8, 64, False)])
def test_the_macs_of_one_width_or_size_are_not_anothers(width: int, size: int, known: bool, tmp_path: Path) -> None:
    write_cut_run(tmp_path, "ocsp", 0.5)
    write_run(tmp_path, "dense")
    dense, cut = sorted(read_runs([tmp_path]), key=lambda run: run.method)
    dense = replace(dense, settings={**dense.settings, "model.width": width, "data.image_size": size})
    cut = replace(cut, settings={**cut.settings, "model.width": 8, "data.image_size": 32})
    assert (training_macs(dense, dense_macs([dense, cut])) is not None) == known


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto([]) == []
    assert pareto([(3, 0.9), (1, 0.5), (2, 0.5), (1, 0.4), (4, 0.95), (5, 0.2)]) == [1, 0, 4]


def test_every_format(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--rows", "method", "--cols", "sparsity,epochs", "--baseline", "agp"]
    markdown = lines(capfd, runs, *options)
    assert "| ocp | **88.00 ± 0.00 (3)** |" in markdown
    assert "| ocp | +2.00 ± 0.58, p = 0.074 (3) |" in markdown
    rows = list(csv.DictReader(io.StringIO(lines(capfd, runs, *options, "--format", "csv"))))
    assert len(rows) == 12
    ocp = next(row for row in rows if row["method"] == "ocp")
    assert (float(ocp["mean"]), ocp["n"], ocp["pairs"]) == (pytest.approx(0.88), "3", "3")
    tex = lines(capfd, runs, *options, "--format", "latex")
    assert r"ocp & \textbf{88.00 $\pm$ 0.00 (3)}" in tex
    assert r"80 \%, 5 epochs" in tex
    page = tmp_path / "sub" / "table.html"
    assert "written to" in lines(capfd, runs, *options, "--out", page)
    html = page.read_text()
    assert html.count("<table>") == 2
    assert html.count("<svg") >= 2
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")


def test_plots_of_cost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs", "dense", seed=seed)
        write_cut_run(tmp_path / "runs", "ocsp", 0.5, seed=seed)
        write_cut_run(tmp_path / "runs", "epi", 0.3, seed=seed)
        write_cut_run(tmp_path / "runs", "magnitude", 0.5, seed=seed)
    assert "5 plots written" in lines(capfd, tmp_path / "runs", "--plots", tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"cost-1.svg", "cost-2.svg", "cost-macs-1.svg", "cost-macs-2.svg", "front.svg"}
    for path in (tmp_path / "plots").iterdir():
        assert "Pareto front" in ElementTree.parse(path).getroot().attrib["aria-label"]


def test_reached_as_csv(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = lines(capfd, runs, "--at-accuracy", "0.905", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(said)))
    ocp = next(
        row for row in rows if row["question"] == "most compression" and (row["method"], row["fixed"]) == ("ocp", "10 epochs")
    )
    assert (ocp["target"], ocp["epochs"]) == ("90 % zeros", "10")
    assert "not reached | best 88.00 at 80 % zeros" in lines(capfd, runs, "--at-accuracy", "0.905")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--baseline", "opc"), "There is no baseline 'opc' in this table: known are dense, agp, ocp"),
        (("--at-accuracy", "90"), "--at-accuracy is a share"),
        (("--format", "pdf"), "written as markdown, csv, latex, html, not 'pdf'"),
        (("--out", "table.pdf"), "Which format has 'table.pdf'?"),
        (("--where", "epochs"), "must have the form key=value"),
        (("--where", "epochs=3"), "No run has epochs=3"),
        (("--where", "epoch=3"), "did you mean 'epochs'?"),
        (("--value", "speed"), "A table shows one of test_acc"),
        (("--at-epoch", "3", "--value", "test_acc"), "--at-epoch knows val_acc, sparsity, sparsity_all, seconds, not test_acc"),
        (("--at-epoch", "3", "--at-accuracy", "0.9"), "leave --at-epoch out"),
        (("--at-epoch", "11"), "None of these runs has reached epoch 11"),
        (("--paper", "nothing.yaml"), "There is no grid file 'nothing.yaml'"),
    ],
)
def test_mistakes_end_in_one_sentence(
    options: tuple[str, ...], words: str, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = lines(capfd, runs, *options, code=2)
    assert words in said
    assert said.count("\n") == 1


def test_an_earlier_epoch_of_runs_finished_or_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    folders = [
        write_run(root, "ocp", seed=0),
        write_run(root, "ocp", seed=1, stop_after=6),
        write_run(root, "agp", stop_after=2),
    ]
    records = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[3]) for folder in folders[:2]]
    said = lines(capfd, root, "--at-epoch", "4")
    mean = 50 * (records[0]["val_acc"] + records[1]["val_acc"])
    assert "Validation accuracy after epoch 4 (%)" in said
    assert f"{mean:.2f}" in said
    assert "agp" not in said
    assert "Zeros among the selected weights after epoch 4 (%)" in lines(capfd, root, "--at-epoch", "4", "--value", "sparsity")
    assert "of the last epoch" not in lines(capfd, root, "--at-epoch", "4", "--rows", "method,sparsity", "--baseline", "ocp")
    page = tmp_path / "table.html"
    lines(capfd, root, "--at-epoch", "4", "--out", page)
    assert "after epoch 4" in page.read_text()


def test_start_weights_of_each_seed_belong_to_the_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "slr", 0.9, seed=seed)
    one, other = (replace(run, settings={**run.settings, "model.weights": f"s{run.seed}"}) for run in read_runs([tmp_path]))
    (row,) = summarise([one, other])
    assert row.n == 2
    assert pivot([one, other]).rows == ("method",)
    again = replace(other, settings={**other.settings, "model.weights": "s0"}, folder=tmp_path / "again")
    assert pivot([one, other, again]).rows == ("method", "model.weights")
