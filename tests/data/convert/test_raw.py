"""Raw files as one tree: tar archives that several sets share, links, what the data root holds."""

from __future__ import annotations

import os
import zipfile

import pytest
from trees import pack, write_text

from mrt.data.archives import open_file
from mrt.data.convert.raw import RawFiles
from mrt.errors import MrtError


def contents(files: RawFiles) -> dict[str, str]:
    found = {}
    for inside, place in files.files.items():
        with open_file(place) as file:
            found[inside] = file.read().decode()
    return found


def test_a_tar_that_was_unpacked_for_one_set_serves_the_next(tmp_path):
    raw = tmp_path / "raw"
    write_text(tmp_path / "tree" / "a.jpg", "picture")
    write_text(tmp_path / "tree" / "a.xml", "boxes")
    raw.mkdir()
    pack(tmp_path / "tree", raw / "x.tgz")
    assert contents(RawFiles([raw], r"\.png$", tmp_path / "data")) == {}
    assert contents(RawFiles([raw], r"\.jpg$", tmp_path / "data")) == {"a.jpg": "picture"}
    assert contents(RawFiles([raw], r"\.(jpg|xml)$", tmp_path / "data")) == {"a.jpg": "picture", "a.xml": "boxes"}
    for pattern in (r"\.png$", r"\.jpg$", r"\.(jpg|xml)$"):
        RawFiles([raw], pattern, tmp_path / "data", lambda *_: pytest.fail("all of it is unpacked"))


def test_two_tars_of_one_name_do_not_mix(tmp_path):
    for folder, name in (("day", "1.jpg"), ("night", "2.jpg")):
        write_text(tmp_path / folder / "tree" / name, folder)
        write_text(tmp_path / folder / "tree" / "0.jpg", folder)
        pack(tmp_path / folder / "tree", tmp_path / folder / "images.tgz")
    for _ in range(2):  # the second time both are there
        for folder, name in (("day", "1.jpg"), ("night", "2.jpg")):
            files = RawFiles([tmp_path / folder / "images.tgz"], r"\.jpg$", tmp_path / "data")
            assert contents(files) == {"0.jpg": folder, name: folder}
    assert len(list((tmp_path / "data" / "unpacked").iterdir())) == 2


def test_a_link_back_up_is_not_followed(tmp_path):
    write_text(tmp_path / "raw" / "a" / "1.jpg", "")
    (tmp_path / "raw" / "a" / "again").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "b").symlink_to(tmp_path / "raw" / "a")  # another name for a folder is
    assert sorted(RawFiles([tmp_path / "raw"], r"\.jpg$", tmp_path / "data").files) == ["a/1.jpg", "b/1.jpg"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write_text(tmp_path / "raw" / "a" / "1.jpg", "")
    look = os.scandir

    def forbidden(path):  # permissions would not stop root
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(MrtError, match="/a: cannot be read \\(Permission denied\\)"):
        RawFiles([tmp_path / "raw"], r"\.jpg$", tmp_path / "data")


def test_what_the_data_root_holds_is_no_raw_file(tmp_path):
    write_text(tmp_path / "1.jpg", "")
    write_text(tmp_path / "data" / "mine" / "dataset.json", "{}")
    write_text(tmp_path / "data" / "mine" / "preview.jpg", "")
    write_text(tmp_path / "data" / "unpacked" / "x.tgz" / "2.jpg", "")
    write_text(tmp_path / "data" / "downloads" / "3.jpg", "")
    assert sorted(RawFiles([tmp_path], r"\.jpg$", tmp_path / "data").files) == ["1.jpg", "data/downloads/3.jpg"]
    assert sorted(RawFiles([tmp_path / "data" / "mine"], r"\.jpg$", tmp_path / "data").files) == ["preview.jpg"]  # asked for by name


def test_odd_but_harmless_member_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("./a//1.jpg", "dot")
        file.writestr("12:30:00.jpg", "colon")
    assert contents(RawFiles([tmp_path / "x.zip"], r"\.jpg$", tmp_path / "data")) == {"a/1.jpg": "dot", "12:30:00.jpg": "colon"}
