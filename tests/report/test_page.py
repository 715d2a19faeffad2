"""The page and the standalone plots."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from espalier.errors import EspalierError
from espalier.report import save_plots, write_report
from tests.report.fabricate import write_comparison, write_run

VOID = {"meta", "link", "br", "img", "hr"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects what could load something from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    assert parser.open == []
    return parser


def page(folder: Path) -> str:
    return write_report([folder], folder / "report.html").read_text(encoding="utf-8")


def kinds(html: str) -> list[str]:
    return re.findall(r'data-kind="(\w+)"', html)


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=2, epochs=(5, 10))
    html = page(tmp_path)
    found = outline(html)
    assert found.links == ["data:,"]
    assert "script" not in found.tags
    assert "@import" not in html
    assert "url(" not in html


def test_comparison_shows_every_kind_of_plot(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=2, epochs=(5, 10))
    assert kinds(page(tmp_path)) == ["sparsity", "budget", "training", "schedules", "layers"]


def test_plots_without_data_are_explained(tmp_path: Path) -> None:
    write_run(tmp_path)
    html = page(tmp_path)
    assert kinds(html) == ["training", "schedules", "layers"]
    assert "Accuracy against budget: needs finished runs of two budgets" in html
    assert "one run each, so no spread is known" in html


def test_run_without_metrics_still_has_a_row(tmp_path: Path) -> None:
    (write_run(tmp_path, test_acc=0.8125) / "metrics.jsonl").unlink()
    html = page(tmp_path)
    assert "81.25" in html
    assert kinds(html) == ["layers"]


def test_only_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "agp", 0.9, epochs=10, stop_after=4, seed=5)
    html = page(tmp_path)
    assert "No run has finished yet" in html
    assert "agp, 90 % zeros, seed 5, 4 of 10 epochs done" in html
    assert "agp (unfinished)" in html


def test_run_that_has_not_begun(tmp_path: Path) -> None:
    write_run(tmp_path, stop_after=0)
    assert kinds(page(tmp_path)) == []


def test_only_dense_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "dense")
    assert kinds(page(tmp_path)) == ["training"]


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>&\"y\""
    write_run(tmp_path / "a", "ocp", 0.9, model=name.replace("/", "|"), layers=[(name, 100)])
    write_run(tmp_path / "b", "ocp", 0.9, model="other", data=name, settings={"note": name})
    folder = write_run(tmp_path / "b", "agp", 0.9, model="other", data=name, stop_after=2)
    (folder / "failed.json").write_text('{"error": "<img src=x onerror=alert(1)>"}')
    for method in ("<b>own</b>",):
        write_run(tmp_path / "c", "ocp", 0.9).joinpath("result.json").write_text(f'{{"method": "{method}", "test_acc": 0.5}}')
    html = page(tmp_path)
    found = outline(html)
    assert not {"script", "b", "img"} & set(found.tags)


def test_lead_within_the_spread_is_said(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.94)):
        write_run(tmp_path, "ocp", 0.9, seed=seed, test_acc=accuracy)
        write_run(tmp_path, "agp", 0.9, seed=seed, test_acc=accuracy - 0.01)
        write_run(tmp_path, "one-shot", 0.9, seed=seed, test_acc=accuracy - 0.2)
    html = page(tmp_path)
    assert "ocp is ahead with 92.00 ± 2.83 %; agp within one standard deviation of it" in html


def test_same_runs_give_the_same_page(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=2, epochs=(4,))
    assert page(tmp_path) == page(tmp_path)


def test_page_goes_into_a_folder_or_a_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    assert write_report([run], tmp_path) == tmp_path / "report.html"
    assert write_report([run], tmp_path / "new" / "page.html").is_file()


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(EspalierError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "page.html")


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match="No runs in"):
        write_report([tmp_path], tmp_path / "report.html")


def test_standalone_plots_are_whole_svg_files(tmp_path: Path) -> None:
    write_comparison(tmp_path / "runs", seeds=2, epochs=(5, 10))
    files = save_plots([tmp_path / "runs"], tmp_path / "plots")
    assert {"budget-1.svg", "schedules-2.svg", "training-4.svg"} <= {path.name for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in text
        assert "prefers-color-scheme: dark" in text


def test_only_the_wanted_plots_are_saved(tmp_path: Path) -> None:
    write_run(tmp_path / "runs")
    assert [p.name for p in save_plots([tmp_path / "runs"], tmp_path, ["training"])] == ["training.svg"]
    with pytest.raises(EspalierError, match="'trainings'"):
        save_plots([tmp_path / "runs"], tmp_path, ["trainings"])
