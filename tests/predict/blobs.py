"""A detector with known results: it finds rectangles of pure red, green and blue, exact to the pixel."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from mrt.predict.detector import Detector, Thresholds
from mrt.predict.network import Preprocessing

CLASSES = ("red", "green", "blue")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SCORES = (0.9, 0.6, 0.35)
MOST = 20


class BlobNetwork:
    """Each connected patch of a pure colour is an object of that class; ``batches``: shapes of its inputs."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.batches.append(tuple(images.shape))
        scores, labels = np.zeros((len(images), MOST), np.float32), np.zeros((len(images), MOST), np.int64)
        boxes = np.zeros((len(images), MOST, 4), np.float32)
        for number, image in enumerate(images.numpy()):
            size = np.array(image.shape[:0:-1] * 2)
            found = []
            for label, colour in enumerate(COLOURS):
                found += [(label, region) for region in patches(image, colour)]
            for place, (label, (rows, columns)) in enumerate(found):
                scores[number, place], labels[number, place] = SCORES[label] - 0.001 * place, label
                boxes[number, place] = (columns.start, rows.start, columns.stop, rows.stop) / size
        return scores, labels, boxes


def patches(image: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[slice, slice]]:
    near = np.abs(image.astype(int) - np.array(colour)[:, None, None]).max(0) < 100
    return ndimage.find_objects(ndimage.label(near)[0])


def blob_detector(
    thresholds: Thresholds | None = None, preprocessing: Preprocessing | None = None
) -> Detector:
    return Detector(BlobNetwork(), CLASSES, preprocessing or Preprocessing(120, 400), thresholds)


def picture(size: tuple[int, int] = (160, 120), *, red=(), green=(), blue=()) -> Image.Image:
    """A grey picture of (width, height) with rectangles (x0, y0, x1, y1)."""
    image = Image.new("RGB", size, (90, 90, 90))
    draw = ImageDraw.Draw(image)
    for colour, boxes in zip(COLOURS, (red, green, blue), strict=True):
        for x0, y0, x1, y1 in boxes:
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    return image
