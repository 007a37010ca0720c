"""Cars, trucks, buses and trams as sketches in metres, several shapes of each.

A truck differs from a bus: a truck is a cab plus a load of another colour with a gap, exposed frame and
tank between its wheels and no side windows behind the cab; a bus is one smooth body with a row of windows, a
wide low windscreen with an amber destination display, and doors on its kerb side.
"""

from __future__ import annotations

import numpy as np

from mrt.data.synthetic.geometry import Model, Point, Sketch, inside


def _across(x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
    """Corners of an upright rectangle as seen from the front or the rear."""
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def _along(x: float, y0: float, y1: float, z0: float, z1: float) -> list[Point]:
    """Corners of an upright rectangle as seen from the side."""
    return [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]


def _wheels(s: Sketch, width: float, axles: list[float], radius: float, tread: float = 0.22) -> None:
    """Tyres as seen from the front or the rear; their sides come with ``_wheel_sides`` on the body."""
    s.part(0)
    for z in axles:
        for side in (-1, 1):
            x = side * (width / 2 - tread / 2 - 0.04)
            s.face(_across(x - tread / 2, x + tread / 2, 0, 2 * radius, z), "tyre", two_sided=True)


def _wheel_sides(s: Sketch, width: float, axles: list[float], radius: float, rim: str = "rim") -> None:
    for side in (-1, 1):
        x = side * (width / 2 + 0.01)
        for z in axles:
            s.disc(x, radius + 0.03, z, radius * 1.16, "dark", 0.7)
            s.disc(x, radius, z, radius, "tyre")
            s.disc(x, radius, z, radius * 0.62, rim)
            s.disc(x, radius, z, radius * 0.2, "dark")


def _pair(
    s: Sketch,
    quad,
    left: float,
    right: float,
    low: float,
    high: float,
    slot: str,
    lit: bool = True,
    tone: float = 1.0,
) -> None:
    s.face(inside(quad, left, right, low, high), slot, tone, lit=lit)
    s.face(inside(quad, 1 - right, 1 - left, low, high), slot, tone, lit=lit)


def _glass(s: Sketch, quad, left: float, right: float, low: float, high: float) -> None:
    """A pane whose upper part mirrors the brighter sky."""
    s.face(inside(quad, left, right, low, high), "glass", lit=False)
    s.face(inside(quad, left, right, low + 0.55 * (high - low), high), "glass", 1.35, lit=False)


def car(rng: np.random.Generator) -> Model:
    """A hatchback, saloon, estate, off-roader or small van, 3.6 to 5 m long."""
    shape = rng.choice(["hatch", "saloon", "estate", "suv", "van"], p=[0.3, 0.27, 0.18, 0.15, 0.1])
    length = {"hatch": 4.0, "saloon": 4.6, "estate": 4.6, "suv": 4.5, "van": 4.9}[shape] + rng.uniform(
        -0.15, 0.2
    )
    w = {"suv": 1.9, "van": 1.9}.get(shape, 1.78) + rng.uniform(-0.04, 0.06)
    belt = {"suv": 1.04, "van": 1.08}.get(shape, 0.92) + rng.uniform(-0.03, 0.03)
    top = {"suv": 1.72, "van": 1.95, "estate": 1.5, "saloon": 1.44}.get(shape, 1.48) + rng.uniform(
        -0.03, 0.05
    )
    sill = 0.3 if shape == "suv" else 0.22
    front, rear = length / 2, -length / 2
    cowl = front - {"van": 0.75, "hatch": 0.95}.get(shape, 1.2)
    screen = cowl - {"van": 0.6}.get(shape, 0.72)
    tail_low = rear + {"saloon": 0.75}.get(shape, 0.04)
    tail_top = tail_low + {"saloon": 0.65, "hatch": 0.45, "estate": 0.35}.get(shape, 0.2)
    radius = 0.36 if shape in ("suv", "van") else 0.32
    axles = [rear + 0.85, front - 0.85]
    s = Sketch()
    _wheels(s, w, axles, radius)
    s.part(1)
    nose = belt - 0.14
    s.prism(
        [(rear, sill), (rear, belt - 0.04), (rear + 0.1, belt), (cowl, belt), (front, nose), (front, sill)],
        -w / 2,
        w / 2,
        "paint",
    )
    for side in (-1, 1):
        x = side * (w / 2 + 0.005)
        s.face(
            _along(x, sill, sill + 0.13, rear + 0.2, front - 0.2),
            "dark",
        )
        s.face(
            _along(x, belt - 0.1, belt - 0.05, rear + 0.1, cowl),
            "paint",
            0.72,
        )
        for z in (cowl - 0.15, 0.5 * (cowl + tail_low) - 0.1, tail_low + 0.75):
            s.face(
                _along(x, sill + 0.15, belt, z, z + 0.04),
                "paint",
                0.6,
            )
    nose_quad = _across(-w / 2, w / 2, sill, nose, front + 0.01)
    tail_quad = _across(-w / 2, w / 2, sill, belt - 0.04, rear - 0.01)
    s.face(inside(nose_quad, 0.03, 0.97, 0.0, 0.22), "dark")
    s.face(inside(nose_quad, 0.27, 0.73, 0.5, 0.86), "dark", 0.8)
    s.face(inside(nose_quad, 0.36, 0.64, 0.27, 0.42), "plate")
    _pair(s, nose_quad, 0.03, 0.24, 0.6, 0.9, "dark")
    _pair(s, nose_quad, 0.04, 0.21, 0.63, 0.88, "headlamp", lit=False)
    s.face(inside(tail_quad, 0.03, 0.97, 0.0, 0.24), "dark")
    s.face(inside(tail_quad, 0.35, 0.65, 0.42, 0.58), "plate")
    s.face(inside(tail_quad, 0.06, 0.94, 0.28, 0.31), "paint", 0.6)
    _pair(s, tail_quad, 0.02, 0.2, 0.62, 0.95, "taillamp", lit=False)
    _wheel_sides(s, w, axles, radius)
    s.part(2)
    wl, wt = w / 2 - 0.03, w / 2 - (0.12 if shape == "van" else 0.24)
    low = {
        "fl": (-wl, belt, cowl),
        "fr": (wl, belt, cowl),
        "rl": (-wl, belt, tail_low),
        "rr": (wl, belt, tail_low),
    }
    high = {
        "fl": (-wt, top, screen),
        "fr": (wt, top, screen),
        "rl": (-wt, top, tail_top),
        "rr": (wt, top, tail_top),
    }
    windscreen = [low["fl"], low["fr"], high["fr"], high["fl"]]
    back = [low["rl"], low["rr"], high["rr"], high["rl"]]
    s.face([high["fl"], high["fr"], high["rr"], high["rl"]], "paint")
    for quad in (windscreen, back):
        s.face(quad, "paint")
    _glass(s, windscreen, 0.06, 0.94, 0.06, 0.92)
    _glass(s, back, 0.08, 0.92, 0.12, 0.88)
    for k in ("l", "r"):
        quad = [low["r" + k], low["f" + k], high["f" + k], high["r" + k]]
        s.face(quad, "paint")
        if shape == "van" and k == "l":
            _glass(s, quad, 0.66, 0.95, 0.1, 0.9)
        else:
            _glass(s, quad, 0.06, 0.33, 0.1, 0.88)
            _glass(s, quad, 0.37, 0.63, 0.1, 0.88)
            _glass(s, quad, 0.67, 0.93, 0.1, 0.88)
    for side in (-1, 1):
        s.part(2).box(
            side * w / 2 - 0.09 + side * 0.09,
            side * w / 2 + 0.09 + side * 0.09,
            belt,
            belt + 0.15,
            cowl - 0.45,
            cowl - 0.3,
            "paint",
            0.8,
        )
        s.lamp("head", (side * (w / 2 - 0.26), nose - 0.15, front), 0.2)
        s.lamp("tail", (side * (w / 2 - 0.2), belt - 0.2, rear), 0.16)
    return s.done()


def truck(rng: np.random.Generator) -> Model:
    """A box truck, tipper, tanker or tarpaulin truck, 6.5 to 10 m long, up to 3.8 m high."""
    kind = rng.choice(["box", "tipper", "tanker", "tarp"], p=[0.42, 0.22, 0.14, 0.22])
    length, w = rng.uniform(6.6, 9.6), rng.uniform(2.4, 2.55)
    front, rear = length / 2, -length / 2
    cab_back, deck, radius = front - 1.75, 1.0, 0.5
    cab_top = rng.uniform(2.55, 2.85)
    load_top = {
        "box": rng.uniform(3.4, 3.85),
        "tarp": rng.uniform(3.4, 3.8),
        "tipper": rng.uniform(2.2, 2.6),
        "tanker": 2.75,
    }[kind]
    load_front, cw = cab_back - 0.45, 0.5 * w - 0.08
    axles = [rear + 1.1, rear + 2.35, front - 1.0] if length > 7.8 else [rear + 1.5, front - 1.0]
    s = Sketch()
    _wheels(s, w, axles, radius, 0.32)
    s.part(0).box(-0.45, 0.45, 0.55, deck, rear + 0.1, cab_back, "frame")
    s.part(1).box(-w / 2 + 0.1, w / 2 - 0.1, deck - 0.16, deck, rear, load_front, "frame")
    for side in (-1, 1):
        x = side * (w / 2 - 0.1)
        s.face(
            _along(x, 0.42, 0.85, load_front - 1.5, load_front - 0.3),
            "tank",
        )
    bar = _across(-w / 2 + 0.1, w / 2 - 0.1, 0.45, deck - 0.05, rear - 0.01)
    s.face(inside(bar, 0, 1, 0.0, 0.3), "frame", 1.3)
    for k in range(8):
        s.face(inside(bar, k / 8, (k + 1) / 8, 0.05, 0.26), "hazard_red" if k % 2 else "hazard_white")
    _pair(s, bar, 0.02, 0.2, 0.42, 0.9, "taillamp", lit=False)
    s.face(inside(bar, 0.38, 0.62, 0.45, 0.75), "plate")
    _wheel_sides(s, w, axles[:-1], radius)
    s.part(1)
    if kind == "tanker":
        angles = np.linspace(0, 2 * np.pi, 11)[:-1]
        ring = [(1.1 * np.sin(a), 1.85 + 0.85 * np.cos(a)) for a in angles]
        for (xa, ya), (xb, yb) in zip(ring, ring[1:] + ring[:1], strict=True):
            s.face(
                [(xa, ya, rear + 0.1), (xb, yb, rear + 0.1), (xb, yb, load_front), (xa, ya, load_front)],
                "load",
                0.9 + 0.12 * ya / 2.7,
            )
        for z in (rear + 0.1, load_front):
            s.face([(x, y, z) for x, y in ring], "load", 0.85)
        s.face([(0.35 * np.sin(a), 1.85 + 0.35 * np.cos(a), rear + 0.09) for a in angles], "frame", 1.5)
        for x in (-1.12, 1.12):
            s.face(
                _along(x, 1.75, 1.95, rear + 0.8, load_front - 0.8),
                "stripe",
            )
    else:
        s.box(
            -w / 2, w / 2, deck, load_top, rear, load_front, "load", top="cargo" if kind == "tipper" else None
        )
        gate = _across(-w / 2, w / 2, deck, load_top, rear - 0.01)
        if kind == "box":
            s.face(inside(gate, 0.49, 0.51, 0.02, 0.98), "load", 0.45)
            for a in (0.14, 0.4, 0.58, 0.84):
                s.face(inside(gate, a, a + 0.022, 0.03, 0.97), "frame", 1.6)
            s.face(inside(gate, 0.0, 1.0, 0.0, 0.05), "frame")
            s.face(inside(gate, 0.0, 1.0, 0.95, 1.0), "load", 0.7)
        elif kind == "tarp":
            for a in (0.2, 0.4, 0.6, 0.8):
                s.face(inside(gate, a, a + 0.012, 0.06, 0.96), "load", 0.72)
            s.face(inside(gate, 0, 1, 0, 0.16), "frame", 1.4)
        else:
            for a in (0.0, 0.3, 0.66, 0.96):
                s.face(inside(gate, a, a + 0.05, 0, 1), "load", 0.7)
            s.face(inside(gate, 0, 1, 0.9, 1.0), "load", 1.2)
        for side in (-1, 1):
            x = side * (w / 2 + 0.01)
            wall = _along(x, deck, load_top, rear, load_front)
            if kind == "tipper":
                for a in np.linspace(0.02, 0.93, 6):
                    s.face(inside(wall, a, a + 0.05, 0, 1), "load", 0.72)
                s.face(inside(wall, 0, 1, 0.88, 1), "load", 1.15)
            else:
                s.face(inside(wall, 0, 1, 0.0, 0.08 if kind == "box" else 0.18), "frame", 1.3)
                if kind == "tarp":
                    for a in np.linspace(0.07, 0.93, 9):
                        s.face(inside(wall, a, a + 0.012, 0.18, 0.97), "load", 0.75)
                if rng.random() < 0.6:
                    s.face(inside(wall, 0.15, 0.85, 0.42, 0.7), "stripe")
                    s.face(inside(wall, 0.2, 0.62, 0.5, 0.62), "load", 1.05)
    s.part(1)
    s.prism(
        [
            (cab_back, 0.62),
            (cab_back, cab_top),
            (front - 0.35, cab_top),
            (front, 1.75),
            (front, 0.42),
            (front - 1.7, 0.42),
        ],
        -cw,
        cw,
        "paint",
    )
    low_front = _across(-cw, cw, 0.42, 1.75, front + 0.01)
    screen = [
        (-cw, 1.75, front + 0.01),
        (cw, 1.75, front + 0.01),
        (cw, cab_top, front - 0.34),
        (-cw, cab_top, front - 0.34),
    ]
    _glass(s, screen, 0.07, 0.93, 0.04, 0.78)
    s.face(inside(screen, 0.02, 0.98, 0.8, 0.93), "dark")
    s.face(inside(low_front, 0.0, 1.0, 0.0, 0.24), "frame", 1.2)
    s.face(inside(low_front, 0.16, 0.84, 0.3, 0.9), "dark", 0.8)
    for t in (0.38, 0.52, 0.66, 0.8):
        s.face(inside(low_front, 0.18, 0.82, t, t + 0.05), "rim")
    s.face(inside(low_front, 0.38, 0.62, 0.06, 0.19), "plate")
    _pair(s, low_front, 0.03, 0.18, 0.06, 0.24, "headlamp", lit=False)
    for side in (-1, 1):
        x = side * (cw + 0.01)
        quad = [
            (x, 1.75, cab_back + 0.35),
            (x, 1.75, front - 0.05),
            (x, cab_top - 0.2, front - 0.3),
            (x, cab_top - 0.2, cab_back + 0.35),
        ]
        _glass(s, quad, 0.05, 0.98, 0.05, 0.95)
        s.face(
            _along(x, 0.9, 2.3, cab_back + 0.3, cab_back + 0.36),
            "paint",
            0.6,
        )
    _wheel_sides(s, 2 * cw + 0.06, axles[-1:], radius)
    if kind in ("box", "tarp") and rng.random() < 0.6:
        s.part(1).prism(
            [(cab_back + 0.1, cab_top), (cab_back + 0.1, load_top - 0.15), (front - 0.6, cab_top)],
            -cw + 0.2,
            cw - 0.2,
            "paint",
            0.92,
        )
    for side in (-1, 1):
        s.part(1).box(side * cw, side * (cw + 0.28), 1.65, 2.25, front - 0.25, front - 0.12, "dark")
        s.lamp("head", (side * (cw - 0.25), 0.65, front), 0.26)
        s.lamp("tail", (side * (w / 2 - 0.3), 0.75, rear), 0.2)
    return s.done()


def bus(rng: np.random.Generator) -> Model:
    """A city bus or coach, 9.5 to 12.5 m long, about 3.1 m high, sometimes in two colours."""
    length, w, top = rng.uniform(9.5, 12.5), rng.uniform(2.5, 2.58), rng.uniform(3.0, 3.25)
    front, rear, sill = length / 2, -length / 2, 0.3
    axles, radius = [rear + 2.6, front - 2.5], 0.48
    lower = "paint2" if rng.random() < 0.55 else "paint"
    s = Sketch()
    _wheels(s, w, axles, radius, 0.3)
    s.part(1)
    s.box(-w / 2, w / 2, sill, top, rear, front, "paint")
    for side in (-1, 1):
        x = side * (w / 2 + 0.01)
        wall = _along(x, sill, top, rear, front)
        s.face(inside(wall, 0, 1, 0, 0.3), lower)
        s.face(inside(wall, 0, 1, 0.3, 0.325), "dark")
        s.face(inside(wall, 0.02, 0.985, 0.36, 0.82), "dark", 0.8)
        panes = int(length / 1.5)
        for k in range(panes):
            _glass(s, wall, 0.03 + 0.94 * k / panes, 0.03 + 0.94 * (k + 0.92) / panes, 0.38, 0.8)
        if side > 0:
            for a in (0.44, 0.88):
                s.face(inside(wall, a, a + 0.1, 0.02, 0.82), "dark")
                s.face(inside(wall, a + 0.006, a + 0.047, 0.06, 0.79), "glass", 1.1, lit=False)
                s.face(inside(wall, a + 0.053, a + 0.094, 0.06, 0.79), "glass", 1.25, lit=False)
        s.face(inside(wall, 0.05, 0.95, 0.86, 0.94), "paint", 0.85)
    face = _across(-w / 2, w / 2, sill, top, front + 0.01)
    s.face(inside(face, 0, 1, 0, 0.3), lower)
    s.face(inside(face, 0.03, 0.97, 0.3, 0.97), "dark", 0.8)
    _glass(s, face, 0.05, 0.95, 0.31, 0.8)
    s.face(inside(face, 0.16, 0.84, 0.83, 0.94), "display", lit=False)
    for a in (0.24, 0.4, 0.53, 0.68):
        s.face(inside(face, a, a + 0.07, 0.85, 0.92), "dark")
    s.face(inside(face, 0.0, 1.0, 0.0, 0.07), "dark")
    s.face(inside(face, 0.4, 0.6, 0.08, 0.13), "plate")
    _pair(s, face, 0.04, 0.2, 0.1, 0.22, "headlamp", lit=False)
    tail = _across(-w / 2, w / 2, sill, top, rear - 0.01)
    s.face(inside(tail, 0, 1, 0, 0.3), lower)
    s.face(inside(tail, 0.08, 0.92, 0.52, 0.86), "dark", 0.8)
    _glass(s, tail, 0.1, 0.9, 0.54, 0.84)
    s.face(inside(tail, 0.62, 0.86, 0.88, 0.96), "display", lit=False)
    s.face(inside(tail, 0.2, 0.8, 0.14, 0.44), "dark", 1.2)
    for t in (0.19, 0.26, 0.33):
        s.face(inside(tail, 0.22, 0.78, t, t + 0.025), "frame", 1.5)
    s.face(inside(tail, 0.0, 1.0, 0.0, 0.07), "dark")
    _pair(s, tail, 0.03, 0.12, 0.12, 0.42, "taillamp", lit=False)
    _wheel_sides(s, w, axles, radius)
    s.part(2).box(-w / 2 + 0.5, w / 2 - 0.5, top, top + 0.22, rear + 1.0, rear + 3.5, "paint", 0.85)
    for side in (-1, 1):
        s.part(1).box(
            side * (w / 2 + 0.05), side * (w / 2 + 0.28), 2.1, 2.65, front + 0.05, front + 0.18, "dark"
        )
        s.lamp("head", (side * (w / 2 - 0.35), 0.75, front), 0.26)
        s.lamp("tail", (side * (w / 2 - 0.2), 1.0, rear), 0.22)
    s.lamp("display", (-0.45, top - 0.3, front), 0.3)
    s.lamp("display", (0.45, top - 0.3, front), 0.3)
    for z in np.arange(rear + 1.3, front - 1.2, 0.75):
        for side in (-1, 1):
            s.lamp("cabin", (side * w / 2, 2.0, z), 0.9)
    return s.done()


def tram(rng: np.random.Generator) -> Model:
    """A low-floor tram of two to four jointed segments, 14 to 30 m long.

    It has skirts over its wheels and a pantograph.
    """
    segments, w, top, sill = int(rng.integers(2, 5)), 2.5, rng.uniform(3.3, 3.5), 0.2
    each = rng.uniform(6.2, 7.6)
    length = segments * each
    front, rear = length / 2, -length / 2
    s = Sketch()
    for k in range(segments):
        z0, z1 = (
            rear + k * each + (0.0 if k == 0 else 0.2),
            rear + (k + 1) * each - (0.0 if k == segments - 1 else 0.2),
        )
        first, last = k == 0, k == segments - 1
        if k:
            s.part(1).box(-w / 2 + 0.15, w / 2 - 0.15, sill, top - 0.1, z0 - 0.4, z0, "dark")
        s.part(1)
        slope = 0.85
        zt0, zt1 = z0 + (slope if first else 0), z1 - (slope if last else 0)
        s.prism(
            [(z0, sill), (z0, 1.25), (zt0, top), (zt1, top), (z1, 1.25), (z1, sill)], -w / 2, w / 2, "paint"
        )
        for side in (-1, 1):
            x = side * (w / 2 + 0.01)
            wall = _along(x, sill, top, z0, z1)
            s.face(inside(wall, 0, 1, 0.0, 0.27), "paint2")
            s.face(
                [(x, 1.3, zt0 + 0.1), (x, 1.3, zt1 - 0.1), (x, 2.75, zt1 - 0.15), (x, 2.75, zt0 + 0.15)],
                "dark",
                0.75,
            )
            ribbon = _along(x, 1.36, 2.7, zt0 + 0.15, zt1 - 0.15)
            for j in range(4):
                _glass(s, ribbon, j / 4 + 0.01, (j + 1) / 4 - 0.01, 0, 1)
            s.face(inside(wall, 0.42, 0.6, 0.03, 0.84), "paint2")
            s.face(inside(wall, 0.43, 0.505, 0.06, 0.82), "glass", 1.15, lit=False)
            s.face(inside(wall, 0.515, 0.59, 0.06, 0.82), "glass", 1.3, lit=False)
            s.face(
                _along(x, top - 0.3, top - 0.12, zt0, zt1),
                "paint2",
            )
            s.face(inside(wall, 0.0, 1.0, 0.0, 0.05), "dark")
        for end, z, zt in ((last, z1 + 0.01, zt1 + 0.01), (first, z0 - 0.01, zt0 - 0.01)):
            if not end:
                continue
            low = _across(-w / 2, w / 2, sill, 1.25, z)
            high = [(-w / 2, 1.25, z), (w / 2, 1.25, z), (w / 2, top, zt), (-w / 2, top, zt)]
            s.face(low, "paint2")
            s.face(inside(low, 0.1, 0.9, 0.0, 0.18), "dark")
            lamp = "headlamp" if z > 0 else "taillamp"
            _pair(s, low, 0.06, 0.22, 0.5, 0.72, lamp, lit=False)
            s.face(inside(low, 0.3, 0.7, 0.55, 0.7), "paint")
            s.face(inside(high, 0.04, 0.96, 0.02, 0.98), "dark", 0.75)
            _glass(s, high, 0.07, 0.93, 0.04, 0.72)
            s.face(inside(high, 0.2, 0.8, 0.78, 0.93), "display", lit=False)
            s.face(inside(high, 0.3, 0.55, 0.81, 0.9), "dark")
        s.part(2).box(-w / 2 + 0.45, w / 2 - 0.45, top, top + 0.35, zt0 + 1.0, zt1 - 1.2, "frame", 2.2)
    z = rear + each * 0.5
    s.part(3)
    s.line([(-0.5, top + 0.35, z), (0.0, top + 1.0, z + 1.0), (0.0, top + 1.6, z)], 0.07, "frame")
    s.line([(-0.8, top + 1.6, z), (0.8, top + 1.6, z)], 0.08, "frame")
    for side in (-1, 1):
        s.lamp("head", (side * 0.9, 0.85, front), 0.26)
        s.lamp("tail", (side * 0.9, 0.85, rear), 0.2)
        for zc in np.arange(rear + 1.8, front - 1.7, 0.75):
            s.lamp("cabin", (side * w / 2, 2.0, zc), 1.0)
    return s.done()
