"""The street of one scene: how wide it is, its junctions and markings, and the rows of houses along it.

All in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrt.data.synthetic.palettes import hex_colours, jitter

PLASTER = np.array(hex_colours("c4b094 d6cbb2 b2babe cea080 ded6c8 a49688 bec4aa 967868"))
BRICK = np.array(hex_colours("965440 844c3e a66c52 70524a"))
ROOF = np.array(hex_colours("804436 5c5452 6c4a3e 4a4e56"))
AWNING = np.array(hex_colours("a82c28 265842 283e76 cca848 5a2e54 343438 d6d0c4"))
DOOR = np.array(hex_colours("543828 2c3e34 6e2422 343c54 3c3c3e"))


@dataclass(frozen=True)
class Wall:
    """A row of n houses in one vertical plane.

    Args:
        setback: distance of the plane from the middle of the road.
        cuts: (n + 1,) where houses meet.
        heights: (n,), 0 for a gap.
        roof: (n,) height of the sloping roof, part of the height.
        storey, bay, window_width, window_height: (n,) the window grid.
        shop, brick: (n,) 0 or 1.
        colours, roof_colours: (n, 3) in 0..1.
        awnings, doors: (k, 3) in 0..1.
    """

    setback: float
    cuts: np.ndarray
    heights: np.ndarray
    roof: np.ndarray
    storey: np.ndarray
    bay: np.ndarray
    window_width: np.ndarray
    window_height: np.ndarray
    shop: np.ndarray
    brick: np.ndarray
    colours: np.ndarray
    roof_colours: np.ndarray
    awnings: np.ndarray
    doors: np.ndarray


@dataclass(frozen=True)
class End:
    """A row of houses that faces the camera, at distance ``z`` from x0 to x1."""

    z: float
    x0: float
    x1: float
    wall: Wall


@dataclass(frozen=True)
class Street:
    """Everything fixed about a street.

    Args:
        lane: width of a lane.
        lanes: (x of the middle, +1 away from the camera or -1 towards it) of each lane.
        half_road: from the middle to the kerb.
        parking: width of the parking strip inside the kerb, 0 for none.
        pavement: width of each pavement.
        crossings: (middle z, half width) of each cross street.
        lines: (x, solid) of each line painted along the street.
        crosswalks: (z, half length, "zebra" or "stop").
        rails: x of each tram rail.
        manholes: (x, z).
        wear: how fresh the paint is, 0..1.
        colours: ground colours in 0..255.
        walls: by side, -1 left and 1 right.
        ends: rows of houses that face the camera.
        closed_at: where the street ends, or None.
    """

    lane: float
    lanes: tuple[tuple[float, int], ...]
    half_road: float
    parking: float
    pavement: float
    crossings: tuple[tuple[float, float], ...]
    lines: tuple[tuple[float, bool], ...]
    crosswalks: tuple[tuple[float, float, str], ...]
    rails: tuple[float, ...]
    manholes: tuple[tuple[float, float], ...]
    wear: float
    colours: dict[str, tuple[float, float, float]]
    walls: dict[int, Wall]
    ends: tuple[End, ...]
    closed_at: float | None

    @property
    def verge(self) -> float:
        """Distance of the pavement's outer edge from the middle of the road."""
        return self.half_road + self.pavement


def _houses(rng: np.random.Generator, setback: float, cuts: np.ndarray, gaps: float, tall: float) -> Wall:
    n = len(cuts) - 1
    brick = (rng.random(n) < 0.35).astype(float)
    colours = np.where(
        brick[:, None] > 0,
        BRICK[rng.integers(len(BRICK), size=n)],
        PLASTER[rng.integers(len(PLASTER), size=n)],
    )
    colours = np.clip(colours + rng.normal(0, 12, (n, 1)) + rng.normal(0, 5, (n, 3)), 20, 245)
    floors = rng.integers(2, 6, n)
    storey = rng.uniform(2.9, 3.5, n)
    roof = np.where(rng.random(n) < 0.6, rng.uniform(1.6, 3.0, n), 0.0)
    heights = (3.4 + floors * storey * tall + 0.4 + roof) * (rng.random(n) >= gaps)
    bay = rng.uniform(2.1, 3.4, n)
    return Wall(
        setback=setback,
        cuts=cuts,
        heights=heights,
        roof=roof,
        storey=storey,
        bay=bay,
        window_width=bay * rng.uniform(0.36, 0.56, n),
        window_height=storey * rng.uniform(0.44, 0.6, n),
        shop=(rng.random(n) < 0.45).astype(float),
        brick=brick,
        colours=colours / 255,
        roof_colours=np.clip(ROOF[rng.integers(len(ROOF), size=n)] + rng.normal(0, 8, (n, 1)), 20, 200) / 255,
        awnings=AWNING[rng.permutation(len(AWNING))[:4]] / 255,
        doors=DOOR[rng.permutation(len(DOOR))[:3]] / 255,
    )


