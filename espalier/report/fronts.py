"""Every plot of accuracy against costs, for all models and data sets among some runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from espalier.records import Run
from espalier.records.summary import summarise
from espalier.report import palette
from espalier.report.plots import assign_slots
from espalier.report.plots.fronts import all_fronts
from espalier.report.svg import Chart, draw


def front_charts(runs: Iterable[Run]) -> list[tuple[str, Chart]]:
    """Charts with names for their files, such as "cost-1"; model and data lead where there are several.

    Plots without data are left out.
    """
    rows = summarise(runs)
    settings = list(dict.fromkeys((row.model, row.data) for row in rows))
    found = []
    for model, data in settings:
        members = [row for row in rows if (row.model, row.data) == (model, data)]
        prefix = f"{_plain(model)}-{_plain(data)}-" if len(settings) > 1 else ""
        for plots in all_fronts(members, assign_slots(members)):
            for number, chart in enumerate(plots.charts, start=1):
                end = f"-{number}" if len(plots.charts) > 1 else ""
                titled = replace(chart, title=f"{model}, {data}: {chart.title}") if prefix else chart
                found.append((f"{prefix}{plots.kind}{end}", titled))
    return found


def standalone(chart: Chart) -> str:
    """The chart as the content of an SVG file, readable on light and on dark pages."""
    return draw(chart, palette.standalone_rules()) + "\n"


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
