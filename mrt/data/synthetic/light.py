"""Sun and sky: how bright a surface is for its direction, and which colours the hour has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """The light of one scene.

    Args:
        sun: unit vector (3,) towards the sun, world axes.
        direct: share of the direct sun; 0 under an overcast sky.
        ambient: what a surface gets from the sky alone.
        tint: (3,) colour of the light.
        clouds: 0 for a blue sky to 1 for a closed cover.
    """

    sun: np.ndarray
    direct: float
    ambient: float
    tint: np.ndarray
    clouds: float

    def shade(self, normals: np.ndarray, in_sun: float | np.ndarray = 1.0) -> np.ndarray:
        """Brightness (n,) of surfaces with unit world normals (n, 3)."""
        sky = self.ambient * (0.80 + 0.20 * normals[:, 1])
        return sky + self.direct * in_sun * np.clip(normals @ self.sun, 0, None)


def draw_light(rng: np.random.Generator, *, overcast: bool, night: bool = False) -> Light:
    """Daylight of a random hour.

    ``overcast`` leaves no direct sun (fog, rain), ``night`` only a faint even sky.
    """
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(22, 62))
    level = np.cos(elevation)
    sun = np.array([level * np.sin(azimuth), np.sin(elevation), level * np.cos(azimuth)])
    low = 1 - np.sin(elevation)
    clouds = float(rng.beta(1.1, 1.3))
    if night:
        return Light(sun, 0.0, 1.0, np.ones(3), clouds)
    if overcast or clouds > 0.8:
        return Light(sun, 0.10, 0.92, np.array([0.98, 1.0, 1.02]), max(clouds, 0.85))
    direct = 0.75 - 0.45 * clouds
    return Light(
        sun, direct, 0.66 + 0.20 * clouds, np.array([1.0 + 0.06 * low, 1.0, 1.0 - 0.08 * low]), clouds
    )
