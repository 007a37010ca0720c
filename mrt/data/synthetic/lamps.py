"""Lamps that shine: of vehicles, street lamps and signals, as bright discs on the picture with a glow around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
    """A lamp in the world: its kind, position (3,) and diameter in metres, and the direction (3,) it shines in."""

    name: str
    position: np.ndarray
    diameter: float
    direction: np.ndarray
    thing: Thing


def lamps_of(things: Iterable[Thing]) -> list[Lamp]:
    """All lamps that are on. Head lamps and displays shine ahead, tail lamps behind, signals towards local -z, street lamps down."""
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
    """Light of the lamps themselves, (3, H, W) linear, where nothing nearer hides them.

    Args:
        depth: (H, W) metres of the painted scene. strength: brightness by kind; kinds that are missing stay dark.
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
        facing = 0.5 if lamp.name == "street" else float(lamp.direction @ to_eye) / float(np.linalg.norm(to_eye))
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
        np.maximum(out[:, y0:y1, x0:x1], power * disc * np.array(COLOURS[lamp.name])[:, None, None], out=out[:, y0:y1, x0:x1])
    return out


def _gaussian(n: int, sigma: float) -> np.ndarray:
    """(n, n) matrix that blurs a vector; rows sum to one."""
    i = np.arange(n)
    kernel = np.exp(-0.5 * ((i[:, None] - i[None, :]) / sigma) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def glow(light: np.ndarray, spreads: Iterable[tuple[float, float]]) -> np.ndarray:
    """Light scattered in the lens and the air: blurred copies of ``light`` (3, H, W), summed.

    Args:
        spreads: (sigma as a share of the width, weight) of each copy. Done at a quarter of the size.
    """
    _, h, w = light.shape
    sh, sw = -(-h // 4), -(-w // 4)
    padded = np.pad(light, ((0, 0), (0, 4 * sh - h), (0, 4 * sw - w)), mode="edge")
    small = padded.reshape(3, sh, 4, sw, 4).mean((2, 4))
    total = np.zeros_like(small)
    for share, weight in spreads:
        sigma = max(0.5, share * w / 4)
        total += weight * (_gaussian(sh, sigma) @ small @ _gaussian(sw, sigma))
    planes = [Image.fromarray(p).resize((4 * sw, 4 * sh), Image.Resampling.BILINEAR) for p in total]
    return np.stack([np.asarray(p)[:h, :w] for p in planes])
