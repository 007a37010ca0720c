"""`mrt prepare-data acdc`, `kitti`, `cfc`: names of the sets, options, and messages about missing files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import mrt, refused
from PIL import Image


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)


def coco(path, files, categories, box=(1, 2, 10, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": file, "width": 40, "height": 30} for n, file in enumerate(files)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": list(box)} for n, _ in enumerate(files)]
    names = [{"id": n, "name": name} for n, name in enumerate(categories, start=1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))


@pytest.fixture
def acdc(somewhere):
    """rgb_anon and gt_detection with one image of each condition and split."""
    for split in ("train", "val"):
        files = [f"{condition}/{split}/a/a_1_rgb_anon.png" for condition in ("fog", "night")]
        for file in files:
            picture(somewhere / "acdc" / "rgb_anon" / file)
        coco(somewhere / "acdc" / "gt_detection" / f"instancesonly_{split}_gt_detection.json", files, ["car"])
    return somewhere / "acdc"


def prepare(*words):
    result = mrt("prepare-data", *words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_condition_names_the_set(acdc, somewhere):
    said = prepare("acdc", "--raw", acdc, "--condition", "fog")
    assert "acdc-fog train: 1 images" in said and "1 images instead of the official 400" in said
    prepare("acdc", "--condition", "night", "fog", "--classes", "car")  # the raw files are remembered
    prepare("acdc")
    names = sorted(folder.name for folder in (somewhere / "data").iterdir())
    assert names == ["acdc", "acdc-fog", "acdc-night-fog"]
    card = json.loads((somewhere / "data" / "acdc-night-fog" / "dataset.json").read_text())
    assert (card["classes"], card["splits"]["train"]["num_images"]) == (["car"], 2)
    assert "is as it was made" in prepare("acdc", "--condition", "fog", "--check")
    (acdc / "rgb_anon" / "fog" / "val" / "a" / "a_1_rgb_anon.png").unlink()
    assert "1 of 1 images are missing" in refused("prepare-data", "acdc-fog", "--check")
    assert "condition is 'hail'" in refused("prepare-data", "acdc", "--condition", "hail", "--raw", acdc)


def test_a_location_names_the_set(somewhere):
    for name in ("cfc_channel_train", "cfc_channel_test"):
        picture(somewhere / "cfc" / name / f"{name}.jpg")
        coco(somewhere / "cfc" / f"{name}.json", [f"{name}.jpg"], ["fish"])
    raw = ["--raw", somewhere / "cfc"]
    assert "add --location kenai" in refused("prepare-data cfc", *raw)
    assert "--location bay: unknown" in refused("prepare-data cfc --location bay", *raw)
    assert "holds no cfc_train.json" in refused("prepare-data cfc --location kenai", *raw)
    said = prepare("cfc", *raw, "--location", "channel", "--preview", 1)
    assert "cfc-channel test: 1 images" in said
    assert "is as it was made" in prepare("cfc", "--location", "channel", "--check")
    named = [somewhere / "cfc" / "cfc_channel_train", somewhere / "cfc" / "cfc_channel_train.json"]
    prepare("cfc", "--raw", *named, "--location", "channel", "--name", "fish")


def test_kitti_is_cars_unless_asked(somewhere):
    folder = somewhere / "kitti" / "training"
    picture(folder / "image_2" / "000000.png")
    (folder / "label_2").mkdir()
    numbers = "0.00 0 1.85 1.00 2.00 9.00 12.00 1.5 1.6 3.7 -2.0 1.5 20.0 1.57"
    (folder / "label_2" / "000000.txt").write_text(f"Car {numbers}\nPedestrian {numbers}\n")
    said = prepare("kitti", "--raw", somewhere / "kitti")
    assert "kitti train: 1 images (0 without objects), 1 boxes" in said
    assert "is as it was made" in prepare("kitti", "--check")
    prepare("kitti", "--classes", "car", "person", "--overwrite")
    card = json.loads((somewhere / "data" / "kitti" / "dataset.json").read_text())
    assert card["classes"] == ["car", "person"]
    assert "KITTI has car, van" in refused("prepare-data", "kitti", "--classes", "bike", "--overwrite")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("acdc-snow", "acdc --condition snow"),
        ("acdc", "acdc --raw"),
        ("kitti", "kitti --raw"),
        ("cfc-kenai", "cfc --location kenai"),
    ],
)
def test_a_set_that_is_not_there_is_told_how_to_make(somewhere, name, command):
    told = refused("adapt", "--preset", "city2foggy", "--target", name, "--source", name)
    assert f"mrt prepare-data {command}" in told
