"""Frames of videos: by time, without near-duplicates, divided by time."""

from __future__ import annotations

import builtins
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from trees import write_image, write_text

from mrt.data.card import read_card
from mrt.data.check import check_set
from mrt.data.convert.clips import cells_of, is_near, parse_every
from mrt.data.convert.custom import recipe
from mrt.data.convert.recipe import prepare, rehearse
from mrt.data.dataset import DetectionDataset
from mrt.errors import MrtError
from mrt.predict.video import VideoWriter

pytest.importorskip("av")

SIZE = 160, 96
STREET = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)).resize(SIZE)


def scene(place: float, darker: int = 0) -> Image.Image:
    """A street with a red car of 24x16 pixels at so many pixels from the left."""
    picture = STREET.copy()
    ImageDraw.Draw(picture).rectangle((place, 40, place + 24, 56), fill=(250, 20, 20))
    return picture.point(lambda value: max(value - darker, 0))


def film(path, seconds, rate=5, stands=(), first=0.0):
    """The car drives 5 pixels a second, but for the time in which it ``stands`` (from, to)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, place = VideoWriter(path, rate), first
    for number in range(int(seconds * rate)):
        if not (stands and stands[0] <= number / rate < stands[1]):
            place = first + number / rate * 5
        writer.add(scene(place % 130))
    writer.close()
    return path


def make(raw, tmp_path, **options):
    """(card, warnings) of the set that is made from ``raw``."""
    plan = recipe([raw] if not isinstance(raw, list) else raw, tmp_path / "data", **options)
    return prepare(plan, tmp_path / "data", "camera", workers=1, overwrite=True)


def frames(card, split):
    content = json.loads(card.annotations_path(split).read_text(encoding="utf-8"))
    return [(entry["file_name"], entry["video"], entry["seconds"]) for entry in content["images"]]


def test_frames_by_time_divided_by_time_with_a_gap(tmp_path):
    card, warnings = make(film(tmp_path / "drive.mp4", 40), tmp_path, every="2s")
    assert warnings == [] and not card.labelled and card.image_sizes == {"160x96": 19}
    times = {split: [seconds for *_, seconds in frames(card, split)] for split in card.splits}
    # a tenth of 40 s, 4 s, lie between: the frame at 30 s is too near to the one at 32 s
    assert times == {"train": [2.0 * k for k in range(15)], "val": [32.0, 34.0, 36.0, 38.0]}
    assert card.split("train").skipped == {"between train and val": 1}
    assert frames(card, "val")[0] == ("drive-00h00m32s000.jpg", "drive.mp4", 32.0)
    assert "val is 4 frames, from 00h00m32s000 of drive.mp4" in card.details["notes"][2]
    assert "4 s lie between" in card.details["notes"][2]
    # A folder for each split: `mrt assess` tells them apart without opening annotations.
    for split in card.splits:
        written = sorted(path.name for path in (card.folder / "images" / split).iterdir())
        assert written == sorted(name for name, *_ in frames(card, split))
    assert check_set(read_card(card.folder)) == []
    dataset = DetectionDataset(card, "train", classes=["car"], labelled=False)
    assert dataset[0].image.shape == (3, 96, 160)


def test_near_duplicates_are_dropped_and_counted(tmp_path):
    card, _ = make(film(tmp_path / "drive.mp4", 24, stands=(6, 16)), tmp_path, every="2s", val_share=0)
    assert [seconds for *_, seconds in frames(card, "train")] == [0, 2, 4, 6, 16, 18, 20, 22]
    assert card.split("train").skipped == {"near-duplicate of the frame before": 4}
    assert card.details["videos"] == {"drive.mp4": {"seconds": 24.0, "frames": 8, "near_duplicates": 4}}
    assert "near-duplicates: 4 of them are dropped" in card.details["notes"][1]


def test_the_measure():
    street = cells_of(scene(20))
    assert street.shape == (36, 64) and street.dtype == np.float32
    assert is_near(street, cells_of(scene(20, darker=12))), "only the exposure differs"
    assert not is_near(street, cells_of(scene(30))), "the car has driven ten pixels"


def test_clips_are_one_after_the_other_in_natural_order(tmp_path):
    raw = tmp_path / "raw"
    film(raw / "clip10.mp4", 12, first=70)
    film(raw / "clip2.mp4", 20)
    film(raw / ".hidden.mp4", 4)
    card, _ = make(raw, tmp_path, every="1s", val_share=0.25)
    assert list(card.details["videos"]) == ["clip2.mp4", "clip10.mp4"]
    assert {name for _, name, _ in frames(card, "val")} == {"clip10.mp4"}
    held = frames(card, "val")
    kept = frames(card, "train")
    assert len(held) == 8 and held[0][2] == 4.0
    # 3.2 s before 24 s on the common time are left out: clip10 up to 3 s, of which 0 s is 4 s away
    assert kept[-1][1:] == ("clip10.mp4", 0.0) and card.split("train").skipped == {"between train and val": 3}


def test_photos_beside_videos_are_copied_to_train(tmp_path):
    raw = tmp_path / "raw"
    film(raw / "drive.mp4", 12)
    write_image(raw / "photos" / "a.jpg", (40, 30))
    write_text(raw / "photos" / "b.jpg", "no image")
    card, warnings = make(raw, tmp_path, every="1s")
    assert card.split("train").skipped["image cut short or unreadable"] == 1
    assert any("photos/b.jpg" in line for line in warnings)
    content = json.loads(card.annotations_path("train").read_text(encoding="utf-8"))
    assert content["images"][-1] == {**content["images"][-1], "file_name": "photos/a.jpg", "width": 40}
    assert "2 photos beside the videos: copied, all to train" in card.details["notes"]
    with pytest.raises(MrtError, match="--every 1s: is for videos, and this set is images"):
        recipe([raw], tmp_path / "data", format="images", every="1s")


def test_folders_named_after_splits_divide_clips(tmp_path):
    film(tmp_path / "raw" / "train" / "a.mp4", 6)
    film(tmp_path / "raw" / "test" / "a.mp4", 4, first=60)
    card, _ = make(tmp_path / "raw", tmp_path, every="1s")
    assert {split: part.num_images for split, part in card.splits.items()} == {"train": 6, "test": 4}
    assert frames(card, "test")[0][0] == "test/a-00h00m00s000.jpg"
    with pytest.raises(MrtError, match="named after splits already"):
        make(tmp_path / "raw", tmp_path, every="1s", val_share=0.5)


def test_too_few_frames_are_not_divided_and_broken_clips_are_told_of(tmp_path):
    whole = film(tmp_path / "raw" / "a.mp4", 3)
    write_text(tmp_path / "raw" / "junk.mp4", "no video")
    card, warnings = make(tmp_path / "raw", tmp_path, every="1s")
    assert {split: part.num_images for split, part in card.splits.items()} == {"train": 3}
    assert card.details["notes"][-1] == "no val: 3 frames cannot be divided by time"
    assert len(warnings) == 1 and "junk.mp4: cannot be read as a video" in warnings[0]
    whole.unlink()
    with pytest.raises(MrtError, match=r"junk\.mp4: cannot be read as a video"):
        make(tmp_path / "raw", tmp_path)


def test_two_clips_of_one_name_keep_their_frames(tmp_path):
    one, other = film(tmp_path / "one" / "a.mp4", 2), film(tmp_path / "other" / "a.mp4", 2, first=60)
    card, _ = make([one, other, one], tmp_path, every="1s", val_share=0)
    assert [name for name, *_ in frames(card, "train")] == [
        *("a-00h00m00s000.jpg", "a-00h00m01s000.jpg", "a-2-00h00m00s000.jpg", "a-2-00h00m01s000.jpg")
    ]


def test_a_rehearsal_leaves_nothing_and_labels_win_over_videos(tmp_path):
    clip = film(tmp_path / "raw" / "drive.mp4", 4)
    card, _ = rehearse(recipe([clip], tmp_path / "data", every="10"), "camera", workers=1)
    assert card.split("train").num_images == 2 and not (tmp_path / "data").exists()
    write_image(tmp_path / "raw" / "a.jpg", (40, 30))
    write_text(tmp_path / "raw" / "a.txt", "0 0.5 0.5 0.2 0.2")
    write_text(tmp_path / "raw" / "classes.txt", "car")
    card, _ = make(tmp_path / "raw", tmp_path)
    assert card.labelled and card.details["format"] == "yolo"
    assert any("drive.mp4 (--format video takes their frames)" in line for line in card.details["notes"])


@pytest.mark.parametrize(
    ("text", "frames", "seconds"),
    [("2s", 1, 2), ("500ms", 1, 0.5), ("1.5 min", 1, 90), ("2m", 1, 120), ("30", 30, None)],
)
def test_how_densely(text, frames, seconds):
    assert parse_every(text)[:2] == (frames, seconds)


@pytest.mark.parametrize("text", ["", "0s", "-2s", "2.5", "2 hours", "0"])
def test_no_time(text):
    with pytest.raises(MrtError, match="expected a time or a number of frames"):
        parse_every(text)


def test_without_pyav_it_is_said_what_to_install(tmp_path, monkeypatch):
    clip = film(tmp_path / "drive.mp4", 1)
    monkeypatch.delitem(sys.modules, "av")
    real = builtins.__import__

    def missing(name, *more, **kept):
        if name == "av":
            raise ImportError(name)
        return real(name, *more, **kept)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MrtError, match="needs PyAV, which is not installed") as told:
        recipe([clip], tmp_path / "data")
    assert "pip install av" in str(told.value)
    assert not (tmp_path / "data").exists()
