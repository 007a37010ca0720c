"""Rain: a wet road that mirrors the street, a veil, falling streaks and drops on the lens."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mrt.data.synthetic.camera import Camera
from mrt.data.synthetic.labels import Pixels
from mrt.data.synthetic.lamps import glow, lamps_of, shine
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.surfaces import noise_textures, rgb
from mrt.data.synthetic.weather import to_linear, to_srgb

STRENGTH = {"head": 2.6, "tail": 1.1, "display": 0.7, "red": 1.3, "amber": 1.2, "green": 1.0}
DROP_LIMIT = 0.5
"""Share of a thing's visible pixels under drops on the lens from which on it is ignored."""


def add_rain(
    image: np.ndarray, depth: np.ndarray, instance: np.ndarray, cam: Camera, things: list[Thing], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make a scene under an overcast sky wet.

    Args:
        image: (H, W, 3) sRGB in 0..1. depth: (H, W) metres. instance: (H, W).

    Returns:
        The picture (H, W, 3) sRGB in 0..1 before the sensor's noise, and how far drops cover each pixel (H, W) in 0..1.
    """
    light = to_linear(image).transpose(2, 0, 1) * np.float32(rng.uniform(0.45, 0.75))
    sources = shine(lamps_of(things), cam, depth, STRENGTH)
    light += sources
    light = _wet_ground(light, depth, instance, cam, rng)
    light += glow(sources, ((0.008, 0.3), (0.035, 0.14)))
    # the falling drops scatter light: a thin, even veil
    beta = rng.uniform(0.005, 0.018)
    t = np.exp(-np.float32(beta) * depth)
    sky = rgb(0.97, 1.0, 1.03) * np.float32(rng.uniform(0.26, 0.42))
    light = light * t + (1 - t) * sky
    light += sky * (_streaks(cam.width, cam.height, rng) * np.float32(rng.uniform(0.5, 0.9)))
    out = to_srgb(light).transpose(1, 2, 0)
    return _lens_drops(out, rng)


def _wet_ground(light: np.ndarray, depth: np.ndarray, instance: np.ndarray, cam: Camera, rng: np.random.Generator) -> np.ndarray:
    """Darken the ground and add what it mirrors (planes (3, H, W), linear).

    A ground pixel mirrors what stands in its own column: the first thing above it on the picture touches the ground at
    row b, so row r shows row 2 b - r. The share is Schlick's approximation of Fresnel's law for water; between puddles
    the film is rough and the mirror image blurred up and down.
    """
    h, w = depth.shape
    first = max(0, int(np.ceil(cam.horizon)))
    flat = (cam.height_m / np.maximum(cam.row_slopes()[first:], 1e-4)).astype(np.float32)[:, None]
    floor, depth = light[:, first:], depth[first:]
    ground = (instance[first:] == 0) & (np.abs(depth - flat) < 0.02 * depth + 0.05)
    rows = np.arange(first, h)[:, None]
    contact = np.maximum.accumulate(np.where(ground, first - 1, rows), axis=0)
    mirrored = np.clip(2 * contact - rows + 1, 0, h - 1)
    image = np.take(light.reshape(3, -1), (mirrored * w + np.arange(w)).ravel(), axis=1).reshape(floor.shape)
    # blur along the columns by a running mean whose length follows the picture's height
    k = max(3, h // 24)
    total = np.cumsum(np.pad(image, ((0, 0), (k + 1, k), (0, 0)), mode="edge"), axis=1)
    rough = (total[:, 2 * k + 1 :] - total[:, : -2 * k - 1]) * np.float32(1 / (2 * k + 1))
    dx, dz = (d.astype(np.float32) for d in cam.column_rays())
    x, z = cam.x + depth * dx, depth * dz
    _, clouds = noise_textures()
    offset = rng.integers(0, 512, 2).tolist()
    pool = clouds[(z * 22 + offset[0]).astype(np.int32) & 511, (x * 30 + offset[1]).astype(np.int32) & 511]
    puddle = np.clip((pool - rng.uniform(0.50, 0.62)) * 12, 0, 1)
    cosine = cam.height_m / np.sqrt(cam.height_m**2 + depth * depth)
    share = (0.02 + 0.98 * (1 - cosine) ** 5) * (0.45 + 0.5 * puddle) * ground
    film = np.where(ground, (0.55 - 0.15 * puddle) * (1 - share), 1)
    rough += puddle * (image - rough)
    out = light.copy()
    out[:, first:] = floor * film + rough * share
    return out


def _streaks(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Falling drops drawn out by the exposure, (height, width) in 0..1: many faint far ones, a few near ones."""
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


def _lens_drops(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Drops on the glass: each shows a small, upside-down, blurred view of what is behind it."""
    h, w, _ = image.shape
    covered = np.zeros((h, w), np.float32)
    out = image.copy()
    n = int(rng.integers(4, 22))
    eight = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    soft = np.asarray(eight.filter(ImageFilter.BoxBlur(max(1.0, w / 120))), np.float32) * np.float32(1 / 255)
    for _ in range(n):
        r = w * rng.uniform(0.006, 0.022) * (1.6 if rng.random() < 0.12 else 1.0)
        cx, cy, tall = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.95, 1.35)
        y0, y1, x0, x1 = max(0, int(cy - r * tall - 1)), min(h, int(cy + r * tall + 2)), max(0, int(cx - r - 1)), min(w, int(cx + r + 2))
        if y1 <= y0 or x1 <= x0:
            continue
        v, u = (np.arange(y0, y1)[:, None] + 0.5 - cy) / (r * tall), (np.arange(x0, x1)[None, :] + 0.5 - cx) / r
        away = np.sqrt(u * u + v * v)
        alpha = np.clip((1 - away) * r * 0.5, 0, 1) * 0.7
        bend = 4.0 + 3.0 * away
        sy = np.clip(cy - v * r * bend, 0, h - 1).astype(int)
        sx = np.clip(cx - u * r * bend, 0, w - 1).astype(int)
        lens = soft[sy, sx] * (1.05 - 0.22 * away**4)[..., None] * (1 + 0.12 * np.clip(v, -1, 1))[..., None]
        view = out[y0:y1, x0:x1]
        view += alpha[..., None].astype(np.float32) * (lens.astype(np.float32) - view)
        np.maximum(covered[y0:y1, x0:x1], alpha, out=covered[y0:y1, x0:x1])
    return out, covered


def unseen_through_drops(covered: np.ndarray, pixels: Pixels, labels: dict[int, int]) -> set[int]:
    """Identities of whose visible pixels more than half lie under drops."""
    return {k for k in labels if k in pixels and float((covered[pixels[k]] > 0.5).mean()) > DROP_LIMIT}
