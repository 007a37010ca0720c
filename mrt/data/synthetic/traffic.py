"""What is on the street: traffic, parked vehicles, a tram, pedestrians, riders and street furniture."""

from __future__ import annotations

from functools import cache

import numpy as np

from mrt.data.synthetic import furniture, people, vehicles
from mrt.data.synthetic.geometry import Model
from mrt.data.synthetic.layout import Street
from mrt.data.synthetic.paint import Thing
from mrt.data.synthetic.palettes import palette

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""The common classes, in the order every converted data set uses."""

FARTHEST = 50.0
SHAPES = 14
"""How many different shapes of each kind there are; scale, colour and heading vary as well."""

MODELS = {
    "car": vehicles.car,
    "truck": vehicles.truck,
    "bus": vehicles.bus,
    "train": vehicles.tram,
    "person": people.person,
    "bicycle": people.bicycle,
    "motorcycle": people.motorcycle,
    "tree": furniture.tree,
    "lamp_post": furniture.lamp_post,
    "traffic_light": furniture.traffic_light,
    "sign": furniture.sign,
    "bin": furniture.bin_,
    "bollard": furniture.bollard,
    "shelter": furniture.shelter,
    "hedge": furniture.hedge,
}


@cache
def shape(kind: str, number: int) -> Model:
    """Shape ``number`` of a kind; the same in every process."""
    rng = np.random.default_rng([77, number, *kind.encode()])
    if kind.startswith("rider_"):
        return people.rider(rng, kind.removeprefix("rider_"))
    return MODELS[kind](rng)


class Crowd:
    """Collects things and keeps them from standing in each other."""

    def __init__(self, rng: np.random.Generator, street: Street) -> None:
        self.rng, self.street = rng, street
        self.things: list[Thing] = []
        self.taken: list[tuple[float, float, float, float]] = []

    def put(
        self,
        kind: str,
        x: float,
        z: float,
        heading: float = 0.0,
        *,
        margin: float = 0.3,
        force: bool = False,
        lamps_on: bool = True,
    ) -> bool:
        """Place one thing if its rectangle on the ground is free; returns whether it was."""
        rng = self.rng
        model = shape(kind, int(rng.integers(SHAPES)))
        colours = palette(rng, kind)
        scale = 1 + rng.uniform(-0.06, 0.06)
        label = CLASSES.index(kind) if kind in CLASSES else None
        leafy = kind in ("tree", "hedge")
        thing = Thing(model, colours, x, z, heading, scale, label, 0.2 if leafy else 0.025, lamps_on)
        corners = thing.footprint()
        low, high = corners.min(0) - margin, corners.max(0) + margin
        x0, x1, z0, z1 = low[0], high[0], low[2], high[2]
        if not force and any(x0 < b and a < x1 and z0 < d and c < z1 for a, b, c, d in self.taken):
            return False
        self.taken.append((x0, x1, z0, z1))
        self.things.append(thing)
        return True

    def put_ridden(self, kind: str, x: float, z: float, heading: float) -> bool:
        """A bicycle or motorcycle with its rider."""
        if not self.put(kind, x, z, heading):
            return False
        vehicle = self.things[-1]
        rider = f"rider_{kind}"
        model = shape(rider, int(self.rng.integers(SHAPES)))
        colours, label = palette(self.rng, rider), CLASSES.index("rider")
        self.things.append(Thing(model, colours, x, z, heading, vehicle.scale, label, 0.025))
        return True

    def in_junction(self, z: float, margin: float = 0.0) -> bool:
        return any(abs(z - middle) < half + margin for middle, half in self.street.crossings)


def _depths(rng: np.random.Generator, low: float, high: float) -> float:
    """A distance, denser near the camera than uniform."""
    return float(low * (high / low) ** rng.random())


def _lane_traffic(crowd: Crowd, camera_x: float) -> None:
    rng, street = crowd.rng, crowd.street
    if street.rails and rng.random() < 0.85:
        side = int(rng.choice([-1, 1]))
        x = side * street.lane / 2
        ahead = abs(camera_x - x) < street.lane / 2
        near = rng.uniform(9, 26) if ahead else rng.uniform(4, 24)
        model_half = 11.0
        crowd.put("train", x, near + model_half, 0.0 if side > 0 else np.pi, force=True)
    kinds = ["car", "truck", "bus", "motorcycle", "bicycle"]
    share = np.array([0.48, 0.19, 0.16, 0.08, 0.09])
    for x, direction in street.lanes:
        own = abs(camera_x - x) < 1.5
        z = rng.uniform(7.5, 18) if own else rng.uniform(3, 14)
        z += rng.exponential(3)
        while z < FARTHEST:
            kind = str(rng.choice(kinds, p=share))
            length = {"car": 4.6, "truck": 8.5, "bus": 11.5}.get(kind, 2.0)
            middle = z + length / 2
            heading = (0.0 if direction > 0 else np.pi) + rng.normal(0, 0.04)
            heading += rng.uniform(-0.25, 0.25) if rng.random() < 0.15 else 0.0
            if kind in ("motorcycle", "bicycle"):
                aside = rng.uniform(0.6, 1.1) if kind == "bicycle" else rng.uniform(-0.5, 0.5)
                crowd.put_ridden(kind, x + direction * aside, middle, heading)
            else:
                crowd.put(kind, x + rng.normal(0, 0.15), middle, heading)
            z += length + 2.5 + rng.exponential(11)


def _junction(crowd: Crowd) -> None:
    """Vehicles and people that cross or turn, seen from the side or at an angle."""
    rng = crowd.rng
    for middle, half in crowd.street.crossings:
        for direction in (-1, 1):
            x = rng.uniform(-16, 4) if direction > 0 else rng.uniform(-4, 16)
            for _ in range(int(rng.integers(1, 3))):
                kinds, share = ["car", "truck", "bus", "motorcycle", "bicycle"], [0.5, 0.16, 0.14, 0.1, 0.1]
                kind = str(rng.choice(kinds, p=share))
                heading = direction * np.pi / 2 + rng.normal(0, 0.08)
                z = middle - direction * half * 0.5
                if kind in ("motorcycle", "bicycle"):
                    crowd.put_ridden(kind, x, z, heading)
                else:
                    crowd.put(kind, x, z, heading)
                x += direction * rng.uniform(8, 18) * rng.choice([-1, 1])
        if rng.random() < 0.5:
            crowd.put(
                str(rng.choice(["car", "truck", "bus"], p=[0.7, 0.15, 0.15])),
                rng.uniform(-4, 4),
                middle + rng.uniform(-1, 1),
                rng.uniform(-2.6, 2.6),
            )


def _parked(crowd: Crowd) -> None:
    rng, street = crowd.rng, crowd.street
    for side in (-1, 1):
        if street.parking:
            z = rng.uniform(-1, 8)
            density = rng.uniform(0.3, 0.9)
            while z < FARTHEST:
                kind = str(rng.choice(["car", "truck", "motorcycle"], p=[0.86, 0.07, 0.07]))
                length = {"car": 4.7, "truck": 8.6, "motorcycle": 1.6}[kind]
                middle = z + length / 2
                if rng.random() < density and not crowd.in_junction(middle, 3.0 + length / 2):
                    along = 0.0 if side > 0 else np.pi
                    heading = (along if rng.random() < 0.8 else along + np.pi) + rng.normal(0, 0.03)
                    if kind == "motorcycle":
                        heading = side * np.pi / 2 + rng.normal(0, 0.3)
                    elif rng.random() < 0.05:
                        heading += rng.uniform(0.2, 0.6) * rng.choice([-1, 1])
                    x = side * (street.half_road - 1.1) + rng.normal(0, 0.08)
                    crowd.put(kind, x, middle, heading, lamps_on=False)
                z += length + rng.uniform(0.7, 2.0) if kind != "motorcycle" else rng.uniform(1.0, 2.0)
        for _ in range(int(rng.poisson(0.12))):
            z = _depths(rng, 6, 22)
            for _ in range(int(rng.integers(1, 4))):
                if not crowd.in_junction(z, 2):
                    x = side * (street.half_road + rng.uniform(0.6, 1.2))
                    heading = side * np.pi / 2 + rng.normal(0, 0.5)
                    crowd.put("motorcycle", x, z, heading, lamps_on=False)
                z += rng.uniform(0.9, 1.4)
        for _ in range(int(rng.poisson(0.4))):
            z = _depths(rng, 5, 22)
            angle = rng.uniform(0, 2 * np.pi)
            for _ in range(int(rng.integers(1, 4))):
                if not crowd.in_junction(z, 2):
                    x = side * (street.half_road + rng.uniform(0.7, max(1.0, street.pavement - 0.8)))
                    crowd.put("bicycle", x, z, angle + rng.normal(0, 0.2), margin=0.05, lamps_on=False)
                z += rng.uniform(0.6, 1.6)


def _walkers(crowd: Crowd) -> None:
    rng, street = crowd.rng, crowd.street
    for side in (-1, 1):
        for _ in range(int(rng.poisson(2.0))):
            z = _depths(rng, 5, 34)
            if crowd.in_junction(z, 1):
                continue
            heading = rng.choice([0.0, np.pi]) + rng.normal(0, 0.35)
            x = side * (street.half_road + rng.uniform(0.5, street.pavement - 0.3))
            for _ in range(1 + int(rng.poisson(0.6))):
                crowd.put("person", x, z, heading + rng.normal(0, 0.15), margin=0.02)
                x += rng.choice([-1, 1]) * rng.uniform(0.55, 0.75)
                z += rng.normal(0, 0.3)
    for stripe, _, kind in street.crosswalks:
        if kind == "zebra":
            for _ in range(int(rng.poisson(0.8))):
                crowd.put(
                    "person",
                    rng.uniform(-street.half_road, street.half_road),
                    stripe + rng.uniform(-1, 1),
                    rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.2),
                )
    if rng.random() < 0.35:
        crowd.put(
            "person",
            rng.uniform(-street.half_road, street.half_road),
            _depths(rng, 7, 24),
            rng.choice([-1, 1]) * np.pi / 2,
        )
    for side in (-1, 1):
        if rng.random() < 0.22:
            x, z = side * (street.half_road - street.parking - rng.uniform(0.3, 0.8)), _depths(rng, 6, 28)
            crowd.put_ridden("bicycle", x, z, (0.0 if side > 0 else np.pi) + rng.normal(0, 0.25))


def _furniture(crowd: Crowd) -> None:
    rng, street = crowd.rng, crowd.street
    kerb = street.half_road + 0.5
    trees, lamps = rng.random() < 0.6, rng.uniform(16, 28)
    for side in (-1, 1):
        z = rng.uniform(3, 14)
        while z < 80:
            if trees and not crowd.in_junction(z, 3) and rng.random() < 0.75:
                crowd.put("tree", side * (kerb + rng.uniform(0.1, 0.6)), z, margin=0.0, force=True)
            z += rng.uniform(7, 14) * (1 + z / 60)
        z = rng.uniform(4, lamps)
        while z < 70:
            if not crowd.in_junction(z, 2):
                crowd.put("lamp_post", side * kerb, z, 0.0 if side > 0 else np.pi, force=True)
            z += lamps
        for kind, rate in (("sign", 0.9), ("bin", 0.6), ("hedge", 0.5), ("shelter", 0.12)):
            for _ in range(int(rng.poisson(rate))):
                z = _depths(rng, 7, 50)
                if crowd.in_junction(z, 3):
                    continue
                x = side * (kerb + (0.1 if kind == "sign" else rng.uniform(0.2, 0.6)))
                if kind == "hedge":
                    x = side * (street.verge + rng.uniform(0.0, 0.4))
                crowd.put(kind, x, z, 0.0 if side > 0 or kind == "sign" else np.pi)
        if rng.random() < 0.2:
            start = rng.uniform(4, 12)
            for k in range(6):
                if not crowd.in_junction(start + 1.8 * k, 1):
                    crowd.put("bollard", side * (street.half_road + 0.35), start + 1.8 * k)
    for middle, half in street.crossings:
        for side in (-1, 1):
            crowd.put("traffic_light", side * kerb, middle - half - 1.2, force=True)
            crowd.put("traffic_light", side * kerb, middle + half + 1.2, force=True)


def draw_things(rng: np.random.Generator, street: Street, camera_x: float) -> list[Thing]:
    """Everything that stands or moves on a street, in no particular order."""
    crowd = Crowd(rng, street)
    crowd.taken.append((camera_x - 1.3, camera_x + 1.3, -6.0, 4.5))
    _lane_traffic(crowd, camera_x)
    _junction(crowd)
    _parked(crowd)
    _walkers(crowd)
    _furniture(crowd)
    return crowd.things
