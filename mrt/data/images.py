"""Reading image files of every kind a data set may hold into RGB pixels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mrt.data.archives import open_file
from mrt.data.headers import BROKEN, MAX_PIXELS_VARIABLE, ORIENTATION, ImageProblem, open_picture
from mrt.errors import MrtError


def read_image(path: Path | str, size: tuple[int, int] | None = None) -> Tensor:
    """Decode to (3, H, W) uint8 RGB; memory stays row by row with interleaved colours.

    Otherwise as :func:`read_picture`.
    """
    return torch.from_numpy(np.array(read_picture(path, size))).permute(2, 0, 1)


def read_picture(path: Path | str, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode to an RGB picture. The path may lead into a zip archive.

    Grey, palette, transparent, CMYK and 16-bit files become 8-bit RGB (16-bit: the high byte). A photo that
    its EXIF entry says to turn or mirror is made upright, unless ``size`` shows that the annotations were
    made on the pixels as stored.

    Args:
        size: (height, width) that the annotations state; ``None`` if unknown. A prepared set's image may have
            as many pixels as its annotations say, others up to :data:`mrt.data.headers.MAX_PIXELS`.

    Raises:
        MrtError: missing, unreadable or cut short; or of another size than ``size``.
    """
    try:
        with open_file(path) as source:
            picture = decode_picture(source, str(path), size)
    except FileNotFoundError:
        raise MrtError(
            f"{path}: no such image",
            "Has the folder moved? Put it back, or make the set again: the command that made it, with "
            "--overwrite.",
        ) from None
    except OSError as error:
        raise _unreadable(str(path), error) from None
    if size is not None and (picture.height, picture.width) != tuple(size):
        raise MrtError(
            f"{path}: the image is {picture.width}x{picture.height}, its "
            f"annotations are for {size[1]}x{size[0]}",
            "Boxes would land in the wrong places: use the images that the annotations were made on.",
        )
    return picture


def decode_picture(source: BinaryIO, where: str, size: tuple[int, int] | None = None) -> Image.Image:
    """As :func:`read_picture`, from an open file; ``where`` names it in messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks and palettes that decode all the same
            with open_picture(source, None if size is None else size[0] * size[1]) as file:
                picture = _to_rgb(_upright(file, size))
                picture.load()
                return picture
    except ImageProblem as problem:
        hint = problem.hint
        if hint:
            hint = hint.replace("--max-pixels ", f"{MAX_PIXELS_VARIABLE}=") + " in the environment"
        raise MrtError(f"{where}: {problem.message}", hint) from None
    except BROKEN as error:
        raise _unreadable(where, error) from None


def _unreadable(where: str, error: Exception) -> MrtError:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "in no image format that Pillow knows" if unknown else str(error)
    if where.lower().endswith((".heic", ".heif")):
        reason = "HEIC is not read: convert it to JPEG"
    return MrtError(
        f"{where}: cannot be read as an image ({reason})",
        "Get the file again, or leave it out.",
    )


def _on_its_side(picture: Image.Image) -> bool:
    return picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An open picture as :func:`read_picture` gives a file's: upright by its EXIF entry, RGB of 8 bits."""
    picture = _to_rgb(_upright(picture, None))
    picture.load()
    return picture


def _upright(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if picture.getexif().get(ORIENTATION, 1) == 1:
        return picture
    stored_as_annotated = (
        size is not None and _on_its_side(picture) and (picture.height, picture.width) == tuple(size)
    )
    if stored_as_annotated and picture.height != picture.width:
        return picture
    return ImageOps.exif_transpose(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    # 16-bit grey, sometimes handed over as 32-bit integers
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        if values.dtype.kind == "f":
            values = values * 255 if values.max(initial=0) <= 1 else values
            return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
