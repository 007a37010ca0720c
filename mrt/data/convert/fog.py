"""Fog for clear pictures with a disparity map: for who has Cityscapes, but not Foggy Cityscapes.

Koschmieder's law with a homogeneous medium, as in Foggy Cityscapes (Sakaridis et al. 2018, eq. 1-3): ``I = t * J + (1 - t) * A``,
``t = exp(-beta * depth)``, on the sRGB values as they are stored, not on linear light: so that set was made. The result is
a stand-in, not that set, whose authors complete and smooth the depth with the second camera's image, and take the way of the light to the
camera where this takes the depth (up to 12 % more, in Cityscapes' corners).
"""

from __future__ import annotations

import numpy as np

PATCH = 15  # He et al. 2011, "Single image haze removal using dark channel prior": sections 3 and 4.4
_BRIGHTEST = 0.001  # part of the dark channel that the light is searched in: section 4.4
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2


def disparities(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of Cityscapes' disparity files -> pixels of disparity, float32: ``(p - 1) / 256``; NaN where p is 0, not measured."""
    values = (pixels.astype(np.float32) - 1) / 256
    values[pixels == 0] = np.nan
    return values


def fill_holes(disparity: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Disparity (H, W) without NaN: a hole takes the value of one of the two nearest measurements in its row.

    Of the one that lies in the hole's own region (a car's window belongs to the car); if neither or both do, the smaller: what only one
    camera saw, beside an object, belongs to what is behind it. A row without any measurement is that of the nearest row with some.

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
    values[y, x] = np.where(same_left == same_right, np.minimum(on_left, on_right), np.where(same_left, on_left, on_right))
    every = np.arange(disparity.shape[0])
    below = np.searchsorted(rows, every).clip(max=rows.size - 1)
    above = np.maximum(below - 1, 0)
    return values[np.where(abs(rows[above] - every) <= abs(rows[below] - every), above, below)]


def transmission(disparity: np.ndarray, baseline: float, focal: float, beta: float, sky: np.ndarray | None = None) -> np.ndarray:
    """``t = exp(-beta * depth)``, (H, W) float32 in 0..1, with ``depth = baseline * focal / disparity``; 0 at disparity 0 and in the sky.

    Args:
        disparity: (H, W) pixels, without NaN. baseline: metres between the cameras. focal: their focal length in pixels.
        beta: extinction per metre. sky: (H, W) bool, what is infinitely far whatever was measured there.
    """
    far = disparity <= 0
    if sky is not None:
        far = far | sky
    depth = np.float32(baseline * focal) / np.where(far, np.float32(1), disparity)
    clear = np.exp(-np.float32(beta) * depth)
    clear[far] = 0
    return clear


def dark_channel(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W): the smallest value of the three channels in a patch of 15 x 15 pixels, which ends at the image's edges."""
    red, green, blue = np.moveaxis(image, 2, 0)
    return _smallest(_smallest(np.minimum(np.minimum(red, green), blue), 0), 1)


def _smallest(values: np.ndarray, axis: int) -> np.ndarray:
    """Smallest of ``PATCH`` values around each along an axis, by windows that double: 1, 2, 4, 8, and 8 twice to make 15."""
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
    """Colour of the fog, (3,) in the image's own unit: of the 0.1 % of pixels that are brightest in the dark channel the middle one.

    The candidates are those of He et al. 2011, section 4.4. They take the brightest of them in the image, which a lamp or a reflection may
    be; the one of median grey is Foggy Cityscapes' choice (after Tang et al. 2014). Args: image: (H, W, 3).
    """
    dark = dark_channel(image).reshape(-1)
    count = max(round(dark.size * _BRIGHTEST), 1)
    candidates = np.sort(np.argpartition(dark, dark.size - count)[-count:])  # sorted: the same pixel wherever values are equal
    colours = image.reshape(-1, 3)[candidates]
    return colours[np.argsort(colours @ _GREY, kind="stable")[count // 2]]


def add_fog(image: np.ndarray, clear: np.ndarray, light: np.ndarray) -> np.ndarray:
    """``t * J + (1 - t) * A`` for an (H, W, 3) uint8 image, its transmission (H, W) and the light (3,): (H, W, 3) uint8, rounded."""
    light = light.astype(np.float32)
    foggy = image - light
    foggy *= clear[..., None]
    foggy += light + np.float32(0.5)
    return foggy.astype(np.uint8)
