"""The pinhole camera: metres in the world, pixels on the sensor.

World axes: X to the right across the street, Y up from the ground plane, Z along the street. The camera
stands at ``(x, height_m, 0)`` and looks along Z turned by ``yaw``; it has neither pitch nor roll, so the
horizon is one row (``horizon``) and the ground plane has one depth per row. Depth is the distance along the
optical axis, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAR = 400.0
"""Depth of what has none (the sky), in metres."""


@dataclass(frozen=True)
class Camera:
    """A camera above the road.

    Args:
        width, height: image size in pixels.
        focal: focal length in pixels.
        centre: column of the optical axis, in pixels.
        horizon: row of the horizon, in pixels.
        x: sideways position in the world, in metres.
        height_m: height above the ground, in metres.
        yaw: rotation about the vertical axis in radians, positive to the right.
    """

    width: int
    height: int
    focal: float
    centre: float
    horizon: float
    x: float
    height_m: float
    yaw: float

    @property
    def cos(self) -> float:
        return float(np.cos(self.yaw))

    @property
    def sin(self) -> float:
        return float(np.sin(self.yaw))

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) -> (n, 3) of right, up (from the camera's own height) and depth, in metres."""
        dx, dz = points[:, 0] - self.x, points[:, 2]
        return np.stack(
            [dx * self.cos - dz * self.sin, points[:, 1] - self.height_m, dx * self.sin + dz * self.cos], 1
        )

    def project(self, camera_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Camera points (n, 3) -> columns and rows in pixels (n,); depth must be positive."""
        scale = self.focal / camera_points[:, 2]
        return self.centre + scale * camera_points[:, 0], self.horizon - scale * camera_points[:, 1]

    def column_rays(self, columns: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """World direction (X, Z) per unit of depth of every pixel column (w,), or of the given columns.

        The columns may be fractional.
        """
        if columns is None:
            columns = np.arange(self.width) + 0.5
        u = (columns - self.centre) / self.focal
        return u * self.cos + self.sin, self.cos - u * self.sin

    def row_slopes(self) -> np.ndarray:
        """Metres below the camera per metre of depth, of every pixel row (h,); negative above the horizon."""
        return (np.arange(self.height) + 0.5 - self.horizon) / self.focal


def draw_camera(rng: np.random.Generator, width: int, height: int, x: float) -> Camera:
    """A camera as on a car: about 60 degrees of view, 1.3 to 1.7 m high, looking roughly down the street."""
    yaw = rng.normal(0, 0.035) if rng.random() < 0.7 else rng.uniform(-0.17, 0.17)
    return Camera(
        width=width,
        height=height,
        focal=width * rng.uniform(0.86, 1.06),
        centre=width * rng.uniform(0.46, 0.54),
        horizon=height * rng.uniform(0.40, 0.50),
        x=x,
        height_m=rng.uniform(1.3, 1.75),
        yaw=float(yaw),
    )
