"""Frames of videos, for a target domain without labels: one every so many seconds, without near-duplicates,
divided by time so that what is looked at later was not nearly seen in training.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from mrt.data import video
from mrt.data.archives import open_file
from mrt.data.convert.names import examples, split_of_folder, stem_of
from mrt.data.convert.places import measured
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.headers import UNREADABLE
from mrt.data.staging import Progress
from mrt.errors import MrtError

DEFAULT_EVERY = "2s"
DEFAULT_VAL_SHARE = 0.2
IMAGES = "images"  # the folder of the set that frames and photos lie in
TAKEN = ".taken"  # where they are written first: which split a frame is of is known when all are there
LONGEST = 200  # bytes of the last part of a clip's label: with the time it has to be a file name
QUALITY = 95  # of the JPEG files
# Two frames are near-duplicates if, of so many averaged grey cells, less than this share differs by more than
# so many of 255 grey levels, beside the change of brightness of the whole frame (its median).
CELLS = 64, 36
CHANGED, LEVELS = 0.002, 10
GAP_SECONDS, GAP_SHARE = 10.0, 0.1  # between train and val: seconds, and at most this share of all
LEAST_TO_SPLIT = 5  # frames
LEAST_SECONDS = 0.001  # names of frames tell no shorter times apart
NEAR = "near-duplicate of the frame before"
BETWEEN = "between train and val"
_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SPLITS = ("train", "val", "test")


class Every(NamedTuple):
    """How densely frames are taken: one in ``seconds``, or, if that is None, each ``frames``-th."""

    frames: int
    seconds: float | None
    text: str


class Frame(NamedTuple):
    """A frame that is kept: its file, and when it is, in its clip and on the common time of all clips."""

    file: str
    clip: str
    seconds: float
    at: float


@dataclass
class Clip:
    """A video, and what was taken of it.

    Attributes:
        inside: its path below what ``--raw`` names, as UTF-8 can hold it; no two clips share one.
        label: its part of the frames' names.
        expected: frames that will be looked at, as far as its header tells.
        told: how long its header says that it is, in seconds; 0 if it does not.
        start, length: in seconds, on the common time of all clips.
        dropped: when the near-duplicates are, on that time.
        broken: why it could not be read to its end, if so.
    """

    inside: str
    path: Path
    label: str
    expected: int
    told: float
    start: float = 0.0
    length: float = 0.0
    frames: list[Frame] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)
    broken: str | None = None


def parse_every(text: str) -> Every:
    """ "2s", "500ms", "1min" -> so much time, from a millisecond on; "30" -> each 30th frame. MrtError for
    anything else.
    """
    match = _EVERY.fullmatch(text.strip().lower())
    number = float(match[1]) if match else 0.0
    seconds = number * _UNITS[match[2]] if match and match[2] else None
    if match is None or not math.isfinite(number if seconds is None else seconds):
        fits = False
    else:
        fits = number >= 1 and number == int(number) if seconds is None else seconds >= LEAST_SECONDS
    if not fits:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise MrtError(
            f"--every {shown}: expected a time or a number of frames",
            "for example --every 2s, --every 500ms, --every 1min (1ms is the least), or --every 30 for each "
            "30th frame",
        )
    if seconds is None:
        return Every(int(number), None, f"each {_ordinal(int(number))} frame" if number > 1 else "each frame")
    return Every(1, seconds, f"one every {number:g} {match[2]}")


def _ordinal(number: int) -> str:
    """1 -> "1st", 22 -> "22nd", 12 -> "12th"."""
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def find(raw: Sequence[Path | str]) -> dict[str, Path]:
    """Videos among the files named and in the folders named, to the bottom: path inside -> file, in natural
    order ("clip2" before "clip10"). Hidden files and folders are left out, and so is what archives hold.
    Links that lead nowhere are in it, so that they are told of when they are opened.
    """
    found: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()
    for given in (Path(path).expanduser().absolute() for path in raw):
        if given.is_file() and given.suffix.lower() in video.SUFFIXES:
            _add(found, seen, given.name, given)
        elif given.is_dir():
            for where, folders, names in os.walk(given):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    path = Path(where) / name
                    if path.suffix.lower() in video.SUFFIXES and not name.startswith("."):
                        _add(found, seen, path.relative_to(given).as_posix(), path)
    return dict(sorted(found.items(), key=lambda item: _natural(stem_of(item[0]))))


def _add(found: dict[str, Path], seen: set[tuple[int, int]], inside: str, path: Path) -> None:
    """Under a name of its own; the same file twice is one. What is no plain file, such as a pipe, is none."""
    try:
        facts = path.stat()
    except OSError:
        pass
    else:
        identity = facts.st_dev, facts.st_ino
        if not stat.S_ISREG(facts.st_mode) or (facts.st_ino and identity in seen):
            return
        seen.add(identity)
    found[_free(inside, found)] = path


def _free(name: str, taken: Container[str]) -> str:
    """The name, or with a number before its suffix: a path that is not among those ``taken``."""
    place, number, free = PurePosixPath(name), 2, name
    while free in taken:
        free, number = place.with_name(f"{place.stem}-{number}{place.suffix}").as_posix(), number + 1
    return free


class _Names:
    """Paths given out so far, and folders that no file may be called like. Two that differ in their case or
    Unicode form only are one, as they are on the disks of Windows and of a Mac.
    """

    def __init__(self, files: Iterable[str] = ()) -> None:
        self._taken = {
            _folded(folder.as_posix()) for file in set(files) for folder in PurePosixPath(file).parents
        }

    def __contains__(self, name: str) -> bool:
        return _folded(name) in self._taken

    def give(self, wanted: str) -> str:
        """A free path, the one wanted if that is free."""
        name = _free(wanted, self)
        self._taken.add(_folded(name))
        return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold())
        for part in re.split(r"(\d+)", text)
        if part
    ]


def recipe(
    videos: Mapping[str, Path],
    photos: Mapping[str, Path],
    source: str,
    *,
    every: Every,
    val_share: float | None = None,
    classes: Sequence[str] = (),
    domain: str = "custom",
    notes: Sequence[str] = (),
) -> Recipe:
    """A set without labels of the frames of videos, and of photos beside them, which are copied.

    Clips are one after the other in the order of ``videos``. Frames are JPEG files, named after the clip and
    the time in it: ``drive-00h01m12s500.jpg``. A frame that hardly differs from the last one kept is dropped
    (:func:`is_near`). The last frames in time, ``val_share`` of them, become the split "val"; so that
    neighbours do not stand on both sides, a gap of 10 seconds before them is left out (a tenth of the time,
    if that is less). Photos have no place in that time: they are train. Clips in folders named after
    different splits are divided as their folders say, and not by time.

    Args:
        videos, photos: path inside -> where it is.
        val_share: None: 0.2, where there are five frames or more.

    Raises:
        MrtError: PyAV is not installed, or none of the videos can be read.
    """
    photos_alone = "\n--format images takes the photos beside them alone" if photos else ""
    try:
        video.require_av()
    except MrtError as error:
        raise MrtError(error.message, f"{error.hint}{photos_alone}") from None
    clips, unread, told = [], [], _Names()
    labels = _labels(videos)
    for inside, path in videos.items():
        try:
            facts = video.describe(path)
        except MrtError as error:
            unread.append(error)
        else:
            length = facts.frames / facts.rate
            clips.append(
                Clip(told.give(_plain(inside)), path, labels[inside], _expected(facts, every), length)
            )
    if not clips:
        hint = f"are they videos, and whole?{photos_alone}"
        raise MrtError("\n".join(error.message for error in unread), hint)
    steps = sum(clip.expected for clip in clips) + len(photos)
    empty = Split(Path(IMAGES), [], convert, makes=True)
    return Recipe(
        domain,
        tuple(classes),
        {"train": empty},
        source,
        {"format": "video", "every": every.text},
        labelled=False,
        notes=[*notes, *(f"warning: {error.message}: left out" for error in unread)],
        steps=steps,
        begin=partial(_begin, clips=clips, photos=photos, every=every, val_share=val_share),
    )


def _expected(facts: video.VideoFacts, every: Every) -> int:
    if every.seconds is None:
        return -(-facts.frames // every.frames)
    return math.ceil(facts.frames / facts.rate / every.seconds)


def _labels(videos: Mapping[str, Path]) -> dict[str, str]:
    """The part of the frames' names that tells the clip, no two the same: its path without the suffix, unless
    two share that; then with it.
    """
    stems = {inside: _plain(stem_of(inside)) for inside in videos}
    several = Counter(map(_folded, stems.values()))
    labels, given = {}, _Names()
    for inside, stem in stems.items():
        ending = "" if several[_folded(stem)] == 1 else f"-{PurePosixPath(inside).suffix[1:].lower()}"
        place = PurePosixPath(stem)
        # the images of hidden files would be hidden, too
        last = place.name.encode()[:LONGEST].decode(errors="ignore").lstrip(".") + ending
        labels[inside] = given.give(place.with_name(last or "_").as_posix())
    return labels


def _plain(name: str) -> str:
    """The name as UTF-8 can hold it."""
    return re.sub("[\ud800-\udfff]", "_", name)


def _begin(
    work: Path,
    on_progress: Progress | None,
    planned: Recipe,
    *,
    clips: Sequence[Clip],
    photos: Mapping[str, Path],
    every: Every,
    val_share: float | None,
) -> Recipe:
    """Write the frames and photos into the set's folder; the recipe of what was written."""
    taken, done = work / TAKEN, 0
    names = _Names((*photos, *(f"{clip.label}-" for clip in clips)))
    for done, _ in enumerate(_take(clips, taken, every, names), start=1):
        if on_progress is not None:
            on_progress(done, planned.steps)
    copied = []
    for inside, place in photos.items():
        copied.append(_copied(inside, place, taken, names))
        done += 1
        if on_progress is not None:
            on_progress(done, planned.steps)
    if not any(clip.frames for clip in clips) and not photos:
        raise MrtError("\n".join(f"{clip.path}: {clip.broken or 'no frame in it'}" for clip in clips))
    parts, gap, said = _divided(clips, val_share)
    splits = {}
    # A folder for each split: who opens no annotations can tell them apart then.
    several = len({*parts, *(["train"] if copied else [])}) > 1
    if copied and "train" not in parts:
        parts = {"train": ([], 0), **parts}
    for name, (frames, near) in parts.items():
        jobs = [*frames, *(copied if name == "train" else ())]
        place = Path(IMAGES, name) if several else Path(IMAGES)
        _move(jobs, taken, work / place)
        skipped = {NEAR: near, BETWEEN: len(gap) if name == "train" else 0}
        skipped = {reason: count for reason, count in skipped.items() if count}
        splits[name] = Split(place, jobs, convert, skipped, makes=True)
    shutil.rmtree(taken, ignore_errors=True)  # the frames of the gap are left in it
    renamed = [
        f"{inside} is {job.file}"
        for inside, job in zip(photos, copied, strict=True)
        if isinstance(job, Frame) and job.file != inside
    ]
    if renamed:
        said = [*said, f"photos with a name that is taken, renamed: {examples(renamed)}"]
    videos = {
        clip.inside: {
            "seconds": round(clip.length, 3),
            "frames": len(clip.frames),
            "near_duplicates": len(clip.dropped),
        }
        for clip in clips
    }
    return replace(
        planned,
        begin=None,
        splits=splits,
        notes=[*planned.notes, *_said(clips, every, sum(isinstance(job, Frame) for job in copied)), *said],
        details={**planned.details, "videos": videos},
    )


