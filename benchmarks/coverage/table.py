"""Writes ``table.md`` (every model) and ``coverage.json`` (totals against the bars) from the result lines of both sides and of
the times that both took in turn.

Usage: python -m benchmarks.coverage.table
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.common import machine
from benchmarks.coverage.__main__ import FOLDER, results
from benchmarks.coverage.models import LIST, Entry, load

HOLD, NARROW, FROZEN, EXACT = 0.97, 0.85, 0.10, 1e-5  # the bars
PASSES, PER_PASS = 2, 0.05  # a trace runs the model in both modes, and may take this many seconds a pass besides

Row = dict[str, Any]
HEAD = (
    "| model | M params | input | espalier | groups | params left | frozen | head | native | zeroed | trace / forward "
    "| trace / graph | with trial cut | frozen because | Torch-Pruning | params left | graph / forward |"
)


def held(row: Row) -> bool:
    return bool(row.get("outcome") == "ok")


def ratio(row: Row, part: str, whole: str) -> float | None:
    return row[part] / row[whole] if part in row and row.get(whole) else None


def shown(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def outcome(row: Row) -> str:
    if not row:
        return "not run"
    if held(row):
        return "ok"
    return f"**{row['outcome']}** ({row['stage']}): {row.get('error', '')}".replace("|", "/")[:150]


def exactness(row: Row, oracle: str) -> str:
    if oracle == "zeroed" and row.get("exact_groups") == 0:
        return ""
    if oracle == "native" and (row.get("misplaced") or row.get("stale")):
        return "wrong slices" if row["misplaced"] else "stale integers"
    return "error" if f"{oracle}_error" in row else shown(row.get(f"{oracle}_difference"), ".0e")


def reasons(row: Row) -> str:
    """The three largest, without the places in brackets."""
    parts: dict[str, float] = {}
    for reason, part in row.get("reasons", {}).items():
        short = reason.partition(" (")[0]
        parts[short] = parts.get(short, 0.0) + part
    top = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return "; ".join(f"{part:.1%} {reason}" for reason, part in top if part >= 0.0005).replace("|", "/")


def taken(row: Row, what: str, base: str = "forward") -> float | None:
    """The median ratio of a time to another, of the same rounds."""
    return row.get(f"over_{base}", {}).get(what)


def line(entry: Entry, ours: Row, theirs: Row, speed: Row) -> str:
    cells = [
        entry.key,
        f"{entry.parameters / 1e6:.1f}",
        f"{entry.input[1]}",
        outcome(ours),
        str(ours.get("groups", "")),
        shown(ratio(ours, "parameters_after", "parameters")),
        shown(ours.get("frozen_share"), ".1%"),
        shown(ours.get("head_share"), ".1%"),
        exactness(ours, "native"),
        exactness(ours, "zeroed"),
        shown(taken(speed, "trace"), ".1f"),
        shown(taken(speed, "trace", "graph")),
        shown(taken(speed, "trace and trial cut", "graph")),
        reasons(ours),
        outcome(theirs),
        shown(ratio(theirs, "parameters_after", "parameters")),
        shown(taken(speed, "graph"), ".1f"),
    ]
    return "| " + " | ".join(cells) + " |"


def totals(entries: list[Entry], ours: dict[str, Row], theirs: dict[str, Row], speed: dict[str, Row]) -> Row:
    rows = [ours.get(entry.key, {}) for entry in entries]
    others = [theirs.get(entry.key, {}) for entry in entries]
    traced = [row for row in rows if "groups" in row]
    count = len(entries)
    holding, little = sum(map(held, rows)), sum(row["frozen_share"] <= FROZEN for row in traced)
    return {
        "models": count,
        "run": sum(map(bool, rows)),
        "traced": len(traced),
        "held": holding,
        "held_share": holding / count,
        "held_bar": {"at_least": HOLD, "met": holding >= HOLD * count},
        "at_most_10_percent_frozen": little,
        "little_frozen_share": little / count,
        "little_frozen_bar": {"at_least": NARROW, "met": little >= NARROW * count},
        "groups": sum(row["groups"] for row in traced),
        "exact_groups": sum(row.get("exact_groups", 0) for row in traced),
        "native_within_1e-5": within(traced, "native"),
        "zeroed_within_1e-5": within(traced, "zeroed"),
        "torch_pruning": {
            "run": sum(map(bool, others)),
            "held": sum(map(held, others)),
            "stages_of_failure": stages(others),
        },
        "speed": speeds([speed[entry.key] for entry in entries if "times" in speed.get(entry.key, {})]),
    }


def speeds(rows: list[Row]) -> Row:
    """A trace beside a forward pass and Torch-Pruning's graph, where that can be built, and where its groups can be listed."""
    both, listed = ([row for row in rows if base in row] for base in ("over_graph", "over_groups"))
    variants = ("trace", "trace and trial cut")
    return {
        "trace_over_forward_median": median(row["over_forward"]["trace"] for row in rows),
        "within_two_forwards_and_50_ms_per_pass": sum(
            row["times"]["trace"] <= 2 * row["times"]["forward"] + PASSES * PER_PASS for row in rows
        ),
        "of": len(rows),
        "over_torch_pruning_graph": {
            name: {
                "median": median(row["over_graph"][name] for row in both),
                "of_all_together": sum(row["times"][name] for row in both) / sum(row["times"]["graph"] for row in both),
                "not_slower": sum(row["over_graph"][name] <= 1 for row in both),
                "of": len(both),
            }
            for name in variants
        },
        "over_torch_pruning_graph_with_groups": {
            name: {
                "median": median(row["over_groups"][name] for row in listed),
                "not_slower": sum(row["over_groups"][name] <= 1 for row in listed),
                "of": len(listed),
            }
            for name in variants
        },
    }


