"""Painting sketches onto the picture.

Projection, shading, anti-aliasing, occlusion by depth, and shadows on the ground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mrt.data.synthetic.camera import Camera
from mrt.data.synthetic.geometry import BALL, LINE, POLYGON, Model
from mrt.data.synthetic.light import Light

NEAR = 0.4
COVERED = 0.34
"""Coverage above which a pixel belongs to an object: a third, so that spokes and bicycle frames count."""

SIDE = np.array([1.0, 1.0, 0.0, 0.0])[:, None]
"""Which corners of a shadow's side belong to the thing's foot; the others belong to its top's shadow."""


@dataclass(frozen=True)
class Thing:
    """A model placed in the world.

    Args:
        model: its shape.
        palette: colour (r, g, b) in 0..255 per slot of the model.
        x, z: position on the ground in metres.
        heading: radians; at 0 it drives away along Z, at pi towards the camera.
        scale: factor on the model's size.
        label: 0-based class, or None for what is not labelled.
        texture: strength of the surface's grain.
        lamps_on: whether its lamps shine at night.
    """

    model: Model
    palette: dict[str, tuple[float, float, float]]
    x: float
    z: float
    heading: float = 0.0
    scale: float = 1.0
    label: int | None = None
    texture: float = 0.05
    lamps_on: bool = True

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Local points (n, 3) -> world points (n, 3), metres."""
        c, s = np.cos(self.heading) * self.scale, np.sin(self.heading) * self.scale
        x, z = points[:, 0], points[:, 2]
        return np.stack([self.x + x * c + z * s, points[:, 1] * self.scale, self.z - x * s + z * c], 1)

    def footprint(self) -> np.ndarray:
        """Corners (4, 3) of its rectangle on the ground, in world metres."""
        x0, x1, z0, z1, _ = self.model.extent
        return self.to_world(np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], float))

    def to_camera(self, points: np.ndarray, cam: Camera) -> np.ndarray:
        """Local points (n, 3) -> camera axes (right, up, depth) (n, 3), metres."""
        turn = self.heading - cam.yaw
        c, s = np.cos(turn) * self.scale, np.sin(turn) * self.scale
        dx = self.x - cam.x
        out = np.empty_like(points)
        out[:, 0] = points[:, 0] * c + points[:, 2] * s + (dx * cam.cos - self.z * cam.sin)
        out[:, 1] = points[:, 1] * self.scale - cam.height_m
        out[:, 2] = points[:, 2] * c - points[:, 0] * s + (dx * cam.sin + self.z * cam.cos)
        return out

    def distance(self, cam: Camera) -> float:
        """Depth of its origin, metres."""
        return (self.x - cam.x) * cam.sin + self.z * cam.cos


@dataclass
class Canvas:
    """The picture while it is painted.

    ``image`` (H, W, 3) in 0..1 sRGB, ``depth`` (H, W) metres, ``instance`` (H, W), 0 for none.
    """

    image: np.ndarray
    depth: np.ndarray
    instance: np.ndarray
    grain: np.ndarray


@dataclass(frozen=True)
class Patch:
    """One object, rasterised alone.

    Its top left corner, premultiplied colour (h, w, 3), coverage (h, w) and depth per column (w,).
    """

    left: int
    top: int
    colour: np.ndarray
    coverage: np.ndarray
    depth: np.ndarray


def _clip_near(points: np.ndarray) -> np.ndarray:
    """Cut a polygon (n, 3) in camera axes at the near plane."""
    kept, before = [], points[-1]
    for point in points:
        if (point[2] >= NEAR) != (before[2] >= NEAR):
            share = (NEAR - before[2]) / (point[2] - before[2])
            kept.append(before + share * (point - before))
        if point[2] >= NEAR:
            kept.append(point)
        before = point
    return np.array(kept).reshape(-1, 3)


def _depth_of_columns(thing: Thing, cam: Camera, columns: np.ndarray) -> np.ndarray:
    """Depth (w,) at which each column's ray enters the rectangle on which the thing stands.

    Where a ray misses the rectangle, the depth of its nearest point.
    """
    x0, x1, z0, z1, _ = (v * thing.scale for v in thing.model.extent)
    c, s = math.cos(thing.heading), math.sin(thing.heading)
    dx, dz = cam.column_rays(columns)
    ox, oz = cam.x - thing.x, -thing.z
    rx, rz, px, pz = dx * c - dz * s, dx * s + dz * c, ox * c - oz * s, ox * s + oz * c
    rx[np.abs(rx) < 1e-6] = 1e-6
    rz[np.abs(rz) < 1e-6] = 1e-6
    ax, bx, az, bz = (x0 - px) / rx, (x1 - px) / rx, (z0 - pz) / rz, (z1 - pz) / rz
    enter = np.maximum(np.minimum(ax, bx), np.minimum(az, bz))
    leave = np.minimum(np.maximum(ax, bx), np.maximum(az, bz))
    hit = (leave > enter) & (leave > NEAR)
    corners = [
        (x * c + z * s + thing.x - cam.x) * cam.sin + (z * c - x * s + thing.z) * cam.cos
        for x in (x0, x1)
        for z in (z0, z1)
    ]
    near = max(min(corners), NEAR)
    return np.where(hit, np.maximum(enter, NEAR), max(near, min(thing.distance(cam), near + 0.5)))


def _outside(thing: Thing, cam: Camera) -> bool:
    """Whether a circle around the thing lies outside the view, so that no part of it can be seen."""
    x0, x1, z0, z1, _ = thing.model.extent
    radius = thing.scale * math.hypot(max(-x0, x1), max(-z0, z1))
    depth = thing.distance(cam)
    sideways = (thing.x - cam.x) * cam.cos - thing.z * cam.sin
    if depth + radius < NEAR:
        return True
    reach = depth + radius
    left, right = -cam.centre / cam.focal * reach, (cam.width - cam.centre) / cam.focal * reach
    return sideways + radius < left or sideways - radius > right


def rasterise(thing: Thing, cam: Camera, light: Light, in_sun: float) -> Patch | None:
    """Draw one thing alone; None if no part of it is inside the picture."""
    m = thing.model
    if _outside(thing, cam):
        return None
    points = thing.to_camera(m.vertices, cam)
    first = m.starts[:-1]
    deepest = np.minimum.reduceat(points[:, 2], first)
    farthest = np.maximum.reduceat(points[:, 2], first)
    if farthest.max() < NEAR:
        return None
    safe = points.copy()
    np.maximum(safe[:, 2], NEAR, out=safe[:, 2])
    px, py = cam.project(safe)
    scale = cam.focal * thing.scale / np.maximum(deepest, NEAR)
    # which faces look at the camera, in the model's own axes
    c, s = math.cos(thing.heading), math.sin(thing.heading)
    ex, ez = cam.x - thing.x, -thing.z
    eye = np.array([ex * c - ez * s, cam.height_m, ex * s + ez * c]) / thing.scale
    facing = np.einsum("ij,ij->i", m.normals, eye - m.vertices[first]) > 0
    polygon = m.kind == POLYGON
    low_x, high_x = np.minimum.reduceat(px, first), np.maximum.reduceat(px, first)
    low_y, high_y = np.minimum.reduceat(py, first), np.maximum.reduceat(py, first)
    rx, ry = m.radius[:, 0] * scale, m.radius[:, 1] * scale
    low_x, high_x, low_y, high_y = low_x - rx, high_x + rx, low_y - ry, high_y + ry
    size = np.maximum(high_x - low_x, high_y - low_y)
    shown = (
        (facing | m.two_sided | ~polygon)
        & (size > 0.6)
        & (high_x > 0)
        & (low_x < cam.width)
        & (high_y > 0)
        & (low_y < cam.height)
    )
    shown &= farthest > NEAR
    if not shown.any():
        return None
    left, top = int(max(0, np.floor(low_x[shown].min()))), int(max(0, np.floor(low_y[shown].min())))
    right = int(min(cam.width, np.ceil(high_x[shown].max())))
    bottom = int(min(cam.height, np.ceil(high_y[shown].max())))
    if right - left < 1 or bottom - top < 1:
        return None
    world = np.empty_like(m.normals)
    world[:, 0] = m.normals[:, 0] * c + m.normals[:, 2] * s
    world[:, 1] = m.normals[:, 1]
    world[:, 2] = m.normals[:, 2] * c - m.normals[:, 0] * s
    world[~polygon] = (-0.3 * cam.sin, 0.35, -0.3 * cam.cos)
    brightness = np.where(m.lit, light.shade(world, in_sun), 1.0) * m.tone
    colours = np.array([thing.palette[name] for name in m.slots])[m.slot] * brightness[:, None]
    colours *= np.where(m.lit[:, None], light.tint, 1.0)
    colours = np.clip(colours + 0.5, 0, 255).astype(int)
    part_depth = thing.to_camera(m.part_centre, cam)[:, 2]
    rank = np.lexsort((np.arange(len(first)), -part_depth[m.part], m.part_layer[m.part]))
    extent = max(right - left, bottom - top)
    fine = 4 if extent < 48 else 3 if extent < 150 else 2
    # RGBX, not RGBA: its box filter leaves the colours premultiplied, which is what compositing needs
    picture = Image.new("RGBX", ((right - left) * fine, (bottom - top) * fine))
    draw = ImageDraw.Draw(picture)
    flat = np.stack([(px - left) * fine, (py - top) * fine], 1).ravel().tolist()
    kinds, starts = m.kind.tolist(), m.starts.tolist()
    for f in rank[shown[rank]].tolist():
        colour = (*colours[f].tolist(), 255)
        i, j = starts[f], starts[f + 1]
        if kinds[f] == POLYGON:
            if deepest[f] < NEAR:
                cut = _clip_near(points[i:j])
                if len(cut) < 3:
                    continue
                cx, cy = cam.project(cut)
                outline = list(zip(((cx - left) * fine).tolist(), ((cy - top) * fine).tolist(), strict=True))
            else:
                outline = flat[2 * i : 2 * j]
            draw.polygon(outline, fill=colour)
        elif kinds[f] == LINE:
            if deepest[f] < NEAR:
                continue
            width = 2 * rx[f] * fine
            outline = flat[2 * i : 2 * j]
            draw.line(outline, fill=colour, width=max(1, round(width)), joint="curve")
            if width > 4:
                r = width / 2 - 0.5
                for x, y in (outline[:2], outline[-2:]):
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif kinds[f] == BALL and deepest[f] >= NEAR:
            x, y = flat[2 * i], flat[2 * i + 1]
            half_w, half_h = rx[f] * fine, ry[f] * fine
            draw.ellipse((x - half_w, y - half_h, x + half_w, y + half_h), fill=colour)
    planes = np.asarray(picture.reduce(fine)).transpose(2, 0, 1).astype(np.float32, order="C")
    planes *= np.float32(1 / 255)
    depth = _depth_of_columns(thing, cam, np.arange(left, right) + 0.5).astype(np.float32)
    return Patch(left, top, planes[:3].transpose(1, 2, 0), planes[3], depth)


def paint(canvas: Canvas, patch: Patch, thing: Thing, cam: Camera, identity: int) -> int:
    """Put a patch onto the canvas where nothing nearer is.

    Returns how many pixels the thing covers inside the picture, hidden ones included.
    """
    h, w = patch.coverage.shape
    where = (slice(patch.top, patch.top + h), slice(patch.left, patch.left + w))
    rows = np.arange(patch.top, patch.top + h, dtype=np.float32)[:, None] + 0.5
    colour = patch.colour
    # darker towards the ground, where less of the sky is seen, and a grain that follows the surface
    metres = cam.height_m - (rows - cam.horizon) * (patch.depth / cam.focal)
    occlusion = 0.72 + 0.28 * np.clip(metres / 0.7, 0, 1)
    if thing.texture:
        grain = canvas.grain
        gy, gx = (patch.top * 7 + identity * 31) % 128, (patch.left * 5 + identity * 17) % 128
        tile = grain[gy : gy + h, gx : gx + w] if h <= 384 and w <= 896 else np.resize(grain, (h, w))
        occlusion = occlusion * (1 + thing.texture * tile)
    colour = colour * occlusion[..., None]
    free = patch.depth < canvas.depth[where] + 0.25
    coverage = patch.coverage * free
    mine = patch.coverage > COVERED
    image = canvas.image[where]
    image *= (1 - coverage)[..., None]
    image += colour * free.astype(np.float32)[..., None]
    owned = mine & free
    np.copyto(canvas.depth[where], np.broadcast_to(patch.depth, (h, w)), where=owned)
    canvas.instance[where][owned] = identity
    return int(mine.sum())


def ground_shadows(things: list[Thing], cam: Camera, light: Light) -> np.ndarray:
    """Shade (H, W) in 0..1 of all things on the ground: contact shadows, and shadows of the sun."""
    layer = Image.new("L", (cam.width, cam.height), 0)
    draw = ImageDraw.Draw(layer)
    sun = light.sun
    quads, values = [], []
    bases = [thing.footprint() for thing in things]
    if light.direct > 0.2:
        value = int(255 * min(0.55, 0.9 * light.direct))
        for thing, base in zip(things, bases, strict=True):
            height = thing.model.extent[4] * thing.scale
            reach = height / max(sun[1], 0.3)
            if thing.label is None and height > 2:
                base = base * 0.3 + base.mean(0) * 0.7
            far = base - reach * np.array([sun[0], 0.0, sun[2]])
            quads += [base, far]
            for i in range(4):
                edge = [i, i - 1, i - 1, i]
                quads.append(base[edge] * SIDE + far[edge] * (1 - SIDE))
            values += [value] * 6
    for thing, base in zip(things, bases, strict=True):
        if thing.label is not None or thing.model.extent[4] <= 2:
            middle = base.mean(0)
            quads.append(middle + (base - middle) * 1.08)
            values.append(150)
    _ground_polygons(draw, cam, np.array(quads).reshape(-1, 4, 3), values)
    blurred = layer.filter(ImageFilter.BoxBlur(max(1, cam.width / 256)))
    return np.asarray(blurred, np.float32) * np.float32(1 / 255)


def _ground_polygons(draw: ImageDraw.ImageDraw, cam: Camera, corners: np.ndarray, values: list[int]) -> None:
    """Fill quads (n, 4, 3) of world points with their values.

    Quads that reach behind the near plane are cut there.
    """
    points = cam.to_camera(corners.reshape(-1, 3)).reshape(-1, 4, 3)
    points[..., 1] = -cam.height_m
    in_front = (points[..., 2] >= NEAR).sum(1)
    scale = cam.focal / np.maximum(points[..., 2], NEAR)
    columns, rows = cam.centre + scale * points[..., 0], cam.horizon - scale * points[..., 1]
    xy = np.stack([columns, rows], 2).reshape(len(points), 8).tolist()
    for k, value in enumerate(values):
        if in_front[k] == 4:
            draw.polygon(xy[k], fill=value)
        elif in_front[k]:
            x, y = cam.project(_clip_near(points[k]))
            draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=value)
