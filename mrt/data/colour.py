"""Fast colour changes and blur on float images, for training on processors.

Images are (3, h, w) float32 in 0..255. Definitions are torchvision's (and Pillow's): blends with black, with
the mean grey, with the grey image; hue as a rotation in HSV; a Gaussian kernel. Values stay floats between
the steps instead of being rounded to uint8 after each. Functions may overwrite their input. Large images are
processed in bands of rows: small enough for the cache, large enough that the calls cost little beside the
arithmetic (measured with bands of 2**12 to 2**18 pixels).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
_BAND_PIXELS = 1 << 17


def jitter(
    image: Tensor, rng: random.Random, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """The four changes in random order.

    Factors are drawn from 1 - x to 1 + x; the hue turns by up to ``hue`` of a full circle either way.
    """
    factors = [rng.uniform(1 - change, 1 + change) for change in (brightness, contrast, saturation)]
    changes = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    steps: list[tuple[Callable[[Tensor, float], Tensor], float]]
    steps = list(zip(changes, (*factors, rng.uniform(-hue, hue)), strict=True))
    rng.shuffle(steps)
    # contrast needs the mean of the whole image as the steps before have left it
    contrast_at = [change for change, _ in steps].index(adjust_contrast)
    _in_bands(image, steps[:contrast_at])
    mean = mean_grey(image)
    _in_bands(
        image,
        [(lambda band, factor: _blend(band, factor, mean), steps[contrast_at][1]), *steps[contrast_at + 1 :]],
    )
    return image


def _in_bands(image: Tensor, steps: list[tuple[Callable[[Tensor, float], Tensor], float]]) -> None:
    if steps:
        for band in image.split(max(_BAND_PIXELS // image.shape[2], 1), dim=1):
            for change, amount in steps:
                change(band, amount)


def grey_plane(image: Tensor) -> Tensor:
    """(3, h, w) -> (h, w)."""
    red, green, blue = GREY_WEIGHTS
    return (image[0] * red).add_(image[1], alpha=green).add_(image[2], alpha=blue)


def mean_grey(image: Tensor) -> float:
    """The mean of the grey plane."""
    return sum(weight * float(plane.mean()) for weight, plane in zip(GREY_WEIGHTS, image, strict=True))


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Blend with black, in place."""
    return image.mul_(factor).clamp_(0, 255)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Blend with the image's mean grey, in place."""
    return _blend(image, factor, mean_grey(image))


def _blend(image: Tensor, factor: float, level: float) -> Tensor:
    return image.mul_(factor).add_((1 - factor) * level).clamp_(0, 255)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Blend with the grey image, in place."""
    grey = grey_plane(image).mul_(1 - factor)
    return image.mul_(factor).add_(grey).clamp_(0, 255)


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """Rotate the hue by ``turn`` of a full circle, in place; value and saturation (HSV) stay.

    m is the lowest channel, C the chroma, and h the hue in sixths of the circle, counted either way from red:
    |h| = 1 + (g + b - r - m) / C, and h has the sign of g - b. A channel is m + C * clamp(||u| - 3| - 1, 0,
    1), where u is h minus the channel's own position (0, 2 or -2), within -6..6. So no sectors and no
    branches are needed.
    """
    red, green, blue = image
    low = torch.minimum(torch.minimum(green, blue), red)
    chroma = torch.maximum(torch.maximum(green, blue), red).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-6)).add_(1)
    # |hue| <= 3 + 3, and at most 8 after a channel's position is subtracted
    hue.copysign_(green - blue).add_(6 * (turn - round(turn)))
    if abs(turn) > 1 / 6:
        hue.sub_((hue * (1 / 6)).round_(), alpha=6)
    low.sub_(chroma)
    for plane, place in zip(image, (0, 2, -2), strict=True):
        share = (hue - place).abs_().sub_(3).abs_().clamp_(1, 2)
        torch.addcmul(low, share, chroma, out=plane)
    return image


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """A new image: each plane convolved with a Gaussian of ``sigma`` pixels.

    The kernel is cut at three sigma; edges are mirrored.

    image: (c, h, w).
    """
    height, width = image.shape[1:]
    radius = min(max(math.ceil(3 * sigma), 1), height - 1, width - 1)
    if radius < 1:
        return image
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = sum(weights)
    weights = [weight / total for weight in weights]
    padded = functional.pad(image, (radius,) * 4, mode="reflect")
    out = torch.empty_like(image)
    rows = max(_BAND_PIXELS // width, 1)
    scratch = torch.empty(min(rows, height), width + 2 * radius)
    for plane, source in zip(out, padded, strict=True):
        for band, top in zip(plane.split(rows), range(0, height, rows), strict=True):
            down = _weighted_sum(
                source[top : top + len(band) + 2 * radius], weights, dim=0, out=scratch[: len(band)]
            )
            _weighted_sum(down, weights, dim=1, out=band)
    return out


def _weighted_sum(image: Tensor, weights: list[float], dim: int, out: Tensor) -> Tensor:
    """Sum of shifted copies, into ``out``: for such small kernels faster than a convolution."""
    length = out.shape[dim]
    torch.mul(image.narrow(dim, 0, length), weights[0], out=out)
    for shift, weight in enumerate(weights[1:], start=1):
        out.add_(image.narrow(dim, shift, length), alpha=weight)
    return out
