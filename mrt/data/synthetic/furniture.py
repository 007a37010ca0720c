"""Things along a street without a label: trees, lamps, signals, signs, bins, bollards, shelters, hedges."""

from __future__ import annotations

import numpy as np

from mrt.data.synthetic.geometry import Model, Sketch


def tree(rng: np.random.Generator) -> Model:
    """A street tree of 4 to 9 m: trunk, branches and a crown of leaf clusters, brighter towards the top."""
    h = rng.uniform(4.2, 9.0)
    wide, base = h * rng.uniform(0.2, 0.3), h * rng.uniform(0.28, 0.4)
    s = Sketch()
    s.part(0).line([(0, 0, 0), (rng.normal(0, 0.08), base + 0.2 * h, 0)], 0.07 * h**0.8, "bark")
    for _ in range(3):
        s.line([(0, base, 0), (rng.normal(0, 0.6 * wide), base + 0.3 * h, 0)], 0.03 * h**0.8, "bark", 0.9)
    s.part(1)
    n = 84
    y = base + (h - base) * rng.beta(1.5, 1.5, n)
    round_ = np.sqrt(np.clip(1 - ((y - 0.5 * (h + base)) / (0.56 * (h - base))) ** 2, 0.04, 1))
    x = rng.uniform(-0.85, 0.85, n) * wide * round_
    radius = wide * np.where(np.arange(n) < 28, rng.uniform(0.24, 0.36, n), rng.uniform(0.09, 0.2, n))
    for k in np.argsort(-radius + rng.normal(0, 0.1 * wide, n)):
        tone = 0.6 + 0.42 * (y[k] - base) / (h - base) + 0.10 * x[k] / wide + rng.normal(0, 0.07)
        s.ball((x[k], y[k], 0), radius[k], 0.85 * radius[k], "leaf", tone)
    return s.done()


def lamp_post(rng: np.random.Generator) -> Model:
    """A street lamp with an arm over the road (towards local -x)."""
    h = rng.uniform(6.0, 8.5)
    s = Sketch()
    s.part(1).line([(0, 0, 0), (0, h, 0), (-1.4, h + 0.25, 0)], 0.13, "metal")
    s.line([(-1.1, h + 0.2, 0), (-1.9, h + 0.26, 0)], 0.16, "metal", 1.2)
    s.lamp("street", (-1.6, h + 0.1, 0), 0.5)
    return s.done()


def traffic_light(rng: np.random.Generator) -> Model:
    """A signal on a post, its lenses facing local -z."""
    h = rng.uniform(3.0, 3.6)
    s = Sketch()
    s.part(1).line([(0, 0, 0), (0, h, 0)], 0.12, "metal")
    s.part(2).box(-0.18, 0.18, h - 0.95, h + 0.05, -0.15, 0.15, "dark")
    on = int(rng.choice(3, p=[0.5, 0.1, 0.4]))
    for k, name in enumerate(("red", "amber", "green")):
        y = h - 0.12 - 0.31 * k
        s.face(
            [(0.12 * np.cos(a), y + 0.12 * np.sin(a), -0.16) for a in np.linspace(0, 2 * np.pi, 10)[:-1]],
            name,
            1.0 if k == on else 0.25,
            lit=k != on,
        )
    s.lamp(("red", "amber", "green")[on], (0, h - 0.12 - 0.31 * on, -0.17), 0.22)
    return s.done()


def sign(rng: np.random.Generator) -> Model:
    """A traffic sign on a post, facing local -z: a round, a triangle or a square."""
    h = rng.uniform(2.2, 2.8)
    s = Sketch()
    s.part(1).line([(0, 0, 0), (0, h, 0)], 0.07, "metal")
    kind = rng.choice(["round", "triangle", "square"])
    n = {"round": 12, "triangle": 3, "square": 4}[kind]
    turn = {"round": 0.0, "triangle": np.pi / 2, "square": np.pi / 4}[kind]
    s.part(2)
    for r, slot in ((0.38, "sign"), (0.27, "sign2")):
        s.face(
            [
                (r * np.cos(turn + a), h + r * np.sin(turn + a), -0.04 - 0.01 * (slot == "sign2"))
                for a in np.linspace(0, 2 * np.pi, n, endpoint=False)
            ],
            slot,
            two_sided=True,
        )
    return s.done()


def bin_(rng: np.random.Generator) -> Model:
    """A litter bin or a wheeled bin."""
    s = Sketch()
    h = rng.uniform(0.85, 1.15)
    s.part(1).box(-0.27, 0.27, 0.05, h, -0.27, 0.27, "bin")
    s.part(2).box(-0.3, 0.3, h, h + 0.07, -0.3, 0.3, "bin", 0.6)
    return s.done()


def bollard(rng: np.random.Generator) -> Model:
    """A bollard with a white band."""
    s = Sketch()
    s.part(1).line([(0, 0, 0), (0, 0.95, 0)], 0.15, "metal", 0.8)
    s.line([(0, 0.72, 0), (0, 0.82, 0)], 0.16, "hazard_white")
    return s.done()


def shelter(rng: np.random.Generator) -> Model:
    """A bus stop: posts, a roof, panes and an advertisement."""
    s = Sketch()
    s.part(0)
    s.face(
        [(0.7, 0.3, -1.8), (0.7, 0.3, 1.8), (0.7, 2.2, 1.8), (0.7, 2.2, -1.8)], "glass", 1.7, two_sided=True
    )
    s.part(1)
    s.face([(-0.6, 0.2, 1.8), (0.7, 0.2, 1.8), (0.7, 2.2, 1.8), (-0.6, 2.2, 1.8)], "advert", two_sided=True)
    s.face(
        [(-0.45, 0.4, 1.79), (0.55, 0.4, 1.79), (0.55, 1.2, 1.79), (-0.45, 1.2, 1.79)],
        "advert2",
        two_sided=True,
    )
    for z in (-1.8, 0.0, 1.8):
        s.line([(0.7, 0, z), (0.7, 2.3, z)], 0.09, "dark")
    s.part(2).box(-0.8, 0.8, 2.3, 2.45, -2.0, 2.0, "dark", 1.3)
    return s.done()


def hedge(rng: np.random.Generator) -> Model:
    """A bush or a piece of hedge."""
    s = Sketch()
    s.part(1)
    for _ in range(12):
        z, y = rng.uniform(-1.0, 1.0), rng.uniform(0.25, 0.8)
        s.ball((rng.normal(0, 0.25), y, z), 0.4, 0.34, "leaf", 0.6 + 0.5 * y + rng.normal(0, 0.06))
    return s.done()
