"""Where the zeros are: the share of every layer at the end."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.records import numbers
from espalier.records.summary import Row, mean, spread
from espalier.report.plots.common import Plots, distinct, panel_title
from espalier.report.svg import Axis, Chart, Point, Series, linear_axis, text_width
from espalier.report.tables import row_label


def per_layer(rows: Sequence[Row], slots: dict[str, int]) -> Plots:
    """Share of zeros in every layer at the end, layers from top to bottom, one chart per sparsity at the largest budget."""
    charts = []
    for target in distinct(row.sparsity_target for row in rows if row.sparsity_target):
        members = [row for row in rows if row.sparsity_target == target and row.runs[0].layers]
        members = [row for row in members if row.epochs == max(other.epochs for other in members)]
        if not members:
            continue
        layers = members[0].runs[0].layers
        place = {layer.name: float(number) for number, layer in enumerate(layers)}
        names = tuple((place[layer.name], _shorten(layer.name)) for layer in layers)
        y = Axis(len(layers) - 0.5, -0.5, names, "layer")
        x = linear_axis(0.0, 1.0, "zeros at the end (%)", scale=100)
        series = tuple(
            Series(row_label(row), slots[row_label(row)], _layer_points(row, place, number, len(members)), line=False)
            for number, row in enumerate(members)
        )
        left = 22 + max(text_width(text) for _, text in names)
        height = 24 + len(layers) * (10.0 + 5.0 * len(members))
        charts.append(Chart(panel_title(members[0]), x, y, series, height, left))
    return Plots(
        "layers",
        "Sparsity per layer",
        tuple(charts),
        "" if charts else "no finished run of a pruning method has recorded its layers",
    )


def _layer_points(row: Row, place: dict[str, float], number: int, rivals: int) -> tuple[Point, ...]:
    """A row's mean share of zeros per layer, shifted so that equal values of several rows stay visible."""
    shift = 0.7 * ((number + 0.5) / rivals - 0.5)
    points = []
    for name, y in place.items():
        layers = [layer for run in row.runs for layer in run.layers if layer.name == name]
        if layers:
            shares = [layer.sparsity for layer in layers]
            words = f"{name}, {numbers.percent_spread(mean(shares), spread(shares))} % of {numbers.count(layers[0].total)}"
            points.append(Point(mean(shares) or 0.0, y + shift, note=words))
    return tuple(points)


def _shorten(name: str, longest: int = 16) -> str:
    """The end of a long name: it tells layers apart, its beginning seldom does."""
    name = name.removesuffix(".weight")
    return name if len(name) <= longest else "…" + name[-longest + 1 :]
