"""Tables of runs in words: cells with mean, spread and number of seeds, the paper's numbers beside, tests below."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espalier.records import numbers
from espalier.records.pairing import Paired
from espalier.records.paper import Paper, PaperNumber
from espalier.records.pivot import Pivot, Place
from espalier.records.reaching import Reached
from espalier.records.settings import is_dense, matches, resolve_keys, words_of
from espalier.report.sheets import Sheet

TITLES = {
    "test_acc": "Test accuracy{when} (%)",
    "val_acc": "Validation accuracy{when} (%)",
    "test_loss": "Test loss{when}",
    "sparsity": "Zeros among the selected weights{when} (%)",
    "sparsity_all": "Zeros among all weights{when} (%)",
    "keep_macs": "MACs left (%)",
    "keep_params": "Parameters left (%)",
    "seconds": "Time of the training{when}",
}
_OF_THE_LAST = ("test_acc", "val_acc", "test_loss")  # what the title says so of
_PLAIN = ("test_loss", "seconds")  # the others are shares


@dataclass(frozen=True)
class Published:
    """The paper's numbers of every place of a pivot, and how many have no place in it."""

    cells: Mapping[tuple[Place, Place], list[PaperNumber]] = field(default_factory=dict)
    paper: Paper = field(default_factory=Paper)
    homeless: int = 0


def published(pivot: Pivot, paper: Paper) -> Published:
    """Find the place of every published number of the pivot's value: where all runs have the settings that it names."""
    cells: dict[tuple[Place, Place], list[PaperNumber]] = {}
    placed = 0
    known = {key for cell in pivot.cells.values() for run in cell.runs for key in run.settings}
    mine = [number for number in paper.numbers if pivot.value in number.values]
    for number in mine:
        wanted = dict(zip(resolve_keys(number.where, known | set(number.where)), number.where.values(), strict=True))
        hits = [place for place, cell in pivot.cells.items() if all(matches(run, wanted) for run in cell.runs)]
        for place in hits:
            cells.setdefault(place, []).append(number)
        placed += bool(hits)
    return Published(cells, paper, len(mine) - placed)


def value_sheet(pivot: Pivot, there: Published, *, epoch: int | None = None) -> Sheet:
    """The table itself, of runs as they stood after ``epoch``; best means of a column are bold, the dense reference apart."""
    note = "Mean and standard deviation (n - 1) over seeds, their number in brackets."
    if there.cells:
        tags = ", ".join(f"[{tag}] {words}" for tag, words in there.paper.tags.items())
        note += f" After the stroke the paper's number: {tags}."
        note += f" Source: {there.paper.source}." if there.paper.source else ""
    if there.homeless:
        note += f" {there.homeless} of the paper's numbers belong to runs that are not in this table."
    rows = [[_cell_words(pivot, row, col, there) for col in pivot.col_places] for row in pivot.row_places]
    return _sheet(pivot, _title(pivot, epoch), rows, note, bold=True)


def _title(pivot: Pivot, epoch: int | None) -> str:
    last = " of the last epoch" if pivot.value in _OF_THE_LAST else ""
    return TITLES[pivot.value].format(when=last if epoch is None else f" after epoch {epoch}")


def paired_sheet(pivot: Pivot, found: Mapping[tuple[Place, Place], Paired], baseline: str) -> Sheet:
    """Differences from the baseline."""
    rows = [[_paired_words(pivot, found.get((row, col))) for col in pivot.col_places] for row in pivot.row_places]
    unit = "" if pivot.value in _PLAIN else " in points"
    note = (
        f"Mean difference{unit} over equal seeds ± its standard error, p of the two-sided paired t-test (not corrected for the "
        f"number of comparisons), number of pairs in brackets."
    )
    alone = [_row_words(pivot, row) for row in pivot.unpaired(found, pivot.read_baseline(baseline))]
    if alone:
        note += f" No single cell of the baseline with equal settings and seeds for all of: {'; '.join(alone)}."
    return _sheet(pivot, f"Difference from {baseline}", rows, note, bold=False)


def reached_sheets(budget: Sequence[Reached], compression: Sequence[Reached], accuracy: float) -> list[Sheet]:
    """What it takes to reach an accuracy."""
    aim = f"{100 * accuracy:.4g} %"
    sheets = []
    for title, fixed, head, found in (
        ("Least budget", "target", "epochs", budget),
        ("Most compression", "budget", "target", compression),
    ):
        if found:
            several = len({(one.model, one.data) for one in found}) > 1
            header = [
                *(["model", "data"] if several else []),
                "method",
                fixed,
                f"{head} for {aim}",
                "accuracy there (%)",
                "time",
            ]
            rows = [(*((one.model, one.data) if several else ()), *_reached_words(one, head)) for one in found]
            note = "Among the runs that were made, by mean accuracy; nothing is interpolated."
            sheets.append(Sheet(f"{title} at {aim}", tuple(header), tuple(rows), note, heads=len(header) - 3))
    return sheets


