"""Pedestrians, bicycles, motorcycles and their riders, made of bars and balls, in metres."""

from __future__ import annotations

import numpy as np

from mrt.data.synthetic.geometry import Model, Sketch


def _ring(x: float, y: float, z: float, r: float, sides: int = 14) -> list[tuple[float, float, float]]:
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return [(x, y + r * np.sin(a), z + r * np.cos(a)) for a in angles]


def person(rng: np.random.Generator) -> Model:
    """A standing or walking adult or child, 1.2 to 1.9 m tall, some with a bag, a coat or a skirt."""
    h = rng.uniform(1.15, 1.4) if rng.random() < 0.12 else rng.uniform(1.58, 1.9)
    stride, swing = rng.uniform(0.0, 0.34) * h, rng.uniform(0.05, 0.25) * h
    skirt, coat, bag = rng.random() < 0.2, rng.random() < 0.3, rng.random() < 0.35
    hip, knee, shoulder, half = 0.50 * h, 0.27 * h, 0.81 * h, 0.115 * h
    s = Sketch()
    for side in (-1, 1):
        lean = side * stride / 2
        s.part(1)
        x = side * 0.055 * h
        leg = "skin" if skirt else "trousers"
        s.line([(x, hip, 0), (x, knee, 0.6 * lean + 0.02 * h)], 0.095 * h, leg, 0.92 + 0.08 * side)
        s.line([(x, knee, 0.6 * lean + 0.02 * h), (x, 0.045 * h, lean)], 0.075 * h, leg, 0.92 + 0.08 * side)
        s.line([(x, 0.022 * h, lean - 0.02 * h), (x, 0.022 * h, lean + 0.1 * h)], 0.045 * h, "dark")
    s.part(2)
    hem = 0.30 * h if skirt else 0.38 * h if coat else hip - 0.02 * h
    low = 0.13 * h if skirt else 0.105 * h
    if skirt:
        s.prism(
            [(-low, hem), (-0.07 * h, hip + 0.08 * h), (0.07 * h, hip + 0.08 * h), (low, hem)],
            -low,
            low,
            "trousers",
        )
        hem = hip
    s.prism(
        [
            (-0.075 * h, hem),
            (-0.06 * h, shoulder + 0.02 * h),
            (0.05 * h, shoulder + 0.02 * h),
            (0.075 * h, hem),
        ],
        -half,
        half,
        "top",
    )
    for side in (-1, 1):
        s.part(2)
        reach = -side * swing
        x = side * (half + 0.025 * h)
        s.line(
            [
                (x, shoulder - 0.01 * h, 0),
                (x + side * 0.015 * h, 0.62 * h, reach * 0.4),
                (x, 0.48 * h, reach),
            ],
            0.06 * h,
            "top",
            0.88,
        )
        s.ball((x, 0.46 * h, reach), 0.026 * h, 0.03 * h, "skin")
    s.part(3)
    s.line([(0, shoulder, 0), (0, 0.87 * h, 0.005 * h)], 0.07 * h, "skin", 0.9)
    s.ball((0, 0.925 * h, 0.012 * h), 0.056 * h, 0.072 * h, "skin")
    s.ball((0, 0.955 * h, -0.014 * h), 0.06 * h, 0.05 * h, "hair")
    if bag:
        if rng.random() < 0.5:
            s.part(2).box(-0.09 * h, 0.09 * h, 0.56 * h, 0.8 * h, -0.17 * h, -0.06 * h, "bag")
        else:
            s.part(2).box(half + 0.03 * h, half + 0.09 * h, 0.3 * h, 0.46 * h, -0.1 * h, 0.1 * h, "bag")
    return s.done()


