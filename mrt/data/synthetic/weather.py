"""Fog, and the sensor behind it. Night and rain have files of their own.

Weather is light, so it is computed in linear light: the 8-bit picture is decoded with the sRGB curve,
changed, and encoded again. Noise belongs to the sensor and comes after the weather.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from mrt.data.synthetic.surfaces import strips

_STEPS = 4096
_GRID = np.arange(_STEPS + 1) / _STEPS
_DECODE = np.where(_GRID <= 0.04045, _GRID / 12.92, ((_GRID + 0.055) / 1.055) ** 2.4).astype(np.float32)
# the table goes over the square root of linear light, which keeps the dark end smooth
_ENCODE = np.where(_GRID**2 <= 0.0031308, 12.92 * _GRID**2, 1.055 * _GRID ** (2 / 2.4) - 0.055)
_ENCODE = _ENCODE.astype(np.float32)
_TONE_END = 8.0
"""Light this many times the exposure's unit is white: 1 - exp(-8) is within a tenth of a grey level."""
_TONE = np.sqrt(-np.expm1(-_TONE_END * (np.arange(16385) / 16384) ** 2))
_TONE = np.interp(_TONE, _GRID, _ENCODE).astype(np.float32)


def to_linear(image: np.ndarray) -> np.ndarray:
    """sRGB values in 0..1 -> linear light in 0..1 (IEC 61966-2-1), through a table of 4,096 steps."""
    return _looked_up(_DECODE, image, root=False)


def to_srgb(image: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB values in 0..1; anything brighter than 1 is clipped."""
    return _looked_up(_ENCODE, image, root=True)


def exposed(light: np.ndarray, exposure: float) -> np.ndarray:
    """Linear light without an upper limit -> sRGB values ``srgb(1 - exp(-exposure * light))``, as on film.

    ``light`` is overwritten.
    """
    light *= exposure / _TONE_END
    np.sqrt(light, out=light)
    light *= len(_TONE) - 1
    light += 0.5
    return np.take(_TONE, light.astype(np.int32), mode="clip")


def _looked_up(table: np.ndarray, image: np.ndarray, *, root: bool) -> np.ndarray:
    out = np.empty_like(image, np.float32)
    # in memory order, whatever the order of rows, columns and colours is
    flat, result = image.ravel("K"), out.ravel("K")
    for a in range(0, flat.size, 65536):
        values = np.clip(flat[a : a + 65536], 0, 1)
        if root:
            np.sqrt(values, out=values)
        values *= _STEPS
        values += 0.5
        np.take(table, values.astype(np.int32), out=result[a : a + 65536], mode="clip")
    return out


def smooth_noise(rng: np.random.Generator, width: int, height: int, cells: tuple[int, int]) -> np.ndarray:
    """A slowly varying field (height, width) in 0..1 from (rows, columns) of random values."""
    small = Image.fromarray(rng.random(cells, np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def add_fog(
    image: np.ndarray, depth: np.ndarray, beta: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Homogeneous-medium fog (Koschmieder's law) with a coefficient that drifts over the picture.

    ``I = t * J + (1 - t) * A`` per pixel in linear light, ``t = exp(-beta(x) * depth)``, ``beta(x)`` between
    0.7 and 1.3 times ``beta``; A is a grey of the scene's brightness, a little lighter towards the sky.

    Args:
        image: (H, W, 3) sRGB in 0..1.
        depth: (H, W) metres.
        beta: extinction per metre.

    Returns:
        The foggy picture (H, W, 3) sRGB in 0..1 and the optical depth ``beta(x) * depth`` (H, W).
    """
    h, w = depth.shape
    optical = depth * (beta * (0.7 + 0.6 * smooth_noise(rng, w, h, (3, 5))))
    t = np.exp(-optical)[..., None]
    grey = rng.uniform(0.42, 0.68) * np.array([0.985, 1.0, 1.015]) * (1 + rng.normal(0, 0.005, 3))
    rows = np.linspace(1.06, 0.94, h)[:, None, None]
    light = (grey * rows).astype(np.float32)
    return to_srgb(to_linear(image) * t + (1 - t) * light), optical


def sensor(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    noise: tuple[float, float] = (0.006, 0.016),
    metering: float | None = None,
) -> np.ndarray:
    """Exposure, white balance, vignette and noise, then 8 bits.

    Args:
        image: (H, W, 3) sRGB in 0..1.
        noise: range of the read noise's standard deviation.
        metering: mean brightness that the automatic exposure aims at, within a factor of 0.85 to 1.5; None
            turns it off.

    Returns:
        (H, W, 3) uint8.
    """
    h, w, _ = image.shape
    exposure = rng.uniform(0.9, 1.16)
    if metering is not None:
        # copied to triples in memory: the sum's rounding, and so every pixel, depends on the layout
        rows = np.ascontiguousarray(image[::2])
        exposure *= np.clip(metering / max(float(rows[::2, ::4].mean()), 1e-3), 0.85, 1.5)
    gain = (exposure * (1 + rng.normal(0, 0.009, 3))).astype(np.float32)[:, None, None]
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    vignette = 1 - np.float32(rng.uniform(0.02, 0.10)) * (x * x + y * y)
    sigma = np.float32(rng.uniform(*noise))
    planes, out = image.transpose(2, 0, 1), np.empty(image.shape, np.uint8)
    for rows in strips(h, w):
        part = planes[:, rows] * gain
        part *= vignette[rows]
        grain = rng.standard_normal((part.shape[1], w, 3), np.float32)
        grain *= sigma
        part += grain.transpose(2, 0, 1)
        np.clip(part, 0, 1, out=part)
        part *= 255
        part += 0.5
        out[rows] = part.astype(np.uint8).transpose(1, 2, 0)
    return out
