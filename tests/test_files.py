from __future__ import annotations

import stat

import pytest

from mrt.errors import MrtError
from mrt.files import replacing, require_free, whole_folder, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_is_written(tmp_path):
    write_text(tmp_path / "new" / "file", "text")
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) & stat.S_IRUSR
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) != 0o600


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MrtError, match="could not be written"):
        write_text(tmp_path / "file" / "below", "text")


def test_a_folder_appears_whole_or_leaves_nothing(tmp_path):
    with whole_folder(tmp_path / "a" / "b") as work:
        (work / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1" and [
        path.name for path in (tmp_path / "a").iterdir()
    ] == ["b"]
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "new" / "deep" / "c") as work:
        (work / "x").write_text("1")
        _ = 1 / 0
    assert not (tmp_path / "new").exists()  # nor the folders above it


def test_a_folder_that_fails_keeps_what_was_beside_it(tmp_path):
    (tmp_path / "kept").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "c"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_is_taken_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("1")
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty")
    require_free(tmp_path / "new")
    for name, words in (("full", "holds files already"), ("full/x", "is a file")):
        with pytest.raises(MrtError, match=words), whole_folder(tmp_path / name):
            raise AssertionError("must not begin")
    with whole_folder(tmp_path / "empty") as work:
        (work / "y").write_text("1")
    assert (tmp_path / "empty" / "y").is_file()
