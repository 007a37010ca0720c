"""Inputs of a prediction: images, folders, prepared sets, globs, zip archives, videos, cameras, and standard
input. They are found without torch, which is imported once the first picture is read.
"""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path, PurePosixPath

from PIL import Image

from mrt.data import video
from mrt.data.archives import open_zip
from mrt.data.card import CARD_NAME, read_card, read_json
from mrt.data.headers import IMAGE_SUFFIXES
from mrt.data.registry import require_files
from mrt.errors import MrtError
from mrt.plain import is_text

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".heic", ".heif")
VIDEO_SUFFIXES = video.SUFFIXES
SHORT = 0.9  # of a video's frames and of its time; a header's numbers may be estimates
STDIN = "-"
LOOKED_AT = ("val", "test")  # splits of a prepared set, in this order; else its first
MARK = ".mrt-predictions"  # in a folder that predictions were written to


@dataclass(frozen=True)
class Frame:
    """One image to predict on.

    Attributes:
        name: for it and its results: a path inside the folder, archive or list it came from; of a video, the
            video's name.
        read: returns the upright RGB picture, or raises MrtError.
        path: the image's own file (which may lie in a zip archive); None for frames of a video, a camera and
            standard input.
        number, seconds: of a video's or camera's frame, from 0; None for an image.
    """

    name: str
    read: Callable[[], Image.Image]
    path: Path | None = None
    number: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        name: as in results and messages.
        kind: "images", "video" or "camera".
        frames: iterates over its frames, once; raises MrtError where a video cannot be read (further).
        total: number of frames, or None if unknown.
        rate: frames per second of ``frames``, of a video or camera.
        passed_over: only of the first source: files among all inputs that are neither images nor videos.
        notes: only of the first source: which split was taken of prepared sets.
    """

    name: str
    kind: str
    frames: Callable[[], Iterator[Frame]]
    total: int | None = None
    rate: float | None = None
    passed_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(inputs: Sequence[str | Path], every: int = 1) -> tuple[list[Source], list[MrtError]]:
    """The sources in the inputs: one for all images, and one for each video and camera; and their errors.

    Args:
        inputs: paths of images, folders (searched recursively; hidden files and folders of predictions are
            left out), globs, zip archives, videos; a number is a camera; "-" is one image on standard input.
            Of the folder of a prepared set, the images of its split val, else test, else the first. A file
            without a known suffix is treated as an image.
        every: of videos and cameras, only every so many-th frame.

    Raises:
        MrtError: an input does not exist, or there is nothing in any of them.
    """
    images: list[Frame] = []
    videos: list[tuple[Path, str]] = []  # and their names
    names = _Names()
    unwritable: list[MrtError] = []
    others: list[Source] = []
    passed_over: list[str] = []
    notes: list[str] = []
    for text in map(str, inputs):
        if text == STDIN:
            name = names.give("stdin", STDIN)
            images += [Frame(name, _read_stdin)] if name else []
        elif text.isdecimal() and not Path(text).exists():
            others.append(_camera(int(text), every))
        else:
            for root, path in _files(text, notes):
                suffix = path.suffix.lower()
                is_video = suffix in VIDEO_SUFFIXES and path.is_file()
                if not (is_video or suffix in PICTURE_SUFFIXES or root is None):
                    passed_over.append(str(path))
                    continue
                name = path.name if root is None else path.relative_to(root).as_posix()
                above = (root or path.parent).absolute().name
                if not is_text(name):
                    what = f"{ascii(name)[1:-1]}: a name that is not UTF-8, which no result could hold"
                    unwritable.append(MrtError(what, "rename the file"))
                elif given := names.give(name, os.path.abspath(path), above):
                    if is_video:
                        videos.append((path, given))
                    else:
                        images.append(Frame(given, _reader(path), path))
    sources, broken = list(others), unwritable
    for path, name in videos:
        try:
            sources.append(_video(path, name, every))
        except MrtError as error:
            broken.append(error)
    if images:
        sources.insert(0, Source(_title(images), "images", lambda: iter(images), len(images)))
    if sources:
        sources[0] = replace(sources[0], passed_over=passed_over, notes=notes)
    if not sources and not broken:
        found = f"; found {len(passed_over)} other files, such as {passed_over[0]}" if passed_over else ""
        raise MrtError(
            f"{' '.join(map(str, inputs))}: no images or videos{found}",
            f"images are {', '.join(PICTURE_SUFFIXES)}",
        )
    return sources, broken


class _Names:
    """Gives each input a name of its own, once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._taken: set[str] = set()

    def give(self, name: str, place: str, above: str = "") -> str | None:
        """The name, or if another input has it, one with the folder above it or a number in it.

        Args:
            place: what it is a name of; None is returned for one that has a name already.
            above: the folder that the name begins in.
        """
        if place in self._seen:
            return None
        self._seen.add(place)
        free = next(free for free in self._names(name, above) if free not in self._taken)
        self._taken.add(free)
        return free

    @staticmethod
    def _names(name: str, above: str) -> Iterator[str]:
        yield name
        if above:
            yield f"{above}/{name}"
        place = PurePosixPath(name)
        yield from (place.with_name(f"{place.stem}-{number}{place.suffix}").as_posix() for number in count(2))


