"""Night: the same street lit by its lamps instead of the sky.

The daylight picture under an even white sky is taken as reflectance. Illumination per pixel comes from the pixel's
place in the world: a faint sky, the own car's dipped beam with its cut-off, street lamps with the inverse square law,
the beams of other vehicles on the road before them, and shop windows on the pavement. Lamps and lit windows are
added as light of their own with a glow. All in linear light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.labels import Pixels
from mrt.data.synthetic.lamps import COLOURS, Lamp, glow, lamps_of, shine
from mrt.data.synthetic.layout import Street
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.surfaces import strips
from mrt.data.synthetic.weather import to_linear, to_srgb

STRENGTH = {"head": 14.0, "tail": 2.2, "street": 8.0, "cabin": 0.16, "display": 0.5, "red": 3.0, "amber": 3.0, "green": 2.4}
SODIUM, LED, SHOP, FAINT_SKY = (1.0, 0.66, 0.32), (0.95, 0.97, 1.0), (1.0, 0.80, 0.50), (0.75, 0.85, 1.15)
NIGHT_SKY, CITY_GLOW = (0.014, 0.018, 0.028), (0.030, 0.024, 0.020)
NIGHT_CONTRAST = 0.035
"""Contrast, in shares of the display's range, from which on a thing can be seen at night."""


