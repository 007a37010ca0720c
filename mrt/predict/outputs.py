"""Outputs of a prediction: annotated pictures and videos, COCO results, CSV, crops of objects.

Label sets are in :mod:`.labels`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from mrt.data.card import coco_categories
from mrt.errors import MrtError
from mrt.evaluate.draw import draw_detections
from mrt.files import replacing, require_free, write_text
from mrt.predict.detections import Detections
from mrt.predict.inputs import MARK, Frame, Source
from mrt.predict.video import VideoWriter

JPEG_QUALITY = 92
LONGEST_NAME = 200  # bytes of a file's name, to which others are added while it is written


class Writer:
    """Writes the detections of one image after the other.

    :meth:`finish` completes its files; it is also called after an interruption.
    """

    def begin(self, source: Source) -> None:
        """The next frames come from ``source``."""

    def add(self, frame: Frame, found: Detections) -> None:
        """One image, which could be read."""

    def finish(self) -> list[Path]:
        """Complete all files. Returns them, or their folder if there are many."""
        return []


class UniqueNames:
    """Makes file names unique, compared without suffix and case: ``a.jpg``, ``a-2.jpg``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        place = PurePosixPath(name)
        number, free = 1, place
        while str(free.with_suffix("")).casefold() in self._taken:
            number += 1
            free = place.with_name(f"{place.stem}-{number}{place.suffix}")
        self._taken.add(str(free.with_suffix("")).casefold())
        return str(free)


def frame_name(frame: Frame) -> str:
    """A relative path for an image of its own: ``clip/000012.jpg`` for frame 12 of clip.mp4."""
    if frame.number is None:
        return frame.name if PurePosixPath(frame.name).suffix else f"{frame.name}.jpg"
    return f"{PurePosixPath(frame.name).with_suffix('')}/{frame.number:06}.jpg"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture: PNG if the suffix is .png, else JPEG; the file appears only once it is complete."""
    with replacing(path) as file:
        if path.suffix.lower() == ".png":
            picture.save(file, format="PNG")
        else:
            picture.convert("RGB").save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)


def annotated(frame: Frame, found: Detections) -> Image.Image:
    """The picture with boxes, classes and scores; images less than 640 pixels wide are enlarged."""
    return draw_detections(frame.read(), found.as_dict(), found.classes, threshold=0.0)


def flat_name(path: str) -> str:
    """A path as the name of one file, "a/b.jpg" as "a_b.jpg"; shortened where it is too long for one.

    Control characters, which XML and lists of files cannot hold, become underscores, too.
    """
    return short_name(re.sub(r"[/\x00-\x1f\x7f\ufffe\uffff]", "_", path))


def short_name(path: str) -> str:
    """The path with its last part made short enough for a file that is written under it."""
    folder, slash, name = path.rpartition("/")
    if len(name.encode()) <= LONGEST_NAME:
        return path
    stem, dot, suffix = name.rpartition(".")
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = (stem if dot else name).encode()[: LONGEST_NAME - 40].decode(errors="ignore")
    return f"{folder}{slash}{kept}-{digest}{dot}{suffix[:20]}"


class Pictures(Writer):
    """Annotated images under their own names, and an annotated H.264 video for each video and camera.

    Args:
        folder: where to write.
        frames: write videos' frames as images instead.
    """

    def __init__(self, folder: Path, frames: bool = False) -> None:
        self.folder, self.frames = folder, frames
        self._names, self._written = UniqueNames(), []
        self._video: VideoWriter | None = None

    def begin(self, source: Source) -> None:
        self._end_video()
        if source.kind != "images" and not self.frames:
            name = self._names(short_name(PurePosixPath(source.name).with_suffix(".mp4").as_posix()))
            self._video = VideoWriter(self.folder / name, source.rate or 1.0)

    def add(self, frame: Frame, found: Detections) -> None:
        picture = annotated(frame, found)
        if self._video is not None:
            self._video.add(picture)
            return
        place = PurePosixPath(frame_name(frame))
        name = str(place if place.suffix.lower() == ".png" else place.with_suffix(".jpg"))
        path = self.folder / self._names(short_name(name))
        save_picture(picture, path)
        self._written.append(path)

    def finish(self) -> list[Path]:
        self._end_video()
        return self._written

    def _end_video(self) -> None:
        if self._video is not None:
            path = self._video.close()
            self._video = None
            self._written += [path] if path else []


class CocoResults(Writer):
    """COCO results in ``results.json``; images and classes in ``images.json``.

    Each result also has the name of its image, as "file_name".
    Image ids count from 1 in the order of the images, category ids are labels + 1.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, classes
        self._results: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []

    def add(self, frame: Frame, found: Detections) -> None:
        number, (height, width) = len(self._images) + 1, found.image_size
        more = {} if frame.number is None else {"frame": frame.number, "seconds": round(frame.seconds, 3)}
        image = {"id": number, "file_name": frame.name, "height": height, "width": width}
        self._images.append(image | more)
        self._results += [{**item, "file_name": frame.name, **more} for item in found.to_coco(number)]

    def finish(self) -> list[Path]:
        results, images = self.folder / "results.json", self.folder / "images.json"
        write_text(results, json.dumps(self._results) + "\n")
        content = {"images": self._images, "categories": coco_categories(self.classes)}
        write_text(images, json.dumps(content, ensure_ascii=False) + "\n")
        return [results, images]


