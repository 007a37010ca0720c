"""Painting sketches onto the picture: projection, shading, anti-aliasing, occlusion by depth, and shadows on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mrt.data.synthetic.camera import Camera
from mrt.data.synthetic.geometry import BALL, LINE, POLYGON, Model
from mrt.data.synthetic.light import Light

NEAR = 0.4
COVERED = 0.34
"""Coverage from which on a pixel belongs to an object: a third, so that spokes and frames of bicycles count."""


@dataclass(frozen=True)
class Thing:
    """A model placed in the world.

    Args:
        model: its shape. palette: colour (r, g, b) in 0..255 per slot of the model.
        x, z: position on the ground in metres. heading: radians; 0 drives away along Z, pi towards the camera.
        scale: factors (3,) on the model's x, y and z.
        label: 0-based class, or None for what is not labelled.
        texture: strength of the surface's grain. lamps_on: whether its lamps shine at night.
    """

    model: Model
    palette: dict[str, tuple[float, float, float]]
    x: float
    z: float
    heading: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    label: int | None = None
    texture: float = 0.05
    lamps_on: bool = True

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Local points (n, 3) -> world points (n, 3), metres."""
        points = points * self.scale
        c, s = np.cos(self.heading), np.sin(self.heading)
        return np.stack([self.x + points[:, 0] * c + points[:, 2] * s, points[:, 1], self.z - points[:, 0] * s + points[:, 2] * c], 1)

    def footprint(self) -> np.ndarray:
        """Corners (4, 3) of its rectangle on the ground, in world metres."""
        x0, x1, z0, z1, _ = self.model.extent
        return self.to_world(np.array([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], float))


@dataclass
class Canvas:
    """The picture under way: ``image`` (H, W, 3) in 0..1 sRGB, ``depth`` (H, W) metres, ``instance`` (H, W), 0 for none."""

    image: np.ndarray
    depth: np.ndarray
    instance: np.ndarray
    grain: np.ndarray