def _move(jobs: Iterable[Frame | Skipped], taken: Path, folder: Path) -> None:
    """Move the files of a split to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if isinstance(job, Frame):
            (folder / job.file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(taken / job.file, folder / job.file)


def _take(clips: Sequence[Clip], folder: Path, every: Every, names: _Names) -> Iterator[None]:
    """Write the frames of all clips that are no near-duplicates; one step for each that was looked at."""
    last, start = None, 0.0
    for clip in clips:
        clip.start = start
        span = every.seconds or 0.0
        try:
            for _, seconds, picture in video.read(clip.path, every.frames, every.seconds):
                clip.length = max(seconds, min(seconds + span, clip.told or math.inf))
                cells = cells_of(picture)
                if last is not None and is_near(last, cells):
                    clip.dropped.append(start + seconds)
                else:
                    last = cells
                    file = names.give(f"{clip.label}-{_stamp(seconds)}.jpg")
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    picture.save(folder / file, quality=QUALITY, subsampling=0)
                    clip.frames.append(Frame(file, clip.inside, seconds, start + seconds))
                yield
        except video.SourceBroken as error:
            clip.broken = error.message
        start += clip.length


def cells_of(picture: Image.Image) -> np.ndarray:
    """(36, 64) grey levels, float32: the picture, averaged over cells."""
    return np.asarray(picture.convert("L").resize(CELLS, Image.Resampling.BOX), dtype=np.float32)


def is_near(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two frames, given by :func:`cells_of`, are near-duplicates: less than 0.2 % of the cells (5 of
    2304) differ by more than 10 grey levels of 255 once the median difference, as of a camera that adjusts
    its exposure, is taken off.
    """
    difference = other - one
    return float((np.abs(difference - np.median(difference)) > LEVELS).mean()) < CHANGED


