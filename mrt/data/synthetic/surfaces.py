"""Sky and ground, ray-cast per pixel; houses are in facades.py.

Every edge is softened over one pixel's footprint in metres, so far markings fade instead of flickering.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.layout import Street
from mrt.data.synthetic.light import Light


@lru_cache(maxsize=1)
def noise_textures() -> tuple[np.ndarray, np.ndarray]:
    """White noise (512, 1024) and cloud-like noise (512, 512).

    The first has mean 0 and deviation about 1, the second lies in 0..1. They can be tiled, and are the same
    in every process.
    """
    rng = np.random.default_rng(20220607)
    white = rng.standard_normal((512, 1024)).astype(np.float32).clip(-2.5, 2.5)
    clouds = np.zeros((512, 512), np.float32)
    for octave in range(1, 7):
        n = 2**octave
        small = np.pad(rng.random((n, n)).astype(np.float32), 2, mode="wrap")
        image = Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC, box=(2, 2, n + 2, n + 2))
        clouds += np.asarray(image) / 2**octave
    clouds -= clouds.min()
    return white, clouds / clouds.max()


def texture(tile: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``tile[rows, columns]`` of an endlessly repeated tile whose sides are powers of two.

    It takes a fifth of the time of numpy's own indexing.
    """
    height, width = tile.shape
    return np.take(tile.reshape(-1), (rows & (height - 1)) * width + (columns & (width - 1)), mode="clip")


