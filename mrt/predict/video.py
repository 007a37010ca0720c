"""Writing videos, through PyAV (FFmpeg's libraries). The extra ``video`` installs it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType

from PIL import Image

from mrt.data.video import reason_of, require_av
from mrt.errors import MrtError

ENCODERS = ("libx264", "libopenh264", "h264")  # the first that FFmpeg has is used; all write H.264
QUALITY = "20"  # x264's constant rate factor: 18 is nearly without loss, 23 its default


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
        what = f"{self.path}: could not be written ({reason_of(error)})"
        return MrtError(what, "check the folder and the free space")


def _encodes(av: ModuleType, name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except (av.FFmpegError, ValueError):
        return False
