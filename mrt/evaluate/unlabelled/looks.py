"""Forward passes over images without labels, from which all signals are computed.

At most five: the images as they are, each as another view, the detector with slightly changed weights, a
partner (a run's student), and labelled source images. Nothing here reads a label of the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy
from mrt.data import colour
from mrt.data.transforms import image_tensor, normalise
from mrt.errors import MrtError
from mrt.models.interface import Detector

FLOOR = 0.1  # least score of an object that counts at all
SHOWN = 0.3  # least score of an object that a user would be shown
NOISE = 0.02  # length of the change of each weight tensor, as a share of its own length
VIEW_SCALE = 0.8  # of the other view's sides
VIEW_PALE, VIEW_DARK = 0.6, 0.8  # its saturation and brightness; 1 is unchanged


@dataclass(frozen=True)
class Look:
    """What a detector says of N images: its last layer's Q queries of each.

    Attributes:
        scores: (N, Q, C) probabilities, float32.
        boxes: (N, Q, 4) x0, y0, x1, y1 as shares of the image.
        queries: (N, Q, d) after the last decoder layer.
    """

    scores: np.ndarray
    boxes: np.ndarray
    queries: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def objects(self, image: int, least: float) -> Objects:
        """The queries of an image whose best class has a score of at least ``least``, best first."""
        best = self.scores[image].max(1)
        chosen = np.flatnonzero(best >= least)
        chosen = chosen[np.argsort(-best[chosen], kind="stable")]
        labels = self.scores[image, chosen].argmax(1) if len(chosen) else np.zeros(0, dtype=np.int64)
        return Objects(best[chosen], labels, self.boxes[image, chosen], self.scores[image, chosen])


@dataclass(frozen=True)
class Objects:
    """n objects of an image: scores (n,), labels (n,), boxes (n, 4) xyxy, probabilities (n, C)."""

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Truth:
    """Objects of a labelled source image: boxes (n, 4) xyxy as shares of the image, labels (n,)."""

    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Looks:
    """All that signals are computed from; what is ``None`` was not to be had, and its signals are left out.

    Attributes:
        plain: the target images. view: their other view, boxes in the frame of the plain image. shaken: by
            the detector with changed weights. partner: by another detector, such as the run's student.
        source: labelled source images. truth: their objects, an entry for each.
        boxes_per_image: labelled source objects per image by class (C,).
    """

    plain: Look
    view: Look | None = None
    shaken: Look | None = None
    partner: Look | None = None
    source: Look | None = None
    truth: Sequence[Truth] | None = None
    boxes_per_image: np.ndarray | None = None


def look(
    detector: Detector,
    pictures: Sequence[Callable[[], Image.Image]],
    size: Callable[[int, int], tuple[int, int]],
    *,
    view: bool = False,
    batch: int = 8,
    done: Callable[[int], None] | None = None,
) -> Look:
    """One pass over images.

    Args:
        detector: in evaluation mode on its device.
        pictures: functions that read an upright RGB picture each.
        size: from (height, width) of an image to that of the network's input.
        view: look at the other view: mirrored, smaller, paler and darker. Nothing of it is random.
        done: is told of the number of images after each batch.

    Raises:
        MrtError: there are no images, one cannot be read, or a score or box is NaN or infinite.
    """
    if not pictures:
        raise MrtError("no images to look at", "name a folder or a prepared set that has some")
    device = next(detector.parameters()).device
    places: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    found: list[tuple[np.ndarray, ...] | None] = [None] * len(pictures)

    def run(group: list[tuple[int, Tensor]]) -> None:
        with torch.inference_mode():
            output = detector(torch.stack([pixels for _, pixels in group]).to(device))
            scores = output.logits[-1].float().sigmoid().cpu()
            boxes = cxcywh_to_xyxy(output.boxes[-1].float()).cpu()
            queries = output.queries.float().cpu()
        if not (scores.isfinite().all() and boxes.isfinite().all() and queries.isfinite().all()):
            raise MrtError(
                "a score, box or query of the detector is NaN or infinite",
                "its training diverged: take other weights",
            )
        if view:
            boxes = torch.stack((1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]), dim=-1)
        for (index, _), *parts in zip(group, scores, boxes, queries, strict=True):
            found[index] = tuple(part.numpy() for part in parts)
        if done is not None:
            done(len(group))

    for index, read in enumerate(pictures):
        picture = read()
        height, width = size(picture.height, picture.width)
        pixels = _other_view(picture, height, width) if view else _as_it_is(picture, height, width)
        same = places.setdefault(tuple(pixels.shape[-2:]), [])
        same.append((index, pixels))
        if len(same) == batch:
            run(places.pop(tuple(pixels.shape[-2:])))
    for group in places.values():
        run(group)
    return Look(*(np.stack(part) for part in zip(*found, strict=True)))


def _as_it_is(picture: Image.Image, height: int, width: int) -> Tensor:
    return normalise(image_tensor(_resized(picture, height, width)))


def _other_view(picture: Image.Image, height: int, width: int) -> Tensor:
    height, width = max(round(height * VIEW_SCALE), 32), max(round(width * VIEW_SCALE), 32)
    pixels = image_tensor(_resized(picture, height, width)).float().flip(-1)
    return normalise(colour.adjust_brightness(colour.adjust_saturation(pixels, VIEW_PALE), VIEW_DARK))


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.BILINEAR)


@contextmanager
def shaken(detector: Detector, seed: int = 0, noise: float = NOISE) -> Iterator[Detector]:
    """A copy of a detector whose weights are changed a little, the same way for the same shapes and seed.

    Each trained tensor of at least two dimensions gets Gaussian noise of ``noise`` times its own length
    (Euclidean norm), so that the change does not depend on its scale.
    """
    other = copy.deepcopy(detector)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.parameters():
            if weights.ndim < 2:
                continue
            change = torch.randn(weights.shape, generator=generator).to(weights)
            weights += change * (noise * weights.norm() / change.norm())
    yield other.eval()
