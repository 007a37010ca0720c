"""Boxes around outlines, compared with pycocotools where it supports them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrt.data.convert.outlines import box_around


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[3, 4, 9, 4, 9, 10], [1, 5, 2, 6, 1, 7]], (1, 4, 8, 6)),
        ([3, 4, 9, 4, 9, 10], (3, 4, 6, 6)),
        ([[3, 4], [9, 4], [9, 10]], (3, 4, 6, 6)),
        ([[[3, 4], [9, 4], [9, 10]], [[1, 5], [2, 6]]], (1, 4, 8, 6)),
        ([[3, 4, 9, 4, 9, 10, 77]], (3, 4, 6, 6)),  # a number too many
        ({"size": [4, 5], "counts": [3, 3, 14]}, (0, 0, 2, 4)),  # the run goes on in the next column
        ({"size": [4, 5], "counts": [5, 2, 2, 3, 8]}, (1, 1, 2, 3)),
        ({"size": [4, 5], "counts": [20]}, "no box"),
        ({"size": [4, 5], "counts": [5, 2]}, "no box"),  # does not fill the image
        ({"size": [0, 5], "counts": []}, "no box"),
        ({"size": [4, 5], "counts": [-5, 25]}, "no box"),
        ({"size": [4, 5], "counts": "\x00"}, "no box"),
        ({"size": [4, 5]}, "no box"),
        ([], "no box"),
        ([[]], "no box"),
        (None, "no box"),
        ("3 4 9 4", "no box"),
        ([["3", 4]], "no box"),
        ([[True, 4]], "no box"),
        ([[3, math.inf]], "box with a number that is not finite"),
        ([[3, 10**400]], "box with a number that is not finite"),
    ],
)
def test_outlines(segmentation, box):
    assert box_around(segmentation) == box


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3, 0.9]))
def test_masks_as_pycocotools_has_them(height, width, seed, share):
    pixels = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(pixels))
    flat = pixels.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    counts = [0, *runs] if flat[0] else runs
    expected = tuple(coco_mask.toBbox(packed).tolist()) if pixels.any() else "no box"
    for form in (packed["counts"].decode(), counts):
        assert box_around({"size": [height, width], "counts": form}) == expected
