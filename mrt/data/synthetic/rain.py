"""Rain: a wet road that mirrors the street, a thin veil, falling streaks and drops on the lens."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mrt.data.synthetic.camera import Camera
from mrt.data.synthetic.labels import Pixels
from mrt.data.synthetic.lamps import glow, lamps_of, shine, shrink
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.surfaces import noise_textures, rgb, strips, texture
from mrt.data.synthetic.weather import to_linear, to_srgb

STRENGTH = {"head": 2.6, "tail": 1.1, "display": 0.7, "red": 1.3, "amber": 1.2, "green": 1.0}
DROP_LIMIT = 0.5
"""A thing is ignored if a larger share of its visible pixels than this lies under drops on the lens."""


def add_rain(
    image: np.ndarray,
    depth: np.ndarray,
    instance: np.ndarray,
    cam: Camera,
    things: list[Thing],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Make a scene under an overcast sky wet.

    Args:
        image: (H, W, 3) sRGB in 0..1.
        depth: (H, W) metres.
        instance: (H, W) identities, 0 for none.

    Returns:
        The picture (H, W, 3) sRGB in 0..1 before the sensor's noise, and how much of each pixel drops cover,
        (H, W) in 0..1.
    """
    h, w = depth.shape
    light = np.empty((3, h, w), np.float32)
    brightness = np.float32(rng.uniform(0.45, 0.75))
    sources = shine(lamps_of(things), cam, depth, STRENGTH)
    for rows in strips(h, w):
        np.multiply(to_linear(image[rows]).transpose(2, 0, 1), brightness, out=light[:, rows])
        light[:, rows] += sources[:, rows]
    _wet_ground(light, depth, instance, cam, rng)
    scattered = glow(sources, ((0.008, 0.3), (0.035, 0.14)))
    # the falling drops scatter light: a thin, even veil
    beta = rng.uniform(0.005, 0.018)
    sky = rgb(0.97, 1.0, 1.03) * np.float32(rng.uniform(0.26, 0.42))
    streaks, shine_of_streaks = _streaks(w, h, rng), np.float32(rng.uniform(0.5, 0.9))
    for rows in strips(h, w):
        part = light[:, rows]
        part += scattered[:, rows]
        part -= sky
        part *= np.exp(np.float32(-beta) * depth[rows])
        part += sky * (1 + shine_of_streaks * streaks[rows])
        light[:, rows] = to_srgb(part)
    covered = _lens_drops(light, rng)
    return light.transpose(1, 2, 0), covered


