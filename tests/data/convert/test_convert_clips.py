"""Frames of videos: by time, without near-duplicates, divided by time."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import sys
from pathlib import Path

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
from mrt.selection.looking import target_images

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
    card, _ = make(film(tmp_path / "drive.mp4", 23, stands=(6, 16)), tmp_path, every="2s", val_share=0)
    assert [seconds for *_, seconds in frames(card, "train")] == [0, 2, 4, 6, 16, 18, 20, 22]
    assert card.split("train").skipped == {"near-duplicate of the frame before": 4}
    assert card.details["videos"] == {"drive.mp4": {"seconds": 23.0, "frames": 8, "near_duplicates": 4}}
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
    assert "1 photo beside the videos: copied, all to train" in " ".join(card.details["notes"])
    assert not list(card.folder.rglob("b.jpg")), "who looks at the folder must not find it"
    told: list[tuple[int, int]] = []
    plan = recipe([raw], tmp_path / "data", every="1s")
    prepare(plan, tmp_path / "data", "again", workers=1, on_progress=lambda *step: told.append(step))
    assert told == [(done, plan.total) for done in range(1, plan.total + 1)], "photos count, too"
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


def test_videos_in_an_archive_are_told_of(tmp_path):
    for name in ("drive.mp4", "old.mpg"):
        write_text(tmp_path / "raw" / name, "not looked at")
    write_image(tmp_path / "raw" / "a.jpg", (40, 30))
    write_text(tmp_path / "raw" / "a.txt", "0 0.5 0.5 0.2 0.2")
    write_text(tmp_path / "raw" / "classes.txt", "car")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "raw")
    card, _ = make(Path(packed), tmp_path)
    told = "not read: 2 videos in archives: drive.mp4, old.mpg (unpack them, and --format video"
    assert any(told in line for line in card.details["notes"]), card.details["notes"]


@pytest.mark.parametrize(
    ("text", "frames", "seconds"),
    [("2s", 1, 2), ("500ms", 1, 0.5), ("1.5 min", 1, 90), ("2m", 1, 120), ("30", 30, None)],
)
def test_how_densely(text, frames, seconds):
    assert parse_every(text)[:2] == (frames, seconds)


@pytest.mark.parametrize(
    "text", ["", "0s", "-2s", "2.5", "2 hours", "0", "9" * 400, "9" * 400 + "h", "0." + "0" * 300 + "1s"]
)
def test_no_time(text):
    with pytest.raises(MrtError, match="expected a time or a number of frames"):
        parse_every(text)


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "each frame"), (2, "each 2nd frame"), (12, "each 12th frame"), (22, "each 22nd frame")],
)
def test_ordinals(number, said):
    assert parse_every(str(number)).text == said


def all_files(card):
    """Every image that the set's folder holds; each of them must be in the annotations, and the other way."""
    folder = card.folder / "images"
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    several = len(card.splits) > 1
    told = [
        f"{split}/{name}" if several else name for split in card.splits for name, *_ in names(card, split)
    ]
    assert sorted(told) == sorted(held) and len({name.casefold() for name in told}) == len(told)
    assert sorted(path.name for path in card.folder.iterdir() if path.name.startswith(".")) == []
    assert check_set(read_card(card.folder)) == []
    return set(told)


def names(card, split):
    content = json.loads(card.annotations_path(split).read_text(encoding="utf-8"))
    return [(entry["file_name"], entry.get("video"), entry["width"]) for entry in content["images"]]


def test_no_frame_takes_the_place_of_another_when_splits_get_their_folders(tmp_path):
    raw = tmp_path / "raw"
    for number, name in enumerate(["a.mp4", "train/a.mp4", "val/b.mp4"]):
        film(raw / name, 3, first=40 * number)
    write_image(raw / "train" / "c.jpg", (40, 30))
    write_image(raw / "c.jpg", (50, 30))
    card, warnings = make(raw, tmp_path, every="1s")
    assert warnings == [] and {name: part.num_images for name, part in card.splits.items()} == {
        **{"train": 3 + 3 + 2, "val": 3}
    }
    assert {"train/c.jpg", "train/train/c.jpg", "train/train/a-00h00m01s000.jpg"} <= all_files(card)


