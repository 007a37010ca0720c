"""What an image file tells before it is decoded: size, orientation, and whether the file is whole."""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from mrt.data.archives import open_file
from mrt.errors import MrtError

# Suffixes of all kinds of pixel image that Pillow reads by itself. Left out are those that it only knows by
# name or leaves to other programs (.eps, .ps, .wmf, .emf, .grib, .bufr, .h5, .hdf, .mpg, .mpeg, .iim), and
# .pcd, which is nearly always a point cloud.
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
    *(".gif", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf"),
    *(".jpx", ".j2c", ".tga", ".icb", ".vda", ".vst", ".sgi", ".rgb", ".rgba", ".bw", ".pcx", ".dcx"),
    *(".dds", ".ico", ".icns", ".psd", ".qoi", ".ras", ".xbm", ".xpm", ".im", ".msp", ".blp", ".cur"),
    *(".fits", ".fit", ".fli", ".flc", ".ftc", ".ftu", ".gbr", ".pxr"),
)
UNREADABLE = "image cut short or unreadable"
ORIENTATION = 0x0112  # the EXIF tag
# Pillow's own limit (179 million), above which it suspects an image that was made to fill the memory
MAX_PIXELS = 2 * (1 << 30) // 4 // 3
_TAIL = 1 << 16  # a JPEG's end marker lies in its last bytes; some cameras append a little
MAX_PIXELS_VARIABLE = "MRT_MAX_PIXELS"  # how another limit reaches worker processes
# Pixels in a byte of a file, at the most. Uncompressed ones take a bit or more; deflate makes one byte of
# 1,032, and LZW, whose codes of 12 bits stand for up to 4,095 bytes, one of 2,730.
_RAW, _DEFLATED, _LZW = 8, 8 * 1032, 8 * 2730
_OF_TIFF = {
    "packbits": _DEFLATED,
    "tiff_deflate": _DEFLATED,
    "tiff_adobe_deflate": _DEFLATED,
    "tiff_lzw": _LZW,
}
_pillows_limit = threading.Lock()
# What Pillow's plugins raise on broken files, by design or not.
BROKEN = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError),
    *(struct.error, EOFError, NotImplementedError, Image.DecompressionBombError),
)
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
# Files that Pillow does not know, told by their first bytes: (offset, bytes, what it is)
_KINDS = (
    (4, b"ftyphei", "HEIC: convert it to JPEG"),
    (4, b"ftypmif1", "HEIF: convert it to JPEG"),
    (4, b"ftyp", "a film, or a picture in a film's container"),
    (0, b"\xff\x0a", "JPEG XL: convert it to PNG or JPEG"),
    (0, b"%PDF", "PDF"),
)
_NO_IMAGES = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the image: run git lfs pull"),
    (b"<!doctype html", "a web page instead of an image: get it again"),
    (b"<html", "a web page instead of an image: get it again"),
)


_SEVERAL = (".gif", ".webp", ".tif", ".tiff", ".apng")  # may hold more than one picture


