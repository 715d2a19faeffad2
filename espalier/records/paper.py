"""Published numbers, written down beside an experiment so that tables can show them next to one's own.

In a grid file::

    paper:
      source: Table 1 of Somebody et al., Conference 2022
      numbers:
        - {pruning.method: ocp, pruning.sparsity: 0.95, test_acc: 0.7934, tag: L}

Every number says where it belongs (settings of a run), what it is (`test_acc`, a share) and how far it can be trusted (`tag`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import EspalierError
from espalier.records.reading import flatten

TAGS = {
    "P": "printed in the paper",
    "L": "from a log or data file that the authors published",
    "C": "from the authors' code",
    "F": "read off a figure of the authors",
    "S": "quoted by somebody else",
}
VALUES = ("test_acc", "val_acc", "keep_macs", "keep_params", "seconds")
_OTHER = ("tag", "note", "spread")


@dataclass(frozen=True)
class PaperNumber:
    """One published number; shares in [0, 1], `seconds` in seconds. `spread` is what the paper gives after its ±."""

    where: Mapping[str, object]
    values: Mapping[str, float]
    tag: str
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """The published numbers of an experiment and where they come from."""

    source: str = ""
    numbers: tuple[PaperNumber, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        """The tags that occur, explained."""
        return {tag: words for tag, words in TAGS.items() if any(number.tag == tag for number in self.numbers)}


def read_paper(raw: object, where: str) -> Paper:
    """Read a `paper` section.

    Args:
        raw: the section as it is in the file; None: there is none.
        where: the file, for error messages.

    Raises:
        EspalierError: an entry has no number, no tag or one that is no share.
    """
    if raw is None:
        return Paper()
    if not isinstance(raw, Mapping) or not isinstance(raw.get("numbers"), list) or set(raw) - {"source", "numbers"}:
        raise EspalierError(f"The section 'paper' of {where} must have the keys 'source', a text, and 'numbers', a list.")
    return Paper(str(raw.get("source", "")), tuple(_numbers(raw["numbers"], where)), dict(raw))


def join(papers: Iterable[Paper]) -> Paper:
    """The numbers of several experiments together."""
    papers = [paper for paper in papers if paper.numbers]
    sources = dict.fromkeys(paper.source for paper in papers if paper.source)
    return Paper("; ".join(sources), tuple(number for paper in papers for number in paper.numbers))


def _numbers(entries: Iterable[object], where: str) -> Iterable[PaperNumber]:
    for count, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise EspalierError(f"Number {count} of the section 'paper' of {where} must be a mapping, not {entry!r}.")
        values = {key: _value(key, entry[key], where) for key in VALUES if key in entry}
        if not values or entry.get("tag") not in TAGS:
            raise EspalierError(
                f"Number {count} of the section 'paper' of {where} needs one of {', '.join(VALUES)} and a tag, "
                f"one of {', '.join(TAGS)}."
            )
        spread = entry.get("spread")
        place = {key: value for key, value in entry.items() if key not in VALUES and key not in _OTHER}
        yield PaperNumber(
            dict(flatten(place)),
            values,
            entry["tag"],
            None if spread is None else _value("spread", spread, where),
            str(entry.get("note", "")),
        )


def _value(key: str, value: object, where: str) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not (0 <= float(value) <= 1 or (key == "seconds" and float(value) > 0)):  # type: ignore[arg-type]
        kind = "a time in seconds" if key == "seconds" else "a share, 0.9 for 90 %"
        raise EspalierError(f"The section 'paper' of {where} has {key}: {value!r}, which should be {kind}.")
    return float(value)  # type: ignore[arg-type]
