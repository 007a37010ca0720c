"""3-D sketches: small models of flat faces, thick lines and balls, built once and painted many times.

A model is made of convex *parts*; inside a part the faces that look away from the camera are dropped and the
rest are painted in the order they were added, so a window is simply added after the panel it lies on. Parts
are painted by layer, then far to near. Local axes: x to the right, y up, z forward (the direction of travel),
origin on the ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

POLYGON, LINE, BALL = 0, 1, 2
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Model:
    """A finished sketch of F faces over N vertices.

    Attributes:
        vertices: (N, 3) metres.
        starts: (F + 1,) first vertex of each face.
        kind: (F,) POLYGON, LINE or BALL.
        radius: (F, 2) half thickness of a line, or a ball's half width and height.
        slot: (F,) index into ``slots``, the names of the colours.
        tone: (F,) factor on the colour.
        lit: (F,) False for lamps and signals, which are not shaded.
        two_sided: (F,) True if the face is drawn from behind too.
        part: (F,) part of each face.
        part_centre: (P, 3) metres.
        part_layer: (P,) layer in which each part is painted.
        extent: (x0, x1, z0, z1, height) of the whole model, metres.
        lamps: name, position (3,) and diameter of each lamp, for the night.
        normals: (F, 3) unit normals of the polygons, away from the centre of their part; a fixed direction
            for the rest.
    """

    vertices: np.ndarray
    starts: np.ndarray
    kind: np.ndarray
    radius: np.ndarray
    slot: np.ndarray
    slots: tuple[str, ...]
    tone: np.ndarray
    lit: np.ndarray
    two_sided: np.ndarray
    part: np.ndarray
    part_centre: np.ndarray
    part_layer: np.ndarray
    extent: tuple[float, float, float, float, float]
    lamps: tuple[tuple[str, Point, float], ...]
    normals: np.ndarray


@dataclass
class Sketch:
    """Collects faces; ``done`` turns them into a Model."""

    points: list[list[Point]] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    lamps: list[tuple[str, Point, float]] = field(default_factory=list)

    def part(self, layer: int = 1) -> Sketch:
        """Start a new convex part."""
        self.layers.append(layer)
        return self

    def _add(self, points, kind, radius, slot, tone, lit, two_sided) -> None:
        if not self.layers:
            self.part()
        self.points.append([tuple(map(float, p)) for p in points])
        self.rows.append((kind, radius, slot, tone, lit, two_sided, len(self.layers) - 1))

    def face(
        self, points, slot: str, tone: float = 1.0, *, lit: bool = True, two_sided: bool = False
    ) -> None:
        """A flat polygon; its outside is the side away from the centre of its part."""
        self._add(points, POLYGON, (0.0, 0.0), slot, tone, lit, two_sided)

    def line(self, points, thickness: float, slot: str, tone: float = 1.0, *, closed: bool = False) -> None:
        """A round bar of the given diameter through the points."""
        points = list(points)
        path = points + points[:1] if closed else points
        self._add(path, LINE, (thickness / 2, thickness / 2), slot, tone, True, True)

    def ball(
        self, centre: Point, rx: float, ry: float, slot: str, tone: float = 1.0, *, lit: bool = True
    ) -> None:
        """An ellipsoid seen as an ellipse of half width ``rx`` and half height ``ry``."""
        self._add([centre], BALL, (rx, ry), slot, tone, lit, True)

    def box(self, x0, x1, y0, y1, z0, z1, slot: str, tone: float = 1.0, *, top: str | None = None) -> None:
        """Five sides of a cuboid (the bottom is never seen)."""
        for x in (x0, x1):
            self.face([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], slot, tone)
        for z in (z0, z1):
            self.face([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], slot, tone)
        self.face([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)], top or slot, tone)

    def prism(
        self, profile: list[tuple[float, float]], x0: float, x1: float, slot: str, tone: float = 1.0
    ) -> None:
        """A side profile of (z, y) points, extruded from x0 to x1."""
        for (za, ya), (zb, yb) in zip(profile, profile[1:] + profile[:1], strict=True):
            self.face([(x0, ya, za), (x1, ya, za), (x1, yb, zb), (x0, yb, zb)], slot, tone)
        for x in (x0, x1):
            self.face([(x, y, z) for z, y in profile], slot, tone)

    def disc(
        self, x: float, y: float, z: float, r: float, slot: str, tone: float = 1.0, *, sides: int = 14
    ) -> None:
        """A disc in the plane of constant x (a wheel seen from the side)."""
        angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
        self.face([(x, y + r * np.sin(a), z + r * np.cos(a)) for a in angles], slot, tone)

    def lamp(self, name: str, position: Point, diameter: float) -> None:
        """Where a lamp shines at night; its daylight face is added separately."""
        self.lamps.append((name, tuple(map(float, position)), diameter))

    def done(self) -> Model:
        """Freeze the sketch."""
        vertices = np.array([p for face in self.points for p in face], np.float64)
        counts = np.array([len(face) for face in self.points])
        starts = np.concatenate([[0], np.cumsum(counts)])
        kind, radius, slot, tone, lit, two_sided, part = (
            np.array(column) for column in zip(*self.rows, strict=True)
        )
        slots = tuple(dict.fromkeys(slot.tolist()))
        used = sorted(set(part.tolist()))
        part = np.searchsorted(used, part)
        of_vertex = np.repeat(part, counts)
        points = [vertices[of_vertex == p] for p in range(len(used))]
        centre = np.stack([0.5 * (own.min(0) + own.max(0)) for own in points])
        first = starts[:-1]
        a, b, c = vertices[first], vertices[first + (counts > 1)], vertices[first + 2 * (counts > 2)]
        normals = np.cross(b - a, c - a)
        normals *= np.where(np.einsum("ij,ij->i", normals, a - centre[part]) < 0, -1.0, 1.0)[:, None]
        normals /= np.maximum(np.linalg.norm(normals, axis=1), 1e-9)[:, None]
        low, high = vertices.min(0), vertices.max(0)
        thick = float(radius[:, 0].max())
        extent = (low[0] - thick, high[0] + thick, low[2] - thick, high[2] + thick, high[1])
        return Model(
            vertices=vertices,
            starts=starts,
            kind=kind,
            radius=radius.astype(float),
            slot=np.array([slots.index(s) for s in slot.tolist()]),
            slots=slots,
            tone=tone.astype(float),
            lit=lit.astype(bool),
            two_sided=two_sided.astype(bool),
            part=part,
            part_centre=centre,
            part_layer=np.array(self.layers)[used],
            extent=tuple(map(float, extent)),
            lamps=tuple(self.lamps),
            normals=normals,
        )


def inside(quad: list[Point], left: float, right: float, low: float, high: float) -> list[Point]:
    """The part of a quad between shares of its width and height.

    The corners are low left, low right, high right, high left.
    """
    corners = list(zip(*quad, strict=True))

    def at(s: float, t: float) -> Point:
        return tuple((1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c) for a, b, c, d in corners)

    return [at(left, low), at(right, low), at(right, high), at(left, high)]
