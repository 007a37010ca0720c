"""Raw files as one tree: tar archives that several sets share, links, the content of the data root."""

from __future__ import annotations

import os
import zipfile

import pytest
from trees import pack, write_text

from mrt.data.archives import open_file
from mrt.data.convert.raw import RawFiles, own_files
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
    assert contents(RawFiles([raw], r"\.(jpg|xml)$", tmp_path / "data")) == {
        "a.jpg": "picture",
        "a.xml": "boxes",
    }
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
    assert sorted(RawFiles([tmp_path], r"\.jpg$", tmp_path / "data").files) == [
        "1.jpg",
        "data/downloads/3.jpg",
    ]
    # asked for by name
    assert sorted(RawFiles([tmp_path / "data" / "mine"], r"\.jpg$", tmp_path / "data").files) == [
        "preview.jpg"
    ]


def test_odd_but_harmless_member_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("./a//1.jpg", "dot")
        file.writestr("12:30:00.jpg", "colon")
    assert contents(RawFiles([tmp_path / "x.zip"], r"\.jpg$", tmp_path / "data")) == {
        "a/1.jpg": "dot",
        "12:30:00.jpg": "colon",
    }


def own(*raw, data):
    """The raw files of a user's own set, and the notes on them."""
    files = own_files(list(raw), data)
    return contents(files), files.notes


def test_different_files_of_one_path_are_two_files_of_two_places(tmp_path):
    for camera in ("cam1", "cam2", "cam3"):
        write_text(tmp_path / camera / "images" / "0.jpg", camera if camera != "cam3" else "cam1")
        write_text(tmp_path / camera / "classes.txt", "car")
    with pytest.raises(MrtError, match=r"images/0\.jpg is in .*cam1 and, with other content, in .*cam2"):
        RawFiles([tmp_path / "cam1", tmp_path / "cam2"], r"\.jpg$", tmp_path / "data")
    found, notes = own(tmp_path / "cam1", tmp_path / "cam2", data=tmp_path / "data")
    both = {"cam1/images/0.jpg": "cam1", "cam2/images/0.jpg": "cam2"}
    assert found == both | {"cam1/classes.txt": "car", "cam2/classes.txt": "car"}
    assert len(notes) == 1 and "1 paths are in several places" in notes[0]
    assert "(in cam1 and cam2)" in notes[0]
    found, notes = own(tmp_path / "cam1", tmp_path / "cam3", data=tmp_path / "data")
    assert found == {"images/0.jpg": "cam1", "classes.txt": "car"} and "each is taken once" in notes[0]


def test_places_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    for day in ("monday", "tuesday"):
        write_text(tmp_path / day / "export" / "0.jpg", day)
    found, _ = own(tmp_path / "monday" / "export", tmp_path / "tuesday" / "export", data=tmp_path / "data")
    assert found == {"monday/export/0.jpg": "monday", "tuesday/export/0.jpg": "tuesday"}


@pytest.mark.parametrize("packed", ["export.zip", "export.tgz"])
@pytest.mark.parametrize("top", ["", "export"])
@pytest.mark.parametrize("below", ["", "export", "somewhere/else"])
def test_an_archive_beside_the_folder_it_was_unpacked_to(tmp_path, packed, top, below):
    tree = tmp_path / "tree" / top
    for name in ("1", "2"):
        write_text(tree / "images" / f"{name}.jpg", f"picture {name}")
        write_text(tree / "labels" / f"{name}.txt", name)
    raw = tmp_path / "raw"
    (raw / below).mkdir(parents=True)
    pack(tmp_path / "tree", raw / packed)
    for path in sorted(tree.rglob("*.*")):
        write_text(raw / below / path.relative_to(tree), path.read_text())
    found, notes = own(raw, data=tmp_path / "data")
    assert sorted(found.values()) == ["1", "2", "picture 1", "picture 2"]
    assert "4 files are in several places" in notes[0]
    (raw / below / "labels" / "2.txt").write_text("3")  # corrected after unpacking
    with pytest.raises(MrtError, match=r"hold the same image .*2\.jpg with different labels \(.*2\.txt\)"):
        own(raw, data=tmp_path / "data")


