"""Archives: zip members are read in place, tars are unpacked once and safely."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from mrt.data.archives import file_exists, inside_zip, open_file, unpack_tar
from mrt.errors import MrtError


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "raw" / "images.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"a/{number}.txt", f"content {number} " * 500)
    return path


def make_tar(path: Path, files: dict[str, bytes], **kinds: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = kinds.get("type", tarfile.REGTYPE)
            member.linkname = "/etc/hostname" if member.type != tarfile.REGTYPE else ""
            tar.addfile(member, io.BytesIO(content) if member.type == tarfile.REGTYPE else None)
    return path


def wanted(name: str) -> bool:
    return name.endswith(".jpg")


def test_a_path_leads_through_a_zip(archive):
    assert inside_zip(archive / "a" / "3.txt") == (archive, "a/3.txt")
    assert inside_zip(archive) is None
    with open_file(archive / "a" / "3.txt") as file:
        assert file.read() == b"content 3 " * 500
    assert file_exists(archive / "a" / "3.txt") and not file_exists(archive / "a" / "33.txt")
    with pytest.raises(FileNotFoundError, match=r"33\.txt in .*images\.zip"):
        open_file(archive / "a" / "33.txt")


def test_a_folder_may_be_called_like_an_archive(tmp_path):
    (tmp_path / "x.zip").mkdir()
    (tmp_path / "x.zip" / "b.txt").write_text("plain")
    with open_file(tmp_path / "x.zip" / "b.txt") as file:
        assert file.read() == b"plain"


def _read_all(path: Path) -> bool:
    """Whether each member is what it should be, read twenty times over."""
    for _ in range(20):
        for number in range(20):
            with open_file(path / f"a/{number}.txt") as file:
                if file.read() != f"content {number} ".encode() * 500:
                    return False
    return True


def test_processes_do_not_disturb_each_other(archive):
    assert _read_all(archive)  # opened here first, so that a fork takes the open archive with it
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_read_all, [archive] * 3) == [True] * 3


def test_a_damaged_member_is_an_error_of_reading(archive):
    content = bytearray(archive.read_bytes())
    content[45:60] = bytes(15)
    archive.write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        open_file(archive / "a" / "0.txt")


def test_an_archive_cut_short(tmp_path, archive):
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(MrtError, match="cannot be read as a zip archive"):
        open_file(archive / "a" / "0.txt")
    tar = make_tar(tmp_path / "x.tgz", {"b/1.jpg": os.urandom(9000)})
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(MrtError, match="cut short"):
        unpack_tar(tar, tmp_path / "out", wanted)


def test_tar_is_unpacked_once_and_goes_on_after_an_interruption(tmp_path):
    tar = make_tar(tmp_path / "x.tgz", {"b/1.jpg": b"one", "b/2.jpg": b"two", "b/notes.md": b"?"})
    seen: list[int] = []

    def stop_at_the_second(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_tar(tar, tmp_path / "out", wanted, stop_at_the_second)
    first = (tmp_path / "out" / "b" / "1.jpg").stat()
    unpack_tar(tar, tmp_path / "out", wanted)
    assert {path.name for path in (tmp_path / "out" / "b").iterdir()} == {"1.jpg", "2.jpg"}
    assert (tmp_path / "out" / "b" / "1.jpg").stat().st_mtime_ns == first.st_mtime_ns
    unpack_tar(tar, tmp_path / "out", wanted, lambda done, total: pytest.fail("complete already"))


def test_another_archive_of_the_same_name_replaces_what_was_unpacked(tmp_path):
    unpack_tar(make_tar(tmp_path / "x.tgz", {"1.jpg": b"old"}), tmp_path / "out", wanted)
    tar = make_tar(tmp_path / "x.tgz", {"1.jpg": b"new"})
    os.utime(tar, ns=(1, 1))
    unpack_tar(tar, tmp_path / "out", wanted)
    assert (tmp_path / "out" / "1.jpg").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/x.jpg", "a/../../x.jpg", "c:/x.jpg", "a\\x.jpg"])
def test_a_name_that_climbs_out_is_refused(tmp_path, name):
    with pytest.raises(MrtError, match="leads out of the folder"):
        unpack_tar(make_tar(tmp_path / "x.tgz", {name: b"x"}), tmp_path / "deep" / "out", wanted)
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(MrtError, match="link or a device"):
        unpack_tar(make_tar(tmp_path / "x.tgz", {"a.jpg": b""}, type=kind), tmp_path / "out", wanted)
