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

from mrt.ablate.table import LEVEL
from mrt.files import replacing

BLUE, ORANGE, GREY = (
    "#0072B2",
    "#D55E00",
    "#6e6e6e",
)  # of Okabe and Ito's palette: different for every kind of colour vision
WIDTH, ROW, REST = 6.8, 0.27, 1.05  # inches: a two-column page, a row, everything else
FONT = 8.0  # points


def draw(report: Mapping[str, Any], stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``."""
    figure = picture(report)
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
