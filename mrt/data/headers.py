"""What a file says of its image before it is decoded: size, orientation, and whether the file is whole."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from mrt.data.archives import open_file
from mrt.errors import MrtError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
ORIENTATION = 0x0112  # the EXIF tag
_TAIL = 1 << 16  # a JPEG's end marker lies in its last bytes; some cameras append a little


class Header(NamedTuple):
    """Stored width and height in pixels, and whether EXIF says to turn the picture on its side."""

    width: int
    height: int
    turned: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after turning."""
        return (self.height, self.width) if self.turned else (self.width, self.height)


def read_header(path: Path) -> Header:
    """The header of an image file, having looked that the file is not cut short (PNG and JPEG: by their end marks, else by decoding).

    Raises:
        MrtError: missing, no image, or cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks that decode all the same
            with open_file(path) as file, Image.open(file) as picture:
                tail = _tail(file)
                # asked for EXIF, Pillow decodes a PNG to look behind its pixels: fifty times the work, for what next to none has
                said = any(word in str(key) for key in picture.info for word in ("exif", "xmp"))
                silent = picture.format == "PNG" and not said and b"eXIf" not in tail and b"adobe.xmp" not in tail
                turned = not silent and picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                header = Header(*picture.size, turned)
                if picture.format == "JPEG":
                    whole = b"\xff\xd9" in tail
                elif picture.format == "PNG":
                    whole = b"IEND" in tail
                else:
                    picture.load()
                    whole = True
    except FileNotFoundError:
        raise MrtError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MrtError(f"{path}: cannot be read as an image ({error})") from None
    if not whole:
        raise MrtError(f"{path}: the image file is cut short")
    return header


def _tail(file: BinaryIO) -> bytes:
    """The file's last bytes; its position stays."""
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    tail = file.read()
    file.seek(before)
    return tail
