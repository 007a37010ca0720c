"""The detector class for users: images of any kind in, :class:`Detections` out."""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, nms

from mrt.arguments import require_types
from mrt.data.headers import BROKEN
from mrt.data.images import read_picture, upright_rgb
from mrt.data.video import SourceBroken
from mrt.errors import MrtError
from mrt.predict.detections import Detections
from mrt.predict.inputs import Frame
from mrt.predict.network import Network, Preprocessing
from mrt.predict.tiles import merge, tile_boxes

DEFAULT_THRESHOLD = 0.3
TOP_K = 100
_AHEAD = 4  # images beyond a batch that are read and scaled while the network computes
_WAITING = 4  # so many batches of images, at most, wait for a batch of one size to fill


@dataclass(frozen=True)
class Options:
    """How detections are chosen from a network's candidates.

    Attributes:
        threshold: lowest score, one for all classes or by class name (others keep the detector's); None: the
            detector's.
        batch: number of images of one size in a batch of the network.
        nms: of two boxes of a class that overlap more than this (intersection over union), the one with the
            lower score is removed; None: both stay.
        agnostic: NMS and merging of tiles treat all classes as one.
        top_k: most objects of an image; None: all.
        classes: names of the classes to keep; None: all.
        tile: side in pixels of square tiles that are predicted on in addition to the whole image; None: only
            the whole image.
        overlap: share of a tile's side that neighbours have in common.
    """

    threshold: float | Mapping[str, float] | None = None
    batch: int = 1
    nms: float | None = None
    agnostic: bool = False
    top_k: int | None = TOP_K
    classes: Collection[str] | None = None
    tile: int | None = None
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """MrtError for an option of another type."""
        require_types(Options, vars(self))


class OutputNotFinite(MrtError):
    """A network's scores or boxes of an image are NaN or infinite."""


class Thresholds(NamedTuple):
    """Lowest scores by class name, and a description of where they come from."""

    values: dict[str, float]
    origin: str


