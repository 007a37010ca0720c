"""Which part drives, and what the autoencoder explains, in the curves of a report."""

from __future__ import annotations

import pytest

from mrt.report import figures
from mrt.report.collect import load_run


def test_shares_have_panels_of_their_own(runs):
    panels = figures.panels_of(load_run(runs / "adapted"))
    words = {
        "source": "source labels",
        "target": "target labels",
        "align": "discriminators",
        "rebuild": "autoencoder",
    }
    assert panels["share of the gradient"] == {f"gradient_share/{part}": word for part, word in words.items()}
    against = panels["pulls with detection"]
    assert set(against) == {f"gradient_cosine/{part}" for part in words}
    assert set(panels["masked variance explained"].values()) == {"target", "source"}
    assert not panels[figures.OTHERS], "nothing of it is left over"
    assert not any(name.startswith("gradient") for name in panels["weighted sum"])


def test_a_part_that_drives_alone_has_no_panel(runs):
    panels = figures.panels_of(load_run(runs / "source"))
    assert not set(panels) & {title for title, _ in figures.LOOKS.values()}


def test_their_axes_say_what_they_are_and_go_below_zero(runs):
    figure = figures.losses(load_run(runs / "adapted"))
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_visible()}
    assert axes["share of the gradient"].get_ylabel() == "share"
    assert axes["pulls with detection"].get_ylabel() == "cosine"
    assert axes["source: detection"].get_ylabel() == "loss" and axes["source: detection"].get_ylim()[0] == 0
    explained = axes["masked variance explained"]
    lowest = min(float(value) for line in explained.lines for value in line.get_ydata())
    assert lowest < 0 and explained.get_ylim()[0] == pytest.approx(1.05 * max(lowest, -1.0))