def add_night(
    image: np.ndarray, depth: np.ndarray, instance: np.ndarray, windows: np.ndarray, cam: Camera, street: Street, things: list[Thing],
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Relight a scene for the night.

    Args:
        image: (H, W, 3) sRGB in 0..1, painted under even white light. depth: (H, W) metres. instance: (H, W).
        windows: (H, W, 3) light of the lit windows of houses, without what stands before them.

    Returns:
        (H, W, 3) sRGB in 0..1, before the sensor's noise.
    """
    h, w = depth.shape
    lamps = lamps_of(things)
    night = _draw_night(rng)
    sources = shine(lamps, cam, depth, night.strength)
    house_light = windows.transpose(2, 0, 1) * (instance == 0)
    radiance = np.empty((3, h, w), np.float32)
    for rows in strips(h, w):
        lit = _illumination(cam, street, things, lamps, night, rows, depth[rows], instance[rows] == 0)
        radiance[:, rows] = to_linear(image[rows]).transpose(2, 0, 1) * lit + 0.45 * house_light[:, rows] + sources[:, rows]
    radiance += glow(sources + 0.25 * house_light, ((0.006, 0.28), (0.03, 0.10), (0.12, 0.05)))
    radiance *= -night.exposure
    np.exp(radiance, out=radiance)
    return to_srgb(np.subtract(1, radiance, out=radiance)).transpose(1, 2, 0)


@dataclass(frozen=True)
class Night:
    """What differs from night to night: strengths of the kinds of light, colour of the street lamps, exposure."""

    faint: float
    beam: float
    posts: float
    shops: float
    city: float
    post_colour: tuple[float, float, float]
    strength: dict[str, float]
    exposure: float


def _draw_night(rng: np.random.Generator) -> Night:
    sodium = rng.random() < 0.6
    return Night(
        faint=rng.uniform(0.010, 0.030),
        beam=rng.uniform(22, 45),
        posts=14.0 * rng.uniform(0.6, 1.4),
        shops=rng.uniform(0.02, 0.10),
        city=rng.uniform(0.3, 1.3),
        post_colour=SODIUM if sodium else LED,
        strength=STRENGTH if sodium else {**STRENGTH, "street": 6.0},
        exposure=rng.uniform(1.1, 2.0),
    )


def _illumination(
    cam: Camera, street: Street, things: list[Thing], lamps: list[Lamp], night: Night, rows: slice, depth: np.ndarray, bare: np.ndarray
) -> np.ndarray:
    """Light (3, h, w) that falls on the pixels of some rows; ``depth`` (h, w) metres, ``bare`` (h, w) where no thing is."""
    dx, dz = (d.astype(np.float32) for d in cam.column_rays())
    slopes = cam.row_slopes()[rows].astype(np.float32)[:, None]
    x, y, z = cam.x + depth * dx, cam.height_m - depth * slopes, depth * dz
    is_ground = bare & (y < 0.04)
    beams = _own_beam(cam, x, y, z, depth, is_ground) * night.beam + _other_beams(things, cam, x, y, z)
    posts = _street_lamps([k for k in lamps if k.name == "street"], x, y, z, is_ground) * night.posts
    setback = min(wall.setback for wall in street.walls.values())
    shops = np.exp((-np.abs(np.abs(x) - setback) - np.maximum(y, 0)) / 2.5) * night.shops
    # the city's own light hangs in the haze above the roofs
    haze = night.city * np.exp(-np.maximum(-slopes, 0) / 0.22)
    is_sky = depth >= FAR * 0.99
    light = np.empty((3, *depth.shape), np.float32)
    for k in range(3):
        light[k] = FAINT_SKY[k] * night.faint + COLOURS["head"][k] * beams + night.post_colour[k] * posts + SHOP[k] * shops
        light[k] = np.where(is_sky, NIGHT_SKY[k] + CITY_GLOW[k] * haze, light[k])
    return light


def _own_beam(cam: Camera, x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
    """The own car's dipped beam (h, w) at power 1: two lamps 0.65 m high, cut off a little below the horizontal."""
    sideways = (x - cam.x) * cam.cos - z * cam.sin
    reach = np.maximum(depth, np.float32(1.0))
    angle = sideways / reach
    cut = 0.65 - 0.008 * reach + 0.12 * np.clip(angle, 0, 0.5) * reach  # the kerb side reaches higher
    below = 0.10 + 0.90 / (1 + np.exp(np.clip((y - cut - 0.25) * 5, -30, 30)))
    facing = np.where(is_ground, 0.25 + 0.6 / reach, np.float32(1.0))
    return np.exp(-((angle / 0.42) ** 2)) * below * facing / (reach * reach + 30.0)


def _street_lamps(lamps: list[Lamp], x: np.ndarray, y: np.ndarray, z: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
    """Illumination (h, w) by street lamps of power 1: inverse square, Lambert's cosine on the ground, about half of it on walls."""
    total = np.zeros_like(x)
    for lamp in lamps:
        lamp_x, lamp_y, lamp_z = lamp.position.tolist()
        if not -6 < lamp_z < 60:
            continue
        up = np.maximum(lamp_y - y, np.float32(0.3))
        up *= up
        inverse = (lamp_x - x) ** 2
        inverse += up
        inverse += (lamp_z - z) ** 2
        np.reciprocal(inverse, out=inverse)
        cosine = up * inverse  # squared: once for the angle of the surface, once for the lamp's own
        inverse *= np.where(is_ground, cosine, 0.25 * np.sqrt(cosine) + 0.35 * cosine)
        total += inverse
    return total


def _other_beams(things: list[Thing], cam: Camera, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Illumination (h, w) on the road before other vehicles, by the nearest six whose lamps are on."""
    driving = [t for t in things if t.lamps_on and any(name == "head" for name, _, _ in t.model.lamps) and 1 < t.distance(cam) < 50]
    total = np.zeros_like(x)
    for thing in sorted(driving, key=lambda t: t.distance(cam))[:6]:
        s, c = math.sin(thing.heading), math.cos(thing.heading)
        front = float(thing.model.extent[3]) * thing.scale
        ahead = (x - thing.x) * s + (z - thing.z) * c - front
        aside = (x - thing.x) * c - (z - thing.z) * s
        reach = np.maximum(ahead, np.float32(0.5))
        power = 3.0 if thing.model.extent[1] - thing.model.extent[0] > 1.2 else 1.0
        pool = np.exp(-((aside / (0.9 + 0.3 * reach)) ** 2)) / (reach * reach + 10.0)
        total += np.clip(ahead - 0.3, 0, 1) * (power * pool)  # not on its own front
    return total * np.exp(-np.maximum(y, 0) / 0.8)


def unseen_at_night(display: np.ndarray, pixels: Pixels, labels: dict[int, int], noise: float) -> set[int]:
    """Identities that lack the contrast to be seen.

    The picture before noise, as displayed (sRGB luminance), counts. A thing is seen when the root mean square of the
    difference between its visible pixels and the mean of what is around it (its box and 2 % of the picture's height on
    each side, without its own pixels) reaches ``NIGHT_CONTRAST`` or the standard deviation of the sensor's noise,
    whichever is more: a dark car with lit lamps is seen, a dark pedestrian before a dark wall is not.
    """
    luminance = display @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    margin = max(2, round(0.02 * len(display)))
    hidden = set()
    for identity in labels:
        if identity not in pixels:
            continue
        ys, xs = pixels[identity]
        own = luminance[ys, xs]
        around = luminance[max(0, ys.min() - margin) : ys.max() + 1 + margin, max(0, xs.min() - margin) : xs.max() + 1 + margin]
        outside = around.size - own.size
        ground = (float(around.sum(dtype=np.float64)) - float(own.sum(dtype=np.float64))) / outside if outside else 0.0
        if float(np.sqrt(np.mean((own - ground) ** 2))) < max(NIGHT_CONTRAST, noise):
            hidden.add(identity)
    return hidden