def test_places_named_after_splits_keep_them(tmp_path):
    for split in ("train", "valid"):
        write_text(tmp_path / split / "images" / f"{split}.jpg", split)
    assert own(tmp_path / "train", tmp_path / "valid", data=tmp_path / "data")[0] == {
        "train/images/train.jpg": "train",
        "valid/images/valid.jpg": "valid",
    }
    parts = [tmp_path / split / "images" for split in ("train", "valid")]
    assert [*own(*parts, data=tmp_path / "data")[0]] == ["train/images/train.jpg", "valid/images/valid.jpg"]
    packed = [pack(tmp_path / split, tmp_path / f"my_{split}_2017.zip") for split in ("train", "valid")]
    assert [*own(*packed, data=tmp_path / "data")[0]] == ["train/images/train.jpg", "val/images/valid.jpg"]
    assert own(tmp_path / "valid", data=tmp_path / "data")[0] == {"images/valid.jpg": "valid"}


def test_a_place_inside_another_one_adds_nothing(tmp_path):
    write_text(tmp_path / "raw" / "day" / "0.jpg", "day")
    found, notes = own(tmp_path / "raw", tmp_path / "raw" / "day", tmp_path / "raw", data=tmp_path / "data")
    assert found == {"day/0.jpg": "day"} and notes == []


@pytest.mark.parametrize("edited", ["train.json", "ImageSets/Main/train.txt"])
def test_a_list_or_a_label_file_of_the_whole_set_that_was_edited_after_unpacking(tmp_path, edited):
    raw = tmp_path / "raw"
    for number in range(4):
        write_text(raw / f"{number}.jpg", f"picture {number}")
    write_text(raw / edited, "as it was")
    pack(raw, tmp_path / "raw.zip")
    (tmp_path / "raw.zip").rename(raw / "raw.zip")
    (raw / edited).write_text("as it is now")
    with pytest.raises(MrtError, match=rf"hold the same image 0\.jpg with different labels \({edited}\)"):
        own(raw, data=tmp_path / "data")


def test_an_archive_of_which_a_part_is_unpacked(tmp_path):
    for number in range(8):
        write_text(tmp_path / "tree" / f"{number}.jpg", f"picture {number}")
    (tmp_path / "raw" / "some").mkdir(parents=True)
    pack(tmp_path / "tree", tmp_path / "raw" / "x.zip")
    for number in range(3):
        (tmp_path / "tree" / f"{number}.jpg").rename(tmp_path / "raw" / "some" / f"{number}.jpg")
    assert sorted(own(tmp_path / "raw", data=tmp_path / "data")[0]) == [
        f"some/{number}.jpg" for number in range(8)
    ]


def test_what_is_not_opened_or_is_no_part_of_a_set(tmp_path):
    for name in ("a", "b"):
        write_text(tmp_path / name / f"{name}.jpg", name)
        write_text(tmp_path / name / "README.txt", f"of {name}")
        write_text(tmp_path / name / "inner" / "more.txt", "same")
        pack(tmp_path / name / "inner", tmp_path / name / "inner" / "more.zip")
    found, notes = own(tmp_path / "a", tmp_path / "b", data=tmp_path / "data")
    assert {"a.jpg", "b.jpg"} <= found.keys() and "a/README.txt" not in found
    assert len([note for note in notes if "not opened: inner/more.zip" in note]) == 2


def test_files_may_be_named_one_by_one(tmp_path):
    """As a shell does with photos/*.jpg; only for a user's own set."""
    for name in ("a/1.jpg", "a/2.jpg", "a/not-named.jpg", "b/1.jpg", "a/x.doc"):
        write_text(tmp_path / name, name)
    named = [tmp_path / name for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg")]
    files = own_files(named, tmp_path / "data")
    assert contents(files) == {name: name for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg")}
    assert contents(own_files(named[:2], tmp_path / "data")) == {"1.jpg": "a/1.jpg", "2.jpg": "a/2.jpg"}
    with pytest.raises(MrtError, match="neither a folder nor") as error:
        own_files([tmp_path / "a" / "x.doc"], tmp_path / "data")
    assert f"--raw {tmp_path / 'a'}" in error.value.hint
    many = own_files([tmp_path / "a" / "1.jpg"] * 100, tmp_path / "data")
    assert len(many.given) < 100 + 3 * len(str(tmp_path)) and "94 more" in many.source
