"""Plots of a report, 7 inches wide like the text of a paper, in Okabe and Ito's colours.

Classes and runs also differ in dashes or markers. Every function takes plain numbers and returns a matplotlib
figure; :func:`publish` writes it as PNG and SVG and returns the SVG for a page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from mrt.config import DRIVERS, loss_words
from mrt.data.palette import COLOURS as PALETTE
from mrt.data.palette import on_white
from mrt.files import replacing
from mrt.plain import visible
from mrt.report.collect import RunData, Span

# Okabe and Ito's palette, with grey instead of yellow, which is too pale on white.
INK, GROUND = "#1a1a1a", "#ffffff"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A8A8A", INK)
SOURCE_COLOUR, TARGET_COLOUR = COLOURS[0], COLOURS[3]
BEFORE, AFTER = COLOURS[6], COLOURS[0]
TEACHER, STUDENT = COLOURS[0], COLOURS[1]
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
MARKERS = "osD^vPX*"
WIDTH, ROW = 7.0, 2.1  # inches
MANY = 150  # for a curve of more points, its running mean is drawn on top
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "legend.fancybox": False,
    "legend.framealpha": 1,
    "legend.facecolor": GROUND,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.2,
    "figure.dpi": 100,
    "svg.hashsalt": "mrt",
    "text.parse_math": False,  # a name with two $ in it is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_styled = matplotlib.rc_context(STYLE)  # a decorator, because artists take their style when they are created


@dataclass(frozen=True)
class Published:
    """A figure's file, and the figure as SVG to put into a page, in the page's text colour."""

    png: Path
    inline: str


def publish(figure: Figure, folder: Path, name: str) -> Published:
    """Write ``name.png`` (200 dpi) and ``name.svg`` into ``folder``.

    The SVG file has text as outlines, so that it looks the same everywhere.
    """
    png = folder / f"{name}.png"
    _show_hidden(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of other scripts: boxes are drawn
        return _publish(figure, png, folder, name)


def _show_hidden(figure: Figure) -> None:
    """Let control characters in names be drawn as escapes: some cannot be drawn, nor be in an SVG."""
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))


def _publish(figure: Figure, png: Path, folder: Path, name: str) -> Published:
    with matplotlib.rc_context(STYLE), replacing(png) as file:
        figure.savefig(file, format="png", dpi=200, facecolor=GROUND)
    figure.set_layout_engine("none")  # keep the layout that was calculated for the PNG
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path"}), replacing(folder / f"{name}.svg") as file:
        figure.savefig(file, format="svg", facecolor=GROUND, metadata={"Date": None})
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return Published(png, _for_page(text.getvalue(), name))


def _for_page(svg: str, name: str) -> str:
    """The SVG element alone, without web addresses, with unique ids, in the page's font and text colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))

    def unique_id(found: re.Match) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    def plain_font(found: re.Match) -> str:
        return f"font{found[1] or ''}: {found[2]}sans-serif"

    svg = re.sub(r' id="([\w.-]+)"', unique_id, svg)
    svg = re.sub(r"(url\(#|href=\"#)", lambda found: f"{found[1]}{name}-", svg)
    svg = re.sub(r"font(-family)?: ([^;\"]*?)'?DejaVu Sans'?[^;\"]*", plain_font, svg)
    svg = svg.replace(INK, "currentColor").replace(GROUND, f"var(--ground, {GROUND})")
    for name_of, colour in (("blue", COLOURS[0]), ("vermilion", COLOURS[3])):  # too dark on a dark page
        svg = svg.replace(colour.lower(), f"var(--{name_of}, {colour})")
    svg = re.sub(r'<svg ([^>]*?) ?width="[^"]*"', r"<svg \1", svg)
    return re.sub(r'<svg height="[^"]*"', "<svg", svg, count=1)


