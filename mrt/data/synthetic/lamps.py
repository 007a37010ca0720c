"""Shining lamps of vehicles, streets and signals: bright discs on the picture with a glow around them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mrt.data.synthetic.camera import Camera
from mrt.data.synthetic.paint import NEAR, Thing

COLOURS = {
    "head": (1.0, 0.95, 0.82),
    "tail": (1.0, 0.06, 0.04),
    "street": (1.0, 0.72, 0.40),
    "cabin": (1.0, 0.92, 0.74),
    "display": (1.0, 0.55, 0.10),
    "red": (1.0, 0.08, 0.05),
    "amber": (1.0, 0.55, 0.08),
    "green": (0.10, 1.0, 0.45),
}
"""Linear light of each kind of lamp, the brightest channel 1."""


@dataclass(frozen=True)
class Lamp:
    """A lamp in the world: kind, position (3,) and diameter in metres, and direction (3,) of its light."""

    name: str
    position: np.ndarray
    diameter: float
    direction: np.ndarray
    thing: Thing


def lamps_of(things: Iterable[Thing]) -> list[Lamp]:
    """All lamps that are on.

    Head lamps and displays shine ahead, tail lamps behind, signals towards local -z, street lamps down.
    """
    found = []
    for thing in things:
        if not thing.lamps_on or not thing.model.lamps:
            continue
        s, c = np.sin(thing.heading), np.cos(thing.heading)
        ahead, right = np.array([s, 0.0, c]), np.array([c, 0.0, -s])
        positions = thing.to_world(np.array([p for _, p, _ in thing.model.lamps]))
        for (name, local, diameter), position in zip(thing.model.lamps, positions, strict=True):
            if name in ("head", "display"):
                direction = ahead
            elif name == "street":
                direction = np.array([0.0, -1.0, 0.0])
            elif name == "cabin":
                direction = right * np.sign(local[0])
            else:
                direction = -ahead
            found.append(Lamp(name, position, diameter, direction, thing))
    return found


def shine(lamps: list[Lamp], cam: Camera, depth: np.ndarray, strength: dict[str, float]) -> np.ndarray:
    """Linear light (3, H, W) of the lamps themselves, where nothing nearer hides them.

    Args:
        depth: (H, W) metres of the painted scene.
        strength: brightness by kind; kinds that are missing stay dark.
    """
    h, w = depth.shape
    out = np.zeros((3, h, w), np.float32)
    if not lamps:
        return out
    points = cam.to_camera(np.stack([lamp.position for lamp in lamps]))
    for lamp, point in zip(lamps, points, strict=True):
        power = strength.get(lamp.name, 0.0)
        if not power or point[2] < NEAR + 0.5:
            continue
        to_eye = np.array([cam.x, cam.height_m, 0.0]) - lamp.position
        facing = 0.5
        if lamp.name != "street":
            facing = float(lamp.direction @ to_eye) / float(np.linalg.norm(to_eye))
        if facing <= (0.06 if lamp.name == "cabin" else 0.02):
            continue
        behind = point[2] - (0.3 if lamp.name == "cabin" else 0.9)  # what is nearer than this hides the lamp
        scale = cam.focal / point[2]
        x, y = cam.centre + scale * point[0], cam.horizon - scale * point[1]
        column, row = int(np.floor(x)), int(np.floor(y))
        if not (0 <= column < w and 0 <= row < h) or depth[row, column] < behind:
            continue
        radius = 0.5 * lamp.diameter * scale
        power *= facing**0.5 * min(1.0, (radius / 0.6) ** 2 + 0.15)
        radius = max(radius, 0.6)
        r = int(np.ceil(radius)) + 1
        y0, y1, x0, x1 = max(0, row - r), min(h, row + r + 1), max(0, column - r), min(w, column + r + 1)
        away = np.hypot(np.arange(y0, y1)[:, None] + 0.5 - y, np.arange(x0, x1)[None, :] + 0.5 - x)
        disc = np.clip(radius - away + 0.5, 0, 1) * (depth[y0:y1, x0:x1] > behind)
        view = out[:, y0:y1, x0:x1]
        np.maximum(view, power * disc * np.array(COLOURS[lamp.name])[:, None, None], out=view)
    return out


WIDE = 4.0
"""Sigma in pixels from which on a blur is computed at half the size."""


def glow(light: np.ndarray, spreads: Iterable[tuple[float, float]]) -> np.ndarray:
    """Light scattered in the lens and the air: blurred copies of ``light`` (3, H, W), summed.

    Args:
        spreads: (sigma as a share of the width, weight) of each copy. Copies are computed at a quarter of the
            size, wide ones at an even smaller one.
    """
    _, h, w = light.shape
    small = shrink(light, 4)
    total = np.zeros_like(small)
    for share, weight in spreads:
        total += weight * _blur(small, max(0.5, share * w / 4))
    return _enlarge(total, 4)[:, :h, :w]


def _blur(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (3, h, w), with weights cut at the edges.

    Along rows the amount of light is kept; along columns each value is a weighted mean.

    Computed by sums of shifted pictures, not by a matrix product: numpy gives a product of this size to the
    threads of its BLAS, which in several worker processes at once cost more time than all the rest of a night
    scene.
    """
    _, h, w = planes.shape
    if sigma >= WIDE:
        # halving and enlarging each add 3/4 to the variance
        return _enlarge(_blur(_halve(planes), 0.5 * math.sqrt(sigma * sigma - 1.5)), 2)[:, :h, :w]
    weights = np.exp(-0.5 * (np.arange(max(h, w), dtype=np.float32) / np.float32(sigma)) ** 2)
    weights = weights[: math.ceil(4 * sigma) + 1]
    along_rows = _shifted_sum(np.ones((1, 1, w), np.float32), weights, 2)
    along_columns = _shifted_sum(np.ones((1, h, 1), np.float32), weights, 1)
    planes = planes / along_rows
    return _shifted_sum(_shifted_sum(planes, weights, 2), weights, 1) / along_columns