def median(values: Any) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def within(rows: list[Row], oracle: str) -> Row:
    """How many models agree with an oracle; with the native one also in every kept slice and in every integer of a layer.

    The zeroed one has nothing to say where no group is exact.
    """
    if oracle == "zeroed":
        rows = [row for row in rows if row.get("exact_groups", 1)]
    agreeing = [row for row in rows if row.get(f"{oracle}_difference", 1.0) <= EXACT]
    if oracle == "native":
        agreeing = [row for row in agreeing if not row["misplaced"] and not row["stale"]]
    return {"held": len(agreeing), "of": len(rows), "errors": sum(f"{oracle}_error" in row for row in rows)}


def stages(rows: list[Row]) -> dict[str, int]:
    """How many models were lost where; time and memory by themselves."""
    found: dict[str, int] = {}
    for row in rows:
        if row and not held(row):
            place = row["stage"] if row["outcome"] == "fail" else row["outcome"]
            found[place] = found.get(place, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    entries, ours, theirs, speed = load(), results("ours"), results("theirs"), results("speed")
    summary = totals(entries, ours, theirs, speed)
    left_out = json.loads(LIST.read_text())["left_out"]
    content = {"machine": machine(), **summary, "left_out": left_out}
    (FOLDER / "coverage.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = [
        "# Coverage: every model, side by side with Torch-Pruning 1.6.1",
        "",
        "Half the channels of every group cut; `python -m benchmarks.coverage` says how. Shares are of parameters: frozen, of",
        "those outside the head. Native and zeroed: relative difference to the two oracles (oracles.py).",
        "",
        f"espalier holds {summary['held']} of {summary['models']}, Torch-Pruning {summary['torch_pruning']['held']}.",
        "",
        HEAD,
        "| --- |" + " ---: |" * 2 + " --- |" + " ---: |" * 9 + " --- | --- |" + " ---: |" * 2,
    ]
    lines += [line(entry, *(side.get(entry.key, {}) for side in (ours, theirs, speed))) for entry in entries]
    (FOLDER / "table.md").write_text("\n".join(lines) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
