"""The palette and the lines of boxes as people see them who lack one kind of cones, or see no colours.

What is seen is simulated after Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation
of Color Vision Deficiency" (2009), for dichromats; differences are Euclidean in CIE L*a*b*, where about 2.3
is just noticed.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from test_judged import A, found, moved, record

from mrt.data import palette, preview
from mrt.evaluate import draw, judged
from mrt.evaluate.judged import draw_judged, judge
from mrt.report import figures

# Of linear RGB.
SEEN = {
    "all cones": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
    "no colours": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
CLEAR = 15.0  # far more than is just noticed


def lab(colours: np.ndarray, vision: str) -> np.ndarray:
    """(..., 3) sRGB from 0 to 255 -> L*a*b* of what is seen."""
    share = np.asarray(colours, dtype=float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(SEEN[vision]).T, 0, 1)
    white = XYZ @ np.ones(3)
    ratio = seen @ XYZ.T / white
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_the_conversion_is_right():
    assert lab(np.array([255, 255, 255]), "all cones") == pytest.approx([100, 0, 0], abs=0.02)
    assert lab(np.array([255, 0, 0]), "all cones") == pytest.approx([53.2, 80.1, 67.2], abs=0.2)
    red, green = (lab(np.array(colour), "no green cones") for colour in ((180, 0, 0), (90, 105, 0)))
    assert np.linalg.norm(red - green) < CLEAR, "what is known to be confused is confused"


@pytest.mark.parametrize("vision", [name for name in SEEN if name != "no colours"])
def test_classes_have_colours_that_differ(vision):
    seen = lab(np.array(palette.COLOURS), vision)
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > CLEAR


def test_a_class_has_one_colour_everywhere():
    assert draw.COLOURS is judged.COLOURS is preview.COLOURS is palette.COLOURS
    looks = figures.look_of_classes([f"class {number}" for number in range(10)])
    for number, look in enumerate(looks.values()):
        colour = palette.COLOURS[number % len(palette.COLOURS)]
        expected = palette.ON_WHITE.get(colour, colour)
        assert tuple(int(look["color"][place : place + 2], 16) for place in (1, 3, 5)) == expected
    assert looks["class 0"]["color"] == looks["class 8"]["color"]
    assert looks["class 0"]["linestyle"] != looks["class 8"]["linestyle"]


@pytest.mark.parametrize("vision", SEEN)
@pytest.mark.parametrize("label", range(len(palette.COLOURS)))
def test_what_a_box_is_worth_is_seen_without_colours(vision, label):
    """By the breaks in the upper side of its outline: none of a hit, one between the corners of a missed
    object, several of a false box, many of a duplicate.
    """
    ground = 60
    names = [f"class {number}" for number in range(len(palette.COLOURS))]

    def breaks(boxes, truth, box) -> int:
        image = Image.new("RGB", (100, 100), (ground,) * 3)
        drawn = np.asarray(draw_judged(image, judge(boxes, truth, 0.3), truth, names, scale=4))
        x0, y0, x1, _ = (4 * int(value) for value in box)
        line = lab(drawn[y0, x0 + 2 : x1 - 2], vision) - lab(np.array([ground] * 3), vision)
        shown = np.linalg.norm(line, axis=-1) > CLEAR
        return int((np.diff(shown.astype(int)) == -1).sum())

    far = record((A, label))
    near = moved(A, 5)
    worth = {
        "hit": breaks(found((A, label, 0.9)), far, A),
        "missed": breaks(found(), far, A),
        "false": breaks(found((A, label, 0.9)), record(), A),
        "duplicate": breaks(found((A, label, 0.95), (near, label, 0.9)), far, near),
    }
    assert worth["hit"] == 0 and worth["missed"] == 1 and 2 <= worth["false"] < worth["duplicate"], worth
