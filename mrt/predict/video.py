"""Videos and cameras, through PyAV (FFmpeg's libraries). The extra ``video`` installs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from mrt.errors import MrtError

CAMERA_RATE = 30.0  # assumed frames per second of a camera, and of videos that do not state theirs
ENCODERS = ("libx264", "libopenh264", "h264")  # the first that FFmpeg has is used; all write H.264
QUALITY = "20"  # x264's constant rate factor: 18 is nearly without loss, 23 its default


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
        raise MrtError(f"{path}: cannot be read as a video ({_reason(error)})") from None


def read(path: Path, every: int = 1) -> Iterator[tuple[int, float, Image.Image]]:
    """(number, seconds from the start, upright RGB picture) of each ``every``-th frame.

    Raises:
        SourceBroken: the file cannot be decoded (further); frames before that have been given.
    """
    av = require_av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield from _pictures(container.decode(stream), every, float(stream.average_rate or CAMERA_RATE))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise SourceBroken(f"{path}: the video cannot be read to its end ({_reason(error)})") from None


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
            yield from _pictures(container.decode(video=0), every, CAMERA_RATE)
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        what = f"camera {index} ({name}): cannot be read ({_reason(error)})"
        raise SourceBroken(what, "is it connected, and free?") from None


def _pictures(frames: Iterator[Any], every: int, rate: float) -> Iterator[tuple[int, float, Image.Image]]:
    for number, frame in enumerate(frames):
        if number % every == 0:
            seconds = float(frame.time) if frame.time is not None else number / rate
            picture = frame.to_image()
            # Phones store upright videos rotated; degrees counterclockwise.
            turned = int(getattr(frame, "rotation", 0) or 0) % 360
            yield number, seconds, picture.rotate(turned, expand=True) if turned else picture


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class VideoWriter:
    """An H.264 file, written under a temporary name and put in place by :meth:`close`.

    Args:
        path: ends in .mp4.
        rate: frames per second.

    Raises:
        MrtError: PyAV is not installed, it has no H.264 encoder, or the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.av = path, Fraction(rate).limit_denominator(1001), require_av()
        known = (name for name in ENCODERS if name in self.av.codecs_available)
        self.encoder = next((name for name in known if _encodes(self.av, name)), None)
        if self.encoder is None:
            raise MrtError("this FFmpeg has no H.264 encoder", "save pictures instead: --save frames")
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._container = self._stream = None

    def add(self, picture: Image.Image) -> None:
        """Write the next frame, cropped to the first one's size, made even as H.264 requires."""
        try:
            if self._container is None:
                self._part.parent.mkdir(parents=True, exist_ok=True)
                self._container = self.av.open(str(self._part), "w")
                self._stream = self._container.add_stream(self.encoder, rate=self.rate)
                self._stream.width, self._stream.height = picture.width // 2 * 2, picture.height // 2 * 2
                self._stream.pix_fmt = "yuv420p"
                if self.encoder == "libx264":
                    self._stream.options = {"crf": QUALITY}
            whole = picture.crop((0, 0, self._stream.width, self._stream.height))
            self._container.mux(self._stream.encode(self.av.VideoFrame.from_image(whole)))
        except (self.av.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def close(self) -> Path | None:
        """Complete the file and give it its name; returns None if there was no frame."""
        if self._container is None:
            return None
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            self._part.replace(self.path)
        except (self.av.FFmpegError, OSError) as error:
            raise self._failed(error) from None
        return self.path

    def _failed(self, error: Exception) -> MrtError:
        what = f"{self.path}: could not be written ({_reason(error)})"
        return MrtError(what, "check the folder and the free space")


def _encodes(av: ModuleType, name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except (av.FFmpegError, ValueError):
        return False