def test_a_split_by_time_keeps_clips_in_a_folder_called_train(tmp_path):
    film(tmp_path / "raw" / "a.mp4", 4)
    film(tmp_path / "raw" / "train" / "a.mp4", 8, first=60)
    card, warnings = make(tmp_path / "raw", tmp_path, every="1s")
    assert warnings == [] and set(card.splits) == {"train", "val"}
    assert {"train/a-00h00m00s000.jpg", "train/train/a-00h00m00s000.jpg"} <= all_files(card)


def test_every_clip_and_photo_has_a_name_of_its_own(tmp_path):
    raw = tmp_path / "raw"
    clip = film(raw / "a.mp4", 1)
    clips = ["a.mov", "A-MP4.mkv", "a-mp4-2.mp4", "caf\u00e9.mp4", "cafe\u0301.mp4", f"{'x' * 245}.mp4"]
    for number, name in enumerate(clips):
        film(tmp_path / f"{number}.mp4", 1, first=15 + 15 * number).rename(raw / name)
    write_image(raw / "a-mp4-00h00m00s000.jpg", (40, 30))
    card, warnings = make(raw, tmp_path, every="1s", val_share=0)
    assert clip.exists() and warnings == []
    assert len(all_files(card)) == len(clips) + 2
    entries = {name: (video, width) for name, video, width in names(card, "train")}
    assert entries["a-mp4-00h00m00s000.jpg"] == ("a.mp4", 160)
    assert entries["a-mp4-00h00m00s000-2.jpg"] == (None, 40)
    assert len({video for video, _ in entries.values()}) == len(clips) + 2
    assert "photos with a name that is taken, renamed: a-mp4-00h00m00s000.jpg is" in card.details["notes"][-1]


