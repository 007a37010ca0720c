"""What is ray-cast per pixel: sky with clouds, ground with road and pavement, and facades along the street.

Every edge is softened over one pixel's footprint in metres, so far windows and markings fade instead of flickering.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.layout import Street, Wall
from mrt.data.synthetic.light import Light

WINDOW_LIGHT = np.array([1.0, 0.78, 0.42], np.float32)


@lru_cache(maxsize=1)
def noise_textures() -> tuple[np.ndarray, np.ndarray]:
    """White noise (512, 1024) and cloud-like noise (512, 512), both about zero to one in size, tileable, the same in every process."""
    rng = np.random.default_rng(20220607)
    white = rng.standard_normal((512, 1024)).astype(np.float32).clip(-2.5, 2.5)
    clouds = np.zeros((512, 512), np.float32)
    for octave in range(1, 7):
        n = 2**octave
        small = np.pad(rng.random((n, n)).astype(np.float32), 2, mode="wrap")
        image = Image.fromarray(small).resize((512 + 4 * 512 // n, 512 + 4 * 512 // n), Image.Resampling.BICUBIC)
        inner = 2 * 512 // n
        clouds += np.asarray(image)[inner : inner + 512, inner : inner + 512] / 2**octave
    clouds -= clouds.min()
    return white, clouds / clouds.max()


def soft(distance: np.ndarray, half: float | np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Share of a pixel inside a band: 1 where ``|distance| < half``, softened over ``footprint`` (all metres)."""
    return np.clip((half - np.abs(distance)) / footprint + 0.5, 0, 1)


def rgb(*values: float) -> np.ndarray:
    """A colour as (3, 1, 1), to spread over planes (3, h, w): numpy works along long rows much faster than along triples."""
    return np.array(values, np.float32)[:, None, None]


def blend(planes: np.ndarray, weight: np.ndarray, colour: np.ndarray | float) -> None:
    """Mix ``colour`` into ``planes`` (3, h, w) in place by ``weight`` (h, w)."""
    planes += weight * (colour - planes)