def _stamp(seconds: float) -> str:
    """Hours, minutes, seconds and thousandths, in an order that sorts: "00h01m12s500"."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}h{minutes % 60:02}m{rest // 1000:02}s{rest % 1000:03}"


def _copied(inside: str, place: Path, folder: Path, names: _Names) -> Frame | Skipped:
    """A photo, copied into the set under a free name; why not, if it cannot be used."""
    size = measured(place, inside)
    if isinstance(size, Skipped):
        return size
    try:
        with open_file(place) as original:
            content = original.read()
    except OSError as error:
        return Skipped(UNREADABLE, f"{inside} ({error.strerror or error})")
    file = names.give(inside)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    return Frame(file, "", 0.0, 0.0)


def _divided(
    clips: Sequence[Clip], val_share: float | None
) -> tuple[dict[str, tuple[list[Frame], int]], list[Frame], list[str]]:
    """Split -> (frames, near-duplicates that were dropped of it); the frames of the gap; notes."""
    frames = [frame for clip in clips for frame in clip.frames]
    dropped = [at for clip in clips for at in clip.dropped]
    named = {clip.inside: split_of_folder(clip.inside) for clip in clips}
    if len({split for split in named.values() if split in _SPLITS}) > 1:
        if val_share is not None:
            raise MrtError(
                f"--val-share {val_share}: the videos' folders are named after splits already",
                "Leave --val-share out.",
            )
        parts: dict[str, tuple[list[Frame], int]] = {}
        for clip in clips:
            split = named[clip.inside] if named[clip.inside] in _SPLITS else "train"
            before = parts.get(split, ([], 0))
            parts[split] = [*before[0], *clip.frames], before[1] + len(clip.dropped)
        ordered = {name: parts[name] for name in _SPLITS if name in parts}
        return ordered, [], ["splits: as the videos' folders say, not by time"]
    whole = {"train": (frames, len(dropped))} if frames else {}
    if val_share == 0 or not frames:
        return whole, [], []
    if len(frames) < (LEAST_TO_SPLIT if val_share is None else 2):
        return whole, [], [f"no val: {_count(len(frames), 'frame')} cannot be divided by time"]
    share = DEFAULT_VAL_SHARE if val_share is None else val_share
    count = min(max(round(share * len(frames)), 1), len(frames) - 1)
    first = frames[-count]
    gap = min(GAP_SECONDS, GAP_SHARE * sum(clip.length for clip in clips))
    train = [frame for frame in frames[:-count] if frame.at <= first.at - gap]
    if not train:
        return whole, [], ["no val: all frames are too close to each other to be divided by time"]
    between = frames[len(train) : -count]
    note = (
        f"split by time: val is {_count(count, 'frame')}, from {_stamp(first.seconds)} of {first.clip} to "
        f"the end; so that neighbours are not on both sides, {_count(len(between), 'frame')} before that "
        f"{'is' if len(between) == 1 else 'are'} left out: {first.at - train[-1].at:.3g} s lie between"
    )
    later = sum(at >= first.at for at in dropped)
    return {"train": (train, len(dropped) - later), "val": (frames[-count:], later)}, between, [note]


def _said(clips: Sequence[Clip], every: Every, photos: int) -> list[str]:
    """What was taken, dropped and not read, in words."""
    looked_at = sum(len(clip.frames) + len(clip.dropped) for clip in clips)
    near = sum(len(clip.dropped) for clip in clips)
    seconds = sum(clip.length for clip in clips)
    order = f", in the order {examples([clip.inside for clip in clips], 5)}" if len(clips) > 1 else ""
    said = [
        f"{_count(looked_at, 'frame')} of {_count(len(clips), 'video')} ({_time(seconds)}{order}), "
        f"{every.text}",
        f"near-duplicates: {near} of them {'is' if near == 1 else 'are'} dropped: less than {CHANGED:.1%} of "
        f"{CELLS[0]} x {CELLS[1]} grey cells differ from the last frame kept by more than {LEVELS} of 255 "
        "levels",
    ]
    if photos:
        said.append(
            f"{_count(photos, 'photo')} beside the videos: copied, all to train "
            "(--format images takes photos alone)"
        )
    return said + [f"warning: {clip.broken}: {len(clip.frames)} frames used" for clip in clips if clip.broken]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def convert(job: Frame | Skipped, folder: Path) -> Picture | Skipped:
    """The size of a frame or photo that was written to ``folder``; or why it was not."""
    if isinstance(job, Skipped):
        return job
    size = measured(folder / job.file, job.file)
    if isinstance(size, Skipped):
        (folder / job.file).unlink(missing_ok=True)  # who looks at the folder must not find it
        return size
    extra = {"video": job.clip, "seconds": round(job.seconds, 3)} if job.clip else {}
    return Picture(job.file, size.width, size.height, extra=extra)
