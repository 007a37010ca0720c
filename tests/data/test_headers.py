"""What an image file's header tells, without decoding the pixels if possible."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mrt.data.headers import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ORIENTATION,
    Header,
    ImageProblem,
    pixels_allowed,
    read_header,
)
from mrt.data.images import read_picture
from mrt.errors import MrtError

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def noise():
    # large enough that the part of the file read from its end holds nothing from before the pixels
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
    turned = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(whole[:-12] + turned + whole[-12:])
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


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "kind of image not read", "HEIC"),
        (b"\xff\x0a" + b"x" * 20, "kind of image not read", "JPEG XL"),
        (b"%PDF-1.7 ...", "kind of image not read", "PDF"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "image cut short or unreadable",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>", "image cut short or unreadable", "web page"),
        (b"", "image cut short or unreadable", "empty file"),
        (b"\0" * 500, "image cut short or unreadable", "empty file"),
        (b"hello", "image cut short or unreadable", "no image in any format"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(tmp_path, content, reason, detail):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageProblem) as error:
        read_header(tmp_path / "a.jpg")
    assert error.value.reason == reason and detail in error.value.detail and "a.jpg" in error.value.message


def test_a_photo_with_a_film_behind_it_is_whole(tmp_path):
    noise().save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 100_000)
    assert read_header(tmp_path / "a.jpg") == Header(300, 200, False)
    noise().save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "ab") as file:
        file.write(b"\0" * 100_000)
    assert read_header(tmp_path / "a.png") == Header(300, 200, False)


def test_more_pixels_than_pillow_takes(tmp_path):
    Image.new("1", (20000, 9000)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageProblem, match="180 million pixels") as error:
        read_header(tmp_path / "a.png")
    assert error.value.reason == "image with more pixels than are read"
    assert "--max-pixels 180000000" in error.value.hint
    assert read_header(tmp_path / "a.png", 180_000_000) == Header(20000, 9000, False)
    with pixels_allowed(180_000_000):
        assert read_header(tmp_path / "a.png").width == 20000
    with pytest.raises(ImageProblem):
        read_header(tmp_path / "a.png")
    assert before == Image.MAX_IMAGE_PIXELS == MAX_PIXELS // 2


def test_suffixes_are_those_that_pillow_opens():
    Image.init()
    # named, but read by others
    stubs = {".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pcd", ".ps", ".wmf"}
    opened = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert opened - {*IMAGE_SUFFIXES} == stubs and len({*IMAGE_SUFFIXES} - opened) <= 3


def test_what_the_message_of_a_large_image_names_works(tmp_path, monkeypatch):
    Image.new("1", (20000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(MrtError, match="MRT_MAX_PIXELS=180000000 in the environment"):
        read_picture(tmp_path / "a.png")
    monkeypatch.setenv("MRT_MAX_PIXELS", "180000000")
    assert read_picture(tmp_path / "a.png").size == (20000, 9000)
