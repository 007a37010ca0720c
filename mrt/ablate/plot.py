"""A picture of a report as wide as a paper's page: every seed, the mean and its interval.

Beside them are the differences to the base row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mrt.ablate.curves import MEASURED, of_rows
from mrt.ablate.table import LEVEL
from mrt.files import replacing

BLUE, ORANGE, GREY = (
    "#0072B2",
    "#D55E00",
    "#6e6e6e",
)  # of Okabe and Ito's palette: different for every kind of colour vision
WIDTH, ROW, REST = 6.8, 0.27, 1.05  # inches: a two-column page, a row, everything else
FONT = 8.0  # points


# Okabe and Ito's palette, black first; with dashes, for more rows than colours.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":")


def draw(report: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` and, where trials have curves, ``stem-epochs`` of both kinds."""
    paths, way, beside = _write(picture(report), stem), on_the_way(report), f"{stem.name}-epochs"
    if way is not None:
        return [*paths, *_write(way, stem.with_name(beside))]
    for suffix in (".png", ".svg"):  # of an earlier report
        stem.with_name(beside + suffix).unlink(missing_ok=True)
    return paths


def _write(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path, canvas, options in zip(
        paths, (FigureCanvasAgg, FigureCanvasSVG), ({"dpi": 200}, {"metadata": {"Date": None}}), strict=True
    ):
        with replacing(path) as file:
            canvas(figure).print_figure(file, format=path.suffix[1:], **options)
    return paths


def picture(report: Mapping[str, Any]) -> Figure:
    """Two panels with a line per row: AP50, and its difference to the base row seed by seed."""
    rows = report["rows"]
    places = range(len(rows) - 1, -1, -1)
    figure = Figure(figsize=(WIDTH, REST + ROW * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    zero = {trial["seed"]: trial for row in rows if row["base"] for trial in row["trials"]}
    for place, row in zip(places, rows, strict=True):
        colour = ORANGE if row["base"] else BLUE
        seeds = list({trial["node"]: trial["metrics"]["AP50"] for trial in row["trials"]}.values())
        _line(left, place, row["metrics"].get("AP50"), seeds, colour)
        pairs = {
            (trial["node"], zero[trial["seed"]]["node"]): (
                trial["metrics"]["AP50"],
                zero[trial["seed"]]["metrics"]["AP50"],
            )
            for trial in row["trials"]
            if trial["seed"] in zero and not row["base"]
        }
        gains = [None if None in pair else pair[0] - pair[1] for pair in pairs.values()]
        _line(right, place, row["delta"].get("AP50"), gains, colour)
    left.set_yticks(list(places), [row["name"] for row in rows], fontsize=FONT)
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel("AP50 (%)", fontsize=FONT)
    right.set_xlabel(f"Δ AP50 to {report['base']}", fontsize=FONT)
    right.axvline(0, color=ORANGE, linewidth=0.8, zorder=0)
    for axes in (left, right):
        axes.tick_params(labelsize=FONT, length=2.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    several = any(row["metrics"].get("AP50", {}).get("n", 0) > 1 for row in rows)
    how = (
        f"mean, {LEVEL:.0%} t interval; circles: seeds {' '.join(map(str, report['seeds']))}"
        if several
        else f"seed {report['seeds'][0]}"
    )
    sets = ", ".join(data["name"] for data in report["data"])
    where = f"{sets} {report['split']}" + ("; SMOKE TEST, means nothing" if report["smoke"] else "")
    figure.suptitle(f"{report['title']}\n{where}; {how}", fontsize=FONT, ha="left", x=0.01)
    return figure


def on_the_way(report: Mapping[str, Any]) -> Figure | None:
    """What the rows did epoch by epoch: a panel for each of :data:`mrt.ablate.curves.MEASURED` that was
    measured, a line for each row, with the range of its seeds; None where nothing was.
    """
    found = of_rows(report["rows"])
    if not found:
        return None
    names = [row["name"] for row in report["rows"] if any(row["name"] in rows for rows in found.values())]
    looks = {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        }
        for number, name in enumerate(names)
    }
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(WIDTH, 0.75 + 1.75 * rows + 0.14 * len(names)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, [name for name in MEASURED if name in found], strict=False):
        title, unit = MEASURED[name]
        for row, points in found[name].items():
            epochs, means, least, most = zip(*points, strict=True)
            axis.plot(epochs, means, linewidth=1.2, label=row, **looks[row])
            if least != most:
                axis.fill_between(epochs, least, most, color=looks[row]["color"], alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=FONT)
        axis.set_ylabel(unit, fontsize=FONT)
        axis.set_xlabel("epoch", fontsize=FONT)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=FONT, length=2.5)
        axis.grid(color="#e3e3e3", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    handles = [Line2D([], [], label=name, **looks[name]) for name in names]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=FONT, frameon=False)
    several = any(trial["seed"] != report["seeds"][0] for row in report["rows"] for trial in row["trials"])
    how = "mean and range of the seeds" if several else f"seed {report['seeds'][0]}"
    figure.suptitle(f"{report['title']}: on the way ({how})", fontsize=FONT, ha="left", x=0.01)
    return figure


def _line(
    axes: Any, place: float, value: Mapping[str, Any] | None, points: list[float | None], colour: str
) -> None:
    if value is None or value["mean"] is None:
        return
    if value["low"] is not None:
        axes.hlines(place, value["low"], value["high"], color=colour, linewidth=1.6)
        seen = [point for point in points if point is not None]
        axes.plot(
            seen,
            [place + 0.2] * len(seen),
            "o",
            markersize=3,
            markerfacecolor="none",
            markeredgecolor=GREY,
            markeredgewidth=0.7,
        )
    axes.plot([value["mean"]], [place], "D" if value["low"] is not None else "o", markersize=4, color=colour)