class Csv(Writer):
    """``detections.csv``: a line per object.

    Columns: file, frame, seconds (empty for images), class, score, x0, y0, x1, y1 in pixels.
    """

    COLUMNS = ("file", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1")

    def __init__(self, folder: Path) -> None:
        self.folder, self._text = folder, io.StringIO()
        self._lines = csv.writer(self._text, lineterminator="\n")
        self._lines.writerow(self.COLUMNS)

    def add(self, frame: Frame, found: Detections) -> None:
        when = ("", "") if frame.number is None else (frame.number, f"{frame.seconds:.3f}")
        for box, score, name in found:
            corners = [f"{number:.2f}" for number in box]
            self._lines.writerow([frame.name, *when, name, f"{score:.5f}", *corners])

    def finish(self) -> list[Path]:
        path = self.folder / "detections.csv"
        write_text(path, self._text.getvalue())
        return [path]


class Crops(Writer):
    """Each object as an image of its own, ``crops/CLASS/NAME-1.jpg``, best first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._names, self._any = folder / "crops", UniqueNames(), False

    def add(self, frame: Frame, found: Detections) -> None:
        picture, place = frame.read(), PurePosixPath(frame_name(frame))
        for number, (box, _, name) in enumerate(found, 1):
            x0, y0, x1, y1 = map(int, box)
            region = x0, y0, min(x1 + 1, picture.width), min(y1 + 1, picture.height)
            inside = f"{safe_name(name)}/{flat_name(str(place.with_suffix('')))}-{number}.jpg"
            save_picture(picture.crop(region), self.folder / self._names(inside))
            self._any = True

    def finish(self) -> list[Path]:
        return [self.folder] if self._any else []


class Mark(Writer):
    """A hidden file that marks a folder of predictions, so that its pictures are not used as inputs later."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, False

    def add(self, frame: Frame, found: Detections) -> None:
        if not self._written:  # at once: a prediction may be killed
            self.finish()

    def finish(self) -> list[Path]:
        if self.folder.is_dir():
            write_text(self.folder / MARK, "")
            self._written = True
        return []


def safe_name(name: str) -> str:
    """A class name as a folder's name."""
    letters = (letter if letter.isalnum() or letter in " -_.()" else "_" for letter in name)
    return "".join(letters).strip(" .") or "_"


def free_folder(asked: Path | None, usual: Path) -> Path:
    """The folder to write to: ``asked``, which must be new or empty, else ``usual``, ``usual-2`` and so on.

    Raises:
        MrtError: ``asked`` is a file or a folder that is not empty.
    """
    if asked is not None:
        require_free(asked, "--out ")
        return asked
    number, folder = 1, usual
    while folder.exists():
        number += 1
        folder = usual.with_name(f"{usual.name}-{number}")
    return folder


def finish_all(writers: Sequence[Writer]) -> list[Path]:
    """Complete the files of all writers, even if one of them fails; then raise the first error."""
    paths: list[Path] = []
    failed: list[MrtError] = []
    for writer in writers:
        try:
            paths += writer.finish()
        except MrtError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return paths


def drop_empty(folder: Path) -> None:
    """Remove a folder that nothing was written to."""
    with contextlib.suppress(OSError):
        folder.rmdir()
