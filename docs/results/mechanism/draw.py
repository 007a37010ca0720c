"""One figure for each part of the method: when it helps, and what it does to the teacher's labels.

    python docs/results/mechanism/draw.py docs/results/mechanism/rows.json [FOLDER]

The table's file is written by ``mrt ablate --study docs/results/mechanism/rows.toml --seeds 0 1 2``. FOLDER
(default: beside the table) gets dynamic.png, autoencoder.png and retraining.png, and differences.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from mrt.files import replacing, write_text

CONDITIONS = {  # the rows' common beginning: the row without a part, the words of the figure
    "few labels": ("few labels: 0.65", "0.65:\nfew"),
    "0.5": ("0.5", "0.5"),
    "0.4": ("0.4", "0.4:\nusual"),
    "wrong labels": ("wrong labels: 0.15", "0.15:\nwrong"),
}
PARTS = {  # the part, and what stands in the first column of its curves
    "dynamic": ("dynamic thresholds", "precision"),
    "autoencoder": ("masked autoencoder", "explained"),
    "retraining": ("selective retraining", "precision"),
}
SHOWN = ("few labels", "wrong labels")  # whose curves are drawn
CURVES = {
    "precision": "labels that are right (%)",
    "explained": "masked variance explained (%)",
    "recall": "objects labelled (%)",
    "AP50": "AP50",
}
WITHOUT, WITH = "#6e6e6e", "#0072B2"
LEVEL, FONT, SPAN = 0.95, 8, 5.0


def difference(rows: Mapping[str, Mapping[str, Any]], part: str, condition: str) -> dict[str, Any]:
    """AP50 with the part less AP50 without it, seed by seed, with the t interval of the mean."""
    plain, other = (
        {trial["seed"]: trial["metrics"]["AP50"] for trial in rows[name]["trials"]}
        for name in (CONDITIONS[condition][0], f"{condition}, {part}")
    )
    seeds = sorted(plain.keys() & other.keys())
    found = np.array([other[seed] - plain[seed] for seed in seeds])
    half = math.nan
    if len(found) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return {"seeds": seeds, "differences": found.tolist(), "mean": float(found.mean()), "half": float(half)}


def curve(row: Mapping[str, Any], name: str) -> tuple[list[float], np.ndarray]:
    """Epochs and the values (seeds, epochs) of a curve that every seed has; none where a seed has it not."""
    curves = [dict(trial["curves"].get(name, ())) for trial in row["trials"]]
    epochs = sorted(set.intersection(*(set(one) for one in curves)))
    return epochs, np.array([[one[epoch] for epoch in epochs] for one in curves])


def draw(rows: Mapping[str, Mapping[str, Any]], part: str) -> Figure:
    """Left: what the part gains in each condition. Right: the teacher's labels and AP50 on the way, with and
    without it, where labels are few and where they are wrong; lines are means, bands the range of the seeds.
    """
    title, first = PARTS[part]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    grid = figure.add_gridspec(len(SHOWN), 4, width_ratios=(1.35, 1, 1, 1))
    gain = figure.add_subplot(grid[:, 0])
    for place, name in enumerate(CONDITIONS):
        found = difference(rows, part, name)
        half = 0.0 if math.isnan(found["half"]) else found["half"]
        gain.errorbar(place, found["mean"], half, fmt="o", color=WITH, capsize=3, markersize=4)
        spread = place + 0.14 + 0.05 * np.arange(len(found["differences"]))
        gain.plot(spread, found["differences"], "o", color=WITH, markersize=2.5, fillstyle="none")
    gain.axhline(0, color=WITHOUT, linewidth=0.8)
    gain.set_xticks(range(len(CONDITIONS)), [words for _, words in CONDITIONS.values()])
    gain.set_xlim(-0.4, len(CONDITIONS) - 0.4)
    gain.set_title(f"AP50 gained by {title}", loc="left", fontsize=FONT)
    gain.set_xlabel("threshold of the labels")
    axes = [gain]
    for line, condition in enumerate(SHOWN):
        for column, name in enumerate((first, "recall", "AP50"), start=1):
            axis = figure.add_subplot(grid[line, column])
            axes.append(axis)
            for row, colour, label in (
                (CONDITIONS[condition][0], WITHOUT, "without"),
                (f"{condition}, {part}", WITH, "with"),
            ):
                epochs, values = curve(rows[row], name)
                values = values * 100 if name == "explained" else values
                if epochs:
                    axis.plot(epochs, values.mean(0), color=colour, label=label, linewidth=1.4)
                    axis.fill_between(
                        epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
                    )
            low, high = axis.get_ylim()
            if high - low < SPAN:  # a constant is no drama
                middle = min((low + high) / 2, 100 - SPAN / 2.2)
                axis.set_ylim(middle - SPAN / 2, middle + SPAN / 2)
            if name in ("precision", "recall"):  # shares
                axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
            axis.set_xlim(1, 10)
            if line == 0:
                axis.set_title(CURVES[name], loc="left", fontsize=FONT)
            if line == len(SHOWN) - 1:
                axis.set_xlabel("epoch")
            if column == 1:
                axis.set_ylabel(CONDITIONS[condition][0])
    axes[3].legend(frameon=False, fontsize=FONT)
    for axis in axes:
        axis.xaxis.label.set_fontsize(FONT)
        axis.yaxis.label.set_fontsize(FONT)
        axis.tick_params(labelsize=FONT, length=2.5)
        axis.grid(axis="y", color="#e3e3e3", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    file, folder = options.table, options.folder or options.table.parent
    if not file.is_file():
        parser.error(f"{file}: no such file; mrt ablate writes it beside its runs")
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    for part in PARTS:
        with replacing(folder / f"{part}.png") as path:
            FigureCanvasAgg(draw(rows, part)).print_figure(path, format="png", dpi=160)
    found = {part: {name: difference(rows, part, name) for name in CONDITIONS} for part in PARTS}
    write_text(folder / "differences.json", json.dumps(found, indent=1) + "\n")
    for part, by_condition in found.items():
        cells = (f"{name} {one['mean']:+.1f} ± {one['half']:.1f}" for name, one in by_condition.items())
        print(f"{PARTS[part][0]}: {', '.join(cells)}")


if __name__ == "__main__":
    main(sys.argv[1:])