class ImageProblem(MrtError):
    """An image that cannot be used.

    ``reason`` is worded as in the conversions' summaries; ``detail`` is what else is known, or empty.
    """

    def __init__(self, message: str, reason: str, detail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.reason, self.detail = reason, detail


class Header(NamedTuple):
    """Stored width and height in pixels, and whether EXIF says to turn the picture on its side."""

    width: int
    height: int
    turned: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after turning."""
        return (self.height, self.width) if self.turned else (self.width, self.height)


@contextmanager
def pixels_allowed(most: int | None) -> Iterator[None]:
    """Allow images of up to ``most`` pixels in this block and in processes started in it.

    For sets whose large images are known to be harmless.
    """
    before = os.environ.get(MAX_PIXELS_VARIABLE)
    if most is not None:
        os.environ[MAX_PIXELS_VARIABLE] = str(most)
    try:
        yield
    finally:
        if most is not None:
            os.environ.pop(MAX_PIXELS_VARIABLE)
            os.environ.update({} if before is None else {MAX_PIXELS_VARIABLE: before})


def _most_pixels() -> int:
    said = os.environ.get(MAX_PIXELS_VARIABLE, "")
    return max(int(said), MAX_PIXELS) if said.isascii() and said.isdecimal() else MAX_PIXELS


@contextmanager
def open_picture(file: BinaryIO, most: int | None = None) -> Iterator[Image.Image]:
    """Pillow's image of an open file, not decoded yet; closed when the block ends.

    Args:
        most: pixels that it may have, if that is more than :data:`MAX_PIXELS` (or what :func:`pixels_allowed`
            says).

    Raises:
        ImageProblem: it has more.
        OSError, SyntaxError, ValueError: as Pillow does.
    """
    try:
        picture = Image.open(file)
    except Image.DecompressionBombError:
        picture = _open_large(file)
    with picture:
        width, height = picture.size
        most_per_byte = _pixels_per_byte(picture)
        if most_per_byte is not None and width * height > most_per_byte * _size(file):
            raise OSError(f"cut short: too few bytes for {width}x{height}")  # before memory is taken for it
        if width * height > MAX_PIXELS and width * height > max(most or 0, _most_pixels()):
            raise ImageProblem(
                f"{width}x{height} are {width * height / 1e6:.0f} million pixels, more than are read",
                "image with more pixels than are read",
                f"{width}x{height}",
                f"If it is to be trusted: --max-pixels {width * height}",
            )
        yield picture


def _pixels_per_byte(picture: Image.Image) -> int | None:
    """How many pixels a byte of the file can hold at the most; None where the format sets no limit."""
    if picture.format == "PNG":
        return _DEFLATED
    if picture.tile and all(tile[0] == "raw" for tile in picture.tile):
        return _RAW
    return _OF_TIFF.get(str(picture.info.get("compression"))) if picture.format == "TIFF" else None


def _open_large(file: BinaryIO) -> Image.Image:
    """Open an image that Pillow suspects was made to fill the memory; nothing is decoded yet."""
    file.seek(0)
    with _pillows_limit:  # Pillow looks at its limit while it opens a file
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def read_header(path: Path, most: int | None = None) -> Header:
    """The header of an image file, after checking that the file is not cut short.

    PNG and JPEG are checked by their end marks, others by decoding.

    Args:
        most: pixels that it may have, as :func:`open_picture` takes it.

    Raises:
        ImageProblem: missing, no image, cut short, of a kind that is not read, or with too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks that decode all the same
            with open_file(path) as file, open_picture(file, most) as picture:
                tail = _tail(file)
                # Asked for EXIF, Pillow decodes a whole PNG to look behind its pixels: fifty times the work
                # for something that hardly any PNG has.
                said = any(word in str(key) for key in picture.info for word in ("exif", "xmp"))
                silent = (
                    picture.format == "PNG" and not said and b"eXIf" not in tail and b"adobe.xmp" not in tail
                )
                # Pillow turns TIFF by itself: its size is the upright one already
                silent = silent or picture.format == "TIFF"
                header = Header(
                    *picture.size, not silent and picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                )
                mark = _END_MARKS.get(picture.format or "")
                if mark is None or mark not in tail:  # a phone may append a whole film to a photo
                    if picture.format == "PNG" and mark not in _all_of(file):
                        raise OSError("cut short: it has no end mark")
                    picture.load()
    except FileNotFoundError:
        raise ImageProblem(f"{path}: no such image", "image missing") from None
    except ImageProblem as problem:
        raise ImageProblem(
            f"{path}: {problem.message}", problem.reason, problem.detail, problem.hint
        ) from None
    except UnidentifiedImageError:
        reason, detail = _unknown(path)
        raise ImageProblem(f"{path}: {reason} ({detail})", reason, detail) from None
    except BROKEN as error:
        raise ImageProblem(
            f"{path}: cannot be read as an image ({error})", UNREADABLE, _short(error)
        ) from None
    return header


def pictures_in(path: Path) -> int:
    """How many pictures an image file holds: the frames of an animation, the pages of a document. Others look
    at the first alone. 1 for kinds that hold one, and for what cannot be read.
    """
    if path.suffix.lower() not in _SEVERAL:
        return 1
    try:
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore")
            with open_picture(file) as picture:
                return int(getattr(picture, "n_frames", 1))
    except (ImageProblem, *BROKEN):
        return 1


def _unknown(path: Path) -> tuple[str, str]:
    """Why Pillow does not know a file: (reason, detail)."""
    try:
        with open_file(path) as file:
            head = file.read(64)
    except OSError:
        head = b""
    for start, mark, kind in _KINDS:
        if head[start:].startswith(mark):
            return "kind of image not read", kind
    for mark, kind in _NO_IMAGES:
        if head.lstrip().lower().startswith(mark):
            return UNREADABLE, kind
    return UNREADABLE, "no image in any format that Pillow knows" if head.strip(b"\0") else "an empty file"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:80] if str(error) else type(error).__name__


def _all_of(file: BinaryIO) -> bytes:
    """All bytes of the file; its position stays."""
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    return content


def _size(file: BinaryIO) -> int:
    """Bytes of the file; its position stays."""
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(before)
    return size


def _tail(file: BinaryIO) -> bytes:
    """The file's last bytes; its position stays."""
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL, 0))
    tail = file.read()
    file.seek(before)
    return tail
