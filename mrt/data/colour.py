"""Fast colour changes and blur on float images, for training on processors.

Images are (3, h, w) float32 in 0..255. Definitions are torchvision's (and Pillow's): blends with black, with the mean grey, with the grey
image; hue as a rotation in HSV; a Gaussian kernel. Values stay floats between the steps instead of being rounded to uint8 after each.
Functions may overwrite their input. Large images are worked on in bands of rows that fit the cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision
_BAND_PIXELS = 1 << 15  # a band of three planes and the temporaries of a hue shift stay within a megabyte or two


def jitter(image: Tensor, rng: random.Random, *, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """The four changes in random order: factors from 1 - x to 1 + x, hue turned by up to ``hue`` of a full circle either way."""
    factors = [rng.uniform(1 - change, 1 + change) for change in (brightness, contrast, saturation)]
    changes: list[Callable[[Tensor, float], Tensor]] = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]
    steps = list(zip(changes, (*factors, rng.uniform(-hue, hue)), strict=True))
    rng.shuffle(steps)
    contrast_at = [change for change, _ in steps].index(adjust_contrast)  # needs the mean of the whole image as it is then
    _in_bands(image, steps[:contrast_at])
    adjust_contrast(image, steps[contrast_at][1])
    _in_bands(image, steps[contrast_at + 1 :])
    return image


def _in_bands(image: Tensor, steps: list[tuple[Callable[[Tensor, float], Tensor], float]]) -> None:
    for band in image.split(max(_BAND_PIXELS // image.shape[2], 1), dim=1):
        for change, amount in steps:
            change(band, amount)


def grey_plane(image: Tensor) -> Tensor:
    """(3, h, w) -> (h, w)."""
    red, green, blue = GREY_WEIGHTS
    return (image[0] * red).add_(image[1], alpha=green).add_(image[2], alpha=blue)


def to_grey(image: Tensor) -> Tensor:
    """All three planes become the grey one."""
    return image.copy_(grey_plane(image).expand_as(image))


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Blend with black, in place."""
    return image.mul_(factor).clamp_(0, 255)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Blend with the image's mean grey, in place."""
    mean = sum(weight * float(plane.mean()) for weight, plane in zip(GREY_WEIGHTS, image, strict=True))
    return image.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Blend with the grey image, in place."""
    grey = grey_plane(image).mul_(1 - factor)
    return image.mul_(factor).add_(grey).clamp_(0, 255)


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """Rotate the hue by ``turn`` of a full circle, in place; value and saturation (HSV) stay.

    With value V, chroma C and hue h in sixths of the circle, a channel is V - C * clamp(2 - |u|, 0, 1), u = h + n - 2 brought to -3..3
    and n = 5, 3, 1 for red, green, blue: no conversion back and forth, no branches.
    """
    red, green, blue = image
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-6).reciprocal_()
    not_red = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue) * scale, not_red).add_(6 * turn - 2)
    for plane, offset in zip(image, (5, 3, 1), strict=True):
        angle = hue + offset
        angle.sub_((angle * (1 / 6)).round_(), alpha=6).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, angle, chroma, value=-1, out=plane)
    return image


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of ``sigma`` pixels cut at three sigma, edges mirrored: returns a new image."""
    height, width = image.shape[1:]
    radius = min(max(math.ceil(3 * sigma), 1), height - 1, width - 1)
    if radius < 1:
        return image
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = sum(weights)
    weights = [weight / total for weight in weights]
    padded = functional.pad(image, (radius,) * 4, mode="reflect")
    out = torch.empty_like(image)
    rows = max(_BAND_PIXELS // width, 2 * radius)
    for plane, source in zip(out, padded, strict=True):
        for band, top in zip(plane.split(rows), range(0, height, rows), strict=True):
            across = _weighted_sum(source[top : top + band.shape[0] + 2 * radius], weights, width, dim=1)
            band.copy_(_weighted_sum(across, weights, band.shape[0], dim=0))
    return out


def _weighted_sum(image: Tensor, weights: list[float], length: int, dim: int) -> Tensor:
    """Sum of shifted copies: faster than a convolution call at these kernel sizes."""
    total = image.narrow(dim, 0, length) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        total.add_(image.narrow(dim, shift, length), alpha=weight)
    return total