def _cuts(
    rng: np.random.Generator, crossings: tuple[tuple[float, float], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Where houses meet along the street, and which of them are the mouth of a cross street."""
    cuts, gap, z = [-12.0], [], -12.0
    blocks = [(m - h - 3.0, m + h + 3.0) for m, h in sorted(crossings)]
    while z < 260:
        step = z + rng.uniform(8, 20)
        if blocks and step > blocks[0][0] - 4:
            low, high = blocks.pop(0)
            cuts += [low, high]
            gap += [False, True]
            z = high
        else:
            cuts.append(step)
            gap.append(False)
            z = step
    return np.array(cuts), np.array(gap)


def draw_street(rng: np.random.Generator) -> tuple[Street, float]:
    """A random street and the sideways position of the camera, in one of its lanes."""
    lane = rng.uniform(3.0, 3.5)
    per_side = 1 if rng.random() < 0.62 else 2
    parking = rng.uniform(2.1, 2.4) if rng.random() < 0.75 else 0.0
    rails = (-lane / 2, lane / 2) if rng.random() < 0.28 else ()
    half_road = per_side * lane + parking + 0.2
    pavement = rng.uniform(2.4, 4.6)
    crossings: tuple[tuple[float, float], ...] = ()
    if rng.random() < 0.5:
        crossings = ((rng.uniform(13, 36), rng.uniform(3.4, 5.0)),)
    lanes = tuple((side * (k + 0.5) * lane, side) for side in (-1, 1) for k in range(per_side))
    lines = [(0.0, rng.random() < 0.3)] if rng.random() < 0.85 else []
    lines += [(s * lane, False) for s in (-1, 1)] if per_side == 2 else []
    if parking:
        lines += [(s * per_side * lane, True) for s in (-1, 1)]
    crosswalks: list[tuple[float, float, str]] = []
    for middle, half in crossings:
        if rng.random() < 0.75:
            crosswalks += [
                (middle - half - 2.2, 1.4, "zebra"),
                (middle + half + 2.2, 1.4, "zebra"),
                (middle - half - 4.8, 0.2, "stop"),
            ]
    if not crossings and rng.random() < 0.3:
        crosswalks.append((rng.uniform(9, 25), 1.5, "zebra"))
    walls, ends = {}, []
    tall = rng.uniform(0.75, 1.25)
    open_side = rng.choice([-1, 1]) if rng.random() < 0.22 else 0
    setbacks = {
        s: half_road + pavement + (rng.uniform(0, 1.0) if rng.random() < 0.6 else rng.uniform(2, 5))
        for s in (-1, 1)
    }
    for side in (-1, 1):
        cuts, gap = _cuts(rng, crossings)
        wall = _houses(rng, setbacks[side], cuts, 1.0 if side == open_side else 0.0, tall)
        far = cuts[:-1] > 90  # far roofs are levelled: single tall ones would look like splinters
        wall.heights[far] = np.minimum(wall.heights[far], np.median(wall.heights))
        wall.heights[gap] = 0
        walls[side] = wall
        for middle, half in crossings:
            far = middle + half + 3.0
            edge = np.cumsum(np.concatenate([[0.0], rng.uniform(9, 18, 5)])) + setbacks[side]
            edge = edge if side > 0 else -edge[::-1]
            ends.append(End(far, float(edge[0]), float(edge[-1]), _houses(rng, 0.0, edge + 300.0, 0.0, tall)))
    closed_at = rng.uniform(75, 140) if rng.random() < 0.4 else None
    if closed_at is not None:
        edge = np.linspace(-120, 120, 17) + rng.uniform(-3, 3)
        houses = _houses(rng, 0.0, edge + 300.0, 0.0, tall * 1.2)
        ends.append(End(closed_at, float(edge[0]), float(edge[-1]), houses))
    green = rng.random() < 0.4
    street = Street(
        lane=lane,
        lanes=lanes,
        half_road=half_road,
        parking=parking,
        pavement=pavement,
        crossings=crossings,
        lines=tuple(lines),
        crosswalks=tuple(crosswalks),
        rails=tuple(x + d for x in rails for d in (-0.72, 0.72)),
        manholes=tuple(
            (rng.uniform(-half_road, half_road), rng.uniform(4, 25)) for _ in range(int(rng.integers(0, 4)))
        ),
        wear=rng.uniform(0.6, 1.0),
        colours={
            "asphalt": jitter(rng, (98, 98, 101), 10),
            "slabs": jitter(rng, (152, 147, 140), 10),
            "verge": jitter(rng, (92, 116, 62) if green else (150, 142, 130), 10),
        },
        walls=walls,
        ends=tuple(ends),
        closed_at=closed_at,
    )
    own = [x for x, direction in lanes if direction > 0]
    camera_x = own[int(rng.integers(len(own)))] + rng.normal(0, 0.2)
    return street, float(camera_x)