def _files(text: str, notes: list[str]) -> Iterator[tuple[Path | None, Path]]:
    """(root that names are relative to, file) of each file of an input; no root for a file named directly.
    What is worth telling is added to ``notes``.
    """
    path = Path(text).expanduser()
    if (path / CARD_NAME).is_file():
        yield from _of_set(path, notes)
    elif path.is_dir():
        yield from ((path, file) for file in _walk(path))
    elif path.is_file() and path.suffix.lower() == ".zip":
        members = (info.filename for info in open_zip(path).infolist() if not info.is_dir())
        yield from ((path, path / name) for name in sorted(members) if not _hidden(PurePosixPath(name)))
    elif path.exists():
        yield None, path
    elif glob.has_magic(text):
        places = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        found = [place for place in places if not _hidden(PurePosixPath(place.name))]
        if not found:
            raise MrtError(f"{text}: nothing matches this pattern", "try the folder alone")
        fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parent.parts))
        yield from ((Path(*fixed), place) for place in found if not place.is_dir())
    else:
        near = _near(path)
        hint = f"did you mean {near}?" if near else "check the path"
        raise MrtError(f"{text}: no such file or folder", hint)


def _of_set(folder: Path, notes: list[str]) -> Iterator[tuple[Path, Path]]:
    """The images of a prepared set's split."""
    card = read_card(folder)
    require_files(card, card.folder.parent)
    split = next((name for name in (*LOOKED_AT, *card.splits) if name in card.splits), None)
    if split is None:
        raise MrtError(f"{folder}: has no split to look at", "name a folder of images")
    root, content = card.images_root(split), read_json(card.annotations_path(split))
    entries = content.get("images") if isinstance(content, dict) else None
    names = [entry.get("file_name") for entry in entries or () if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise MrtError(
            f"{card.annotations_path(split)}: lists no images by file_name",
            "name the folder of its images instead",
        )
    notes.append(f"{card.name}: its split {split}, {len(names)} images")
    yield from ((root, root / name) for name in names)


def _walk(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise MrtError(
            f"{error.filename}: cannot be read ({error.strerror})",
            "mend its permissions, or name the images themselves",
        )

    for where, folders, names in os.walk(folder, onerror=unreadable, followlinks=False):
        shown = (name for name in folders if not _hidden(PurePosixPath(name)))
        folders[:] = sorted(name for name in shown if not (Path(where) / name / MARK).exists())
        yield from (Path(where) / name for name in sorted(names) if not name.startswith("."))


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _near(path: Path) -> str | None:
    import difflib

    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return str(folder / close[0]) if close else None


def _title(images: list[Frame]) -> str:
    return images[0].name if len(images) == 1 else f"{len(images)} images"


def _reader(path: Path) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        from mrt.data.images import read_picture

        return read_picture(path)

    return read


def _read_stdin() -> Image.Image:
    content = sys.stdin.buffer.read()
    if not content:
        raise MrtError("standard input: no image in it", "for example: mrt predict RUN - < photo.jpg")
    from mrt.data.images import decode_picture

    return decode_picture(io.BytesIO(content), "standard input")


def _video(path: Path, name: str, every: int) -> Source:
    facts = video.describe(path)

    def frames() -> Iterator[Frame]:
        last, until = -1, 0.0
        for number, seconds, picture in video.read(path, every):
            last, until = number, seconds
            yield Frame(name, lambda picture=picture: picture, None, number, seconds)
        # There may be more after the last one that was looked at. Some headers count half frames: so the time
        # must be short, too.
        frames_short = last + every < SHORT * facts.frames
        if frames_short and until + every / facts.rate < SHORT * facts.frames / facts.rate:
            raise video.SourceBroken(
                f"{path}: ends after {last + 1} of {facts.frames} frames: it is cut short",
                "get the file again",
            )

    total = -(-facts.frames // every) if facts.frames else None
    return Source(name, "video", frames, total, facts.rate / every)


def _camera(index: int, every: int) -> Source:
    def frames() -> Iterator[Frame]:
        for number, seconds, picture in video.read_camera(index, every):
            yield Frame(f"camera-{index}", lambda picture=picture: picture, None, number, seconds)

    return Source(f"camera-{index}", "camera", frames, None, video.CAMERA_RATE / every)
