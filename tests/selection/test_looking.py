"""Which images detectors are looked at on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mrt.errors import MrtError
from mrt.selection.looking import find_images


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((80, 60), 50).save(folder / f"{number}.jpg")
    return folder


def test_photos_that_cannot_be_read_are_passed_over_and_told(photos):
    assert find_images([photos], "here").origin == "here"
    whole = (photos / "1.jpg").read_bytes()
    (photos / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "3.jpg").write_bytes(b"no picture")
    found = find_images([photos], "here", 2)
    assert len(found) == 2 and not {"1.jpg", "3.jpg"} & set(found.names)
    found = find_images([photos], "here")
    assert found.names == ["0.jpg", "2.jpg", "4.jpg"]
    assert found.origin.startswith("here (without 2 that cannot be read, such as 1.jpg: ")
    assert find_images([photos], "here", of_set=True).origin == "here"


def test_where_no_photo_can_be_read_the_first_reason_is_told(photos):
    for file in photos.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(MrtError, match=r"here: none of its images can be read\n.*0\.jpg"):
        find_images([photos], "here")
