"""What a lottery has shown: accuracy against density for tickets and controls, overlap of masks, instability."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from espalier import lottery
from espalier.recipes.experiments.lottery import Draw
from espalier.recipes.experiments.lottery_settings import CONTROLS, TICKET, Settings
from espalier.recipes.training import runs
from espalier.recipes.training.rewinding import read_moment
from espalier.recipes.training.runs import write_atomically, write_json
from espalier.records.summary import mean, spread

RESULT, TABLE = "lottery.json", "lottery.md"
NOTE = (
    "Test accuracy of the last epoch in percent, mean and standard deviation over n seeds. Tickets have the weights of the "
    "moment that is rewound to; *random re-init* has the same masks and weights drawn anew, *random masks* as many weights in "
    "every layer at random places."
)
OVERLAP_NOTE = (
    "Jaccard index of the masks of two seeds, mean over pairs; by chance: of masks at random places with as many weights in "
    "every layer."
)
INSTABILITY_NOTE = (
    "Highest error on the line between two trainings from one start with the data in another order, minus the mean of its "
    "ends, in points of test accuracy, mean over n seeds."
)
FOUND_NOTE = (
    "A ticket is what a training under a schedule leaves; its survivors go back to the same moment and are trained again with "
    "the masks fixed."
)


def collect(settings: Settings, draws: Sequence[Draw]) -> dict[str, Any]:
    """Everything that is finished, as plain values; shares in [0, 1].

    Returns:
        `rows`, one for every training (kind, round or finder, density, seed, test_acc, ...); `overlap` of each round's masks
        between seeds; `instability` of each round and seed; and the settings.
    """
    return {
        "name": settings.recipe.name,
        "model": settings.recipe.model.name,
        "data": settings.recipe.data.name,
        "epochs": settings.recipe.train.epochs,
        "rewind": settings.rewind,
        "learning_rate_rewinding": settings.keep_weights,
        "fraction": None if settings.densities else settings.fraction,
        "seeds": [one.seed for one in draws],
        "rows": [row for one in draws for row in _rows(settings, one)],
        "overlap": list(_overlaps(settings, draws)),
        "instability": [row for one in draws for row in _instabilities(settings, one)],
    }


def _rows(settings: Settings, one: Draw) -> Iterable[dict[str, Any]]:
    kinds = {TICKET: "round", **{kind: kind for kind in CONTROLS}}
    for number, (kind, folder) in itertools.product(range(settings.last + 1), kinds.items()):
        yield from _row("dense" if number == 0 else kind, number, one, one.folder / f"{folder}-{number:02}")
    for name in settings.finders:
        yield from _row("found", name, one, one.finder(name).folder)
        yield from _row("found-ticket", name, one, one.ticket_folder(name))


def _row(kind: str, which: int | str, one: Draw, folder: Path) -> Iterable[dict[str, Any]]:
    result = runs.read_result(folder)
    if result is not None:
        yield {
            "kind": kind,
            "round" if isinstance(which, int) else "finder": which,
            "seed": one.seed,
            "density": round(1 - result["sparsity"], 9),
            "test_acc": result["test_acc"],
            "test_loss": result["test_loss"],
            "val_acc": result["val_acc"],
            "seconds": result["seconds"],
            "folder": f"{one.folder.name}/{folder.name}",
        }


def _overlaps(settings: Settings, draws: Sequence[Draw]) -> Iterable[dict[str, Any]]:
    for which in (*range(1, settings.last + 1), *settings.finders):
        files = {one.seed: one.masks(which) for one in draws if one.masks(which).exists()}
        masks = {seed: lottery.load_masks(file) for seed, file in files.items()}
        for a, b in itertools.combinations(masks, 2):
            density = lottery.density(masks[a])
            yield {
                "round" if isinstance(which, int) else "finder": which,
                "seeds": [a, b],
                "density": round(density, 9),
                "jaccard": lottery.overlap(masks[a], masks[b])[""],
                "by_chance": by_chance(masks[a], masks[b]),
            }


def by_chance(first: lottery.Tickets, second: lottery.Tickets) -> float:
    """Jaccard index to be expected if each layer had its numbers of weights, n a and n b of n, at random places:

    sum n a b / sum n (a + b - a b). Where all layers have one density d that is d / (2 - d).

    >>> import torch
    >>> by_chance({"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
    0.5
    """
    both = either = 0.0
    for name, mask in first.items():
        size, ours, others = mask.numel(), int(mask.sum()), int(second[name].sum())
        both += ours * others / size
        either += ours + others - ours * others / size
    return both / either if either else 1.0


def _instabilities(settings: Settings, one: Draw) -> Iterable[dict[str, Any]]:
    for number in range(settings.last + 1):
        kept = one.folder / f"line-{number:02}.json"
        if kept.exists():
            density = 1.0 if number == 0 else lottery.density(lottery.load_masks(one.masks(number)))
            yield {"round": number, "seed": one.seed, "density": round(density, 9)} | json.loads(kept.read_text("utf-8"))


def write_results(settings: Settings, draws: Sequence[Draw], folder: Path) -> tuple[Path, Path]:
    """Write `lottery.json` and `lottery.md` into the folder of the lottery; returns both paths."""
    content = collect(settings, draws)
    write_json(folder / RESULT, content)
    write_atomically(folder / TABLE, to_markdown(content).encode())
    return folder / RESULT, folder / TABLE


def to_markdown(content: dict[str, Any]) -> str:
    """The tables of `collect` as Markdown."""
    how = "the learning rate" if content["learning_rate_rewinding"] else "weights"
    head = f"# Lottery tickets: {content['name'] or content['model']}"
    number, unit = read_moment(content["rewind"])
    what = f"{content['model']} on {content['data']}, {content['epochs']} epochs a round"
    about = f"{what}, {how} rewound to {unit.removesuffix('s')} {number}."
    text = [head, "", about, "", *accuracy_table(content), "", NOTE, ""]
    for make, note in ((found_table, FOUND_NOTE), (overlap_table, OVERLAP_NOTE), (instability_table, INSTABILITY_NOTE)):
        table = make(content)
        text += [*table, "", note, ""] if len(table) > 2 else []
    return "\n".join(text)


def accuracy_table(content: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: accuracy against density, for tickets and each control that there is."""
    rows = [row for row in content["rows"] if "round" in row]
    kinds = [TICKET, *(kind for kind in CONTROLS if any(row["kind"] == kind for row in rows))]
    lines = []
    for number in sorted({row["round"] for row in rows}):
        here = [row for row in rows if row["round"] == number]
        tickets = [row for row in here if row["kind"] in ("dense", TICKET)] or here
        cells = [str(number), _percent(mean(row["density"] for row in tickets)), str(len(tickets))]
        for kind in kinds:
            cells.append(_accuracy(row for row in here if row["kind"] == kind or (number == 0 and kind == TICKET)))
        lines.append(cells)
    titles = {TICKET: "ticket", "random-init": "random re-init", "random-masks": "random masks"}
    return _table(["round", "weights left %", "n", *(titles[kind] for kind in kinds)], lines)


def found_table(content: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: each finder's own accuracy, and its ticket's."""
    rows = [row for row in content["rows"] if "finder" in row]
    lines = []
    for name in dict.fromkeys(row["finder"] for row in rows):
        own, again = (
            [row for row in rows if row["finder"] == name and row["kind"] == kind] for kind in ("found", "found-ticket")
        )
        share = _percent(mean(row["density"] for row in own))
        jaccard = [row["jaccard"] for row in content["overlap"] if row.get("finder") == name]
        lines.append([name, share, str(len(own)), _accuracy(own), _accuracy(again), _number(mean(jaccard))])
    return _table(["found by", "weights left %", "n", "training that found it", "ticket", "overlap of seeds"], lines)


def overlap_table(content: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: how much the masks of seeds have in common."""
    lines = []
    for number in sorted({row["round"] for row in content["overlap"] if "round" in row}):
        here = [row for row in content["overlap"] if row.get("round") == number]
        values = [_percent(here[0]["density"]), str(len(here))]
        found, chance = (_number(mean(row[key] for row in here)) for key in ("jaccard", "by_chance"))
        lines.append([str(number), *values, found, chance])
    return _table(["round", "weights left %", "pairs", "overlap", "by chance"], lines)


def instability_table(content: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: the barrier between siblings of every round."""
    lines = []
    for number in sorted({row["round"] for row in content["instability"]}):
        here = [row for row in content["instability"] if row["round"] == number]
        lines.append(
            [str(number), _percent(here[0]["density"]), str(len(here)), _percent(mean(row["instability"] for row in here))]
        )
    return _table(["round", "weights left %", "n", "instability, points"], lines)


def _accuracy(rows: Iterable[dict[str, Any]]) -> str:
    values = [row["test_acc"] for row in rows]
    if not values:
        return "-"
    deviation = spread(values)
    return _percent(mean(values)) + ("" if deviation is None else f" ± {_percent(deviation)}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *lines)]
