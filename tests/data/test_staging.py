"""A prepared set's folder when several processes want it, or one was killed at a bad moment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mrt.data.card import CARD_NAME
from mrt.data.staging import check_name, staged
from mrt.errors import MrtError


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(root, name, content, overwrite=False):
    with staged(root, name, overwrite) as work:
        (work / CARD_NAME).write_text(content)


def test_of_two_at_once_the_first_to_finish_stays(tmp_path):
    with pytest.raises(MrtError, match="exists already"), staged(tmp_path, "s") as work:
        (work / CARD_NAME).write_text("late")
        make(tmp_path, "s", "early")
    assert (tmp_path / "s" / CARD_NAME).read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_other_sets_work_folders_are_left_alone(tmp_path, dead):
    other = tmp_path / f".s.{dead}.{os.getpid()}.abc.partial"  # of a set called s.DEAD, being made
    other.mkdir()
    make(tmp_path, "s", "new")
    assert other.is_dir()


def test_a_set_that_a_killed_process_had_moved_aside_comes_back(tmp_path, dead):
    aside = tmp_path / f".s.{dead}.abc.old"
    (aside / "old").mkdir(parents=True)
    (aside / "old" / CARD_NAME).write_text("old")
    with pytest.raises(MrtError, match="exists already"):
        make(tmp_path, "s", "new")
    assert (tmp_path / "s" / CARD_NAME).read_text() == "old" and not aside.exists()
    make(tmp_path, "s", "new", overwrite=True)
    assert (tmp_path / "s" / CARD_NAME).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "unpacked"])
def test_names_that_no_set_can_have(name):
    with pytest.raises(MrtError, match="name is"):
        check_name(name)