def _new(
    rows: int = 1, columns: int = 1, height: float = ROW, width: float = WIDTH, **options: Any
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _side_by_side(labels: Iterable[str], most: int) -> int:
    """The number of columns of a legend, at most ``most``, so that the longest label fits."""
    labels = list(labels)
    return max(1, min(len(labels), most, 90 // (8 + max(len(label) for label in labels))))


def look_of_classes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of classes, in the colours that they have in pictures."""
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        turn = number // len(PALETTE)
        looks[name] = {"color": on_white(number), "linestyle": DASHES[turn % len(DASHES)]}
    return looks


def look_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes by name, the same in every figure."""
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        turn, place = divmod(number, len(COLOURS))
        looks[name] = {"color": COLOURS[place], "linestyle": DASHES[turn % len(DASHES)]}
    return looks


def _curve(axis: Axes, x: Sequence[float], y: Sequence[float], label: str, **look: Any) -> None:
    """Draw a curve; a long one faintly, with its running mean over a fiftieth of its length on top."""
    if not x:
        return
    marker = {"marker": "o", "markersize": 3, "clip_on": False} if len(x) <= 12 else {}
    if len(x) <= MANY:
        axis.plot(x, y, label=label, **marker, **look)
        return
    axis.plot(x, y, alpha=0.25, linewidth=0.6, **{**look, "linestyle": "-"})
    width = max(len(x) // 50, 2)
    kernel = np.ones(width) / width
    axis.plot(np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid"), label=label, **look)


def _mark(axis: Axes, spans: Sequence[Span], retrained: Sequence[float]) -> None:
    """Mark borders of stages (solid) and selective retraining (dotted), and set up the axis of epochs."""
    for span in spans[1:]:
        axis.axvline(span.begin, color=INK, linewidth=0.8)
    for epoch in retrained:
        axis.axvline(epoch, color=INK, linewidth=0.9, linestyle=(0, (1, 1.5)))
    if spans:
        axis.set_xlim(spans[0].begin, spans[-1].begin + spans[-1].epochs)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _from_zero(axis: Axes, room: float = 1.05) -> None:
    """Let the axis of values begin at 0 and end at ``room`` times the highest value; what is below 0 is shown
    down to -1.
    """
    lowest = min(max(axis.dataLim.y0, -1.0), 0.0)
    axis.set_ylim(1.05 * lowest, max(axis.dataLim.y1, 1e-9) * room)


def _legend_of_marks(figure: Figure, run: RunData, borders: bool = True) -> None:
    """A legend of the vertical lines; ``borders``: whether the figure shows more than one stage."""
    handles = []
    if borders and len(run.spans) > 1:
        handles.append(Line2D([], [], color=INK, linewidth=0.8, label="a new stage begins"))
    if run.retrained:
        look = {"color": INK, "linewidth": 0.9, "linestyle": (0, (1, 1.5))}
        handles.append(Line2D([], [], **look, label="selective retraining"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7)


OTHERS = "other losses"  # of plug-ins
# What is looked at beside the losses (mrt.engine.shares): title and unit.
LOOKS = {
    "gradient_share": ("share of the gradient", "share"),
    "backbone_share": ("share of it in the backbone", "share"),
    "gradient_cosine": ("pulls with detection", "cosine"),
    "loss_share": ("share of the loss", "share"),
}
UNITS = dict(LOOKS.values()) | {"masked variance explained": "share"}


def panels_of(run: RunData) -> dict[str, dict[str, str]]:
    """Panels of losses by title: names in the log -> labels, as the sections of the settings have them."""
    panels = {
        title: dict(curves)
        for section in run.config.sections().values()
        for title, curves in section.panels.items()
    }
    logged = {name for line in run.of("train") for name in line if "/" in name}
    for kind, (title, _) in LOOKS.items():
        parts = sorted(name.partition("/")[2] for name in logged if name.startswith(f"{kind}/"))
        if len(parts) > (kind != "gradient_cosine"):  # a part that drives alone has all of it
            panels[title] = {f"{kind}/{part}": DRIVERS.get(part, part) for part in parts}
    logged = {name for name in logged if name.partition("/")[0] not in LOOKS}
    named = {name for curves in panels.values() for name in curves}
    known = {
        *named,
        *(f"{domain}/{word}" for domain in ("source", "target") for word in (*named, *loss_words())),
    }
    panels[OTHERS] = {name: name.replace("/", ": ").replace("_", " ") for name in sorted(logged - known)}
    return panels | {"weighted sum": {"total": "total"}}


@_styled
def losses(run: RunData) -> Figure | None:
    """The unweighted losses by part, and their weighted sum."""
    panels = []
    for title, parts in panels_of(run).items():
        curves = {}
        for key, label in parts.items():
            x, y = run.series(key)
            if not x and "/" not in key:  # the mean of both domains, where both were logged
                (x, source), (_, target) = (run.series(f"{side}/{key}") for side in ("source", "target"))
                y = [(a + b) / 2 for a, b in zip(source, target, strict=False)]
            curves[label] = x[: len(y)], y
        if any(x for x, _ in curves.values()):
            panels.append((title, curves))
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure, axes = _new(rows, min(len(panels), 3), height=1.9)
    for axis, (title, curves) in zip(axes.flat, panels, strict=False):
        for (label, (x, y)), look in zip(curves.items(), look_of(list(curves)).values(), strict=True):
            _curve(axis, x, y, label, **look)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_ylabel(UNITS.get(title, "loss"))
        _mark(axis, run.spans, run.retrained)
        several = len(curves) > 1 or title == OTHERS  # whose title names no loss
        _from_zero(axis, 1.4 if several else 1.05)
        if several:
            axis.legend(
                loc="upper right",
                ncols=2,
                handlelength=1.4,
                labelspacing=0.2,
                columnspacing=0.9,
                fontsize=6.5,
                borderaxespad=0.1,
            )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    _legend_of_marks(figure, run)
    return figure


@_styled
def average_precision(run: RunData) -> Figure | None:
    """AP50 of teacher and student over the epochs, and the teacher's by class; None if not measured."""
    networks = [name for name in ("teacher", "student") if run.series("AP50", "eval", network=name)[0]]
    if not networks:
        return None
    figure, axes = _new(1, 2, height=2.6, width_ratios=[1, 1.35])
    for name in networks:
        x, y = run.series("AP50", "eval", network=name)
        colour, dash = (TEACHER, DASHES[0]) if name == "teacher" else (STUDENT, DASHES[1])
        _curve(axes[0, 0], x, y, name, color=colour, linestyle=dash)
    axes[0, 0].set_title("all classes†")
    axes[0, 0].legend(loc="lower right")
    lines = [line for line in run.of("eval") if line["network"] == networks[0]]
    for name, look in look_of_classes(run.classes).items():
        points = [(run.place(line), line.get("per_class", {}).get(name, {}).get("AP50")) for line in lines]
        points = [(x, y) for x, y in points if y is not None]
        _curve(axes[0, 1], [x for x, _ in points], [y for _, y in points], name, **look)
    axes[0, 1].set_title(f"{networks[0]}, by class†")
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=0.3)
    for axis in axes.flat:
        axis.set_xlabel("epoch")
        axis.set_ylabel("AP50 (%)")
        _from_zero(axis)
        _mark(axis, run.spans, run.retrained)
    _legend_of_marks(figure, run)
    return figure


@_styled
def thresholds(run: RunData) -> Figure | None:
    """The threshold of each class after each epoch of teaching."""
    lines = [line for line in run.of("epoch") if line.get("thresholds")]
    if not lines:
        return None
    figure, axes = _new(1, 1, height=2.5)
    axis = axes[0, 0]
    begin = next(span for span in run.spans if span.name == lines[0]["stage"]).begin
    for name, look in look_of_classes(run.classes).items():
        x = [begin, *(run.place(line) for line in lines)]
        later = (line["thresholds"].get(name, math.nan) for line in lines)
        y = [run.config.teacher.threshold_start, *later]
        _curve(axis, x, y, name, **look)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (3, 2), "textcoords": "offset points"}
    teacher = run.config.teacher
    limits = {"lowest allowed": teacher.threshold_min, "highest allowed": teacher.threshold_max}
    for what, limit in limits.items():
        axis.axhline(limit, color=INK, linewidth=0.6, linestyle=(0, (6, 3)))
        axis.annotate(what, (0, limit), **place, fontsize=6.5)
    axis.set_ylabel("threshold on the score")
    axis.set_xlabel("epoch")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _mark(axis, run.spans, run.retrained)
    axis.set_xlim(begin, axis.get_xlim()[1])
    _legend_of_marks(figure, run, borders=False)
    return figure


@dataclass(frozen=True)
class QualityCurve:
    """Precision and recall of pseudo labels over epochs (counted over all stages), and on which images."""

    where: str
    epochs: list[float]
    precision: list[float | None]
    recall: list[float | None]


@_styled
def pseudo_labels(
    run: RunData, quality: Sequence[QualityCurve], source_boxes: float | None, target_boxes: float | None
) -> Figure | None:
    """Pseudo labels per target image by class, compared with boxes per labelled image; and their quality."""
    counted = [line for line in run.of("epoch") if line.get("labels_per_image")]
    x, y = run.series("pseudo_labels")
    if not x:
        return None
    figure, axes = _new(1, 1 + bool(quality), height=2.7)
    axis = axes[0, 0]
    span = next(span for span in run.spans if span.name == "teach")
    if counted:
        bottom = np.zeros(len(counted))
        places = np.array([run.place(line) for line in counted]) - 0.5
        hatches = ("", "///", "...")
        for number, name in enumerate(run.classes):
            values = np.array([line["labels_per_image"].get(name, 0.0) for line in counted])
            turn = number // len(PALETTE)
            look = {"color": on_white(number), "hatch": hatches[turn % len(hatches)], "linewidth": 0}
            width = 0.8 if len(counted) <= 20 else 1.0
            axis.bar(places, values, width, bottom, label=name, **look)
            bottom += values
    else:
        _curve(axis, x, y, "all classes", color=TEACHER)
    for value, label, dash in (
        (source_boxes, "labelled boxes, source", DASHES[0]),
        (target_boxes, "true boxes, target†", DASHES[1]),
    ):
        if value is not None:
            axis.axhline(value, color=INK, linewidth=1, linestyle=dash, label=label)
    axis.set_title("how many")
    axis.set_ylabel("pseudo labels per image")
    _from_zero(axis, 1.6 if counted else 1.25)
    small = {"fontsize": 6.5, "labelspacing": 0.25}
    axis.legend(ncols=2, loc="upper center", handlelength=1.4, columnspacing=1, **small)
    for number, curve in enumerate(quality):
        marker = MARKERS[number] if len(curve.epochs) <= 20 else ""
        look = {"marker": marker, "markersize": 3.5, "clip_on": False, "linestyle": DASHES[number]}
        for what, values, colour in (
            ("precision", curve.precision, COLOURS[0]),
            ("recall", curve.recall, COLOURS[3]),
        ):
            pairs = zip(curve.epochs, values, strict=True)
            points = [(place, value) for place, value in pairs if value is not None]
            places, shown = [place for place, _ in points], [value for _, value in points]
            axes[0, 1].plot(places, shown, label=f"{what}, {curve.where}", color=colour, **look)
        axes[0, 1].set_title("how good (IoU 0.5)†")
        axes[0, 1].set_ylabel("per cent of labels / of true boxes")
        axes[0, 1].set(ylim=(0, 118 + 9 * len(axes[0, 1].lines)), yticks=range(0, 101, 20))
        axes[0, 1].legend(loc="upper right", **small)
    for axis in axes.flat:
        axis.set_xlabel("epoch")
        _mark(axis, run.spans, run.retrained)
        axis.set_xlim(span.begin, span.begin + span.epochs)
    _legend_of_marks(figure, run, borders=False)
    return figure


@_styled
def bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    label: str,
    colours: Sequence[str] | None = None,
    decimals: int = 0,
) -> Figure:
    """Bars of several results side by side, a group per class or error; unknown values are left out."""
    figure, axes = _new(1, 1, height=2.4)
    axis = axes[0, 0]
    width = 0.8 / max(len(values), 1)
    for number, (name, row) in enumerate(values.items()):
        x = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        y = [0.0 if value is None else value for value in row]
        colour = (colours or COLOURS)[number % len(colours or COLOURS)]
        hatch = ("", "///", "...")[number // len(COLOURS) % 3]
        drawn = axis.bar(x, y, width * 0.92, label=name, color=colour, hatch=hatch, linewidth=0)
        if len(values) <= 3:
            texts = ["-" if value is None else f"{value:.{decimals}f}" for value in row]
            axis.bar_label(drawn, texts, fontsize=6.5, padding=1)
    axis.set_xticks(range(len(groups)), list(map(visible, groups)))  # ticks set their texts anew
    axis.set_ylabel(label)
    axis.tick_params(axis="x", length=0)
    axis.margins(y=0.12)
    axis.legend(ncols=_side_by_side(values, 4), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


@_styled
def overlay(runs: Sequence[RunData]) -> Figure | None:
    """The curves of several runs on top of each other."""
    panels = {
        "source: class loss": ("source/class", "train", {}, "loss"),
        "masked autoencoder": ("target/mae", "train", {}, "loss"),
        "target: class loss": ("target/class", "train", {}, "loss"),
        "pseudo labels": ("pseudo_labels", "train", {}, "per image"),
        "teacher on validation images†": ("AP50", "eval", {"network": "teacher"}, "AP50 (%)"),
    }
    curves = {
        title: {run.title: run.series(key, kind, **where) for run in runs}
        for title, (key, kind, where, _) in panels.items()
    }
    curves["mean threshold"] = {run.title: _mean_thresholds(run) for run in runs}
    units = {title: unit for title, (_, _, _, unit) in panels.items()} | {"mean threshold": "score"}
    curves = {title: found for title, found in curves.items() if any(x for x, _ in found.values())}
    if not curves:
        return None
    rows = -(-len(curves) // 3)
    figure, axes = _new(rows, min(len(curves), 3), height=1.9)
    looks = look_of([run.title for run in runs])
    longest = max(runs, key=lambda run: run.spans[-1].begin + run.spans[-1].epochs if run.spans else 0)
    same_stages = len({tuple((span.name, span.begin) for span in run.spans) for run in runs}) == 1
    for axis, (title, found) in zip(axes.flat, curves.items(), strict=False):
        for name, (x, y) in found.items():
            _curve(axis, x, y, name, **looks[name])
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_ylabel(units[title])
        _from_zero(axis)
        _mark(axis, longest.spans if same_stages else [], [])
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    columns = _side_by_side([handle.get_label() for handle in handles], 3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _mean_thresholds(run: RunData) -> tuple[list[float], list[float]]:
    lines = [line for line in run.of("epoch") if line.get("thresholds")]
    means = [float(np.mean(list(line["thresholds"].values()))) for line in lines]
    return [run.place(line) for line in lines], means


@_styled
def embedding(rows: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, float]]]) -> Figure:
    """t-SNE: a row per detector, a column per place.

    Each entry has points (n, 2), whether they are of the target (n,), and the share of neighbours of the
    other domain.
    """
    columns = list(next(iter(rows.values())))
    figure, axes = _new(len(rows), len(columns), height=2.25)
    for line, (title, places) in zip(axes, rows.items(), strict=True):
        for axis, (place, (points, target, mixing)) in zip(line, places.items(), strict=True):
            for mask, colour, marker, name in (
                (~target, SOURCE_COLOUR, "o", "source"),
                (target, TARGET_COLOUR, "^", "target"),
            ):
                look = {"s": 7, "c": colour, "marker": marker, "alpha": 0.75, "linewidths": 0}
                axis.scatter(*points[mask].T, **look, label=name)
            axis.set_title("\n".join(textwrap.wrap(f"{title}: {place}", 38)))
            axis.set_xlabel(f"neighbours of the other domain: {100 * mixing:.0f} %", fontsize=7)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.margins(0.04)
            for side in ("top", "right"):
                axis.spines[side].set_visible(True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=2)
    return figure


@dataclass(frozen=True)
class Rebuilt:
    """One image of the masked-autoencoder figure.

    ``pixels`` (H, W, 3); all others (h, w): energy of the real map, mask, energy of the rebuilt map.
    """

    name: str
    pixels: np.ndarray
    real: np.ndarray
    mask: np.ndarray
    prediction: np.ndarray


@_styled
def reconstructions(rows: Sequence[Rebuilt]) -> Figure:
    """Image, energy of C5, its visible part, and energy of the rebuilt C5 with a colour scale of its own."""
    height = WIDTH / 4.7 * rows[0].pixels.shape[0] / rows[0].pixels.shape[1] + 0.12
    figure, axes = _new(len(rows), 4, height=height)
    scale = matplotlib.colormaps["cividis"].with_extremes(bad="#c0c0c0")
    for line, row in zip(axes, rows, strict=True):
        extent = (0, row.pixels.shape[1], row.pixels.shape[0], 0)
        look = {"cmap": scale, "extent": extent, "interpolation": "nearest"}
        shared = look | {"vmin": float(row.real.min()), "vmax": float(row.real.max())}
        line[0].imshow(row.pixels, extent=extent)
        real = line[1].imshow(row.real, **shared)
        line[2].imshow(np.ma.array(row.real, mask=row.mask), **shared)
        rebuilt = line[3].imshow(row.prediction, **look)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        for shown, beside in ((real, line[:3].tolist()), (rebuilt, line[3])):
            bar = figure.colorbar(shown, ax=beside, pad=0.01, aspect=14)
            bar.ax.tick_params(labelsize=6, length=2)
            bar.ax.locator_params(nbins=3)
            bar.outline.set_visible(False)
    titles = ("target image", "energy of C5", "visible (grey: masked)", "energy of the rebuilt C5")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, loc="center")
    return figure
