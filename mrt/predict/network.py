"""Networks from pixels to candidates: a detector in PyTorch. Exported programs: :mod:`mrt.export.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrt.data.transforms import IMAGENET_MEAN, IMAGENET_STD, resize, resized_size
from mrt.errors import MrtError
from mrt.models.detector import DeformableDETR
from mrt.models.fast.carried_norms import fold_carried_norms
from mrt.models.fast.packed import pack
from mrt.models.postprocess import top_pairs

CANDIDATES = 300  # (query, class) pairs of an image that thresholds, NMS and class filters choose from
PRECISIONS = {"off": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ImageSizes(Protocol):
    """``[data]`` of the settings, as far as it says how images are scaled."""

    sides: Sequence[int]
    max_size: int
    size_multiple: int


@dataclass(frozen=True)
class Preprocessing:
    """How an image is scaled for the network, in pixels.

    Attributes:
        short_side, max_size: the short side becomes ``short_side``, or less if the long one would exceed
            ``max_size``.
        fixed: (height, width) that every image is stretched to instead, for programs exported for one size.
        multiple: of which both sides are (:func:`mrt.data.transforms.resized_size`).
    """

    short_side: int
    max_size: int
    fixed: tuple[int, int] | None = None
    multiple: int = 1

    @classmethod
    def of(cls, data: ImageSizes) -> Preprocessing:
        """As images are scaled for evaluation."""
        return cls(data.sides[-1], data.max_size, multiple=data.size_multiple)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image of that size."""
        return self.fixed or resized_size(height, width, self.short_side, self.max_size, self.multiple)

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture as (3, height, width) uint8, scaled by Pillow's antialiased bilinear filter."""
        return resize(picture, torch.empty(0, 4), self.size(picture.height, picture.width))[0]


class Network(Protocol):
    """A function from images of one size to candidates."""

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, 3, h, w) uint8 RGB -> decreasing scores (B, k), labels (B, k), boxes (B, k, 4) xyxy.

        Boxes are shares of the image.
        """
        ...


def pixels_to_input(images: Tensor) -> Tensor:
    """(B, 3, h, w) RGB from 0 to 255 -> normalised float32, as the detector takes it."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1) * 255)
    return (images.float() - mean) * scale


class TorchNetwork:
    """A detector in eager PyTorch.

    Args:
        detector: in evaluation mode on its device. It is changed and cannot be trained afterwards: frozen
            batch norms are folded into its convolutions, and on a CPU layers are replaced by faster ones.
        amp: "off" (float32), "tf32", "bf16" or "fp16".
    """

    def __init__(self, detector: DeformableDETR, amp: str = "off") -> None:
        if amp not in PRECISIONS:
            raise MrtError(f"precision {amp!r} is unknown", f"choose {', '.join(PRECISIONS)}")
        self.detector, self.amp = detector, amp
        self.device = next(detector.parameters()).device
        if amp == "fp16" and self.device.type == "cpu":
            raise MrtError("precision fp16: no processor computes in it", "take bf16, or off")
        if self.device.type == "cuda" and amp == "tf32":  # a setting of the whole process
            torch.set_float32_matmul_precision("high")
        fold_carried_norms(detector.backbone)
        if self.device.type == "cpu":
            pack(detector)

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dtype = PRECISIONS[self.amp]
        precision = torch.autocast(self.device.type, dtype) if dtype is not None else nullcontext()
        with torch.inference_mode(), precision:
            output = self.detector(pixels_to_input(images.to(self.device)))
            found = top_pairs(output.logits[-1], output.boxes[-1], CANDIDATES)
        return tuple(part.cpu().numpy() for part in found)