def stream(seconds, first, rate=5):
    """The bytes of an MPEG transport stream, as dashcams write them, whose time stamps begin anew."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        track = container.add_stream("mpeg2video", rate=25)
        track.width, track.height, track.pix_fmt = *SIZE, "yuv420p"
        for number in range(int(seconds * rate)):
            for _ in range(25 // rate):
                container.mux(track.encode(av.VideoFrame.from_image(scene(first + 5 * number / rate))))
        container.mux(track.encode())
    return file.getvalue()


@pytest.mark.parametrize("every", ["1s", "25"])
def test_files_joined_end_to_end_are_read_to_their_end(tmp_path, every):
    (tmp_path / "joined.ts").write_bytes(stream(4, 0) + stream(4, 60))
    card, warnings = make(tmp_path / "joined.ts", tmp_path, every=every, val_share=0)
    times = [seconds for *_, seconds in frames(card, "train")]
    assert warnings == [] and times == sorted(times) and len(all_files(card)) == 8
    assert times == pytest.approx(list(range(8)), abs=0.25)


def test_videos_named_beside_labels_are_told_of(tmp_path):
    clip = film(tmp_path / "drive.mp4", 1)
    write_image(tmp_path / "yolo" / "a.jpg", (40, 30))
    write_text(tmp_path / "yolo" / "a.txt", "0 0.5 0.5 0.2 0.2")
    write_text(tmp_path / "yolo" / "classes.txt", "car")
    (tmp_path / "yolo" / "old.mpg").write_bytes(clip.read_bytes())
    card, _ = make([tmp_path / "yolo", clip], tmp_path)
    told = "not read: 2 videos: drive.mp4, old.mpg (--format video takes their frames)"
    assert card.details["format"] == "yolo" and told in card.details["notes"]


def test_kinds_that_videos_cannot_be(tmp_path):
    clip = film(tmp_path / "drive.mp4", 1)
    for options, kind in [
        ({"format": "images"}, "images"),
        ({"annotations": {"train": tmp_path / "a.json"}}, "coco"),
    ]:
        with pytest.raises(MrtError, match=rf"drive\.mp4: nothing but videos, of which .* {kind} cannot"):
            recipe([clip], tmp_path / "data", **options)
    with pytest.raises(MrtError, match="--annotations: frames of videos have no labels"):
        recipe([clip], tmp_path / "data", format="video", annotations={"train": tmp_path / "a.json"})


def test_photos_beside_what_is_no_video_are_a_set_of_images(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    write_image(raw / "a.jpg", (40, 30))
    write_text(raw / "clip.mp4", "no video")
    write_text(raw / "index.ts", "export const answer: number = 42;\n" * 50)
    card, warnings = make(raw, tmp_path)
    assert warnings == [] and card.details["format"] == "images" and not (card.folder / "images").exists()
    assert card.details["notes"] == [
        "not read: 2 files that are called like videos, but cannot be read as such: clip.mp4, index.ts"
    ]
    # What looks at a set's folder passes over what its conversion did.
    write_text(raw / "broken.jpg", "no image")
    card, _ = make(raw, tmp_path)
    assert [frame.name for frame in target_images(card, "train").frames] == ["a.jpg"]
    with pytest.raises(MrtError, match="--format images takes the photos beside them alone"):
        recipe([raw], tmp_path / "data", format="video")
    film(raw / "real.mp4", 1)
    assert make(raw, tmp_path)[0].details["format"] == "video"
    without_pyav(monkeypatch)
    card, warnings = make(raw, tmp_path)
    assert card.details["format"] == "images" and "pip install av; then --format video" in warnings[0]
    with pytest.raises(MrtError, match="pip install av\n--format images takes the photos"):
        recipe([raw], tmp_path / "data", format="video")


def test_links_that_lead_nowhere_and_pipes_do_not_end_everything(tmp_path):
    raw = tmp_path / "raw"
    film(raw / "a.mp4", 2)
    (raw / "c.mp4").symlink_to(tmp_path / "gone.mp4")
    (raw / "d.mp4").symlink_to(raw / "a.mp4")
    os.mkfifo(raw / "pipe.mp4")
    card, warnings = make(raw, tmp_path, every="1s", val_share=0)
    assert len(all_files(card)) == 2 and list(card.details["videos"]) == ["a.mp4"]
    assert len(warnings) == 1 and "c.mp4: cannot be read as a video (No such file" in warnings[0]


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path / "raw")
    for number, name in enumerate([b"caf\xe9.mp4", b"caf\xea.mp4"]):
        clip = film(tmp_path / "drive.mp4", 2, first=60 * number)
        os.makedirs(folder, exist_ok=True)
        try:
            os.rename(clip, os.path.join(folder, name))
        except OSError:
            pytest.skip("this disk has UTF-8 names only")
    card, warnings = make(tmp_path / "raw", tmp_path, every="1s", val_share=0)
    assert warnings == [] and len(all_files(card)) == 4
    assert list(card.details["videos"]) == ["caf_.mp4", "caf_-2.mp4"]
    assert {video for _, video, _ in frames(card, "train")} == {"caf_.mp4", "caf_-2.mp4"}


def test_without_pyav_it_is_said_what_to_install(tmp_path, monkeypatch):
    clip = film(tmp_path / "drive.mp4", 1)
    without_pyav(monkeypatch)
    with pytest.raises(MrtError, match="needs PyAV, which is not installed") as told:
        recipe([clip], tmp_path / "data")
    assert "pip install av" in str(told.value)
    assert not (tmp_path / "data").exists()


def without_pyav(monkeypatch):
    monkeypatch.delitem(sys.modules, "av")
    real = builtins.__import__

    def missing(name, *more, **kept):
        if name == "av":
            raise ImportError(name)
        return real(name, *more, **kept)

    monkeypatch.setattr(builtins, "__import__", missing)