@dataclass(frozen=True)
class Patch:
    """An object alone, rasterised: top left corner, premultiplied colour (h, w, 3), coverage (h, w), depth per column (w,)."""

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
    """Depth (w,) at which each pixel column's ray enters the rectangle the thing stands on; its nearest point's where it misses."""
    x0, x1, z0, z1, _ = thing.model.extent
    sx, _, sz = thing.scale
    c, s = np.cos(thing.heading), np.sin(thing.heading)
    dx, dz = cam.column_rays(columns)
    ox, oz = cam.x - thing.x, -thing.z
    rx, rz, px, pz = dx * c - dz * s, dx * s + dz * c, ox * c - oz * s, ox * s + oz * c

    def slab(low: float, high: float, origin: float, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        direction = np.where(np.abs(direction) < 1e-6, 1e-6, direction)
        a, b = (low - origin) / direction, (high - origin) / direction
        return np.minimum(a, b), np.maximum(a, b)

    ax, bx = slab(x0 * sx, x1 * sx, px, rx)
    az, bz = slab(z0 * sz, z1 * sz, pz, rz)
    enter, leave = np.maximum(ax, az), np.minimum(bx, bz)
    hit = (leave > enter) & (leave > NEAR)
    near = float(np.clip(cam.to_camera(thing.footprint())[:, 2].min(), NEAR, None))
    centre = float(cam.to_camera(np.array([[thing.x, 0.0, thing.z]]))[0, 2])
    return np.where(hit, np.clip(enter, NEAR, None), max(near, min(centre, near + 0.5)))


def rasterise(thing: Thing, cam: Camera, light: Light, in_sun: float) -> Patch | None:
    """Draw one thing alone; None when nothing of it falls into the picture."""
    m = thing.model
    points = cam.to_camera(thing.to_world(m.vertices))
    first, count = m.starts[:-1], np.diff(m.starts)
    deepest = np.minimum.reduceat(points[:, 2], first)
    if np.maximum.reduceat(points[:, 2], first).max() < NEAR:
        return None
    safe = points.copy()
    safe[:, 2] = np.maximum(safe[:, 2], NEAR)
    px, py = cam.project(safe)
    scale = cam.focal / np.maximum(deepest, NEAR)
    # which faces look at the camera: normals point away from the centre of their part
    a, b, c = points[first], points[first + (count > 1)], points[first + 2 * (count > 2)]
    normal = np.cross(b - a, c - a)
    centre = cam.to_camera(thing.to_world(m.part_centre))
    outward = np.einsum("ij,ij->i", normal, a - centre[m.part])
    normal *= np.where(outward < 0, -1.0, 1.0)[:, None] / np.maximum(np.linalg.norm(normal, axis=1), 1e-9)[:, None]
    facing = np.einsum("ij,ij->i", normal, a) < 0
    polygon = m.kind == POLYGON
    low_x, high_x = np.minimum.reduceat(px, first), np.maximum.reduceat(px, first)
    low_y, high_y = np.minimum.reduceat(py, first), np.maximum.reduceat(py, first)
    rx, ry = m.radius[:, 0] * scale, m.radius[:, 1] * scale
    low_x, high_x, low_y, high_y = low_x - rx, high_x + rx, low_y - ry, high_y + ry
    size = np.maximum(high_x - low_x, high_y - low_y)
    shown = (facing | m.two_sided | ~polygon) & (size > 0.6) & (high_x > 0) & (low_x < cam.width) & (high_y > 0) & (low_y < cam.height)
    shown &= np.maximum.reduceat(points[:, 2], first) > NEAR
    if not shown.any():
        return None
    left, top = int(max(0, np.floor(low_x[shown].min()))), int(max(0, np.floor(low_y[shown].min())))
    right = int(min(cam.width, np.ceil(high_x[shown].max())))
    bottom = int(min(cam.height, np.ceil(high_y[shown].max())))
    if right - left < 1 or bottom - top < 1:
        return None
    # shading in world axes: the camera only turns about the vertical
    world = np.stack([normal[:, 0] * cam.cos + normal[:, 2] * cam.sin, normal[:, 1], normal[:, 2] * cam.cos - normal[:, 0] * cam.sin], 1)
    world[~polygon] = (-0.3 * cam.sin, 0.35, -0.3)
    brightness = np.where(m.lit, light.shade(world, in_sun), 1.0) * m.tone
    colours = np.array([thing.palette[s] for s in m.slots], float)[m.slot] * brightness[:, None]
    colours *= np.where(m.lit[:, None], light.tint, 1.0)
    colours = np.clip(colours + 0.5, 0, 255).astype(int)
    rank = np.lexsort((np.arange(len(first)), -centre[m.part, 2], m.part_layer[m.part]))
    extent = max(right - left, bottom - top)
    s = 4 if extent < 48 else 3 if extent < 150 else 2
    picture = Image.new("RGBA", ((right - left) * s, (bottom - top) * s))
    draw = ImageDraw.Draw(picture)
    xy = np.stack([(px - left) * s, (py - top) * s], 1)
    flat = xy.tolist()
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
                outline = list(zip(((cx - left) * s).tolist(), ((cy - top) * s).tolist(), strict=True))
            else:
                outline = [(x, y) for x, y in flat[i:j]]
            draw.polygon(outline, fill=colour)
        elif kinds[f] == LINE:
            if deepest[f] < NEAR:
                continue
            width = 2 * rx[f] * s
            outline = [(x, y) for x, y in flat[i:j]]
            draw.line(outline, fill=colour, width=max(1, round(width)), joint="curve")
            if width > 4:
                r = width / 2 - 0.5
                for x, y in (outline[0], outline[-1]):
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif kinds[f] == BALL and deepest[f] >= NEAR:
            x, y = flat[i]
            draw.ellipse((x - rx[f] * s, y - ry[f] * s, x + rx[f] * s, y + ry[f] * s), fill=colour)
    pixels = np.asarray(picture.reduce(s), np.float32) * np.float32(1 / 255)
    depth = _depth_of_columns(thing, cam, np.arange(left, right) + 0.5).astype(np.float32)
    return Patch(left, top, pixels[..., :3], pixels[..., 3], depth)


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
    image += colour * free[..., None]
    owned = mine & free
    np.copyto(canvas.depth[where], np.broadcast_to(patch.depth, (h, w)), where=owned)
    canvas.instance[where][owned] = identity
    return int(mine.sum())


def ground_shadows(things: list[Thing], cam: Camera, light: Light) -> np.ndarray:
    """Shade (H, W) in 0..1 that all things throw on the ground: contact shadows, and the sun's where it shines."""
    layer = Image.new("L", (cam.width, cam.height), 0)
    draw = ImageDraw.Draw(layer)
    sun = light.sun
    for thing in things:
        base = thing.footprint()
        height = thing.model.extent[4] * thing.scale[1]
        if light.direct > 0.2:
            reach = height / max(sun[1], 0.3)
            shift = np.array([-sun[0] * reach, 0.0, -sun[2] * reach])
            slim = thing.label is None and height > 2
            corners = base if not slim else base * 0.1 + base.mean(0) * 0.9
            far = corners + shift if not slim else base + shift
            _ground_polygon(draw, cam, _hull(np.concatenate([corners, far])), int(255 * min(0.55, 0.9 * light.direct)))
    for thing in things:
        if thing.label is None and thing.model.extent[4] > 2:
            continue
        base = thing.footprint()
        middle = base.mean(0)
        _ground_polygon(draw, cam, middle + (base - middle) * 1.08, 150)
    blurred = layer.filter(ImageFilter.BoxBlur(max(1, cam.width / 256)))
    return np.asarray(blurred, np.float32) * np.float32(1 / 255)


def _hull(points: np.ndarray) -> np.ndarray:
    """Convex hull (k, 3) on the ground of points (n, 3) (monotone chain)."""
    order = points[np.lexsort((points[:, 2], points[:, 0]))]

    def chain(seq: np.ndarray) -> list[np.ndarray]:
        out: list[np.ndarray] = []
        for p in seq:
            while len(out) > 1 and (out[-1][0] - out[-2][0]) * (p[2] - out[-2][2]) <= (out[-1][2] - out[-2][2]) * (p[0] - out[-2][0]):
                out.pop()
            out.append(p)
        return out[:-1]

    return np.array(chain(order) + chain(order[::-1]))


def _ground_polygon(draw: ImageDraw.ImageDraw, cam: Camera, corners: np.ndarray, value: int) -> None:
    corners = corners.copy()
    corners[:, 1] = 0.0
    seen = _clip_near(cam.to_camera(corners))
    if len(seen) >= 3:
        x, y = cam.project(seen)
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=value)