def _shifted_sum(planes: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Convolution of (n, h, w) along an axis with a symmetric kernel.

    ``weights`` is the kernel's middle and one side.
    """
    out = planes * weights[0]
    before = (slice(None),) * axis
    for k, weight in enumerate(weights[1 : planes.shape[axis]], start=1):
        weighted = planes * weight
        out[(*before, slice(k, None))] += weighted[(*before, slice(None, -k))]
        out[(*before, slice(None, -k))] += weighted[(*before, slice(k, None))]
    return out


def _halve(planes: np.ndarray) -> np.ndarray:
    """(n, h, w) at half the size by weights of 1, 3, 3, 1, which do not shift the light; edges are padded."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (1, 1 + planes.shape[axis] % 2)
        planes = np.moveaxis(np.pad(planes, margin, mode="edge"), axis, 0)
        middle = planes[1:-1:2] + planes[2::2]
        middle *= np.float32(3)
        middle += planes[:-2:2]
        middle += planes[3::2]
        planes = np.moveaxis(middle * np.float32(1 / 8), 0, axis)
    return planes


def shrink(planes: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of (n, h, w), ``factor`` pixels on a side.

    The last row and column are repeated to fill a block.
    """
    _, h, w = planes.shape
    if h % factor or w % factor:
        planes = np.pad(planes, ((0, 0), (0, -h % factor), (0, -w % factor)), mode="edge")
    rows = sum(planes[:, k::factor] for k in range(factor))
    return sum(rows[:, :, k::factor] for k in range(factor)) * np.float32(1 / factor**2)


def _enlarge(planes: np.ndarray, factor: int) -> np.ndarray:
    """(n, h, w) -> (n, factor * h, factor * w) for an even factor.

    Linear between the centres of pixels, constant beyond the last ones.
    """
    n, h, w = planes.shape
    wide = np.empty((n, h, w, factor), np.float32)
    tall = np.empty((n, h, factor, factor * w), np.float32)
    places = [(k + 0.5) / factor - 0.5 for k in range(factor)]
    change = np.diff(planes, axis=2)
    for k, place in enumerate(places):
        part = wide[..., k]
        part[...] = planes
        if place < 0:
            part[:, :, 1:] += np.float32(place) * change
        else:
            part[:, :, :-1] += np.float32(place) * change
    wide = wide.reshape(n, h, factor * w)
    change = np.diff(wide, axis=1)
    for k, place in enumerate(places):
        part = tall[:, :, k]
        part[...] = wide
        if place < 0:
            part[:, 1:] += np.float32(place) * change
        else:
            part[:, :-1] += np.float32(place) * change
    return tall.reshape(n, factor * h, factor * w)