def sky(cam: Camera, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Sky (rows above the horizon and a few below, W, 3) in 0..1: a gradient, clouds in perspective, haze and a distant skyline."""
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
    iu, iv = (dx * stretch + offset[0]).astype(np.int32) & 511, (dz * stretch + offset[1]).astype(np.int32) & 511
    density = clouds[iv, iu]
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


def ground(cam: Camera, street: Street, light: Light, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The ground plane below the horizon.

    Returns:
        First row, colours (h, W, 3) in 0..1, depth per row (h,) and the share of standing sunlight (h, W).
    """
    slopes = cam.row_slopes()
    first = int(np.searchsorted(slopes, cam.height_m / FAR))
    depth = (cam.height_m / slopes[first:]).astype(np.float32)
    z = depth[:, None]
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
    tiles = np.maximum(soft((x_world + 500) % 0.75 - 0.375, 0.018, foot_x), soft((z_world + 500) % 0.75 - 0.375, 0.018, foot_z))
    image *= 1 - 0.25 * tiles * (paved - road) * np.clip(8 / z, 0, 1)
    track = 1 + 0.05 * np.cos(np.float32(4 * np.pi / street.lane) * x_world) * (1 - in_cross)
    image += road * (track * asphalt - image)
    fine = white[(z_world * 9).astype(np.int32) & 511, (x_world * 9).astype(np.int32) & 1023]
    broad = clouds[(z_world * 8).astype(np.int32) & 511, (x_world * 8).astype(np.int32) & 511] - 0.5
    patches = white[(z_world / 7).astype(np.int32) & 511, (x_world / 2.6 + 40).astype(np.int32) & 1023]
    fade = np.clip(7 / z, 0, 1)
    level = 1 + (0.045 * fade) * fine + 0.22 * broad + 0.035 * np.clip(patches, -1.6, 1.6) * road
    # kerb: a pale stone with a dark edge towards the road
    kerb = soft(beside - street.half_road - 0.12, 0.1, foot_x) * (1 - in_cross)
    gutter = soft(beside - street.half_road + 0.08, 0.09, foot_x) * (1 - in_cross)
    image *= level
    blend(image, 0.75 * kerb, rgb(0.66, 0.65, 0.63))
    # markings, worn here and there
    paint = np.zeros_like(x_world)
    phase = rng.uniform(0, 9)
    dash = soft((z_world + phase) % 9 - 4.5, 1.6, foot_z)
    for line_x, solid in street.lines:
        paint = np.maximum(paint, soft(x_world - line_x, 0.07, foot_x) * (1.0 if solid else dash))
    paint *= 1 - in_cross
    for stripe_z, half, kind in street.crosswalks:
        stripes = soft((x_world + 500) % 1.0 - 0.5, 0.25, foot_x) if kind == "zebra" else 1.0
        paint = np.maximum(paint, soft(z_world - stripe_z, half, foot_z) * stripes * soft(x_world, street.half_road - 0.2, foot_x))
    worn = np.clip(0.95 + 0.5 * broad - 0.08 * fine * fade, 0.3, 1)
    blend(image, paint * worn * street.wear, rgb(0.90, 0.90, 0.87))
    dark = 1 - 0.35 * gutter
    steel = np.zeros_like(x_world)
    for rail in street.rails:
        dark *= 1 - 0.5 * soft(x_world - rail, 0.16, foot_x)
        steel = np.maximum(steel, soft(x_world - rail, 0.05, foot_x))
    for cover_x, cover_z in street.manholes:
        dark *= 1 - 0.45 * soft(np.hypot(x_world - cover_x, z_world - cover_z), 0.34, foot_z)
    image *= dark
    if street.rails:
        blend(image, 0.8 * steel, rgb(0.62, 0.64, 0.66))
    sunlit = sun_at(street, light, x_world, z_world)
    up = np.array([[0.0, 1.0, 0.0]])
    level, shadow = (np.float32(light.shade(up, sun)[0]) for sun in (1.0, 0.0))
    image *= shadow + (level - shadow) * sunlit
    image *= rgb(*light.tint)
    return first, image.transpose(1, 2, 0), depth, sunlit


def sun_at(street: Street, light: Light, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """1 where the sun reaches the ground, 0 in the shadow of the facades on its side; shaped as ``x`` and ``z`` (metres)."""
    sun = light.sun
    if light.direct < 0.2 or abs(sun[0]) < 0.08:
        return np.ones_like(x)
    side = 1 if sun[0] > 0 else -1
    wall = street.walls[side]
    run = np.maximum(side * wall.setback - x * 1.0 if side > 0 else x + wall.setback, 0.0) / abs(sun[0])
    index = np.clip(np.searchsorted(wall.cuts, z + run * sun[2]) - 1, 0, len(wall.heights) - 1)
    return np.clip((run * sun[1] - wall.heights.astype(np.float32)[index]) / 0.5 + 0.5, 0, 1).astype(np.float32)


def facades(cam: Camera, street: Street, light: Light, image: np.ndarray, depth: np.ndarray, lit_windows: np.ndarray | None = None) -> None:
    """Paint all walls onto ``image`` (H, W, 3) and ``depth`` (H, W) in place.

    ``lit_windows`` (H, W, 3), if given, receives the light of windows at night.
    """
    dx, dz = cam.column_rays()
    for side in (-1, 1):
        wall = street.walls[side]
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(side * dx > 1e-4, (side * wall.setback - cam.x) / dx, FAR)
        z = np.where(z > 0.3, z, FAR)
        along = z * dz
        hit = (z < FAR) & (along > wall.cuts[0]) & (along < wall.cuts[-1])
        _paint_wall(cam, wall, light, np.array([-side, 0.0, 0.0]), z, along, hit, image, depth, lit_windows)
    for end in street.ends:
        z = end.z / np.maximum(dz, 1e-3)
        across = cam.x + z * dx
        hit = (across > end.x0) & (across < end.x1) & (z > 0.5) & (z < FAR)
        _paint_wall(cam, end.wall, light, np.array([0.0, 0.0, -1.0]), z, across + 300.0, hit, image, depth, lit_windows)


def _paint_wall(
    cam: Camera, wall: Wall, light: Light, normal: np.ndarray, z: np.ndarray, along: np.ndarray, hit: np.ndarray,
    image: np.ndarray, depth: np.ndarray, lit_windows: np.ndarray | None,
) -> None:  # fmt: skip
    """One vertical plane: depth ``z``, metres ``along`` it and whether it is hit, each per column (W,)."""
    index = np.clip(np.searchsorted(wall.cuts, along) - 1, 0, len(wall.heights) - 1)
    hit = hit & (wall.heights[index] > 0)
    columns = np.flatnonzero(hit)
    if not len(columns):
        return
    low, high = columns[0], columns[-1] + 1
    cols = slice(low, high)
    hit, index = hit[cols], index[cols]
    z, along = z[cols].astype(np.float32), along[cols].astype(np.float32)
    foot = np.maximum(z / cam.focal, 0.003)
    step = np.abs(np.gradient(along)) if len(along) > 1 else foot
    step = np.clip(step, 0.003, 50).astype(np.float32)
    height = wall.heights.astype(np.float32)[index]
    top_row = int(np.clip(np.floor((cam.horizon + cam.focal * (cam.height_m - height[hit]) / z[hit]).min()), 0, cam.height - 1))
    base_row = int(np.clip(np.ceil((cam.horizon + cam.focal * cam.height_m / z[hit]).max()), 1, cam.height))
    if base_row <= top_row:
        return
    rows = slice(top_row, base_row)
    slope = cam.row_slopes()[rows].astype(np.float32)[:, None]
    y = cam.height_m - slope * z
    cover = np.clip((height - y) / foot + 0.5, 0, 1) * np.clip(y / foot + 0.5, 0, 1) * hit
    cover *= z < depth[rows, cols]
    white, clouds = noise_textures()

    def per(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)[index]

    storey, bay, wide, tall = per(wall.storey), per(wall.bay), per(wall.window_width), per(wall.window_height)
    shop = per(wall.shop)
    start = wall.cuts.astype(np.float32)[index]
    offset = along - start
    # 1-D across the columns: bays; 2-D: storeys
    in_bay = offset % bay - bay / 2
    bay_number = (offset / bay).astype(np.int32)
    pane_x = soft(in_bay, wide / 2, step)
    frame_x = soft(in_bay, wide / 2 + 0.12, step)
    mullion = soft(in_bay, 0.035, step)
    ground_floor = 3.4
    upper = (y - ground_floor) % storey - 0.52 * storey
    floor = ((y - ground_floor) / storey).astype(np.int32)
    below_roof = y < height - np.maximum(per(wall.roof), 0.9)
    is_upper = ((y > ground_floor) & below_roof).astype(np.float32)
    pane = pane_x * soft(upper, tall / 2, foot) * is_upper
    frame = frame_x * soft(upper, tall / 2 + 0.12, foot) * is_upper
    # ground floor: shop windows, or ordinary windows and doors
    at_ground = ((y <= ground_floor) & (y > 0)).astype(np.float32)
    wide_x = soft(in_bay, 0.46 * bay, step)
    shop_pane = wide_x * soft(y - 1.55, 1.05, foot) * at_ground * shop
    is_door = (bay_number % 3 == 1).astype(np.float32) * (1 - shop)
    door = soft(in_bay, 0.5, step) * soft(y - 1.1, 1.1, foot) * at_ground * is_door
    low_pane = pane_x * soft(y - 1.75, 0.65, foot) * at_ground * (1 - shop) * (1 - is_door)
    low_frame = frame_x * soft(y - 1.75, 0.77, foot) * at_ground * (1 - shop) * (1 - is_door)
    awning = soft(y - 2.95, 0.32, foot) * at_ground * shop
    # colours
    base = wall.colours.astype(np.float32)[index]
    grain = white[(y * 11).astype(np.int32) & 511, ((along * 4).astype(np.int32) & 1023)[None, :]]
    stain = clouds[(y * 14).astype(np.int32) & 511, ((along * 14).astype(np.int32) & 511)[None, :]] - 0.5
    courses = soft(y % 0.3 - 0.15, 0.02, foot) * per(wall.brick) * np.clip(0.04 / foot, 0, 1)
    level = 1 + 0.05 * grain * np.clip(0.12 / foot, 0.15, 1) + 0.26 * stain - 0.25 * courses
    level *= 0.8 + 0.2 * np.clip(y / 1.5, 0, 1)
    colour = base.T[:, None, :] * level
    trim = rgb(0.86, 0.85, 0.82)
    top = per(wall.roof)
    roof = np.clip((y - (height - top)) / foot + 0.5, 0, 1) * (top > 0)
    blend(colour, roof, wall.roof_colours.astype(np.float32)[index].T[:, None, :] * (1 + 0.16 * grain))
    lines = np.maximum(soft(y - (height - top - 0.18), 0.2, foot), 0.6 * soft(y - ground_floor - 0.1, 0.12, foot))
    lines = np.maximum(lines, 0.9 * np.maximum(frame, low_frame))
    blend(colour, 0.85 * lines, trim)
    blend(colour, awning, wall.awnings.astype(np.float32)[(bay_number // 3 + index) % len(wall.awnings)].T[:, None, :])
    blend(colour, door, wall.doors.astype(np.float32)[(bay_number + index) % len(wall.doors)].T[:, None, :])
    glass = np.clip(pane + low_pane + shop_pane, 0, 1)
    chance = white[(floor * 5 + 17) & 511, ((bay_number * 3 + index * 37) & 1023)[None, :]]
    reflect = np.clip(0.2 + 0.13 * chance + 0.035 * y, 0.1, 0.62) * (1 - 0.35 * at_ground)
    blend(colour, glass, reflect * rgb(0.86, 0.97, 1.1))
    blend(colour, pane * (chance > 1.0) * np.float32(0.8), rgb(0.78, 0.76, 0.70))
    blend(colour, 0.6 * mullion * (pane + low_pane), trim)
    ends = soft(offset, 0.06, step) + soft(offset - (wall.cuts.astype(np.float32)[index + 1] - start), 0.06, step)
    bright = np.float32(light.shade(normal[None], 1.0)[0])
    # glass does not brighten with the sun as plaster does
    colour *= bright * (1 - 0.3 * np.clip(ends, 0, 1)) * (1 - (0.3 if bright > 1 else 0.0) * glass)
    colour *= rgb(*light.tint)
    view = image[rows, cols]
    view += (cover * (colour - view.transpose(2, 0, 1))).transpose(1, 2, 0)
    solid = cover > 0.5
    np.copyto(depth[rows, cols], np.broadcast_to(z, solid.shape), where=solid)
    if lit_windows is not None:
        goods = white[(y * 2.2).astype(np.int32) & 511, ((along * 1.6).astype(np.int32) & 1023)[None, :]]
        lamp = (chance > 0.75) * (pane + low_pane) * (1 - 0.7 * mullion) * 0.5 + shop_pane * (chance > -0.6) * (0.62 + 0.16 * goods)
        glow = (cover * lamp)[..., None] * WINDOW_LIGHT * (0.5 + 0.2 * np.clip(chance, -1, 2))[..., None]
        target = lit_windows[rows, cols]
        target *= 1 - cover[..., None]
        target += glow
