"""Rows of houses, ray-cast per pixel.

A vertical plane has one depth per column, so most of its pattern is one-dimensional.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrt.data.synthetic.camera import FAR, Camera
from mrt.data.synthetic.layout import Street, Wall
from mrt.data.synthetic.light import Light
from mrt.data.synthetic.surfaces import blend, noise_textures, rgb, soft, strips, texture, wrapped

GROUND_FLOOR = 3.4
TRIM = rgb(0.86, 0.85, 0.82)
CURTAIN = rgb(0.78, 0.76, 0.70)
WINDOW_LIGHT = np.array([1.0, 0.78, 0.42], np.float32)


def facades(
    cam: Camera,
    street: Street,
    light: Light,
    image: np.ndarray,
    depth: np.ndarray,
    lit_windows: np.ndarray | None = None,
) -> None:
    """Paint all walls onto ``image`` (H, W, 3) and ``depth`` (H, W) in place.

    ``lit_windows`` (H, W), if given, receives how strongly windows shine at night, as shares of
    ``WINDOW_LIGHT``.
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
        normal, along = np.array([0.0, 0.0, -1.0]), across + 300.0
        _paint_wall(cam, end.wall, light, normal, z, along, hit, image, depth, lit_windows)


@dataclass(frozen=True)
class Section:
    """The part of a wall that is on the picture, w columns by h rows.

    Args:
        index: (w,) house of each column.
        along: (w,) metres along the wall.
        step: (w,) metres along the wall per column.
        foot: (w,) metres up the wall per row.
        height: (w,) of the house, in metres.
        y: (h, w) metres above the ground.
    """

    index: np.ndarray
    along: np.ndarray
    step: np.ndarray
    foot: np.ndarray
    height: np.ndarray
    y: np.ndarray


def _paint_wall(
    cam: Camera,
    wall: Wall,
    light: Light,
    normal: np.ndarray,
    z: np.ndarray,
    along: np.ndarray,
    hit: np.ndarray,
    image: np.ndarray,
    depth: np.ndarray,
    lit_windows: np.ndarray | None,
) -> None:
    """One vertical plane: depth ``z``, metres ``along`` it and whether it is hit, each per column (W,)."""
    index = np.clip(np.searchsorted(wall.cuts, along) - 1, 0, len(wall.heights) - 1)
    height = wall.heights.astype(np.float32)[index]
    hit = hit & (height > 0)
    if not hit.any():
        return
    step = np.clip(np.abs(np.gradient(along)), 0.003, 50).astype(np.float32)
    z, along = z.astype(np.float32), along.astype(np.float32)
    foot = np.maximum(z / cam.focal, 0.003).astype(np.float32)
    highest = (cam.horizon + cam.focal * (cam.height_m - height[hit]) / z[hit]).min()
    top = int(np.clip(np.floor(highest), 0, cam.height - 1))
    bottom = int(np.clip(np.ceil((cam.horizon + cam.focal * cam.height_m / z[hit]).max()), 1, cam.height))
    left, right = _span(hit)
    if bottom <= top:
        return
    rows, cols = slice(top, bottom), slice(left, right)
    slopes = cam.row_slopes().astype(np.float32)[:, None]
    y = cam.height_m - slopes[rows] * z[cols]
    cover = (
        np.clip((height[cols] - y) / foot[cols] + 0.5, 0, 1) * np.clip(y / foot[cols] + 0.5, 0, 1) * hit[cols]
    )
    cover *= z[cols] < depth[rows, cols]
    # what nearer walls hide need not be computed
    seen = cover > 0
    if not seen.any():
        return
    (a, b), (c, d) = _span(seen.any(1)), _span(seen.any(0))
    rows, cols = slice(top + a, top + b), slice(left + c, left + d)
    y, cover = y[a:b, c:d], cover[a:b, c:d]
    for strip in strips(*y.shape):
        section = Section(index[cols], along[cols], step[cols], foot[cols], height[cols], y[strip])
        colour, glowing = _look(wall, light, normal, section)
        weight = cover[strip]
        view = image[rows, cols][strip]
        view += (weight * (colour - view.transpose(2, 0, 1))).transpose(1, 2, 0)
        if lit_windows is not None:
            target = lit_windows[rows, cols][strip]
            target *= 1 - weight
            target += weight * glowing
    solid = cover > 0.5
    np.copyto(depth[rows, cols], np.broadcast_to(z[cols], solid.shape), where=solid)


def _span(mask: np.ndarray) -> tuple[int, int]:
    """First index that is set, and one past the last."""
    places = np.flatnonzero(mask)
    return int(places[0]), int(places[-1]) + 1


