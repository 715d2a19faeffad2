"""Rows in words."""

from pathlib import Path

from espalier.records import read_runs
from espalier.records.summary import Row, summarise
from espalier.report import markdown_table, table_rows
from tests.report.fabricate import write_comparison, write_run


def _rows(folder: Path) -> list[Row]:
    return summarise(read_runs([folder]))


def test_best_is_marked_among_equals_only(tmp_path: Path) -> None:
    write_run(tmp_path, "dense", test_acc=0.99)
    write_run(tmp_path, "agp", 0.9, test_acc=0.90)
    write_run(tmp_path, "ocp", 0.9, test_acc=0.95)
    write_run(tmp_path, "ocp", 0.95, test_acc=0.80)  # without a rival
    marked = [(line.method, line.sparsity) for line in table_rows(_rows(tmp_path)) if line.best]
    assert marked == [("ocp", "90 %")]


def test_difference_is_to_dense_of_the_same_budget(tmp_path: Path) -> None:
    write_run(tmp_path, "dense", epochs=3, test_acc=0.80)
    write_run(tmp_path, "dense", epochs=9, test_acc=0.90)
    write_run(tmp_path, "ocp", 0.9, epochs=9, test_acc=0.8875)
    write_run(tmp_path, "ocp", 0.9, epochs=27, test_acc=0.89)
    differences = {line.budget: line.against_dense for line in table_rows(_rows(tmp_path)) if line.method == "ocp"}
    assert differences == {"9 epochs": "−1.25", "27 epochs": "–"}


def test_times_that_noise_could_explain_are_not_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "agp", seconds=100.0)
    write_run(tmp_path / "a", "ocp", seconds=101.0)
    assert not any(line.fastest for line in table_rows(_rows(tmp_path)))
    write_run(tmp_path / "a", "one-shot", seconds=120.0)
    assert [line.method for line in table_rows(_rows(tmp_path)) if line.fastest] == ["agp", "ocp"]


def test_markdown_has_one_line_per_row_and_equal_columns(tmp_path: Path) -> None:
    write_comparison(tmp_path, (0.9,), seeds=2, epochs=(3,))
    lines = markdown_table(_rows(tmp_path)).splitlines()
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1
    assert "model" not in lines[0]
    assert sum("**" in line for line in lines) >= 1


def test_markdown_names_model_and_data_where_they_differ(tmp_path: Path) -> None:
    write_run(tmp_path, model="a|b")
    write_run(tmp_path, model="c")
    text = markdown_table(_rows(tmp_path))
    assert text.startswith("| model | data |")
    assert "a\\|b" in text