def _wet_ground(
    light: np.ndarray, depth: np.ndarray, instance: np.ndarray, cam: Camera, rng: np.random.Generator
) -> None:
    """Darken the ground and add what it mirrors, in place (planes (3, H, W), linear).

    A ground pixel mirrors what stands in its own column: if the first thing above it on the picture touches
    the ground at row b, row r shows row 2 b - r. The share of mirrored light is Schlick's approximation of
    Fresnel's law for water; between puddles the film is rough and the mirror image blurred up and down.
    """
    h, w = depth.shape
    first = max(0, int(np.ceil(cam.horizon)))
    flat = (cam.height_m / np.maximum(cam.row_slopes()[first:], 1e-4)).astype(np.float32)[:, None]
    depth = depth[first:]
    ground = (instance[first:] == 0) & (np.abs(depth - flat) < 0.02 * depth + 0.05)
    rows = np.arange(first, h, dtype=np.int32)[:, None]
    contact = np.where(ground, np.int32(first - 1), rows)
    np.maximum.accumulate(contact, axis=0, out=contact)
    contact *= 2
    contact -= rows - 1
    np.clip(contact, 0, h - 1, out=contact)
    mirrored = contact.astype(np.intp) * w + np.arange(w)
    dx, dz = (d.astype(np.float32) for d in cam.column_rays())
    _, clouds = noise_textures()
    offset = rng.integers(0, 512, 2).tolist()
    across = ((cam.x + depth * dx) * 30 + offset[1]).astype(np.int32)
    along = (depth * dz * 22 + offset[0]).astype(np.int32)
    puddle = texture(clouds, along, across)
    puddle -= np.float32(rng.uniform(0.50, 0.62))
    puddle *= 12
    np.clip(puddle, 0, 1, out=puddle)
    grazing = 1 - cam.height_m / np.sqrt(cam.height_m**2 + depth * depth)
    share = grazing * grazing
    share *= share
    share *= grazing
    share *= np.float32(0.98)
    share += np.float32(0.02)
    share *= np.float32(0.45) + np.float32(0.5) * puddle
    share *= ground
    film = (np.float32(0.55) - np.float32(0.15) * puddle) * (1 - share)
    np.copyto(film, 1, where=~ground)
    # blurred along the columns by a running mean whose length follows the picture's height
    k = max(3, h // 24)
    n = len(depth)
    total = np.empty((k + 1 + n + k, w), np.float32)
    for plane in light:
        image = total[k + 1 : k + 1 + n]
        np.take(plane.ravel(), mirrored, out=image, mode="clip")
        sharp = image * puddle
        total[: k + 1], total[k + 1 + n :] = image[0], image[-1]
        np.cumsum(total, axis=0, out=total)
        rough = total[2 * k + 1 :] - total[: -2 * k - 1]
        rough *= np.float32(1 / (2 * k + 1))
        rough -= puddle * rough
        rough += sharp
        rough *= share
        plane[first:] *= film
        plane[first:] += rough


def _streaks(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Drops stretched by the exposure, (height, width) in 0..1: many faint far ones, a few near ones."""
    layer = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(layer)
    slant = rng.normal(0, 0.12)
    n = int(rng.integers(120, 420))
    near = rng.random(n) ** 3
    x, y = rng.uniform(0, 2 * width, n), rng.uniform(-0.1, 1.0, n) * 2 * height
    length = (0.03 + 0.12 * near) * 2 * height
    value = (40 + 110 * rng.random(n) * (0.4 + 0.6 * near)).astype(int)
    thick = np.maximum(1, np.round(2 * height / 320 * (0.6 + 1.6 * near))).astype(int)
    for i in range(n):
        end = (x[i] + length[i] * (slant + rng.normal(0, 0.015)), y[i] + length[i])
        draw.line((x[i], y[i], *end), fill=int(value[i]), width=int(thick[i]))
    return np.asarray(layer.reduce(2), np.float32) * np.float32(1 / 255)


def _lens_drops(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put drops on the lens, in place (planes (3, H, W)).

    Each drop shows a small, upside-down, blurred view of what is behind it.

    Returns how much of each pixel they cover, (H, W) in 0..1.
    """
    _, h, w = light.shape
    covered = np.zeros((h, w), np.float32)
    n = int(rng.integers(4, 22))
    soft, step = _softened(light)
    flat, last_row, last_column = soft.reshape(3, -1), soft.shape[1] - 1, soft.shape[2] - 1
    for _ in range(n):
        r = w * rng.uniform(0.006, 0.022) * (1.6 if rng.random() < 0.12 else 1.0)
        cx, cy, tall = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.95, 1.35)
        y0, y1 = max(0, int(cy - r * tall - 1)), min(h, int(cy + r * tall + 2))
        x0, x1 = max(0, int(cx - r - 1)), min(w, int(cx + r + 2))
        if y1 <= y0 or x1 <= x0:
            continue
        v = (np.arange(y0, y1)[:, None] + 0.5 - cy) / (r * tall)
        u = (np.arange(x0, x1)[None, :] + 0.5 - cx) / r
        away = np.sqrt(u * u + v * v)
        alpha = np.clip((1 - away) * r * 0.5, 0, 1) * 0.7
        bend = (4.0 + 3.0 * away) * r
        sy = np.clip((cy - v * bend) / step, 0, last_row).astype(np.intp)
        sx = np.clip((cx - u * bend) / step, 0, last_column).astype(np.intp)
        shine_of_drop = (1.05 - 0.22 * away**4) * (1 + 0.12 * np.clip(v, -1, 1))
        lens = flat[:, sy * (last_column + 1) + sx] * shine_of_drop.astype(np.float32)
        view = light[:, y0:y1, x0:x1]
        view += alpha.astype(np.float32) * (lens - view)
        np.maximum(covered[y0:y1, x0:x1], alpha, out=covered[y0:y1, x0:x1])
    return covered


def _softened(light: np.ndarray) -> tuple[np.ndarray, int]:
    """What drops show of a picture (3, H, W), and by what factor it is smaller.

    Means of blocks of pixels, averaged once more over 3 by 3 blocks.

    Together this blurs by about a hundredth of the width; a drop bends light so much that it shows at most
    every fourth pixel.
    """
    step = max(1, round(light.shape[2] / 160))
    small = shrink(light, step)
    for axis in (1, 2):
        padded = np.pad(small, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode="edge")
        n = small.shape[axis]
        small = sum(padded.take(range(k, k + n), axis) for k in range(3)) * np.float32(1 / 3)
    return small, step


def unseen_through_drops(covered: np.ndarray, pixels: Pixels, labels: dict[int, int]) -> set[int]:
    """Identities with more than half of their visible pixels under drops."""
    return {k for k in labels if k in pixels and float((covered[pixels[k]] > 0.5).mean()) > DROP_LIMIT}
