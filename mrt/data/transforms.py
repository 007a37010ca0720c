"""What happens to an image and its boxes between the disk and the network.

Geometry (crop, resize, flip) is drawn once per sample, so the two views of a pair share it. Only the strong
view's colours change.

Pixels are uint8 until the last step. Resizing is Pillow's antialiased bilinear filter, which gives the same
grey levels as the published pipeline. Colour and blur are our own (:mod:`mrt.data.colour`): several times
faster than torchvision's, with the same distribution.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrt.boxes import xyxy_to_cxcywh
from mrt.data import colour
from mrt.errors import MrtError

KINDS = ("weak", "strong", "eval", "pair")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The crop of DETR's training recipe (Carion et al. 2020, appendix A.4), which MRT's stage 1 uses with sides
# 480..672: resize to one of CROP_SIDES, cut a region with sides in CROP_RANGE, resize. With other sides, all
# numbers scale with the largest side.
CROP_REFERENCE_SIDE = 672
CROP_SIDES = (400, 500, 600)
CROP_RANGE = (384, 600)

Target = dict[str, Any]
OF_BOXES = {"boxes": ("labels", "scores"), "ignore_boxes": ("ignore_labels",)}  # what goes where a box goes


class Sample(NamedTuple):
    """One training example: ``image`` (3, h, w) float32, its target, and for pairs the strong view.

    The strong view has the same size.
    """

    image: Tensor
    target: Target
    strong: Tensor | None = None


class Region(NamedTuple):
    """A rectangle in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def resized_size(
    height: int, width: int, short_side: int, max_size: int, multiple: int = 1
) -> tuple[int, int]:
    """(height, width) after scaling the short side to ``short_side``, keeping the long side to ``max_size``.

    Rounds down, as torchvision's ``resize(size, max_size)`` does and as the published numbers need; then to
    the nearest ``multiple``, at least one and at most as many as ``max_size`` holds. A map of stride s has
    ceil(side / s) cells, which the detector takes for the whole side: only where s divides it they lie where
    they are taken to lie. With 194 pixels and stride 32 they are 15 % off, with 1333 pixels 0.8 %.
    """
    short, long = min(height, width), max(height, width)
    new_short, new_long = short_side, int(short_side * long / short)
    if new_long > max_size:
        new_short, new_long = int(max_size * new_short / new_long), max_size
    new_short = max(new_short, 1)
    if multiple > 1:
        most = max(max_size // multiple, 1)
        new_short, new_long = (
            min(max(round(side / multiple), 1), most) * multiple for side in (new_short, new_long)
        )
    return (new_short, new_long) if height <= width else (new_long, new_short)


def resize(
    image: Tensor | Image.Image, boxes: Tensor, size: tuple[int, int], region: Region | None = None
) -> tuple[Tensor, Tensor]:
    """Scale ``region`` of the image (default: all of it) to ``size`` (height, width).

    ``boxes`` (n, 4) are xyxy pixels of the region.

    image: (3, H, W) uint8, or an RGB picture. The cut and the scaling are one pass over the pixels.
    """
    region = region or Region(0, 0, *image_size(image))
    if (region.height, region.width) == size:
        return crop_pixels(image if isinstance(image, Tensor) else image_tensor(image), region), boxes
    picture = image
    if isinstance(image, Tensor):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy(force=True))
    corners = (region.left, region.top, region.left + region.width, region.top + region.height)
    scaled = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=corners)
    scale_x, scale_y = size[1] / region.width, size[0] / region.height
    return image_tensor(scaled), boxes * boxes.new_tensor((scale_x, scale_y, scale_x, scale_y))


def image_size(image: Tensor | Image.Image) -> tuple[int, int]:
    """(height, width)."""
    return tuple(image.shape[-2:]) if isinstance(image, Tensor) else (image.height, image.width)


def crop_pixels(image: Tensor, region: Region) -> Tensor:
    """A view of the region, which must lie inside the image."""
    return image[:, region.top : region.top + region.height, region.left : region.left + region.width]


def crop_boxes(boxes: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """xyxy boxes cut to the region, in its coordinates (n, 4), and which still have an area (n,) bool."""
    limits = boxes.new_tensor((region.width, region.height, region.width, region.height))
    moved = boxes - boxes.new_tensor((region.left, region.top, region.left, region.top))
    moved = torch.minimum(moved.clamp(min=0), limits)
    return moved, (moved[:, 2:] > moved[:, :2]).all(1)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """xyxy boxes mirrored left to right in an image of that width."""
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)


def normalise(image: Tensor) -> Tensor:
    """(3, h, w) uint8 or float in 0..255 -> contiguous float32, normalised by ImageNet's mean and deviation.

    A float input may be overwritten.
    """
    image = image.to(torch.float32, memory_format=torch.contiguous_format)
    return image.sub_(_MEAN_255).mul_(_INVERSE_STD_255)


_MEAN_255 = torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
_INVERSE_STD_255 = 1 / (torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255)


def denormalise(image: Tensor) -> Tensor:
    """(3, h, w) as the network sees it -> uint8, for drawing."""
    pixels = image.detach().cpu().float() / _INVERSE_STD_255 + _MEAN_255
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def image_tensor(picture: Image.Image) -> Tensor:
    """RGB picture -> contiguous (3, h, w) uint8."""
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in picture.split()]))


def planar(image: Tensor) -> Tensor:
    """The image with one colour plane after the other in memory, where arithmetic is fastest.

    A copy if it is stored in another order.
    """
    # numpy's copy takes a quarter of the time of torch's
    return torch.from_numpy(np.ascontiguousarray(image.numpy(force=True)))


