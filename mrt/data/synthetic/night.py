"""Night: the same street lit by its lamps instead of the sky.

The daylight picture under an even white sky serves as reflectance. Illumination is computed from each pixel's
place in the world: a faint sky, the own car's dipped beam with its cut-off, street lamps with the inverse
square law, the beams of other vehicles on the road in front of them, and shop windows on the pavement. Lamps
and lit windows are added as light sources with a glow. All of it is in linear light.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.facades import WINDOW_LIGHT
from mrt.data.synthetic.labels import Pixels
from mrt.data.synthetic.lamps import COLOURS, Lamp, glow, lamps_of, shine
from mrt.data.synthetic.layout import Street
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.surfaces import strips
from mrt.data.synthetic.weather import exposed, to_linear

STRENGTH = {
    "head": 14.0,
    "tail": 2.2,
    "street": 8.0,
    "cabin": 0.16,
    "display": 0.5,
    "red": 3.0,
    "amber": 3.0,
    "green": 2.4,
}
SODIUM, LED, SHOP, FAINT_SKY = (1.0, 0.66, 0.32), (0.95, 0.97, 1.0), (1.0, 0.80, 0.50), (0.75, 0.85, 1.15)
NIGHT_SKY, CITY_GLOW = (0.014, 0.018, 0.028), (0.030, 0.024, 0.020)
NIGHT_CONTRAST = 0.035
"""Least contrast, as a share of the display's range, with which a thing can be seen at night."""


def add_night(
    image: np.ndarray,
    depth: np.ndarray,
    instance: np.ndarray,
    windows: np.ndarray,
    cam: Camera,
    street: Street,
    things: list[Thing],
    rng: np.random.Generator,
) -> np.ndarray:
    """Relight a scene for the night.

    Args:
        image: (H, W, 3) sRGB in 0..1, painted under even white light.
        depth: (H, W) metres.
        instance: (H, W) identities, 0 for none.
        windows: (H, W) strength of the lit windows of houses, as if nothing stood in front of them.

    Returns:
        (H, W, 3) sRGB in 0..1, before the sensor's noise.
    """
    h, w = depth.shape
    lamps = lamps_of(things)
    night = _draw_night(rng)
    posts, driving = [k for k in lamps if k.name == "street"], _driving(things, cam)
    sources = shine(lamps, cam, depth, night.strength)
    houses = windows * (instance == 0)
    sources += 0.25 * WINDOW_LIGHT[:, None, None] * houses
    scattered = glow(sources, ((0.006, 0.28), (0.03, 0.10), (0.12, 0.05)))
    out = np.empty((3, h, w), np.float32)
    for rows in strips(h, w):
        radiance = _illumination(cam, street, driving, posts, night, rows, depth[rows], instance[rows] == 0)
        radiance *= to_linear(image[rows]).transpose(2, 0, 1)
        radiance += sources[:, rows]
        # together with the 0.25 that is scattered above, 0.45
        radiance += 0.2 * WINDOW_LIGHT[:, None, None] * houses[rows]
        radiance += scattered[:, rows]
        out[:, rows] = exposed(radiance, night.exposure)
    return out.transpose(1, 2, 0)


@dataclass(frozen=True)
class Night:
    """What differs between nights: strengths of the kinds of light, colour of street lamps, exposure."""

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
    cam: Camera,
    street: Street,
    driving: list[Thing],
    lamps: list[Lamp],
    night: Night,
    rows: slice,
    depth: np.ndarray,
    bare: np.ndarray,
) -> np.ndarray:
    """Light (3, h, w) that falls on the pixels of some rows.

    ``depth`` is (h, w) metres, ``bare`` (h, w) is True where there is no thing.
    """
    dx, dz = (d.astype(np.float32) for d in cam.column_rays())
    slopes = cam.row_slopes()[rows].astype(np.float32)[:, None]
    y = cam.height_m - depth * slopes
    is_sky = depth >= np.float32(FAR * 0.99)
    is_ground = bare & (y < np.float32(0.04))
    beams = _own_beam(cam, y, depth, is_ground)
    beams *= night.beam
    # light from the road does not count above 8 m, where exp(-10) of it is left
    low = np.flatnonzero(((y < 8) & ~is_sky).any(1))
    if len(low):
        near = slice(low[0], low[-1] + 1)
        beams[near] += _other_beams(driving, cam, dx, dz, y[near], depth[near])
    posts = _street_lamps(lamps, cam, dx, dz, y, depth, is_ground)
    posts *= night.posts
    setback = min(wall.setback for wall in street.walls.values())
    shops = np.abs(cam.x + depth * dx)
    shops -= np.float32(setback)
    np.abs(shops, out=shops)
    shops += np.maximum(y, 0)
    shops *= np.float32(-1 / 2.5)
    np.exp(shops, out=shops)
    shops *= night.shops
    # the haze above the roofs glows in the city's light
    haze = night.city * np.exp(-np.maximum(-slopes, 0) / 0.22)
    any_sky = bool(is_sky.any())
    light = np.empty((3, *depth.shape), np.float32)
    for k, plane in enumerate(light):
        np.multiply(beams, COLOURS["head"][k], out=plane)
        plane += night.post_colour[k] * posts
        plane += SHOP[k] * shops
        plane += FAINT_SKY[k] * night.faint
        if any_sky:
            np.copyto(plane, NIGHT_SKY[k] + CITY_GLOW[k] * haze, where=is_sky)
    return light


