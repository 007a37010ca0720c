"""Reading videos and cameras, through PyAV (FFmpeg's libraries). The extra ``video`` installs it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from mrt.errors import MrtError

SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg"),
    *(".mpeg", ".wmv", ".ts", ".mts", ".m2ts", ".3gp", ".flv"),
)
CAMERA_RATE = 30.0  # assumed frames per second of a camera, and of videos that do not state theirs


class SourceBroken(MrtError):
    """A video or camera that stops giving frames too early."""


@dataclass(frozen=True)
class VideoFacts:
    """A video's size in pixels, frames per second, and number of frames (0 if the file does not state it)."""

    width: int
    height: int
    rate: float
    frames: int


def require_av() -> ModuleType:
    """PyAV; MrtError where it is not installed."""
    try:
        import av
    except ImportError:
        what = "reading videos and cameras needs PyAV, which is not installed"
        raise MrtError(what, "pip install av") from None
    av.logging.set_level(av.logging.PANIC)  # errors come as exceptions
    return av


def describe(path: Path) -> VideoFacts:
    """The facts in a video's header.

    Raises:
        MrtError: not a video, or PyAV is not installed.
    """
    av = require_av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or CAMERA_RATE)
            frames = stream.frames
            if not frames and container.duration:
                frames = int(float(container.duration / av.time_base) * rate)
            return VideoFacts(stream.codec_context.width, stream.codec_context.height, rate, frames)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MrtError(f"{path}: cannot be read as a video ({reason_of(error)})") from None


def read(
    path: Path, every: int = 1, seconds: float | None = None
) -> Iterator[tuple[int, float, Image.Image]]:
    """(number, seconds from the first frame, upright RGB picture) of each ``every``-th frame.

    The seconds never go back: where the time stamps of the file begin anew, as in files that were joined end
    to end, they go on one frame after the last one.

    Args:
        seconds: of the first frame in each such span of time instead, whatever ``every`` says.

    Raises:
        SourceBroken: the file cannot be decoded (further); frames before that have been given.
    """
    av = require_av()
    wanted = _each(every) if seconds is None else _spaced(seconds)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield from _pictures(container.decode(stream), wanted, float(stream.average_rate or CAMERA_RATE))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise SourceBroken(f"{path}: the video cannot be read to its end ({reason_of(error)})") from None


def read_camera(index: int, every: int = 1) -> Iterator[tuple[int, float, Image.Image]]:
    """As :func:`read`, from a camera, without end.

    Raises:
        SourceBroken: no such camera, or it was disconnected.
    """
    av = require_av()
    name, driver = {
        "linux": (f"/dev/video{index}", "v4l2"),
        "darwin": (str(index), "avfoundation"),
        "win32": (f"video={index}", "dshow"),
    }.get(sys.platform, (str(index), None))
    try:
        with av.open(name, format=driver) as container:
            yield from _pictures(container.decode(video=0), _each(every), CAMERA_RATE)
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        what = f"camera {index} ({name}): cannot be read ({reason_of(error)})"
        raise SourceBroken(what, "is it connected, and free?") from None


Wanted = Callable[[int, float], bool]  # by a frame's number and its seconds from the first one


def _each(every: int) -> Wanted:
    return lambda number, seconds: number % every == 0


def _spaced(span: float) -> Wanted:
    """The first frame in each span: those of a clip without a fixed rate are as far apart as the others'."""
    due = 0

    def wanted(number: int, seconds: float) -> bool:
        nonlocal due
        slot = math.floor(seconds / span + 1e-6)
        if slot < due:
            return False
        due = slot + 1
        return True

    return wanted


def _pictures(frames: Iterator[Any], wanted: Wanted, rate: float) -> Iterator[tuple[int, float, Image.Image]]:
    shift, last = None, 0.0
    for number, frame in enumerate(frames):
        stamp = float(frame.time) if frame.time is not None else number / rate
        if shift is None:
            shift = -stamp
        elif stamp + shift < last:
            shift = last + 1 / rate - stamp
        last = at = stamp + shift
        if wanted(number, at):
            picture = frame.to_image()
            # Phones store upright videos rotated; degrees counterclockwise.
            turned = int(getattr(frame, "rotation", 0) or 0) % 360
            yield number, at, picture.rotate(turned, expand=True) if turned else picture


def reason_of(error: Exception) -> str:
    """What went wrong, in the words of the system or the library."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