def strong_view(image: Tensor, rng: random.Random) -> Tensor:
    """Colour jitter, grey and blur: (3, h, w) uint8 -> float in 0..255.

    Jitter 0.4/0.4/0.4/0.1 (p 0.8), grey (p 0.2), blur with sigma 0.1..2 (p 0.5).

    Source: paper section 4.1 and the published code (the recipe of Unbiased Teacher without its cut-out).
    """
    pixels = image.to(torch.float32, memory_format=torch.contiguous_format)
    if rng.random() < 0.8:
        pixels = colour.jitter(pixels, rng, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    if rng.random() < 0.2:
        pixels = colour.grey_plane(pixels)[None]  # one plane through the blur, and three after it
    if rng.random() < 0.5:
        pixels = colour.gaussian_blur(pixels, rng.uniform(0.1, 2.0))
    return pixels if len(pixels) == 3 else pixels.repeat(3, 1, 1)


class Transform:
    """From a decoded image and its target to what the network takes.

    Call it with an image, (3, H, W) uint8 or an RGB picture (saves copies), and a target with ``boxes`` (n,
    4) xyxy pixels, ``labels`` (n,), optionally ``scores`` (n,), ``ignore_boxes`` and ``ignore_labels``. It
    returns a :class:`Sample` whose target holds cxcywh shares of the new image and ``size`` (h, w).

    Args:
        kind: "weak" crops, resizes, flips; "strong" also changes colours; "pair" gives both views; "eval"
            only resizes.
        short_sides: the short side is one of these, drawn per sample ("eval": the last).
        max_size: limit of the long side.
        crop: half of the samples are cropped first, see ``CROP_SIDES``.
        flip: probability of mirroring.
        multiple: of which both sides are, see :func:`resized_size`.
    """

    def __init__(
        self,
        kind: str,
        short_sides: Sequence[int],
        max_size: int,
        crop: bool = False,
        flip: float = 0.5,
        multiple: int = 1,
    ) -> None:
        if kind not in KINDS:
            raise MrtError(f"transform kind is {kind!r}", f"Use one of: {', '.join(KINDS)}.")
        if not short_sides or min(short_sides) < 1 or max_size < 1:
            raise MrtError(
                f"image sizes: short_sides {list(short_sides)!r}, max_size {max_size!r}: pixels, at least 1"
            )
        self.kind, self.short_sides, self.max_size = kind, tuple(short_sides), max_size
        self.multiple = multiple
        self.crop, self.flip = (crop, flip) if kind != "eval" else (False, 0.0)

    def __call__(self, image: Tensor | Image.Image, target: Target, rng: random.Random) -> Sample:
        target = dict(target)
        groups = [name for name in OF_BOXES if name in target]
        height, width = image_size(image)
        region = Region(0, 0, height, width)
        if self.crop and rng.random() < 0.5:
            region = self._draw_region(height, width, rng)
        short_side = self.short_sides[-1] if self.kind == "eval" else rng.choice(self.short_sides)
        size = resized_size(region.height, region.width, short_side, self.max_size, self.multiple)
        flipped = rng.random() < self.flip

        scale = torch.tensor((size[1] / region.width, size[0] / region.height)).repeat(2)
        shares = torch.tensor((1 / size[1], 1 / size[0])).repeat(2)
        for name in groups:
            boxes, keep = crop_boxes(target[name].as_subclass(Tensor), region)
            if not keep.all():
                boxes = boxes[keep]
                target |= {other: target[other][keep] for other in OF_BOXES[name] if other in target}
            boxes = boxes * scale
            target[name] = xyxy_to_cxcywh(flip_boxes(boxes, size[1]) if flipped else boxes) * shares
        target["size"] = size

        source = image.as_subclass(Tensor) if isinstance(image, Tensor) else image
        pixels, _ = resize(source, torch.empty(0, 4), size, region)
        pixels = planar(pixels)
        if flipped:
            pixels = pixels.flip(-1)
        if self.kind == "strong":
            return Sample(normalise(strong_view(pixels, rng)), target)
        strong = normalise(strong_view(pixels, rng)) if self.kind == "pair" else None
        return Sample(normalise(pixels), target, strong)

    def largest(self, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
        """The (height, width) into which images of these sizes (height, width) always fit afterwards.

        Raises:
            MrtError: the transform crops, so only a square of ``max_size`` would be sure to fit.
        """
        if self.crop:
            raise MrtError(
                "random crops have no common size",
                "Use --set data.source_crop=false, or do not ask for one shape.",
            )
        sides = self.short_sides[-1:] if self.kind == "eval" else self.short_sides
        results = [
            resized_size(*size, side, self.max_size, self.multiple) for size in set(sizes) for side in sides
        ]
        return max(height for height, _ in results), max(width for _, width in results)

    def _draw_region(self, height: int, width: int, rng: random.Random) -> Region:
        """DETR's crop, mapped back to the original's pixels so that they are resampled only once."""
        unit = max(self.short_sides) / CROP_REFERENCE_SIDE
        side, lowest, highest = (max(round(n * unit), 1) for n in (rng.choice(CROP_SIDES), *CROP_RANGE))
        scaled_height, scaled_width = resized_size(height, width, side, max(self.max_size, side))
        cut_height = rng.randint(min(lowest, scaled_height), min(highest, scaled_height))
        cut_width = rng.randint(min(lowest, scaled_width), min(highest, scaled_width))
        top, left = rng.randint(0, scaled_height - cut_height), rng.randint(0, scaled_width - cut_width)
        to_y, to_x = height / scaled_height, width / scaled_width
        region_height, region_width = max(round(cut_height * to_y), 1), max(round(cut_width * to_x), 1)
        return Region(
            min(round(top * to_y), height - region_height),
            min(round(left * to_x), width - region_width),
            region_height,
            region_width,
        )