def _own_beam(cam: Camera, y: np.ndarray, depth: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
    """The own car's dipped beam (h, w) at power 1.

    Two lamps 0.65 m high, cut off a little below the horizontal.
    """
    angle = ((np.arange(cam.width) + 0.5 - cam.centre) / cam.focal).astype(np.float32)
    reach = np.maximum(depth, 1)
    # the cut-off line falls with distance; it is higher on the kerb's side
    below = y - reach * (np.float32(0.12) * np.clip(angle, 0, 0.5) - np.float32(0.008))
    below -= np.float32(0.65 + 0.25)
    below *= 5
    np.clip(below, -30, 30, out=below)
    np.exp(below, out=below)
    below += 1
    np.divide(np.float32(0.90), below, out=below)
    below += np.float32(0.10)
    below *= np.exp(-((angle / np.float32(0.42)) ** 2))
    facing = np.float32(0.6) / reach
    facing += np.float32(0.25)
    np.multiply(below, facing, out=below, where=is_ground)
    reach *= reach
    reach += 30
    below /= reach
    return below


def _street_lamps(
    lamps: list[Lamp],
    cam: Camera,
    dx: np.ndarray,
    dz: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
    is_ground: np.ndarray,
) -> np.ndarray:
    """Illumination (h, w) by street lamps of power 1.

    Inverse square law; Lambert's cosine on the ground, about half of the light on walls.

    ``dx``, ``dz`` (w,) are metres in the world per metre of depth: a pixel lies at (cam.x + depth * dx, y,
    depth * dz).
    """
    total = np.zeros_like(depth)
    squared = np.where(is_ground, np.float32(1), np.float32(0.35))
    plain = np.where(is_ground, np.float32(0), np.float32(0.25))
    inverse, cosine = np.empty_like(depth), np.empty_like(depth)
    for lamp in lamps:
        lamp_x, lamp_y, lamp_z = lamp.position.tolist()
        if not -6 < lamp_z < 60:
            continue
        away_x = lamp_x - cam.x
        up = lamp_y - y
        np.maximum(up, np.float32(0.3), out=up)
        # squared distance on the ground, as a polynomial of the depth
        np.multiply(depth, dx * dx + dz * dz, out=inverse)
        inverse -= 2 * (away_x * dx + lamp_z * dz)
        inverse *= depth
        inverse += away_x * away_x + lamp_z * lamp_z
        np.maximum(inverse, 0, out=inverse)
        inverse += up * up
        np.reciprocal(inverse, out=inverse)
        np.sqrt(inverse, out=cosine)
        cosine *= up
        # the cosine counts twice: for the angle of the surface and for that of the lamp
        inverse *= cosine
        cosine *= squared
        cosine += plain
        inverse *= cosine
        total += inverse
    return total


def _driving(things: list[Thing], cam: Camera) -> list[Thing]:
    """The nearest six vehicles whose head lamps are on."""
    lit = [t for t in things if t.lamps_on and any(name == "head" for name, _, _ in t.model.lamps)]
    near = [t for t in lit if 1 < t.distance(cam) < 50]
    return sorted(near, key=lambda t: t.distance(cam))[:6]


def _other_beams(
    things: list[Thing], cam: Camera, dx: np.ndarray, dz: np.ndarray, y: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Illumination (h, w) of the road by vehicles' head lamps; ``dx``, ``dz`` as in ``_street_lamps``."""
    total = np.zeros_like(depth)
    for thing in things:
        s, c = math.sin(thing.heading), math.cos(thing.heading)
        front = float(thing.model.extent[3]) * thing.scale
        ahead = depth * (s * dx + c * dz)
        ahead += (cam.x - thing.x) * s - thing.z * c - front
        reach = np.maximum(ahead, np.float32(0.5))
        pool = depth * (c * dx - s * dz)
        pool += (cam.x - thing.x) * c + thing.z * s
        pool /= np.float32(0.9) + np.float32(0.3) * reach
        pool *= pool
        np.negative(pool, out=pool)
        np.exp(pool, out=pool)
        reach *= reach
        reach += 10
        pool /= reach
        ahead -= np.float32(0.3)
        np.clip(ahead, 0, 1, out=ahead)  # not on its own front
        ahead *= 3.0 if thing.model.extent[1] - thing.model.extent[0] > 1.2 else 1.0
        pool *= ahead
        total += pool
    total *= np.exp(np.maximum(y, 0) * np.float32(-1 / 0.8))
    return total


def unseen_at_night(display: np.ndarray, pixels: Pixels, labels: dict[int, int], noise: float) -> set[int]:
    """Identities that lack the contrast to be seen.

    This is measured on the displayed picture before noise (sRGB luminance). The mean of what surrounds a
    thing (its box and 2 % of the picture's height on each side, without its own pixels) is subtracted from
    its visible pixels. The thing is seen if the root mean square of that reaches ``NIGHT_CONTRAST`` or the
    standard deviation of the sensor's noise, whichever is larger. A dark car with lit lamps is seen, a dark
    pedestrian in front of a dark wall is not.
    """
    luminance = 0.2126 * display[..., 0] + 0.7152 * display[..., 1] + 0.0722 * display[..., 2]
    margin = max(2, round(0.02 * len(display)))
    hidden = set()
    for identity in labels:
        if identity not in pixels:
            continue
        ys, xs = pixels[identity]
        own = luminance[ys, xs]
        around = luminance[
            max(0, ys.min() - margin) : ys.max() + 1 + margin,
            max(0, xs.min() - margin) : xs.max() + 1 + margin,
        ]
        outside = around.size - own.size
        ground = 0.0
        if outside:
            rest = float(around.sum(dtype=np.float64)) - float(own.sum(dtype=np.float64))
            ground = rest / outside
        if float(np.sqrt(np.mean((own - ground) ** 2))) < max(NIGHT_CONTRAST, noise):
            hidden.add(identity)
    return hidden