def bicycle(rng: np.random.Generator) -> Model:
    """A bicycle, 1.7 m long; some with a basket or a child seat."""
    s = Sketch()
    r, rear, front = 0.34, (0.0, 0.34, -0.52), (0.0, 0.34, 0.54)
    seat, head, crank = (0.0, 0.84, -0.22), (0.0, 0.86, 0.36), (0.0, 0.3, -0.05)
    s.part(1)
    for hub in (rear, front):
        s.line(_ring(0.0, hub[1], hub[2], r - 0.03), 0.06, "tyre", closed=True)
    for hub in (rear, front):
        s.ball(hub, 0.05, 0.05, "rim")
    for a, b in ((rear, seat), (rear, crank), (crank, seat), (seat, head), (crank, head), (head, front)):
        s.line([a, b], 0.055, "paint")
    s.line([(-0.1, 0.2, -0.05), (0.1, 0.4, -0.05)], 0.03, "dark")
    s.ball(crank, 0.09, 0.09, "dark")
    s.part(2)
    s.line([seat, (0, 0.92, -0.24)], 0.05, "dark")
    s.line([(0, 0.95, -0.36), (0, 0.95, -0.12)], 0.1, "dark")
    s.line([head, (0, 1.02, 0.34), (0, 1.06, 0.42)], 0.05, "frame")
    s.line([(-0.3, 1.06, 0.32), (0, 1.06, 0.42), (0.3, 1.06, 0.32)], 0.045, "dark")
    s.line([(0, 0.68, -0.86), (0, 0.7, -0.45), (0, 0.66, -0.3)], 0.035, "frame")
    s.ball((0, 0.6, -0.88), 0.04, 0.05, "taillamp", lit=False)
    if rng.random() < 0.35:
        s.part(2).box(-0.2, 0.2, 0.82, 1.05, 0.44, 0.72, "basket")
    s.lamp("head", (0, 0.95, 0.5), 0.08)
    s.lamp("tail", (0, 0.6, -0.88), 0.06)
    return s.done()


def motorcycle(rng: np.random.Generator) -> Model:
    """A motorcycle or a scooter, about 2 m long, with fat tyres, tank or leg shield, and a low seat."""
    scooter = rng.random() < 0.4
    r, zr, zf = (0.26, -0.6, 0.62) if scooter else (0.33, -0.68, 0.74)
    s = Sketch()
    s.part(1)
    for z in (zr, zf):
        s.line(_ring(0.0, r, z, r - 0.06), 0.14, "tyre", closed=True)
        s.ball((0, r, z), r * 0.45, r * 0.45, "rim")
    s.part(2)
    if scooter:
        s.prism([(-0.95, 0.45), (-0.9, 0.78), (-0.1, 0.78), (-0.05, 0.3), (-0.7, 0.28)], -0.2, 0.2, "paint")
        s.prism([(-0.05, 0.2), (-0.05, 0.3), (0.4, 0.3), (0.4, 0.2)], -0.2, 0.2, "dark")
        s.part(2).prism([(0.38, 0.25), (0.28, 0.95), (0.4, 0.98), (0.55, 0.45)], -0.22, 0.22, "paint", 0.95)
        s.part(2).box(-0.16, 0.16, 0.78, 0.88, -0.85, -0.1, "dark")
    else:
        s.prism([(-0.3, 0.25), (-0.35, 0.7), (0.3, 0.72), (0.45, 0.3)], -0.2, 0.2, "frame", 1.3)
        s.prism([(-0.05, 0.68), (0.0, 0.95), (0.4, 0.98), (0.5, 0.72)], -0.2, 0.2, "paint")
        s.part(2).prism(
            [(-0.95, 0.78), (-0.95, 0.9), (0.0, 0.85), (0.0, 0.68), (-0.4, 0.65)], -0.16, 0.16, "dark"
        )
        s.part(2).prism([(-1.0, 0.68), (-1.0, 0.8), (-0.6, 0.8), (-0.5, 0.6)], -0.13, 0.13, "paint")
        s.line([(0.2, 0.35, -0.1), (0.22, 0.35, -0.85)], 0.12, "rim")
    s.part(2)
    s.line([(0, r, zf), (0, 0.98, zf - 0.32)], 0.13, "rim", 0.8)
    s.part(3)
    y = 1.02 if scooter else 1.05
    s.line([(-0.36, y, 0.32), (0, y, 0.4), (0.36, y, 0.32)], 0.06, "dark")
    for side in (-1, 1):
        s.line([(side * 0.3, y, 0.34), (side * 0.34, y + 0.2, 0.36)], 0.03, "dark")
        s.ball((side * 0.36, y + 0.2, 0.36), 0.08, 0.06, "dark")
    s.part(3).face(_front_disc(0.86, 0.53, 0.11), "headlamp", lit=False)
    s.part(3).box(-0.1, 0.1, 0.7, 0.8, -1.02, -0.97, "taillamp")
    s.face([(-0.1, 0.5, -1.03), (0.1, 0.5, -1.03), (0.1, 0.64, -1.03), (-0.1, 0.64, -1.03)], "plate")
    if not scooter and rng.random() < 0.5:
        s.part(3).face(
            [(-0.18, 0.95, 0.52), (0.18, 0.95, 0.52), (0.14, 1.22, 0.42), (-0.14, 1.22, 0.42)],
            "glass",
            two_sided=True,
        )
    s.lamp("head", (0, 0.86, 0.55), 0.16)
    s.lamp("tail", (0, 0.74, -1.0), 0.12)
    return s.done()