def _look(wall: Wall, light: Light, normal: np.ndarray, s: Section) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, h, w) in 0..1 of a section of wall under the light, and its windows' glow at night."""
    white, clouds = noise_textures()
    index, along, step, foot, height, y = s.index, s.along, s.step, s.foot, s.height, s.y

    def per(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)[index]

    storey, bay, wide, tall, shop, roof_height = (
        per(v) for v in (wall.storey, wall.bay, wall.window_width, wall.window_height, wall.shop, wall.roof)
    )
    start, stop = wall.cuts.astype(np.float32)[index], wall.cuts.astype(np.float32)[index + 1]
    offset = along - start
    in_bay, bay_number = offset % bay - bay / 2, (offset / bay).astype(np.int32)
    pane_x, frame_x = soft(in_bay, wide / 2, step), soft(in_bay, wide / 2 + 0.12, step)
    mullion = soft(in_bay, 0.035, step)
    # windows of the upper floors
    floor = ((y - GROUND_FLOOR) / storey).astype(np.int32)
    middle = wrapped(y - GROUND_FLOOR, storey) - 0.52 * storey
    upper = ((y > GROUND_FLOOR) & (y < height - np.maximum(roof_height, 0.9))).astype(np.float32)
    pane = pane_x * soft(middle, tall / 2, foot) * upper
    frame = frame_x * soft(middle, tall / 2 + 0.12, foot) * upper
    # plaster or brick
    grain = texture(white, (y * 11).astype(np.int32), (along * 4).astype(np.int32))
    stain = texture(clouds, (y * 14).astype(np.int32), (along * 14).astype(np.int32)) - 0.5
    level = 1 + 0.05 * grain * np.clip(0.12 / foot, 0.15, 1) + 0.26 * stain
    brick = per(wall.brick)
    if brick.any():
        cols = slice(*_span(brick))
        level[:, cols] -= 0.25 * (
            soft(wrapped(y[:, cols], 0.3) - 0.15, 0.02, foot[cols])
            * brick[cols]
            * np.clip(0.04 / foot[cols], 0, 1)
        )
    level *= 0.8 + 0.2 * np.clip(y / 1.5, 0, 1)
    colour = wall.colours.astype(np.float32)[index].T[:, None, :] * level
    # ground floor, only in the rows that show it: shop windows with awnings, or ordinary windows and doors
    below = int(np.argmax((y <= GROUND_FLOOR).any(1))) if (y[-1] <= GROUND_FLOOR).any() else len(y)
    y_low = y[below:]
    at_ground = ((y_low <= GROUND_FLOOR) & (y_low > 0)).astype(np.float32)
    is_door = (bay_number % 3 == 1).astype(np.float32) * (1 - shop)
    home = at_ground * ((1 - shop) * (1 - is_door))
    shop_pane = soft(in_bay, 0.46 * bay, step) * soft(y_low - 1.55, 1.05, foot) * at_ground * shop
    frame[below:] += frame_x * soft(y_low - 1.75, 0.77, foot) * home
    pane_upper = pane.copy()
    pane[below:] += pane_x * soft(y_low - 1.75, 0.65, foot) * home
    roof = np.clip((y - (height - roof_height)) / foot + 0.5, 0, 1) * (roof_height > 0)
    if roof.any():
        under = slice(_span(roof.any(1))[1])
        tiles = wall.roof_colours.astype(np.float32)[index].T[:, None, :]
        blend(colour[:, under], roof[under], tiles * (1 + 0.16 * grain[under]))
    lines = np.maximum(
        soft(y - (height - roof_height - 0.18), 0.2, foot), 0.6 * soft(y - GROUND_FLOOR - 0.1, 0.12, foot)
    )
    blend(colour, 0.85 * np.maximum(lines, 0.9 * frame), TRIM)
    awning = soft(y_low - 2.95, 0.32, foot) * at_ground * shop
    blend(colour[:, below:], awning, _cycle(wall.awnings, bay_number // 3 + index))
    door = soft(in_bay, 0.5, step) * soft(y_low - 1.1, 1.1, foot) * at_ground * is_door
    blend(colour[:, below:], door, _cycle(wall.doors, bay_number + index))
    # glass mirrors the sky, each pane a little differently
    chance = texture(white, floor * 5 + 17, bay_number * 3 + index * 37)
    reflect = np.clip(0.2 + 0.13 * chance + 0.035 * y, 0.1, 0.62)
    reflect[below:] *= 1 - 0.35 * at_ground
    glass = pane.copy()
    glass[below:] += shop_pane
    np.clip(glass, 0, 1, out=glass)
    blend(colour, glass, reflect * rgb(0.86, 0.97, 1.1))
    blend(colour, pane_upper * (chance > 1.0) * np.float32(0.8), CURTAIN)
    blend(colour, 0.6 * mullion * pane, TRIM)
    joints = soft(offset, 0.06, step) + soft(offset - (stop - start), 0.06, step)
    bright = np.float32(light.shade(normal[None], 1.0)[0])
    # glass does not brighten with the sun as plaster does
    colour *= bright * (1 - 0.3 * np.clip(joints, 0, 1)) * (1 - (0.3 if bright > 1 else 0.0) * glass)
    colour *= rgb(*light.tint)
    glowing = (chance > 0.75) * pane * (1 - 0.7 * mullion) * 0.5
    goods = texture(white, (y_low * 2.2).astype(np.int32), (along * 1.6).astype(np.int32))
    glowing[below:] += shop_pane * (chance[below:] > -0.6) * (0.62 + 0.16 * goods)
    return colour, glowing * (0.5 + 0.2 * np.clip(chance, -1, 2))


def _cycle(colours: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Colour (3, 1, w) of each column, taken in turn from (k, 3)."""
    return colours.astype(np.float32)[number % len(colours)].T[:, None, :]
