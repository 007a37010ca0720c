"""Small files that become large ones are refused before they do, and may be allowed; large files are read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mrt.data import archives, limits
from mrt.data.archives import open_file, open_zip, unpack_tar
from mrt.data.convert.formats import cvat, reading
from mrt.data.convert.lists import _FLAG
from mrt.data.convert.raw import read_bytes
from mrt.data.convert.voc import _DECLARED, read_annotation
from mrt.data.convert.yolo_settings import _darknet_files, _read_settings
from mrt.data.headers import Header, read_header
from mrt.errors import MrtError

PIECE = bytes(1 << 20)
GIGABYTES_3 = 3 << 30


@pytest.fixture(autouse=True)
def modest() -> Iterator[None]:
    """What is refused takes neither long nor memory."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


def zip_of_zeros(path: Path, size: int, members: int = 1) -> Path:
    """An archive whose directory says that each member becomes ``size`` zeros; it has the bytes of 64 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(PIECE) for _ in range(64)) + packer.flush()
    with zipfile.ZipFile(path, "w") as out:
        for number in range(members):
            out.writestr(f"images/{number}.json", packed)
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 10 : at + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        content[at + 24 : at + 28] = struct.pack("<I", size)
        (offset,) = struct.unpack("<I", content[at + 42 : at + 46])
        content[offset + 8 : offset + 10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        content[offset + 22 : offset + 26] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def test_a_zip_that_becomes_gigabytes(tmp_path, monkeypatch):
    bomb = zip_of_zeros(tmp_path / "a.zip", GIGABYTES_3)
    with pytest.raises(MrtError) as caught:
        open_file(bomb / "images/0.json")
    assert str(bomb) in caught.value.message and "3221225472" in caught.value.message
    assert "MRT_MAX_UNPACKED=3221225472" in caught.value.hint
    monkeypatch.setenv("MRT_MAX_UNPACKED", "3221225472")
    with open_file(bomb / "images/0.json") as file:  # a large member is read as it is needed
        assert file.read(10) == bytes(10)


def test_a_zip_of_many_members_that_become_gigabytes_together(tmp_path):
    with pytest.raises(MrtError, match="times as many"):
        open_zip(zip_of_zeros(tmp_path / "a.zip", 40 << 20, 80))


def test_one_member_among_others_that_becomes_far_too_much(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        with out.open("a.json", "w") as file:
            for _ in range(70):
                file.write(PIECE)
        out.writestr("b.bin", bytes(range(256)) * 4096, zipfile.ZIP_STORED)
    with pytest.raises(MrtError, match=r"a\.zip: its member 'a\.json'"):
        read_bytes(tmp_path / "a.zip" / "a.json")
    assert len(read_bytes(tmp_path / "a.zip" / "b.bin")) == 1 << 20
    monkeypatch.setenv("MRT_MAX_UNPACKED", str(70 << 20))
    assert read_bytes(tmp_path / "a.zip" / "a.json") == bytes(70 << 20)


def test_a_large_member_can_be_read_in_any_order_and_its_damage_is_an_error_of_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_IN_MEMORY", 1000)
    content = bytes(range(256)) * 400
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.bin", content)
    with open_file(tmp_path / "a.zip" / "a.bin") as file:
        assert file.seek(-100, io.SEEK_END) == len(content) - 100 and file.read() == content[-100:]
        assert file.seek(10) == 10 and file.read(20) == content[10:30] and file.tell() == 30
    damaged = bytearray((tmp_path / "a.zip").read_bytes())
    damaged[60:80] = bytes(20)
    (tmp_path / "b.zip").write_bytes(damaged)
    with pytest.raises(MrtError, match=r"b\.zip.*cannot be read \(damaged"):
        read_bytes(tmp_path / "b.zip" / "a.bin")


def test_a_zip_with_millions_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MEMBERS", 1000)
    entry = (
        struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry) * 1001, 0, 0)  # it claims to hold one
    (tmp_path / "a.zip").write_bytes(entry * 1001 + end)
    with pytest.raises(MrtError, match="more than 1000 files") as caught:
        open_zip(tmp_path / "a.zip")
    assert "MRT_MAX_MEMBERS=2000" in caught.value.hint
    monkeypatch.setenv("MRT_MAX_MEMBERS", "2000")
    assert len(open_zip(tmp_path / "a.zip").filelist) == 1001


@pytest.mark.parametrize(
    ("place", "value"),
    [(6, b"\xff"), (8, b"\x01\x08"), (10, b"\x63"), (28, b"\0\0"), (46, b"\xff\xfe")],
    ids=["version", "encrypted, UTF-8", "packed in an unknown way", "no name", "no text"],
)
def test_an_odd_directory(tmp_path, place, value):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("a.jpg", b"x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.find(b"PK\x01\x02") + place
    content[at : at + len(value)] = value
    (tmp_path / "a.zip").write_bytes(content)
    try:
        found = open_zip(tmp_path / "a.zip").infolist()
    except MrtError as error:
        assert "a.zip: cannot be read as a zip archive" in error.message
        return
    for info in found:
        assert info.filename and not info.is_dir()
        with pytest.raises((OSError, MrtError)):
            open_file(tmp_path / "a.zip" / info.filename)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    return found.tobuf(tarfile.GNU_FORMAT)


PACKERS = {".tgz": gzip.GzipFile, ".tar": bz2.BZ2File, ".tar.gz": lzma.LZMAFile}  # told by their first bytes


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("many", [False, True], ids=["one file", "many files"])
def test_a_tar_that_becomes_gigabytes(tmp_path, suffix, many):
    bomb = tmp_path / f"a{suffix}"
    with PACKERS[suffix](bomb, "wb") as out:
        for number in range(120 if many else 1):
            out.write(header(f"{number}.jpg", 1 << 20 if many else GIGABYTES_3))
            out.write(PIECE)
    with pytest.raises(MrtError, match="times as many") as caught:
        unpack_tar(bomb, tmp_path / "out", lambda name: True)
    assert "MRT_MAX_UNPACKED=BYTES" in caught.value.hint and str(bomb) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_tar_that_begins_with_a_large_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED", 1000)  # so that no gigabytes are needed
    content = json.dumps({str(number): number for number in range(200_000)}).encode()
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, part in (("a.json", content), ("b.json", content)):
            found = tarfile.TarInfo(name)
            found.size = len(part)
            tar.addfile(found, io.BytesIO(part))
    unpack_tar(tmp_path / "a.tgz", tmp_path / "out", lambda name: True)
    assert (tmp_path / "out" / "b.json").read_bytes() == content


def test_a_tar_that_may_become_more(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED", 1 << 20)
    with gzip.GzipFile(tmp_path / "a.tgz", "wb") as out:
        for number in range(3):
            out.write(header(f"{number}.jpg", 1 << 20) + PIECE)
        out.write(bytes(1024))
    with pytest.raises(MrtError, match="times as many"):
        unpack_tar(tmp_path / "a.tgz", tmp_path / "out", lambda name: True)
    monkeypatch.setenv("MRT_MAX_UNPACKED", str(4 << 20))
    unpack_tar(tmp_path / "a.tgz", tmp_path / "out", lambda name: True)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_tar_with_headers_of_megabytes(tmp_path, kind):
    noise = b"".join(str(number).encode() for number in range(1_200_000))
    with gzip.GzipFile(tmp_path / "a.tgz", "wb", 1) as out:
        out.write(header("x", len(noise), kind) + noise)
    with pytest.raises(MrtError, match="more than 4 MB of headers"):
        unpack_tar(tmp_path / "a.tgz", tmp_path / "out", lambda name: True)


def test_a_tar_of_a_file_that_is_mostly_holes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        found = tarfile.TarInfo("a.jpg")
        found.size = 4
        found.pax_headers = {
            **{"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.jpg"},
            **{"GNU.sparse.size": str(1 << 45), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,4"},
        }
        tar.addfile(found, io.BytesIO(b"abcd"))
    with pytest.raises(MrtError, match="times as many"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "out", lambda name: True)


def test_a_tar_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MEMBERS", 10)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(11):
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
    with pytest.raises(MrtError, match="more than 10 files"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "out", lambda name: True)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    content = bytearray(header("1.jpg", 3) + b"one".ljust(512, b"\0"))
    content += header("2.jpg", 3) + b"two".ljust(512, b"\0") + bytes(1024)
    content[1024 + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(MrtError, match="cannot be read to its end"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "out", lambda name: True)


ONE_LINE = 900_000
YAMLS = {
    "a list": "names: [" + "a, " * (ONE_LINE // 3) + "]",
    "a mapping": "names: {" + "a: b, " * (ONE_LINE // 6) + "}",
    "brackets": "names: " + "[" * ONE_LINE,
    "lines": "names:\n" + "- a\n" * (ONE_LINE // 4),
    "laughs": "a: &a [x, x]\n"
    + "".join(f"k{n}: &b{n} [*{p}, *{p}]\n" for n, p in ((n, f"b{n - 1}" if n else "a") for n in range(60)))
    + "names: *b59",
    "one word": "names: " + "a" * ONE_LINE,
    "too large": "names: [a]\n" + "#" * (2 << 20),
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_a_yaml_that_takes_long(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    begin = time.monotonic()
    with pytest.raises(MrtError, match=r"data\.yaml: "):
        _read_settings(tmp_path / "data.yaml", "data.yaml")
    assert time.monotonic() - begin < 10


def test_a_yaml_of_many_classes(tmp_path, monkeypatch):
    names = [f"class {number}" for number in range(20_000)]
    (tmp_path / "data.yaml").write_text(f"names: {json.dumps(names)}")
    assert list(_read_settings(tmp_path / "data.yaml", "data.yaml").names.values()) == names
    monkeypatch.setattr("mrt.data.convert.yolo_settings.YAML", 1000)
    with pytest.raises(MrtError) as caught:
        _read_settings(tmp_path / "data.yaml", "data.yaml")
    assert "classes.txt" in caught.value.hint and "MRT_MAX_YAML=20000" in caught.value.hint
    monkeypatch.setenv("MRT_MAX_YAML", "40000")
    assert len(_read_settings(tmp_path / "data.yaml", "data.yaml").names) == 20_000


LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotations><image name="&y;"/></annotations>'


def test_xml_with_entities_and_deep_xml(tmp_path):
    place = tmp_path / "a.xml"
    place.write_text(LAUGHS)
    with pytest.raises(MrtError, match="document type"):
        read_annotation(place)
    with pytest.raises(MrtError, match="document type"):
        cvat.read(place, {})
    place.write_text("<annotation>" + "<a>" * 1_000_000)
    assert read_annotation(place).reason == "annotation cut short or unreadable"
    place.write_text("<annotations>" + "<a>" * 1_000_000)
    with pytest.raises(MrtError, match="nested"):
        cvat.read(place, {})


def test_a_variable_that_is_no_number(monkeypatch, tmp_path):
    monkeypatch.setenv("MRT_MAX_UNPACKED", "3GB")
    with pytest.raises(MrtError, match="MRT_MAX_UNPACKED is '3GB', expected a whole number"):
        open_zip(zip_of_zeros(tmp_path / "a.zip", GIGABYTES_3))


def test_a_png_that_claims_more_pixels_than_its_bytes_can_hold(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">2I", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MrtError, match="too few bytes for 13000x13000"):
        read_header(tmp_path / "a.png")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits"])
def test_a_tiff_that_claims_more_pixels_than_its_bytes_can_hold(tmp_path, compression):
    """Found by mutation: one of 24x16 that claims 6.4 million rows took 1.2 GB, and was read."""
    place, rows = tmp_path / "a.tif", 6_000_000
    Image.new("RGB", (24, 16)).save(place, compression=compression)
    assert read_header(place) == Header(24, 16, turned=False)
    content = place.read_bytes()
    entry = struct.pack("<2H", 257, 3), struct.pack("<2H", 257, 4)  # its number of rows, in 16 or 32 bits
    at = next(content.index(item) for item in entry if item in content)
    place.write_bytes(content[:at] + struct.pack("<2H2I", 257, 4, 1, rows) + content[at + 12 :])
    with pytest.raises(MrtError, match=f"too few bytes for 24x{rows}"):
        read_header(place)


@pytest.mark.parametrize(
    ("suffix", "at", "form"), [(".bmp", 18, "<2i"), (".tga", 12, "<2H"), (".pcx", 8, "<2H")]
)
def test_other_pictures_that_claim_more_than_they_hold_are_refused(tmp_path, suffix, at, form):
    place = tmp_path / f"a{suffix}"
    Image.new("RGB", (24, 16)).save(place)
    content = bytearray(place.read_bytes())
    content[at : at + struct.calcsize(form)] = struct.pack(form, 12_000, 12_000)
    place.write_bytes(content)
    with pytest.raises(MrtError):
        read_header(place)


@pytest.mark.parametrize(
    "suffix", [".bmp", ".tif", ".ppm", ".tga", ".sgi", ".png", ".gif", ".webp", ".jpg", ".pcx"]
)
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_blank_picture_of_every_kind_is_none_that_holds_too_little(tmp_path, suffix, mode):
    if mode == "1" and suffix in (".sgi", ".webp", ".jpg"):
        mode = "L"
    place = tmp_path / f"a{suffix}"
    Image.new(mode, (2000, 1000)).save(place)
    assert read_header(place) == Header(2000, 1000, turned=False)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
def test_a_blank_tiff_of_every_compression_is_none_that_holds_too_little(tmp_path, compression):
    place = tmp_path / "a.tif"
    Image.new("1", (8000, 8000)).save(place, compression=compression)
    assert read_header(place) == Header(8000, 8000, turned=False)


LONG = 60_000  # letters: where time grows with their square, this takes minutes
TEXTS = {
    "blanks in a list": lambda text: _FLAG.sub("", "a" + " " * LONG + "b"),
    "digits": lambda text: reading.is_number("9" * LONG + "x"),
    "digits behind a point": lambda text: reading.is_number("." + "9" * LONG + "e"),
    "the head of an XML file": lambda text: cvat.looks(b"<annotations>" + b"<image " * 9000, "a.xml"),
    "empty lines": lambda text: _darknet_files({"a.data": text}),
    "an XML declaration": lambda text: _DECLARED.match(b"<?xml" + b" " * LONG),
}


@pytest.mark.parametrize("use", TEXTS.values(), ids=TEXTS)
def test_no_text_takes_time_in_proportion_to_its_square(tmp_path, use):
    (tmp_path / "a.data").write_text("\n" * 10 * LONG)
    begin = time.monotonic()
    use(tmp_path / "a.data")
    assert time.monotonic() - begin < 3
