"""Fog for clear pictures with a disparity map, for users who have Cityscapes but not Foggy Cityscapes.

Koschmieder's law with a homogeneous medium, as in Foggy Cityscapes (Sakaridis et al. 2018, eq. 1-3):
``I = t * J + (1 - t) * A``, ``t = exp(-beta * depth)``, on sRGB values as stored and not on linear light, as
that set was made. The result is a substitute, not the same images: that set's authors complete and smooth the
depth with the second camera's image, and use the distance that light travels to the camera where this uses
the depth (up to 12 % more, in the corners of Cityscapes' images).
"""

from __future__ import annotations

import numpy as np

PATCH = 15  # He et al. 2011, "Single image haze removal using dark channel prior": sections 3 and 4.4
_BRIGHTEST = 0.001  # share of the dark channel's pixels in which the light is searched: section 4.4
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2


def disparities(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of Cityscapes' disparity files -> disparity in pixels, float32.

    ``(p - 1) / 256``; NaN where p is 0, which means not measured.
    """
    values = (pixels.astype(np.float32) - 1) / 256
    values[pixels == 0] = np.nan
    return values


def fill_holes(disparity: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Disparity (H, W) without NaN: a hole takes the value of one of the two nearest measurements in its row.

    It takes the one in the hole's own region (a car's window belongs to the car). If neither or both are in
    it, it takes the smaller value: what only one camera saw, beside an object, belongs to what is behind the
    object. A row without any measurement takes the values of the nearest row with some.

    Args:
        regions: (H, W) integers, such as an instance image.

    Raises:
        ValueError: nothing was measured.
    """
    measured = ~np.isnan(disparity)
    rows = np.flatnonzero(measured.any(axis=1))
    if not rows.size:
        raise ValueError("no disparity was measured")
    values, known, regions = disparity[rows], measured[rows], regions[rows]
    width = disparity.shape[1]
    columns = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(known, columns, np.int32(-1)), axis=1)
    right = np.minimum.accumulate(np.where(known, columns, np.int32(width))[:, ::-1], axis=1)[:, ::-1]
    y, x = np.nonzero(~known)
    left, right = left[y, x], right[y, x]
    left, right = np.where(left < 0, right, left), np.where(right == width, left, right)
    here, on_left, on_right = regions[y, x], values[y, left], values[y, right]
    same_left, same_right = regions[y, left] == here, regions[y, right] == here
    values[y, x] = np.where(
        same_left == same_right, np.minimum(on_left, on_right), np.where(same_left, on_left, on_right)
    )
    every = np.arange(disparity.shape[0])
    below = np.searchsorted(rows, every).clip(max=rows.size - 1)
    above = np.maximum(below - 1, 0)
    return values[np.where(abs(rows[above] - every) <= abs(rows[below] - every), above, below)]


def transmission(
    disparity: np.ndarray, baseline: float, focal: float, beta: float, sky: np.ndarray | None = None
) -> np.ndarray:
    """``t = exp(-beta * depth)``, (H, W) float32 in 0..1, with ``depth = baseline * focal / disparity``.

    It is 0 at disparity 0 and in the sky.

    Args:
        disparity: (H, W) pixels, without NaN.
        baseline: metres between the cameras.
        focal: their focal length in pixels.
        beta: extinction per metre.
        sky: (H, W) bool, pixels that count as infinitely far, whatever was measured there.
    """
    far = disparity <= 0
    if sky is not None:
        far = far | sky
    depth = np.float32(baseline * focal) / np.where(far, np.float32(1), disparity)
    clear = np.exp(-np.float32(beta) * depth)
    clear[far] = 0
    return clear


def dark_channel(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W): the smallest value of the three channels in a patch of 15 x 15 pixels.

    At the image's edges only the part of the patch inside the image counts.
    """
    red, green, blue = np.moveaxis(image, 2, 0)
    return _smallest(_smallest(np.minimum(np.minimum(red, green), blue), 0), 1)


def _smallest(values: np.ndarray, axis: int) -> np.ndarray:
    """Smallest of ``PATCH`` values around each, along an axis.

    Windows double in size: 1, 2, 4, 8, and two of 8 that overlap make 15.
    """
    around = [(0, 0), (0, 0)]
    around[axis] = (PATCH // 2, PATCH // 2)
    length, out, size = values.shape[axis], np.pad(values, around, constant_values=values.max()), 1
    while size < PATCH:
        shift = min(size, PATCH - size)
        whole = out.shape[axis] - shift
        out = np.minimum(out.take(range(whole), axis), out.take(range(shift, shift + whole), axis))
        size += shift
    assert out.shape[axis] == length
    return out


def atmospheric_light(image: np.ndarray) -> np.ndarray:
    """Colour of the fog, (3,) in the image's own unit.

    The candidates are the 0.1 % of pixels that are brightest in the dark channel (He et al. 2011, section
    4.4). He et al. take the brightest of them in the image, which may be a lamp or a reflection; this takes
    the one of median grey, as Foggy Cityscapes does (after Tang et al. 2014).

    Args:
        image: (H, W, 3).
    """
    dark = dark_channel(image).reshape(-1)
    count = max(round(dark.size * _BRIGHTEST), 1)
    # sorted, so that equal values always give the same pixel
    candidates = np.sort(np.argpartition(dark, dark.size - count)[-count:])
    colours = image.reshape(-1, 3)[candidates]
    return colours[np.argsort(colours @ _GREY, kind="stable")[count // 2]]


def add_fog(image: np.ndarray, clear: np.ndarray, light: np.ndarray) -> np.ndarray:
    """``t * J + (1 - t) * A`` as (H, W, 3) uint8, rounded.

    From an (H, W, 3) uint8 image, its transmission (H, W) and the light (3,).
    """
    light = light.astype(np.float32)
    foggy = image - light
    foggy *= clear[..., None]
    foggy += light + np.float32(0.5)
    return foggy.astype(np.uint8)
