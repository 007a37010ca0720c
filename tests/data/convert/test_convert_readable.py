"""What the converters write is COCO that others can read: pycocotools, torchvision, and our own data set."""

from __future__ import annotations

import json
from functools import partial

import pytest
from cityscapes_tree import cityscapes_frame
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection
from trees import OWN_SETS as SETS
from trees import bdd_frame, voc_tree, write_image, write_text

from mrt.data.card import read_card
from mrt.data.check import check_set
from mrt.data.convert import acdc, bdd100k, cfc, cityscapes, custom, foggy, kitti, sim10k
from mrt.data.convert.recipe import prepare
from mrt.data.dataset import DetectionDataset


@pytest.mark.parametrize("kind", [*SETS, "images"])
def test_users_own_sets(tmp_path, kind):
    raw = SETS.get(kind, SETS["coco"])(tmp_path / "raw", images=3)
    prepare(custom.recipe([raw], tmp_path, format=kind, val_share=0.3), tmp_path, "own", workers=1)
    readable_by_others(read_card(tmp_path / "own"))


def cityscapes_raw(raw):
    for split, name in (("train", "aachen_000000_000019"), ("val", "bonn_000000_000019")):
        cityscapes_frame(raw, split, name.partition("_")[0], name)
        clear = raw / "leftImg8bit" / split / name.partition("_")[0] / f"{name}_leftImg8bit.png"
        foggy = (
            raw
            / "leftImg8bit_foggy"
            / split
            / name.partition("_")[0]
            / f"{name}_leftImg8bit_foggy_beta_0.02.png"
        )
        foggy.parent.mkdir(parents=True)
        foggy.write_bytes(clear.read_bytes())


def sim10k_raw(raw):
    voc_tree(raw / "VOC2012", {"1": [("car", 1, 1, 40, 30), ("motorbike", 2, 2, 9, 9)], "2": []})


def bdd100k_raw(raw):
    for split in ("train", "val"):
        frames = [
            bdd_frame("a.jpg", [("car", 1.25, 2, 9, 9.5), ("motor", -3, 2, 50, 9)]),
            bdd_frame("b.jpg", None),
        ]
        for frame in frames:
            write_image(raw / "images" / "100k" / split / frame["name"])
        write_text(raw / "labels" / f"bdd100k_labels_images_{split}.json", json.dumps(frames))


def acdc_raw(raw):
    categories = [{"id": 24, "name": "person"}, {"id": 26, "name": "car"}]
    boxes = [
        {"category_id": 26, "bbox": [1.5, 2, 9, 9.5]},
        {"category_id": 24, "bbox": [-3, 2, 50, 9], "iscrowd": 1, "area": 12},
    ]
    for split in ("train", "val"):
        images = [
            {"id": n, "file_name": f"{name}/{split}/a/a_{n}_rgb_anon.png"}
            for n, name in enumerate(acdc.CONDITIONS)
        ]
        annotations = [box | {"image_id": image["id"]} for image in images for box in boxes]
        for image in images:
            write_image(raw / "rgb_anon" / image["file_name"])
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(raw / "gt_detection" / f"instancesonly_{split}_gt_detection.json", json.dumps(content))


def kitti_raw(raw):
    for name in ("000000", "000001"):
        write_image(raw / "training" / "image_2" / f"{name}.png")
        write_text(
            raw / "training" / "label_2" / f"{name}.txt",
            "Car 0 0 0 1.25 2 9.5 12 1 1 1 1 1 1 1\nDontCare -1 -1 -10 1 1 5 5 -1 -1 -1 -1 -1 -1 -1\n",
        )


def cfc_raw(raw):
    for name in ("cfc_train", "cfc_val"):
        write_image(raw / name / f"{name}.jpg")
        images = [{"id": 7, "file_name": f"{name}.jpg", "width": 40, "height": 30}]
        annotations = [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1.5, 2, 9, 9.5], "area": 85.5, "iscrowd": 0}
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fish"}]}
        write_text(raw / f"{name}.json", json.dumps(content))


BENCHMARKS = {
    "cityscapes": (cityscapes.recipe, cityscapes_raw),
    "foggy": (foggy.recipe, cityscapes_raw),
    "sim10k": (sim10k.recipe, sim10k_raw),
    "bdd100k": (bdd100k.recipe, bdd100k_raw),
    "acdc": (acdc.recipe, acdc_raw),
    "kitti": (kitti.recipe, kitti_raw),
    "cfc": (partial(cfc.recipe, location="kenai"), cfc_raw),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(tmp_path, name):
    recipe, write = BENCHMARKS[name]
    write(tmp_path / "raw")
    prepare(recipe([tmp_path / "raw"], tmp_path), tmp_path, name, workers=1)
    readable_by_others(read_card(tmp_path / name))


def readable_by_others(card):
    """Each split of a prepared set, whose images are files, loads elsewhere with the same boxes as here."""
    assert check_set(card, workers=1) == []
    for split, part in card.splits.items():
        path, root = card.annotations_path(split), card.images_root(split)
        coco = COCO(path)
        content = json.loads(path.read_text())
        for key in ("images", "annotations", "categories"):
            assert [entry["id"] for entry in content[key]] == list(range(1, len(content[key]) + 1))
        assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(card.classes)
        theirs, ours = CocoDetection(root, path), DetectionDataset(card, split, keep_ignored=True)
        assert len(theirs) == len(ours) == part.num_images > 0
        for (picture, found), (image, target, _) in zip(theirs, ours, strict=True):
            assert (picture.height, picture.width) == image.shape[1:] == target["original_size"]
            boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in found if not a["iscrowd"])]
            # ours are float32
            assert target["boxes"].tolist() == [pytest.approx(box, abs=1e-4) for box in boxes]
            assert all(a["area"] > 0 and a["image_id"] == target["image_id"] for a in found)
        if content["annotations"]:
            assert (
                len(coco.loadRes([box_result(a) for a in content["annotations"]]).anns)
                == part.num_boxes + part.num_ignored
            )


def box_result(annotation):
    return {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
