"""Night: the same street lit by its lamps instead of the sky.

The daylight picture under an even white sky is taken as reflectance. Illumination per pixel comes from the pixel's
place in the world: a faint sky, the own car's dipped beam with its cut-off, street lamps with the inverse square law,
the beams of other vehicles on the road before them, and shop windows on the pavement. Lamps and lit windows are
added as light of their own with a glow. All in linear light.
"""

from __future__ import annotations

import math

import numpy as np

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.lamps import COLOURS, Lamp, glow, lamps_of, shine
from mrt.data.synthetic.layout import Street
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.surfaces import rgb
from mrt.data.synthetic.weather import to_linear, to_srgb

STRENGTH = {"head": 14.0, "tail": 2.2, "street": 8.0, "cabin": 0.16, "display": 0.5, "red": 3.0, "amber": 3.0, "green": 2.4}
SODIUM, LED, SHOP, FAINT_SKY = (1.0, 0.66, 0.32), (0.95, 0.97, 1.0), (1.0, 0.80, 0.50), (0.75, 0.85, 1.15)
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
    reflectance = to_linear(image).transpose(2, 0, 1)
    dx, dz = (d.astype(np.float32) for d in cam.column_rays())
    x, z = cam.x + depth * dx, depth * dz
    y = cam.height_m - depth * cam.row_slopes().astype(np.float32)[:, None]
    is_ground = (instance == 0) & (y < 0.04)
    lamps = lamps_of(things)
    faint = rng.uniform(0.010, 0.030)
    beams = _own_beam(cam, x, y, z, depth, is_ground, rng) + _other_beams(things, cam, x, z, y)
    sodium = rng.random() < 0.6
    posts = _street_lamps([k for k in lamps if k.name == "street"], x, y, z, is_ground) * np.float32(rng.uniform(0.6, 1.4))
    shops = np.exp(-np.abs(np.abs(x) - min(wall.setback for wall in street.walls.values())) / 2.5 - np.maximum(y, 0) / 2.5)
    shops *= np.float32(rng.uniform(0.02, 0.10))
    light = np.empty_like(reflectance)
    for channel, (head, post, shop, sky) in enumerate(zip(COLOURS["head"], SODIUM if sodium else LED, SHOP, FAINT_SKY, strict=True)):
        light[channel] = sky * faint + head * beams + post * posts + shop * shops
    is_sky = depth >= FAR * 0.99
    # the city's own light hangs in the haze above the roofs
    haze = np.exp(-np.maximum(-cam.row_slopes(), 0) / 0.22).astype(np.float32)[:, None]
    night_sky = rgb(0.014, 0.018, 0.028) + rgb(0.030, 0.024, 0.020) * (haze * np.float32(rng.uniform(0.3, 1.3)))
    radiance = reflectance * np.where(is_sky, night_sky, light)
    house_light = windows.transpose(2, 0, 1) * (instance == 0)
    strength = STRENGTH if sodium else {**STRENGTH, "street": 6.0}
    sources = shine(lamps, cam, depth, strength)
    radiance += 0.45 * house_light + sources
    radiance += glow(sources + 0.25 * house_light, ((0.006, 0.28), (0.03, 0.10), (0.12, 0.05)))
    exposure = rng.uniform(1.1, 2.0)
    radiance *= -exposure
    np.exp(radiance, out=radiance)
    return to_srgb(np.subtract(1, radiance, out=radiance)).transpose(1, 2, 0)


def _own_beam(
    cam: Camera, x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray, is_ground: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Illumination (H, W) by the own car's dipped beam: two lamps 0.65 m high, cut off a little below the horizontal."""
    sideways = (x - cam.x) * cam.cos - z * cam.sin
    reach = np.maximum(depth, np.float32(1.0))
    angle = sideways / reach
    cut = 0.65 - 0.008 * reach + 0.12 * np.clip(angle, 0, 0.5) * reach  # the kerb side reaches higher
    below = 0.10 + 0.90 / (1 + np.exp(np.clip((y - cut - 0.25) * 5, -30, 30)))
    spread = np.exp(-((angle / 0.42) ** 2))
    facing = np.where(is_ground, 0.25 + 0.6 / reach, 1.0)
    power = np.float32(rng.uniform(22, 45))
    return (power * spread * below * facing / (reach * reach + 30.0)).astype(np.float32)


def _street_lamps(lamps: list[Lamp], x: np.ndarray, y: np.ndarray, z: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
    """Illumination (H, W) by street lamps: inverse square, Lambert's cosine on the ground and about half of it on upright surfaces."""
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
    return total * 14.0


def _other_beams(things: list[Thing], cam: Camera, x: np.ndarray, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Illumination (H, W) on the road before other vehicles, by the nearest six whose lamps are on."""
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


def unseen_at_night(display: np.ndarray, instance: np.ndarray, labels: dict[int, int], noise: float) -> set[int]:
    """Identities that lack the contrast to be seen.

    The picture before noise, as displayed (sRGB luminance), counts. A thing is seen when the root mean square of the
    difference between its visible pixels and the mean of the ring around it (2 % of the picture's height wide, without
    its own pixels) reaches ``NIGHT_CONTRAST`` or the standard deviation of the sensor's noise, whichever is more: a dark car with
    lit lamps is seen, a dark pedestrian before a dark wall is not.
    """
    luminance = display @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    height, width = instance.shape
    margin = max(2, round(0.02 * height))
    hidden = set()
    for identity in labels:
        own = instance == identity
        ys, xs = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if not len(ys):
            continue
        box = (
            slice(max(0, ys[0] - margin), min(height, ys[-1] + 1 + margin)),
            slice(max(0, xs[0] - margin), min(width, xs[-1] + 1 + margin)),
        )
        inside, values = own[box], luminance[box]
        around = values[~inside]
        ground = float(around.mean()) if len(around) else 0.0
        contrast = float(np.sqrt(np.mean((values[inside] - ground) ** 2)))
        if contrast < max(NIGHT_CONTRAST, noise):
            hidden.add(identity)
    return hidden