class Detector:
    """A trained detector. Made by :func:`mrt.load`.

    Attributes:
        classes: class names by label.
        preprocessing: how images are scaled.
        thresholds: lowest scores by class, used unless the caller gives others.
        facts: information from its file: "network", "file", "config".
        network: from pixels to candidates; a :class:`mrt.predict.network.TorchNetwork` has the PyTorch module
            as ``network.detector``.
    """

    def __init__(
        self,
        network: Network,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        thresholds: Thresholds | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.classes, self.preprocessing = network, tuple(classes), preprocessing
        usual = dict.fromkeys(self.classes, DEFAULT_THRESHOLD)
        self.thresholds = thresholds or Thresholds(usual, f"{DEFAULT_THRESHOLD} for every class")
        self.facts = dict(facts or {})

    def __repr__(self) -> str:
        return f"Detector({self.facts.get('file', '?')}: {len(self.classes)} classes)"

    def predict(
        self,
        images: Any,
        *,
        threshold: float | Mapping[str, float] | None = None,
        batch: int = 1,
        nms: float | None = None,
        agnostic: bool = False,
        top_k: int | None = TOP_K,
        classes: Collection[str] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            images: one image or a list of them: a path; a PIL image; a numpy array (H, W, 3) RGB or (H, W)
                grey, uint8; a tensor (3, H, W) uint8, or float in [0, 1]. A batch (N, 3, H, W) or (N, H, W,
                3) counts as a list.
            threshold, batch, nms, agnostic, top_k, classes, tile, overlap: see :class:`Options`. What is
                found in an image does not depend on the others of its batch: only images of one size share
                one, without padding.

        Returns:
            A :class:`Detections` for one image, a list of them for a list.

        Raises:
            MrtError: an image that cannot be read, an option that does not fit, or a network whose output is
                not finite.
        """
        options = Options(threshold, batch, nms, agnostic, top_k, classes, tile, overlap)
        given, alone = _as_list(images)
        frames = [_frame(image, number) for number, image in enumerate(given)]
        found = []
        for _, result in self.stream(frames, options):
            if isinstance(result, MrtError):
                raise result
            found.append(result)
        return found[0] if alone else found

    __call__ = predict

    def stream(
        self, frames: Iterable[Frame], options: Options | None = None
    ) -> Iterator[tuple[Frame, Detections | MrtError]]:
        """Detect objects in a stream of images; another thread reads and scales them.

        Args:
            frames: as :mod:`mrt.predict.inputs` gives them.

        Yields:
            Each frame in order (its ``read`` returns the picture without reading it again), with its
            detections, or the error if it could not be read.

        Raises:
            MrtError: an option that does not fit, or a network whose output is not finite.
            SourceBroken: a video that is cut short, after the frames before that.
        """
        options = options or Options()
        self.check(options)
        pending: list[_Work] = []
        broken: MrtError | None = None
        with _Reader(frames, self.preprocessing, options) as works:
            try:
                for work in works:
                    pending.append(work)
                    self._look(_unseen(pending), options.batch, wait=True)
                    while pending and pending[0].done:
                        yield self._finish(pending.pop(0), options)
            except SourceBroken as error:  # raised after the frames before it
                broken = error
            self._look(_unseen(pending), options.batch)
            yield from (self._finish(item, options) for item in pending)
        if broken is not None:
            raise broken

    def check(self, options: Options) -> None:
        """MrtError if an option does not fit this detector."""
        by_class = isinstance(options.threshold, Mapping)
        for name in (*(options.classes or ()), *(options.threshold if by_class else ())):
            self._require_class(name)
        for number in options.threshold.values() if by_class else [options.threshold]:
            if number is not None and not 0 <= number <= 1:  # None: the detector's
                raise MrtError(f"threshold {number}: a score lies between 0 and 1")
        for name in ("batch", "top_k"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                raise MrtError(f"{name} {getattr(options, name)}: at least 1")
        if options.nms is not None and not 0 < options.nms <= 1:
            raise MrtError(f"nms {options.nms}: an intersection over union, above 0 and up to 1")
        tile_boxes(1, 1, 1 if options.tile is None else options.tile, options.overlap)

    def threshold_of(self, options: Options) -> np.ndarray:
        """(C,) lowest scores that apply under these options."""
        asked = options.threshold
        if asked is None or isinstance(asked, Mapping):
            values = {**self.thresholds.values, **(asked or {})}
            return np.array([values[name] for name in self.classes], dtype=np.float32)
        return np.full(len(self.classes), asked, dtype=np.float32)

    def _require_finite(self, view: _View, frame: Frame) -> None:
        """OutputNotFinite if a score or box is NaN or infinite: no threshold keeps those."""
        scores, _, boxes = view.found
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise OutputNotFinite(
                f"{self.facts.get('file', 'the detector')}: its output for {frame.name or 'an image'} is not "
                "finite (NaN or infinite scores or boxes)",
                "Its training diverged or its file is damaged: take other weights. With half precision: "
                "take --amp off.",
            )

    def _require_class(self, name: str) -> None:
        if name not in self.classes:
            import difflib

            near = difflib.get_close_matches(name, self.classes, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise MrtError(
                f"class {name!r}: this detector does not know it{guess}",
                f"it detects {', '.join(self.classes)}",
            )

    def _look(self, views: list[_View], batch: int, wait: bool = False) -> None:
        """Run the network on views, in batches of one size.

        With ``wait``, incomplete batches are left for later unless too many images are waiting.
        """
        while views:
            shapes = Counter(view.pixels.shape for view in views)
            shape, count = shapes.most_common(1)[0]
            if wait and count < batch and len(views) < _WAITING * batch:
                return
            group = [view for view in views if view.pixels.shape == shape][:batch]
            found = self.network(torch.stack([view.pixels for view in group]))
            for view, *candidates in zip(group, *found, strict=True):
                view.found = tuple(candidates)
            views = [view for view in views if view.found is None]

    def _finish(self, work: _Work, options: Options) -> tuple[Frame, Detections | MrtError]:
        if work.error is not None:
            return work.frame, work.error
        width, height = work.picture.size
        for view in work.views:
            self._require_finite(view, work.frame)
        parts = [_in_image(view, (height, width)) for view in work.views]
        boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        keep = scores >= self.threshold_of(options)[labels]
        if options.classes is not None:
            keep &= np.isin(labels, [self.classes.index(name) for name in options.classes])
        keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        if len(work.views) > 1:
            boxes, kept = merge(boxes, scores, np.zeros_like(labels) if options.agnostic else labels)
            scores, labels = scores[kept], labels[kept]
        if options.nms is not None:
            tensors = [torch.from_numpy(part) for part in (boxes, scores, labels)]
            chosen = (
                nms(*tensors[:2], options.nms) if options.agnostic else batched_nms(*tensors, options.nms)
            )
            boxes, scores, labels = (part[chosen.numpy()] for part in (boxes, scores, labels))
        order = np.argsort(-scores, kind="stable")[: options.top_k]
        arrays = boxes[order], scores[order], labels[order]
        found = Detections(*arrays, self.classes, (height, width), work.frame.name, _again(work.frame))
        picture = work.picture  # the frame must not keep all of ``work``, with the network's input, in memory
        return replace(work.frame, read=lambda: picture), found


@dataclass
class _View:
    """An input of the network: scaled pixels of an image's region (x0, y0, x1, y1), and its candidates."""

    pixels: Tensor
    region: tuple[int, int, int, int]
    found: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


def _unseen(works: Iterable[_Work]) -> list[_View]:
    return [view for work in works for view in work.views if view.found is None]


@dataclass
class _Work:
    frame: Frame
    picture: Image.Image | None = None
    views: list[_View] = field(default_factory=list)
    error: MrtError | None = None

    @property
    def done(self) -> bool:
        return all(view.found is not None for view in self.views)


def _in_image(view: _View, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in pixels of the whole image, cut to it; scores; labels."""
    scores, labels, shares = view.found
    x0, y0, x1, y1 = view.region
    sides, corner = (np.array(pair * 2, dtype=np.float32) for pair in ([x1 - x0, y1 - y0], [x0, y0]))
    boxes = shares * sides + corner
    limits = np.array([size[1], size[0]] * 2, dtype=np.float32)
    return np.clip(boxes, 0, limits).astype(np.float32), scores.astype(np.float32), labels.astype(np.int64)


class _Reader:
    """Iterates over frames, each read, cut into tiles and scaled by a thread that is a few images ahead."""

    def __init__(self, frames: Iterable[Frame], preprocessing: Preprocessing, options: Options) -> None:
        self.frames, self.preprocessing, self.options = frames, preprocessing, options
        self._queue: queue.Queue = queue.Queue(maxsize=options.batch + _AHEAD)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Iterator[_Work]:
        self._thread.start()
        return self._works()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def _works(self) -> Iterator[_Work]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for frame in self.frames:
                if not self._put(self._prepare(frame)):
                    return
            self._put(None)
        except BaseException as error:  # raised again in the thread that waits for the next image
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _prepare(self, frame: Frame) -> _Work:
        try:
            picture = frame.read()
        except MrtError as error:
            return _Work(frame, error=error)
        width, height = picture.size
        regions = [(0, 0, width, height)]
        if self.options.tile is not None:
            tiles = tile_boxes(height, width, self.options.tile, self.options.overlap)
            regions = tiles + (regions if len(tiles) > 1 else [])
        parts = [picture if region == regions[-1] else picture.crop(region) for region in regions]
        views = [_View(self.preprocessing(part), region) for part, region in zip(parts, regions, strict=True)]
        return _Work(frame, picture, views)


def _again(frame: Frame) -> Any:
    """A function that reads the image again, for drawing; None where that would keep it in memory."""
    return frame.read if frame.number is None and frame.name != "stdin" else None


def _as_list(images: Any) -> tuple[list[Any], bool]:
    """The images as a list, and whether a single image was given."""
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images), False
    if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray, Tensor)):
        return [images], True
    if isinstance(images, (bytes, bytearray, memoryview)):
        raise MrtError("an image cannot be bytes", "open them: PIL.Image.open(io.BytesIO(...))")
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise MrtError(
            f"an image cannot be a {type(images).__name__}",
            "give a path, a PIL image, a numpy array or a tensor",
        )
    return list(images), False


def _frame(image: Any, number: int) -> Frame:
    """A frame for an image of any supported type."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        return Frame(str(path), lambda: _read(path), path)
    if not isinstance(image, (Image.Image, np.ndarray, Tensor)):
        raise MrtError(
            f"image {number}: cannot be a {type(image).__name__}",
            "give a path, a PIL image, a numpy array or a tensor",
        )
    if isinstance(image, Image.Image):
        try:
            picture = upright_rgb(image)
        except BROKEN as error:
            raise MrtError(f"image {number}: cannot be read ({error})", "get the file again") from None
    else:
        picture = _picture_of(image, number)
    return Frame("", lambda: picture)


def _read(path: Path) -> Image.Image:
    """The picture of a file that was named by itself; its errors do not speak of data sets."""
    if path.is_dir():
        raise MrtError(
            f"{path}: is a folder, not an image",
            f"give its images: detector.predict(sorted(Path({str(path)!r}).glob('*.jpg')))",
        )
    try:
        return read_picture(path)
    except MrtError as error:
        hint = "get the file again, or leave it out" if path.exists() else "check the path"
        raise MrtError(error.message, hint) from None


def _picture_of(image: np.ndarray | Tensor, number: int) -> Image.Image:
    if isinstance(image, Tensor):
        if image.layout != torch.strided or image.is_meta:
            raise MrtError(
                f"image {number}: a tensor without its values", "give a dense tensor that has them"
            )
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # numpy has none
    if isinstance(image, Tensor) and image.ndim == 3:
        array = image.permute(1, 2, 0).numpy()
    else:
        array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise MrtError(
            f"image {number}: has the shape {tuple(image.shape)}",
            "arrays are (height, width, 3) or (height, width), tensors (3, height, width)",
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        return Image.fromarray((array * 255).round().astype(np.uint8))
    raise MrtError(
        f"image {number}: is {array.dtype} from {array.min():.4g} to {array.max():.4g}",
        "give uint8 from 0 to 255, or float from 0 to 1",
    )
