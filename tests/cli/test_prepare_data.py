"""`mrt prepare-data` for real files: messages, remembered settings, and use of the sets by other commands."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
from command_line import TINY, mrt, refused
from PIL import Image


@pytest.fixture
def photos(somewhere):
    """A folder with twelve photographs and a COCO file for ten of them; nine of these have two boxes each."""
    folder = somewhere / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    categories = [{"id": 7, "name": "auto"}, {"id": 9, "name": "person"}]
    images = [{"id": number, "file_name": f"{number}.png", "width": 96, "height": 64} for number in range(10)]
    annotations = [
        {
            "id": 2 * number + k,
            "image_id": number,
            "category_id": category,
            "bbox": [5 + 40 * k, 8, 30, 40],
            "area": 1200,
            "iscrowd": 0,
        }
        for number in range(9)
        for k, category in enumerate((7, 9))
    ]
    empty = {"bbox": [10, 10, 0, 5], "area": 0, "iscrowd": 0}
    annotations.append({"id": 99, "image_id": 3, "category_id": 7, **empty})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def prepare(*words):
    result = mrt("prepare-data", *words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_coco_folder_becomes_a_set(photos, somewhere):
    words = ["--val-share", 0.3, "--map-class", "auto=car", "--preview", 4]
    said = prepare("custom", "--raw", photos, "--name", "mine", *words)
    card = json.loads((somewhere / "data" / "mine" / "dataset.json").read_text())
    assert sorted(card["classes"]) == ["car", "person"] and set(card["splits"]) == {"train", "val"}
    assert sum(split["num_images"] for split in card["splits"].values()) == 10
    assert "left out: 1 x box without area" in said
    assert Image.open(somewhere / "data" / "mine" / "preview.png").size[0] > 300
    assert (somewhere / "data" / "mine" / "preview-val.png").is_file()
    assert "exists already" in refused("prepare-data", "custom", "--raw", photos, "--name", "mine")
    prepare("custom", "--raw", photos, "--name", "mine", "--overwrite")


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(photos, somewhere):
    before = sorted(somewhere.rglob("*"))
    said = prepare("custom", "--raw", photos, "--dry-run", "--val-share", 0.3)
    assert "photos: photos would be read as coco" in said
    assert "note: 2 images are in no annotation file and left out: 10.png, 11.png" in said
    assert "warning: train: 1 of 13 annotation records (8 %) gave no box: 1 x box without area" in said
    assert "photos train: boxes by class: auto 6, person 6" in said
    assert "photos val: 3 images (0 without objects), 6 boxes" in said
    assert "Nothing was written" in said and sorted(somewhere.rglob("*")) == before
    shutil.make_archive(str(somewhere / "packed"), "gztar", photos)
    said = prepare("custom", "--raw", somewhere / "packed.tar.gz", "--name", "mine", "--dry-run")
    assert "10 images" in said
    assert not (somewhere / "data").exists(), "unpacked archives are removed as well"
    (photos / "train.json").write_text("{")
    assert "not valid JSON" in refused("prepare-data custom --name mine --dry-run", "--raw", photos)


def test_a_dry_run_of_what_would_be_refused(photos):
    content = json.loads((photos / "train.json").read_text())
    content["annotations"] = [{**entry, "iscrowd": 1} for entry in content["annotations"]]
    (photos / "train.json").write_text(json.dumps(content))
    said = prepare("custom", "--raw", photos, "--name", "mine", "--dry-run")
    assert "It would be refused: no box counts" in said
    assert "--allow-empty" in refused("prepare-data", "custom", "--raw", photos, "--name", "mine")
    assert "0 boxes, 18 ignored" in prepare("custom", "--raw", photos, "--name", "mine", "--allow-empty")


def test_a_large_image_needs_a_word_and_is_read_afterwards(somewhere):
    folder = somewhere / "large"
    folder.mkdir()
    Image.new("1", (20000, 9000)).save(folder / "huge.png")
    Image.new("RGB", (60, 40)).save(folder / "small.png")
    said = prepare("custom", "--raw", folder, "--name", "mine")
    assert "1 left out: image with more pixels than are read, the first is huge.png (20000x9000; " in said
    assert "--max-pixels 180000000)" in said
    words = ["--overwrite", "--max-pixels", 180_000_000]
    assert "2 images" in prepare("custom", "--raw", folder, "--name", "mine", *words)
    assert "is as it was made" in prepare("mine", "--check")


def test_check_finds_what_changed(photos, somewhere):
    prepare("custom", "--raw", photos, "--name", "mine")
    said = prepare("mine", "--check")
    assert "is as it was made" in said and "check mine: 10/10" in said
    assert "is as it was made" in prepare("--check")
    (photos / "4.png").unlink()
    told = refused("prepare-data", "mine", "--check")
    assert "1 of 10 images are missing" in told and "4.png" in told and "--overwrite" in told
    assert "add --check" in refused("prepare-data", "mine")
    assert "unknown data set" in refused("prepare-data", "mime", "--check")
    assert "unknown data set" in refused("prepare-data prepared --check")  # the hidden command's own name
    told = refused("prepare-data custom --name mine --check", "--data-root", somewhere / "new")
    assert "there is no set mine in" in told
    assert not (somewhere / "new").exists()  # though the raw files are remembered
    assert "is as it was made" not in prepare("--preview", 2, "--data-root", somewhere / "data")
    assert (somewhere / "data" / "mine" / "preview.png").is_file()
    assert "of which data set" in refused("prepare-data", "--data-root", somewhere / "data")


def test_raw_files_and_the_data_root_are_remembered(photos, somewhere, monkeypatch):
    root = somewhere / "elsewhere"
    prepare("custom", "--raw", photos, "--name", "mine", "--data-root", root)
    prepare("custom", "--name", "mine", "--overwrite")  # neither is named
    assert (root / "mine" / "dataset.json").is_file() and not (somewhere / "data").exists()
    (somewhere / "data").mkdir()  # a data folder right here comes first
    assert "no prepared set" in refused("prepare-data", "--check")
    monkeypatch.setenv("MRT_DATA_ROOT", str(root))
    assert "is as it was made" in prepare("--check")
    monkeypatch.delenv("MRT_DATA_ROOT")
    (somewhere / "config" / "mrt" / "settings.json").write_text("{broken")
    told = refused("prepare-data custom --name mine", "--data-root", somewhere / "new")
    assert "where are its files" in told


def test_a_home_that_cannot_be_written_is_no_obstacle(photos, somewhere, monkeypatch):
    (somewhere / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(somewhere / "file"))
    prepare("custom", "--raw", photos, "--name", "mine", "--data-root", somewhere / "data")


def test_from_zip_to_an_adapted_detector_on_a_bare_folder(photos, somewhere):
    with zipfile.ZipFile(somewhere / "photos.zip", "w") as archive:
        for path in photos.iterdir():
            archive.write(path, path.name)
    frames = somewhere / "frames"
    shutil.copytree(photos, frames)
    (frames / "train.json").unlink()
    shutil.rmtree(photos)  # images are read in the archive
    prepare("custom", "--raw", "photos.zip", "--name", "day")
    assert "12 images, no labels" in prepare("custom", "--raw", frames, "--name", "camera")
    common = ("--preset", "small", "--source", "day", "--target", "camera")
    result = mrt("pretrain-source", *common, "--name", "s", "--set", *TINY, "init=none")
    assert result.exit_code == 0, result.output
    result = mrt("adapt", *common, "--init", "s", "--name", "a", "--set", *TINY)
    assert result.exit_code == 0, result.output
    facts = json.loads((somewhere / "runs" / "a" / "run.json").read_text())
    card = json.loads((somewhere / "data" / "camera" / "dataset.json").read_text())
    assert facts["data"]["target"]["sha256"]["train"] == card["splits"]["train"]["sha256"]
    told = mrt("eval a --data day --split train --map-class person=auto auto=person")
    assert told.exit_code == 0 and "│ auto " in told.output
    assert "no labels to evaluate on" in refused("eval", "a")


def test_the_benchmarks_sets(somewhere):
    """Fewer images of them, under their own names and in their own size; the small world's are others."""
    said = prepare("synthetic", "--benchmark", "--train", 1, "--val", 0, "--test", 0, "--workers", 1)
    for world in ("clear", "foggy", "night", "rain"):
        card = json.loads((somewhere / "data" / f"synth-{world}" / "dataset.json").read_text())
        assert card["domain"] == world and f"synth-{world}: train 1 images" in said
        (image,) = (somewhere / "data" / f"synth-{world}").rglob("*.jpg")
        assert Image.open(image).size == (384, 192)
    assert not (somewhere / "data" / "synthetic-clear").exists()
    assert "--overwrite" in refused("prepare-data synthetic --benchmark --domain foggy")
    (somewhere / "data" / "synth-night").rename(somewhere / "aside")
    message = refused("prepare-data synthetic --benchmark")
    assert "synth-clear: exists already" in message and "missing with --domain night, replace" in message


def test_frames_of_a_video_become_a_target_set(somewhere, monkeypatch):
    pytest.importorskip("av")
    from mrt.predict.video import VideoWriter

    rng = np.random.default_rng(0)
    writer = VideoWriter(somewhere / "clip.mp4", 2)
    for _ in range(24):
        writer.add(Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((96, 64)))
    writer.close()
    said = prepare("custom", "--raw", "clip.mp4", "--every", "1s", "--name", "camera")
    assert "note: 12 frames of 1 video (12 s), one every 1 s" in said
    assert "camera train: 9 images, no labels" in said and "left out: 1 x between train and val" in said
    assert "camera val: 2 images" in said and "mrt adapt --target camera --init small-source" in said
    told = refused("prepare-data custom --raw clip.mp4 --name other --every soon")
    assert "--every soon: expected a time" in told and not (somewhere / "data" / "other").exists()
