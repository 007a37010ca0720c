"""Foggy Cityscapes: its levels and packages, and fog that is made from disparities."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from cityscapes_tree import (
    CITYSCAPES_BOXES,
    cityscapes_frame,
    cityscapes_ids,
    write_array,
    write_json,
    zip_tree,
)
from PIL import Image

from mrt.data.card import read_card
from mrt.data.check import check_set
from mrt.data.convert import fog
from mrt.data.convert.foggy import recipe
from mrt.data.convert.recipe import Skipped, prepare
from mrt.errors import MrtError

FRAMES = (
    ("train", "aachen", "aachen_000000_000019"),
    ("train", "ulm", "ulm_000000_000019"),
    ("val", "bonn", "bonn_000000_000019"),
)
BETAS = ("0.005", "0.01", "0.02")


def foggy_tree(root, package="foggy", betas=BETAS, frames=FRAMES):
    for split, city, name in frames:
        cityscapes_frame(root, split, city, name)
        for beta in betas:
            grey = round(20000 * float(beta)) % 256
            path = (
                root / f"leftImg8bit_{package}" / split / city / f"{name}_leftImg8bit_foggy_beta_{beta}.png"
            )
            write_array(path, np.full((32, 64, 3), grey, np.uint8))
    return root


def files(card, split):
    return [entry["file_name"] for entry in json.loads(card.annotations_path(split).read_text())["images"]]


def boxes(card, split, image_id):
    coco = json.loads(card.annotations_path(split).read_text())
    return [
        (card.classes[a["category_id"] - 1], tuple(a["bbox"]), a["area"], bool(a["iscrowd"]))
        for a in coco["annotations"]
        if a["image_id"] == image_id
    ]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("beta", BETAS)
def test_one_level(tmp_path, beta, zipped):
    raw = [foggy_tree(tmp_path / "raw")]
    if zipped:
        raw = [
            zip_tree(raw[0], tmp_path / "leftImg8bit_trainvaltest_foggy.zip", ["leftImg8bit_foggy"]),
            zip_tree(raw[0], tmp_path / "gtFine_trainvaltest.zip", ["gtFine"]),
        ]
    card, warnings = prepare(
        recipe(raw, tmp_path / "data", fog_beta=beta), tmp_path / "data", "foggy", workers=1
    )
    assert check_set(card, workers=1) == []
    assert files(card, "train") == [
        f"{city}/{name}_leftImg8bit_foggy_beta_{beta}.png" for split, city, name in FRAMES if split == "train"
    ]
    assert boxes(card, "train", 1) == boxes(card, "train", 2) == boxes(card, "val", 1) == CITYSCAPES_BOXES
    assert card.domain == "fog"
    assert {key: card.details[key] for key in ("fog_beta", "simulated", "package")} == {
        "fog_beta": beta,
        "simulated": False,
        "package": "leftImg8bit_foggy",
    }
    assert "note" not in card.details
    assert warnings == [
        "train: 2 images instead of the official 2975",
        "val: 1 images instead of the official 500",
    ]


def test_the_default_is_the_benchmarks_level(tmp_path):
    made = recipe([foggy_tree(tmp_path / "raw")], tmp_path / "data")
    assert made.details["fog_beta"] == "0.02"
    assert all(job.file.endswith("beta_0.02.png") for split in made.splits.values() for job in split.jobs)


def test_all_levels_are_another_benchmark_and_the_card_says_so(tmp_path):
    card, warnings = prepare(
        recipe([foggy_tree(tmp_path / "raw")], tmp_path / "data", fog_beta="all"),
        tmp_path / "data",
        "foggy",
        workers=1,
    )
    assert files(card, "val") == [
        f"bonn/bonn_000000_000019_leftImg8bit_foggy_beta_{beta}.png" for beta in BETAS
    ]
    assert card.split("train").num_images == 6
    assert card.details["fog_beta"] == "all" and "not the benchmark" in card.details["note"]
    assert warnings == [
        "train: 6 images instead of the official 8925",
        "val: 3 images instead of the official 1500",
    ]


def test_of_two_packages_one_is_taken_and_named(tmp_path):
    raw = foggy_tree(foggy_tree(tmp_path / "raw"), "foggyDBF")
    made = recipe([raw], tmp_path / "data")
    assert made.details["package"] == "leftImg8bit_foggy"
    assert made.details["packages_there"] == ["leftImg8bit_foggy", "leftImg8bit_foggyDBF"]
    assert made.splits["val"].images == raw / "leftImg8bit_foggy" / "val"
    made = recipe([raw], tmp_path / "data", package="foggyDBF")
    assert made.details["package"] == "leftImg8bit_foggyDBF"
    assert made.splits["val"].images == raw / "leftImg8bit_foggyDBF" / "val"


def test_the_package_is_known_from_the_folder_itself(tmp_path):
    raw = foggy_tree(tmp_path / "raw", "foggyDBF")
    made = recipe([raw / "leftImg8bit_foggyDBF", raw / "gtFine"], tmp_path / "data")
    assert made.details["package"] == "leftImg8bit_foggyDBF"


def test_a_frame_without_image_or_labels_is_skipped(tmp_path):
    raw = foggy_tree(tmp_path / "raw")
    (raw / "leftImg8bit_foggy/train/ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.02.png").unlink()
    (raw / "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json").unlink()
    card, warnings = prepare(recipe([raw], tmp_path / "data"), tmp_path / "data", "foggy", workers=1)
    assert card.split("train").skipped == {"labels missing": 1, "image missing": 1}
    assert (
        "train: 1 left out: image missing, the first is ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.02.png"
        in warnings
    )


def test_levels_packages_and_labels_that_are_not_there(tmp_path):
    raw = foggy_tree(tmp_path / "raw", betas=("0.01",))
    with pytest.raises(MrtError, match=r"leftImg8bit_foggy have no level 0\.02") as caught:
        recipe([raw], tmp_path / "data")
    assert "There are: 0.01." in caught.value.hint
    with pytest.raises(MrtError, match=r"no level 0\.005, 0\.02"):
        recipe([raw], tmp_path / "data", fog_beta="all")
    with pytest.raises(MrtError, match="only of leftImg8bit_foggy"):
        recipe([raw], tmp_path / "data", fog_beta="0.01", package="foggyDBF")
    with pytest.raises(MrtError) as caught:
        recipe([raw / "leftImg8bit_foggy"], tmp_path / "data", fog_beta="0.01")
    assert "gtFine_trainvaltest.zip" in caught.value.hint and "cityscapes-dataset.com" in caught.value.hint
    with pytest.raises(MrtError) as caught:
        recipe([raw / "gtFine"], tmp_path / "data")
    assert "leftImg8bit_trainvaltest_foggy.zip" in caught.value.hint


@pytest.mark.parametrize(
    "options", [{"fog_beta": "0.03"}, {"package": "thick"}, {"package": "foggy", "simulate": True}]
)
def test_options_that_cannot_be(tmp_path, options):
    with pytest.raises(MrtError):
        recipe([foggy_tree(tmp_path / "raw")], tmp_path / "data", **options)


# Fog that is made here

BASELINE, FOCAL = 0.25, 2000.0


def simulation_tree(root, disparity=None, frames=FRAMES):
    """Frames of noise, by default 40 m away everywhere: disparity 12.5, stored as 12.5 * 256 + 1."""
    rng = np.random.default_rng(0)
    for split, city, name in frames:
        cityscapes_frame(root, split, city, name)
        write_array(
            root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
            rng.integers(0, 200, (32, 64, 3), dtype=np.uint8),
        )
        stored = np.full((32, 64), 3201, np.uint16) if disparity is None else disparity
        write_array(root / "disparity" / split / city / f"{name}_disparity.png", stored)
        camera = {
            "extrinsic": {"baseline": BASELINE, "pitch": 0.03},
            "intrinsic": {"fx": FOCAL, "fy": FOCAL, "u0": 31.0, "v0": 16.0},
        }
        write_json(root / "camera" / split / city / f"{name}_camera.json", camera)
    return root


@pytest.mark.parametrize("zipped", [False, True])
def test_simulated_fog_is_written_into_the_set(tmp_path, zipped):
    raw = [simulation_tree(tmp_path / "raw")]
    clear = Image.open(raw[0] / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png")
    clear = np.asarray(clear).astype(float)
    if zipped:
        raw = [
            zip_tree(raw[0], tmp_path / f"{part}_trainvaltest.zip", [part])
            for part in ("leftImg8bit", "gtFine", "disparity", "camera")
        ]
    root = tmp_path / "data"
    card, _ = prepare(recipe(raw, root, simulate=True), root, "foggy", workers=1)
    assert check_set(card, workers=1) == []
    assert read_card(root / "foggy").images_root("val") == root / "foggy" / "images" / "val"
    assert boxes(card, "val", 1) == CITYSCAPES_BOXES
    assert card.details["simulated"] is True and "sRGB" in card.details["light"]
    assert [path.name for path in root.iterdir()] == ["foggy"]

    foggy = np.asarray(Image.open(root / "foggy" / "images" / "val" / files(card, "val")[0])).astype(float)
    light = fog.atmospheric_light(clear.astype(np.uint8)).astype(float)
    seen = math.exp(-0.02 * 40)
    expected = clear * seen + light * (1 - seen)
    expected[cityscapes_ids() == 23] = light
    assert np.abs(foggy - expected).max() <= 0.5 + 1e-3  # rounded to whole numbers, computed in float32


def test_holes_are_filled_by_the_labels_and_never_from_the_sky(tmp_path):
    stored = np.full((32, 64), 3201, np.uint16)
    stored[:, :30] = 257  # in the sky, 500 m
    stored[:, 30:34] = 0  # a pole, not measured: what is behind it
    stored[:, 40], stored[:, 41:44] = 6401, 0  # a pole, measured in its first column: 20 m
    raw = simulation_tree(tmp_path / "raw", stored, FRAMES[2:])
    ids = np.full((32, 64), 11, np.uint16)
    ids[:, :30], ids[:, 30:34], ids[:, 40:44] = 23, 17, 17
    write_array(raw / "gtFine/val/bonn/bonn_000000_000019_gtFine_instanceIds.png", ids)
    split = recipe([raw], tmp_path / "data", simulate=True).splits["val"]
    picture = split.convert(split.jobs[0], folder=tmp_path / "out")
    clear = np.asarray(Image.open(raw / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png"))
    light = fog.atmospheric_light(clear)
    seen = np.full((32, 64), math.exp(-0.02 * 40), np.float32)
    seen[:, :30], seen[:, 40:44] = 0, math.exp(-0.02 * 20)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "out" / picture.file)), fog.add_fog(clear, seen, light)
    )


def test_all_levels_simulated(tmp_path):
    made = recipe([simulation_tree(tmp_path / "raw")], tmp_path / "data", simulate=True, fog_beta="all")
    card, warnings = prepare(made, tmp_path / "data", "foggy", workers=2)
    assert files(card, "val") == [
        f"bonn/bonn_000000_000019_leftImg8bit_foggy_beta_{beta}.png" for beta in BETAS
    ]
    assert warnings == [
        "train: 6 images instead of the official 8925",
        "val: 3 images instead of the official 1500",
    ]
    spread = [np.asarray(Image.open(card.images_root("val") / file))[3:].std() for file in files(card, "val")]
    assert spread[0] > spread[1] > spread[2]


def test_what_fog_cannot_be_made_of_is_skipped(tmp_path):
    frames = [("val", "bonn", f"bonn_{number}") for number in range(8)]
    raw = simulation_tree(tmp_path / "raw", frames=frames)
    disparity, camera = raw / "disparity/val/bonn", raw / "camera/val/bonn"
    (disparity / "bonn_0_disparity.png").unlink()
    (camera / "bonn_1_camera.json").unlink()
    (raw / "gtFine/val/bonn/bonn_2_gtFine_polygons.json").unlink()
    whole = (disparity / "bonn_3_disparity.png").read_bytes()
    (disparity / "bonn_3_disparity.png").write_bytes(whole[: len(whole) // 2])
    write_array(disparity / "bonn_4_disparity.png", np.ones((32, 63), np.uint16))
    write_array(disparity / "bonn_5_disparity.png", np.zeros((32, 64), np.uint16))
    write_array(disparity / "bonn_6_disparity.png", np.ones((32, 64), np.uint8))
    card, _ = prepare(recipe([raw], tmp_path / "data", simulate=True), tmp_path / "data", "foggy", workers=1)
    skipped = card.split("val").skipped
    reasons = {key: skipped[key] for key in skipped if "missing" in key or "disparity" in key}
    assert reasons == {
        "disparity missing": 1,
        "camera missing": 1,
        "labels missing": 1,
        "disparity cut short or unreadable": 2,
        "disparity size differs from the image's": 1,
        "disparity without a measurement": 1,
    }
    assert files(card, "val") == ["bonn/bonn_7_leftImg8bit_foggy_beta_0.02.png"]


@pytest.mark.parametrize("part", ["disparity", "camera", "leftImg8bit", "gtFine"])
def test_simulation_asks_for_the_missing_archive(tmp_path, part):
    raw = simulation_tree(tmp_path / "raw")
    given = [raw / name for name in ("disparity", "camera", "leftImg8bit", "gtFine") if name != part]
    with pytest.raises(MrtError) as caught:
        recipe(given, tmp_path / "data", simulate=True)
    assert f"{part}_trainvaltest.zip" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"intrinsic": {"fx": 2000}}, r"extrinsic\.baseline is None"),
        ({"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": "wide"}}, r"intrinsic\.fx is 'wide'"),
        ({"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": float("nan")}}, r"intrinsic\.fx is nan"),
        ({"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 2000}}, r"extrinsic\.baseline is 0"),
        ([], r"extrinsic\.baseline is None"),
    ],
)
def test_a_camera_file_that_cannot_be_used_is_named(tmp_path, content, message):
    raw = simulation_tree(tmp_path / "raw")
    write_json(raw / "camera/val/bonn/bonn_000000_000019_camera.json", content)
    with pytest.raises(MrtError, match=r"bonn_000000_000019_camera\.json: " + message):
        prepare(recipe([raw], tmp_path / "data", simulate=True), tmp_path / "data", "foggy", workers=1)
    assert list((tmp_path / "data").iterdir()) == []


def test_disparities_as_the_owners_store_them():
    stored = np.array([[0, 1, 257, 65535]], np.uint16)
    assert np.array_equal(
        fog.disparities(stored), np.array([[np.nan, 0, 1, 65534 / 256]], np.float32), equal_nan=True
    )


def test_holes_take_the_farther_neighbour_or_that_of_the_same_region():
    nan = np.nan
    disparity = np.array(
        [[nan, nan, nan, nan, nan, nan], [nan, 8, nan, nan, 2, nan], [8, nan, nan, nan, nan, 2], [nan] * 6],
        np.float32,
    )
    regions = np.array([[1] * 6, [1, 1, 2, 3, 3, 1], [1, 1, 1, 4, 9, 9], [1] * 6])
    middle = [8, 8, 2, 2, 2, 2]
    below = [8, 8, 8, 2, 2, 2]
    assert fog.fill_holes(disparity, regions).tolist() == [middle, middle, below, below]
    with pytest.raises(ValueError, match="no disparity"):
        fog.fill_holes(np.full((2, 2), nan), np.zeros((2, 2)))


def test_transmission_follows_depth():
    disparity = np.array([[0, 1, 10, 10]], np.float32)
    sky = np.array([[False, False, False, True]])
    clear = fog.transmission(disparity, 0.25, 2000, 0.01, sky)
    # depths: infinite, 500 m, 50 m, sky; float32
    assert clear == pytest.approx(np.array([[0, math.exp(-5), math.exp(-0.5), 0]]), rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 50), (15, 15), (7, 30), (1, 1)])
def test_the_dark_channel_is_the_smallest_of_its_patch(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    dark = fog.dark_channel(image)
    for y in range(shape[0]):
        for x in range(shape[1]):
            assert dark[y, x] == image[max(y - 7, 0) : y + 8, max(x - 7, 0) : x + 8].min()


def test_the_light_is_the_skys_not_a_lamps():
    image = np.full((200, 300, 3), 60, np.uint8)
    # in the corner: 6 x 10 patches without anything else, 0.1 % of the image
    image[:13, :17] = (180, 190, 200)
    image[150:153, 40:43] = 255  # a lamp: smaller than a patch, so dark in the dark channel
    image[1:3, 1:3] = 255  # a glint in the sky: the brightest of the candidates, not the middle one
    assert fog.atmospheric_light(image).tolist() == [180, 190, 200]


def test_fog_is_a_blend_and_rounds():
    image = np.array([[[0, 100, 255], [10, 20, 30]]], np.uint8)
    foggy = fog.add_fog(image, np.array([[0.5, 0]], np.float32), np.array([255, 200, 101], np.uint8))
    assert foggy.tolist() == [[[128, 150, 178], [255, 200, 101]]]
    assert np.array_equal(
        fog.add_fog(image, np.ones((1, 2), np.float32), np.array([255, 200, 101], np.uint8)), image
    )


def test_a_skip_names_the_picture(tmp_path):
    raw = simulation_tree(tmp_path / "raw")
    (raw / "disparity/val/bonn/bonn_000000_000019_disparity.png").unlink()
    split = recipe([raw], tmp_path / "data", simulate=True).splits["val"]
    assert split.convert(split.jobs[0], folder=tmp_path / "out") == Skipped(
        "disparity missing", "bonn/bonn_000000_000019_leftImg8bit_foggy_beta_0.02.png"
    )
    assert not (tmp_path / "out").exists()