def to_csv(pivot: Pivot, there: Published, found: Mapping[tuple[Place, Place], Paired] | None) -> str:
    """One line per cell with full precision; shares in [0, 1]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    tests = ["pairs", "difference", "standard_error", "p"] if found is not None else []
    papers = ["paper", "paper_tag"] if there.cells else []
    writer.writerow([*pivot.rows, *pivot.cols, "value", "mean", "std", "n", *tests, *papers])
    for row in pivot.row_places:
        for col in pivot.col_places:
            cell = pivot.cells.get((row, col))
            if cell is None:
                continue
            line: list[object] = [*row, *col, pivot.value, cell.mean, cell.spread, cell.n]
            if found is not None:
                one = found.get((row, col))
                line += [None] * 4 if one is None else [one.n, one.difference, one.error, one.p]
            if there.cells:
                known = there.cells.get((row, col), [])
                line += ["; ".join(f"{n.values[pivot.value]:g}" for n in known), "; ".join(n.tag for n in known)]
            writer.writerow(line)
    return text.getvalue()


def reached_csv(budget: Sequence[Reached], compression: Sequence[Reached]) -> str:
    """What it takes to reach an accuracy, one line per method and target, or method and budget; empty: not reached."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question", "model", "data", "method", "fixed", "epochs", "target", "mean", "std", "n", "seconds"])
    for question, found in (("least budget", budget), ("most compression", compression)):
        for one in found:
            row = one.row
            values = [None] * 6 if row is None else [row.epochs, row.aim, row.acc_mean, row.acc_std, row.n, row.seconds]
            writer.writerow([question, one.model, one.data, one.label, one.fixed, *values])
    return text.getvalue()


def _sheet(pivot: Pivot, title: str, rows: Sequence[Sequence[str]], note: str, *, bold: bool) -> Sheet:
    cols = [", ".join(words_of(key, one) for key, one in zip(pivot.cols, col, strict=True)) for col in pivot.col_places]
    heads = [_heads(pivot, row) for row in pivot.row_places]
    lines = tuple((*head, *cells) for head, cells in zip(heads, rows, strict=True))
    names = tuple(key.rpartition(".")[2] for key in pivot.rows) or ("",)
    header = (*names, *(col or title for col in cols))
    return Sheet(title, header, lines, note, len(names), frozenset(_best(pivot, len(names)) if bold else ()))


def _heads(pivot: Pivot, row: Place) -> tuple[str, ...]:
    return tuple(words_of(key, one) for key, one in zip(pivot.rows, row, strict=True)) or ("all runs",)


def _row_words(pivot: Pivot, row: Place) -> str:
    return ", ".join(word for word in _heads(pivot, row) if word != numbers.NOTHING)


def _best(pivot: Pivot, shift: int) -> list[tuple[int, int]]:
    """The highest mean accuracy among pruned rows of the same column, model, data and the like, where there are two or more."""
    rivals: dict[tuple[object, ...], list[tuple[float, int, int]]] = defaultdict(list)
    same = [n for n, key in enumerate(pivot.rows) if key != "method" and not key.startswith("pruning.")]
    for j, col in enumerate(pivot.col_places if pivot.value in ("test_acc", "val_acc") else ()):
        for i, row in enumerate(pivot.row_places):
            cell = pivot.cells.get((row, col))
            if cell is not None and cell.mean is not None and not is_dense(cell.runs[0]):
                rivals[(j, *(row[n] for n in same))].append((cell.mean, i, j + shift))
    return [max(those)[1:] for those in rivals.values() if len(those) > 1]


def _cell_words(pivot: Pivot, row: Place, col: Place, there: Published) -> str:
    cell = pivot.cells.get((row, col))
    if cell is None or cell.mean is None:
        return numbers.NOTHING
    if pivot.value == "seconds":
        said = numbers.duration(cell.mean) + (f" ± {numbers.duration(cell.spread)}" if cell.spread is not None else "")
    elif pivot.value in _PLAIN:
        said = f"{cell.mean:.4f}" + (f" ± {cell.spread:.4f}" if cell.spread is not None else "")
    else:
        said = numbers.percent_spread(cell.mean, cell.spread)
    papers = "".join(f" / {_paper_words(number, pivot.value)}" for number in there.cells.get((row, col), ()))
    return f"{said} ({cell.n}){papers}"


def _paper_words(number: PaperNumber, value: str) -> str:
    spread = None if number.spread is None else number.spread
    if value == "seconds":
        return f"{numbers.duration(number.values[value])} [{number.tag}]"
    return f"{numbers.percent_spread(number.values[value], spread)} [{number.tag}]"


def _paired_words(pivot: Pivot, found: Paired | None) -> str:
    if found is None:
        return numbers.NOTHING
    if pivot.value in _PLAIN:
        said, error = f"{found.difference:+.4g}", "" if found.error is None else f" ± {found.error:.2g}"
    else:
        said, error = numbers.points(found.difference), "" if found.error is None else f" ± {100 * found.error:.2f}"
    chance = "" if found.p is None else ", p < 0.001" if found.p < 0.001 else f", p = {found.p:.3f}"
    return f"{said}{error}{chance} ({found.n})"


def _reached_words(one: Reached, head: str) -> tuple[str, ...]:
    if one.row is None:
        best = f"best {numbers.percent(one.best.acc_mean)}"
        return one.label, one.fixed, "not reached", f"{best} at {one.best.epochs if head == 'epochs' else one.best.aim}", "–"
    found = str(one.row.epochs) if head == "epochs" else one.row.aim
    accuracy = f"{numbers.percent_spread(one.row.acc_mean, one.row.acc_std)} ({one.row.n})"
    return one.label, one.fixed, found, accuracy, numbers.duration(one.row.seconds)