def _front_disc(y: float, z: float, r: float) -> list[tuple[float, float, float]]:
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    return [(r * np.cos(a), y + r * np.sin(a), z) for a in angles]


def rider(rng: np.random.Generator, on: str) -> Model:
    """A rider on a ``bicycle`` or ``motorcycle``; the vehicle is a separate model at the same place."""
    motor = on == "motorcycle"
    hip_y, hip_z = (0.92, -0.35) if motor else (1.0, -0.24)
    hand_y, hand_z, hand_x = (1.06, 0.3, 0.33) if motor else (1.08, 0.32, 0.27)
    shoulder_y, shoulder_z = hip_y + 0.5, hip_z + (0.12 if motor else rng.uniform(0.12, 0.32))
    phase = rng.uniform(0, 2 * np.pi)
    s = Sketch()
    for side in (-1, 1):
        if motor:
            foot, knee = (side * 0.24, 0.32, -0.05), (side * 0.28, 0.72, 0.12)
        else:
            pedal = phase + (np.pi if side > 0 else 0)
            foot = (side * 0.12, 0.3 + 0.16 * np.sin(pedal), -0.05 + 0.16 * np.cos(pedal))
            knee = (side * 0.14, 0.5 * (hip_y + foot[1]) + 0.04, 0.5 * (hip_z + foot[2]) + 0.26)
        s.part(1)
        s.line([(side * 0.09, hip_y, hip_z), knee], 0.17, "trousers", 0.92 + 0.08 * side)
        s.line([knee, foot], 0.12, "trousers", 0.9 + 0.08 * side)
        s.line(
            [(foot[0], foot[1] - 0.04, foot[2] - 0.04), (foot[0], foot[1] - 0.04, foot[2] + 0.16)],
            0.08,
            "dark",
        )
    s.part(2)
    back = [
        (hip_z - 0.14, hip_y - 0.05),
        (shoulder_z - 0.12, shoulder_y + 0.06),
        (shoulder_z + 0.1, shoulder_y + 0.04),
        (hip_z + 0.14, hip_y - 0.02),
    ]
    s.prism(back, -0.2, 0.2, "top")
    for side in (-1, 1):
        s.part(2)
        elbow = (side * (hand_x + 0.02), 0.5 * (shoulder_y + hand_y) - 0.06, 0.5 * (shoulder_z + hand_z))
        s.line(
            [(side * 0.23, shoulder_y, shoulder_z), elbow, (side * hand_x, hand_y, hand_z)], 0.11, "top", 0.88
        )
        s.ball((side * hand_x, hand_y, hand_z), 0.05, 0.05, "skin")
    s.part(3)
    hy, hz = shoulder_y + 0.24, shoulder_z + 0.08
    s.line([(0, shoulder_y, shoulder_z), (0, hy - 0.06, hz)], 0.11, "skin", 0.9)
    if motor:
        s.ball((0, hy, hz), 0.15, 0.17, "helmet")
        s.line([(-0.09, hy + 0.01, hz + 0.12), (0.09, hy + 0.01, hz + 0.12)], 0.09, "glass")
    else:
        s.ball((0, hy, hz), 0.1, 0.13, "skin")
        s.ball((0, hy + 0.07, hz - 0.02), 0.12, 0.085, "helmet" if rng.random() < 0.6 else "hair")
    if rng.random() < 0.3:
        s.part(2).box(-0.16, 0.16, hip_y + 0.12, shoulder_y + 0.02, hip_z - 0.26, hip_z - 0.06, "bag")
    return s.done()
