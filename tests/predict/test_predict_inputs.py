"""All kinds of inputs, and the names of their images."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from blobs import picture
from PIL import Image

from mrt.data import video
from mrt.data.video import describe
from mrt.errors import MrtError
from mrt.predict import inputs
from mrt.predict.video import VideoWriter

av = pytest.importorskip("av")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/a.jpg", ".hidden.png"):
        picture().save(folder / name)
    (folder / "notes.txt").write_text("x")
    return folder


def make_video(path: Path, frames: int = 12, rate: float = 10) -> Path:
    writer = VideoWriter(path, rate)
    for number in range(frames):
        writer.add(picture(red=[(10 + 4 * number, 20, 50 + 4 * number, 60)]))
    writer.close()
    return path


def names(*words: object, every: int = 1) -> list[str]:
    sources, _ = inputs.find(words, every)
    return [frame.name for source in sources for frame in source.frames()]


def test_a_folder_is_looked_through_in_order_without_hidden_files(photos):
    sources, broken = inputs.find([photos])
    assert names(photos) == ["a.JPG", "b.png", "deep/a.jpg"] and not broken
    assert sources[0].total == 3 and [Path(name).name for name in sources[0].passed_over] == ["notes.txt"]


def test_names_that_meet_are_told_apart_and_a_file_is_looked_at_once(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    picture().save(other / "b.png")
    assert names(photos / "b.png", other / "b.png", photos / "b.png") == ["b.png", "other/b.png"]
    assert names(photos, other) == ["a.JPG", "b.png", "deep/a.jpg", "other/b.png"]
    assert names(photos, photos / "b.png", photos / "deep" / ".." / "deep" / "a.jpg") == names(photos)
    again = tmp_path / "again" / "other"
    again.mkdir(parents=True)
    picture().save(again / "b.png")
    assert names(photos / "b.png", other, again) == ["b.png", "other/b.png", "b-2.png"]


def test_videos_keep_their_folders_and_are_looked_at_once(tmp_path):
    for camera in ("left", "right"):
        (tmp_path / camera).mkdir()
        make_video(tmp_path / camera / "clip.mp4", frames=2)
    assert sorted({*names(tmp_path)}) == ["left/clip.mp4", "right/clip.mp4"]
    assert len(names(tmp_path, tmp_path / "left", tmp_path / "left" / "clip.mp4")) == 4
    assert sorted({*names(tmp_path / "left", tmp_path / "right")}) == ["clip.mp4", "right/clip.mp4"]


def test_a_name_that_cannot_be_written_is_told_and_the_rest_looked_at(photos):
    picture().save(photos / "c.png")
    (photos / "c.png").rename(photos / os.fsdecode(b"c\xff.png"))
    sources, broken = inputs.find([photos])
    assert len(list(sources[0].frames())) == 3
    assert len(broken) == 1 and "c\\udcff.png: a name that is not UTF-8" in broken[0].message


def test_globs(photos, monkeypatch):
    assert names(f"{photos}/*.png") == ["b.png"]
    assert sorted(names(f"{photos}/**/*.jpg")) == ["deep/a.jpg"]
    with pytest.raises(MrtError, match="nothing matches"):
        inputs.find([f"{photos}/*.webp"])


def test_a_zip_archive_is_read_in_place(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in photos.rglob("*.*"):
            archive.write(file, file.relative_to(photos))
        archive.writestr("__MACOSX/._b.png", b"x")
    sources, _ = inputs.find([tmp_path / "p.zip"])
    frames = list(sources[0].frames())
    assert [frame.name for frame in frames] == ["a.JPG", "b.png", "deep/a.jpg"]
    assert frames[0].read().size == (160, 120)


def test_an_image_without_a_suffix_is_one_all_the_same(tmp_path):
    picture().save(tmp_path / "odd", format="PNG")
    sources, _ = inputs.find([tmp_path / "odd"])
    assert next(sources[0].frames()).read().size == (160, 120)


def test_a_turned_photo_is_made_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    sources, _ = inputs.find([tmp_path / "a.jpg"])
    assert next(sources[0].frames()).read().size == (120, 160)


def test_standard_input(monkeypatch):
    content = io.BytesIO()
    picture().save(content, format="PNG")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.getvalue())))
    sources, _ = inputs.find(["-"])
    assert next(sources[0].frames()).read().size == (160, 120)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(MrtError, match="no image in it"):
        next(inputs.find(["-"])[0][0].frames()).read()


def test_a_video_gives_its_frames_by_number_and_time(tmp_path):
    path = make_video(tmp_path / "clip.mp4")
    facts = describe(path)
    assert (facts.width, facts.height, facts.rate, facts.frames) == (160, 120, 10, 12)
    sources, _ = inputs.find([path], every=5)
    assert (sources[0].kind, sources[0].total, sources[0].rate) == ("video", 3, 2.0)
    frames = list(sources[0].frames())
    assert [frame.number for frame in frames] == [0, 5, 10]
    assert [round(frame.seconds, 3) for frame in frames] == [0, 0.5, 1.0]
    red = frames[2].read().getpixel((70, 40))
    assert red[0] > 200 and max(red[1:]) < 60  # it has moved by 40 pixels


def test_other_files_are_told_of_where_there_are_only_videos(tmp_path):
    make_video(tmp_path / "clip.mp4")
    (tmp_path / "notes.txt").write_text("x")
    sources, _ = inputs.find([tmp_path])
    assert [source.kind for source in sources] == ["video"]
    assert [Path(name).name for name in sources[0].passed_over] == ["notes.txt"]


def test_broken_videos_are_named_and_the_rest_is_looked_at(tmp_path, photos):
    (tmp_path / "junk.mp4").write_bytes(b"nothing")
    sources, broken = inputs.find([tmp_path / "junk.mp4", photos])
    assert [source.kind for source in sources] == ["images"]
    assert len(broken) == 1 and "junk.mp4: cannot be read as a video" in broken[0].message


def test_a_video_that_was_cut_short_gives_what_it_has(tmp_path):
    whole = tmp_path / "whole.mkv"
    writer = VideoWriter(whole, 10)
    for number in range(60):
        writer.add(picture(red=[(number, 20, 40 + number, 60)]))
    writer.close()
    content = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    sources, broken = inputs.find([tmp_path / "cut.mkv"])
    assert not broken
    seen = 0
    with pytest.raises(
        MrtError, match=r"cannot be read to its end|ends after \d+ of 60 frames: it is cut short"
    ):
        for _ in sources[0].frames():
            seen += 1
    assert 0 < seen < 60
    assert len(names(whole, every=7)) == 9


def test_a_header_that_counts_half_frames_raises_no_alarm(tmp_path, monkeypatch):
    place = make_video(tmp_path / "whole.mkv", frames=20)
    facts = video.describe(place)
    assert facts.rate == 10
    monkeypatch.setattr(video, "describe", lambda path: replace(facts, frames=40, rate=20))
    assert len(names(place)) == 20
    monkeypatch.setattr(video, "describe", lambda path: replace(facts, frames=40))
    with pytest.raises(MrtError, match="ends after 20 of 40 frames"):
        names(place)


def test_a_camera_that_is_not_there():
    sources, _ = inputs.find(["97"])
    assert sources[0].kind == "camera"
    with pytest.raises(MrtError, match="camera 97"):
        next(sources[0].frames())


def test_a_folder_whose_name_is_a_number_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("3").mkdir()
    picture().save("3/a.png")
    assert names("3") == ["a.png"]


@pytest.mark.parametrize("word", ["nothing.jpg", "no/such/folder"])
def test_what_is_not_there_is_said(word):
    with pytest.raises(MrtError, match="no such file or folder"):
        inputs.find([word])


def test_a_near_name_is_offered_and_a_folder_of_other_files_is_said(photos, tmp_path):
    with pytest.raises(MrtError) as error:
        inputs.find([photos / "bb.png"])
    assert f"did you mean {photos / 'b.png'}?" in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("x")
    with pytest.raises(MrtError) as error:
        inputs.find([empty])
    assert "no images or videos; found 1 other files" in str(error.value)


def test_a_video_that_was_filmed_on_its_side_is_made_upright(tmp_path):
    """A phone held upright stores rotated frames, and a matrix that turns them clockwise.

    The matrix is in the track's header (ISO 14496-12, 8.3.2).
    """
    writer = VideoWriter(tmp_path / "phone.mp4", 10)
    for _ in range(3):
        writer.add(picture((160, 120), red=[(0, 0, 60, 40)]))  # red at the top left
    writer.close()
    content = bytearray((tmp_path / "phone.mp4").read_bytes())
    # After version, five numbers, a reserved one, and the fields from layer to volume.
    matrix = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0]
    for place, number in enumerate(turned):
        content[matrix + 4 * place : matrix + 4 * place + 4] = number.to_bytes(4, "big", signed=True)
    (tmp_path / "phone.mp4").write_bytes(content)
    sources, _ = inputs.find([tmp_path / "phone.mp4"])
    upright = next(sources[0].frames()).read()
    assert upright.size == (120, 160)
    red, grey = upright.getpixel((110, 20)), upright.getpixel((10, 20))  # now at the top right
    assert red[0] > 200 and max(red[1:]) < 60 and max(grey) - min(grey) < 20
