"""What an image file's header says, without decoding the pixels where that can be."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mrt.data.headers import ORIENTATION, Header, read_header
from mrt.errors import MrtError

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def noise():
    # large enough that what stands before the pixels is not in the part of the file that is read from its end
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_size_and_orientation(tmp_path, suffix, orientation):
    noise().save(tmp_path / f"a.{suffix}", **({} if orientation is None else {"exif": exif(orientation)}))
    assert read_header(tmp_path / f"a.{suffix}") == Header(300, 200, orientation == 6)


def test_a_png_that_says_it_behind_its_pixels(tmp_path):
    noise().save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-12] + chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + whole[-12:])
    assert read_header(tmp_path / "a.png").turned


def test_a_png_that_says_it_in_xmp(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    noise().save(tmp_path / "a.png", pnginfo=info)
    assert read_header(tmp_path / "a.png").turned


def test_a_png_without_is_not_decoded(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_header(tmp_path / "a.png") == Header(300, 200, False)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_cut_short_or_missing(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(MrtError, match="no such image"):
        read_header(path)
    noise().save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(MrtError, match=f"a.{suffix}"):
        read_header(path)