def strips(height: int, width: int) -> list[slice]:
    """Rows 0 to ``height`` in pieces of about 32,768 pixels.

    Intermediate results of a piece stay in the processor's cache.
    """
    step = max(8, 32768 // max(width, 1))
    return [slice(a, min(a + step, height)) for a in range(0, height, step)]


def soft(distance: np.ndarray, half: float | np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Share of a pixel inside a band: 1 where ``|distance| < half``, softened over ``footprint`` (metres)."""
    return np.clip((half - np.abs(distance)) / footprint + 0.5, 0, 1)


def wrapped(x: np.ndarray, period: float | np.ndarray) -> np.ndarray:
    """``x % period`` in float32, exact to the last bit, in a fifth of the time.

    Computed in float64, in which a product of two 24-bit numbers is exact.
    """
    period = np.asarray(period, np.float32).astype(np.float64)
    wide = x.astype(np.float64)
    turns = wide / period
    np.floor(turns, out=turns)
    turns *= period
    wide -= turns
    return wide.astype(np.float32)


def rgb(*values: float) -> np.ndarray:
    """A colour as (3, 1, 1), to be broadcast over planes (3, h, w).

    numpy works much faster along long rows than along triples.
    """
    return np.array(values, np.float32)[:, None, None]


def blend(planes: np.ndarray, weight: np.ndarray, colour: np.ndarray | float) -> None:
    """Mix ``colour`` into ``planes`` (3, h, w) in place by ``weight`` (h, w).

    ``colour`` is one number, or an array that can be broadcast to the planes' shape.
    """
    # plane by plane, so that intermediate results stay in the processor's cache
    targets = colour if isinstance(colour, np.ndarray) else (colour,) * 3
    for plane, target in zip(planes, targets, strict=True):
        step = target - plane
        step *= weight
        plane += step


def sky(cam: Camera, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Sky (rows above the horizon and a few below, W, 3) in 0..1.

    A gradient, clouds in perspective, haze and a distant skyline.
    """
    rows = min(cam.height, int(np.ceil(cam.horizon)) + 2)
    up = np.maximum(-cam.row_slopes()[:rows], 1e-3).astype(np.float32)[:, None]
    dx, dz = (d.astype(np.float32)[None, :] for d in cam.column_rays())
    white, clouds = noise_textures()
    zenith = rgb(0.28, 0.47, 0.78) * np.float32(rng.uniform(0.85, 1.12))
    haze = rgb(0.80, 0.86, 0.92)
    mix = np.clip(up / 0.42, 0, 1) ** 0.7
    image = np.repeat(haze + mix * (zenith - haze), cam.width, axis=2)
    stretch = 60.0 / (up + 0.12)
    offset = rng.integers(0, 512, 2)
    cloud_rows = (dz * stretch + offset[1]).astype(np.int32)
    density = texture(clouds, cloud_rows, (dx * stretch + offset[0]).astype(np.int32))
    cover = np.clip((density - (0.72 - 0.55 * light.clouds)) * (3.0 - 1.2 * light.clouds), 0, 1)
    grey = 0.97 - 0.30 * light.clouds * (0.5 + 0.5 * density) - 0.06 * (1 - density)
    blend(image, cover, grey * rgb(0.98, 1.0, 1.03))
    # distant roofs and trees, pale with distance
    bearing = (np.arctan2(dx, dz)[0] * 40 + 50) * rng.uniform(0.8, 1.4)
    row = white[int(rng.integers(512))]
    steps = np.abs(row[bearing.astype(int) % 1024])
    bumps = np.abs(row[(bearing * 4).astype(int) % 1024])
    heights = 0.018 + 0.022 * steps + 0.006 * bumps
    skyline = np.clip((heights - up) * np.float32(cam.focal) + 0.5, 0, 1)
    blend(image, skyline, rgb(0.60, 0.65, 0.70) * (0.92 + 0.06 * steps))
    return (image * rgb(*light.tint)).transpose(1, 2, 0)


def ground(
    cam: Camera, street: Street, light: Light, rng: np.random.Generator
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The ground plane below the horizon.

    Returns:
        First row, colours (h, W, 3) in 0..1, depth per row (h,) and the share of direct sunlight (h, W).
    """
    slopes = cam.row_slopes()
    first = int(np.searchsorted(slopes, cam.height_m / FAR))
    depth = (cam.height_m / slopes[first:]).astype(np.float32)
    phase = rng.uniform(0, 9)
    image = np.empty((3, len(depth), cam.width), np.float32)
    sunlit = np.empty(image.shape[1:], np.float32)
    for rows in strips(len(depth), cam.width):
        image[:, rows], sunlit[rows] = _ground_rows(cam, street, light, phase, depth[rows, None])
    return first, image.transpose(1, 2, 0), depth, sunlit


def _ground_rows(
    cam: Camera, street: Street, light: Light, phase: float, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, h, W) and sunlight (h, W) of the ground at depths ``z`` (h, 1).

    ``phase`` shifts the dashes of the markings.
    """
    dx, dz = (d.astype(np.float32)[None, :] for d in cam.column_rays())
    x_world, z_world = cam.x + z * dx, z * dz
    foot_x = np.maximum(z / cam.focal, 0.004)
    foot_z = np.maximum(z * z / (cam.focal * cam.height_m), 0.004)
    white, clouds = noise_textures()
    beside = np.abs(x_world)
    in_cross = np.zeros_like(z_world)
    for middle, half in street.crossings:
        in_cross = np.maximum(in_cross, soft(z_world - middle, half, foot_z))
    road = np.maximum(soft(x_world, street.half_road, foot_x), in_cross)
    paved = np.maximum(soft(x_world, street.half_road + street.pavement, foot_x), road)
    asphalt, slabs, verge = (rgb(*street.colours[k]) / 255 for k in ("asphalt", "slabs", "verge"))
    image = verge + paved * (slabs - verge)
    tiles = soft(wrapped(x_world + 500, 0.75) - 0.375, 0.018, foot_x)
    tiles = np.maximum(tiles, soft(wrapped(z_world + 500, 0.75) - 0.375, 0.018, foot_z))
    image *= 1 - 0.25 * tiles * (paved - road) * np.clip(8 / z, 0, 1)
    track = 1 + 0.05 * np.cos(np.float32(4 * np.pi / street.lane) * x_world) * (1 - in_cross)
    image += road * (track * asphalt - image)
    fine = texture(white, (z_world * 9).astype(np.int32), (x_world * 9).astype(np.int32))
    broad = texture(clouds, (z_world * 8).astype(np.int32), (x_world * 8).astype(np.int32)) - 0.5
    patches = texture(white, (z_world / 7).astype(np.int32), (x_world / 2.6 + 40).astype(np.int32))
    fade = np.clip(7 / z, 0, 1)
    level = 1 + (0.045 * fade) * fine + 0.22 * broad + 0.035 * np.clip(patches, -1.6, 1.6) * road
    # kerb: a pale stone with a dark edge towards the road
    kerb = soft(beside - street.half_road - 0.12, 0.1, foot_x) * (1 - in_cross)
    gutter = soft(beside - street.half_road + 0.08, 0.09, foot_x) * (1 - in_cross)
    image *= level
    blend(image, 0.75 * kerb, rgb(0.66, 0.65, 0.63))
    # markings, worn here and there
    paint = np.zeros_like(x_world)
    dash = soft(wrapped(z_world + phase, 9) - 4.5, 1.6, foot_z)
    for line_x, solid in street.lines:
        paint = np.maximum(paint, soft(x_world - line_x, 0.07, foot_x) * (1.0 if solid else dash))
    paint *= 1 - in_cross
    for stripe_z, half, kind in street.crosswalks:
        across = soft(z_world - stripe_z, half, foot_z)
        if not across.any():
            continue
        stripes = soft(wrapped(x_world + 500, 1.0) - 0.5, 0.25, foot_x) if kind == "zebra" else 1.0
        paint = np.maximum(paint, across * stripes * soft(x_world, street.half_road - 0.2, foot_x))
    worn = np.clip(0.95 + 0.5 * broad - 0.08 * fine * fade, 0.3, 1)
    blend(image, paint * worn * street.wear, rgb(0.90, 0.90, 0.87))
    dark = 1 - 0.35 * gutter
    steel = np.zeros_like(x_world)
    for rail in street.rails:
        dark *= 1 - 0.5 * soft(x_world - rail, 0.16, foot_x)
        steel = np.maximum(steel, soft(x_world - rail, 0.05, foot_x))
    for cover_x, cover_z in street.manholes:
        near = (np.abs(z_world - cover_z) < 0.4 + foot_z).any(1)
        if near.any():
            away = np.hypot(x_world[near] - cover_x, z_world[near] - cover_z)
            dark[near] *= 1 - 0.45 * soft(away, 0.34, foot_z[near])
    image *= dark
    if street.rails:
        blend(image, 0.8 * steel, rgb(0.62, 0.64, 0.66))
    sunlit = sun_at(street, light, x_world, z_world)
    up = np.array([[0.0, 1.0, 0.0]])
    level, shadow = (np.float32(light.shade(up, sun)[0]) for sun in (1.0, 0.0))
    image *= shadow + (level - shadow) * sunlit
    image *= rgb(*light.tint)
    return image, sunlit


def sun_at(street: Street, light: Light, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """1 where the sun reaches the ground, 0 in the shadow of the facades on its side.

    The shape is that of ``x`` and ``z`` (metres).
    """
    sun = light.sun.tolist()
    if light.direct < 0.2 or abs(sun[0]) < 0.08:
        return np.ones_like(x)
    side = 1 if sun[0] > 0 else -1
    wall = street.walls[side]
    run = np.maximum(side * wall.setback - x * 1.0 if side > 0 else x + wall.setback, 0.0) / abs(sun[0])
    index = np.clip(np.searchsorted(wall.cuts, z + run * sun[2]) - 1, 0, len(wall.heights) - 1)
    above = run * sun[1] - wall.heights.astype(np.float32)[index]
    return np.clip(above / 0.5 + 0.5, 0, 1).astype(np.float32)
