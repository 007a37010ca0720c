"""Reading prepared sets: what becomes a target, odd image files, bad annotations, class matching."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from mrt.data.dataset import DetectionDataset
from mrt.data.headers import read_header
from mrt.data.images import read_image
from mrt.data.transforms import Transform
from mrt.errors import MrtError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
BOX = {"image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8]}


def rewrite(card, change):
    """Apply ``change`` to the parsed annotation file."""
    file = card.annotations_path("train")
    coco = json.loads(file.read_text())
    change(coco)
    file.write_text(json.dumps(coco))


def test_an_item_without_transform_is_made_of_tv_tensors(small_set):
    dataset = DetectionDataset(small_set, "train")
    image, target, strong = dataset[1]
    assert len(dataset) == 7 and strong is None
    assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8 and image.shape == (3, 32, 40)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].tolist() == [
        [4, 3, 14, 11],
        [4, 3, 14, 12],
    ]
    assert target["labels"].tolist() == [0, 1] and target["image_id"] == 2
    assert target["original_size"] == (32, 40)


def test_images_without_boxes_stay(small_set):
    dataset = DetectionDataset(small_set, "train", transform=Transform("weak", [24], 64))
    target = dataset[2].target
    assert target["boxes"].shape == (0, 4) and target["labels"].dtype == torch.int64


def test_unlabelled_never_reads_boxes(make_set):
    card = make_set(
        "target", {1: PIXELS}, [BOX, {"image_id": 9, "category_id": 77, "bbox": "nonsense"}], ["car"]
    )
    dataset = DetectionDataset(card, "train", labelled=False)
    assert len(dataset[0].target["boxes"]) == 0
    bare = make_set("bare", {1: PIXELS}, [], [], labelled=False)
    assert DetectionDataset(bare, "train", classes=["car"]).labelled is False


def test_crowds_and_ignored_objects_are_no_targets_unless_asked_for(make_set):
    annotations = [BOX, {**BOX, "iscrowd": 1}, {**BOX, "ignore": 1, "category_id": 2}]
    card = make_set("crowd", {1: PIXELS}, annotations, ["car", "person"])
    assert DetectionDataset(card, "train")[0].target["labels"].tolist() == [0]
    target = DetectionDataset(card, "train", keep_ignored=True)[0].target
    assert target["ignore_boxes"].tolist() == [[2, 3, 12, 11]] * 2
    assert target["ignore_labels"].tolist() == [
        0,
        1,
    ]
    assert card.splits["train"].num_ignored == 2
    crowds = [a["iscrowd"] for a in DetectionDataset(card, "train").coco_ground_truth()["annotations"]]
    assert crowds == [0, 1, 1]


def test_boxes_without_area_or_number_are_counted(make_set):
    boxes = [[2, 3, 10, 8], [50, 3, 10, 8], [2, 3, 0, 8], [2, 3, 10, -1], [2, float("nan"), 10, 8]]
    dataset = DetectionDataset(
        make_set("bad", {1: PIXELS}, [{**BOX, "bbox": box} for box in boxes], ["car"]), "train"
    )
    assert len(dataset[0].target["boxes"]) == 1
    assert dataset.dropped == {"no area inside the image": 3, "not finite": 1}


def test_classes_are_matched_by_name(make_set):
    annotations = [{**BOX, "category_id": category} for category in (1, 2, 3, 3)]
    card = make_set("names", {1: PIXELS}, annotations, ["motor", "car", "dog"])
    dataset = DetectionDataset(
        card, "train", classes=["car", "motorcycle", "bus"], class_map={"motor": "motorcycle"}
    )
    assert dataset[0].target["labels"].tolist() == [1, 0]
    assert dataset.unmatched == {"dog": 2}
    assert [c["name"] for c in dataset.coco_ground_truth()["categories"]] == ["car", "motorcycle", "bus"]
    with pytest.raises(
        MrtError, match=r"none of its classes \(motor, car, dog\)(.|\n)*--map-class THEIRS=OURS"
    ):
        DetectionDataset(card, "train", classes=["tree"])
    for class_map, name in (({"motr": "car"}, "motr"), ({"motor": "boat"}, "boat")):
        with pytest.raises(MrtError, match=name):
            DetectionDataset(card, "train", classes=["car"], class_map=class_map)


def test_the_order_of_ids_and_categories_does_not_matter(make_set):
    card = make_set(
        "order", {7: PIXELS, 3: PIXELS}, [{**BOX, "image_id": 3, "category_id": 2}], ["car", "person"]
    )
    rewrite(card, lambda coco: coco["categories"].reverse())
    dataset = DetectionDataset(card, "train")
    assert [dataset[i].target["image_id"] for i in range(2)] == [7, 3]
    assert dataset[1].target["labels"].tolist() == [1]


def annotation(**other):
    return {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], **other}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda coco: coco["annotations"].append(annotation(image_id=99)), "annotation 5 .*99"),
        (lambda coco: coco["annotations"].append(annotation(category_id=9)), "annotation 5 .*9"),
        (lambda coco: coco["annotations"].append(annotation(bbox=[1, 1])), "annotation 5"),
        (lambda coco: coco["annotations"].append("text"), "text"),
        (lambda coco: coco["images"].append(dict(coco["images"][0])), "two images have the id 1"),
        (lambda coco: coco["images"][0].pop("height"), "height"),
        (lambda coco: coco["images"][0].update(file_name="../../etc/passwd"), "leads out"),
        (lambda coco: coco["images"][0].update(file_name="/etc/passwd"), "leads out"),
        (lambda coco: coco["images"].clear(), "no images"),
        (lambda coco: coco.pop("categories"), "not a COCO file"),
    ],
)
def test_bad_annotation_files_name_the_entry(make_set, change, words):
    card = make_set("bad", {1: PIXELS}, [BOX], ["car"])
    rewrite(card, change)
    with pytest.raises(MrtError, match=words) as error:
        DetectionDataset(card, "train")
    assert "train.json" in str(error.value)


def test_missing_cut_and_mismatched_images_are_named(make_set):
    card = make_set("images", {1: PIXELS, 2: PIXELS, 3: PIXELS}, [BOX], ["car"])
    folder = card.images_root("train")
    (folder / "0001.png").unlink()
    whole = (folder / "0003.png").read_bytes()
    (folder / "0002.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(PIXELS[:10]).save(folder / "0003.png")
    dataset = DetectionDataset(card, "train")
    for index, words in (
        (0, "no such image"),
        (1, "cannot be read"),
        (2, "30x10, its annotations are for 30x20"),
    ):
        with pytest.raises(MrtError, match=words) as error:
            dataset[index]
        assert f"000{index + 1}.png" in str(error.value)


def test_memory_cache_gives_the_same_items(small_set):
    plain, cached = (DetectionDataset(small_set, "train", cache=cache) for cache in (None, "ram"))
    cached.preload()
    expected = [plain[i].image for i in range(7)]
    for path in small_set.images_root("train").iterdir():
        path.unlink()
    assert all(torch.equal(cached[i].image, expected[i]) for i in range(7))
    with pytest.raises(MrtError, match="disk"):
        DetectionDataset(small_set, "train", cache="disk")


def test_augmenting_a_cached_image_leaves_the_cache_alone(small_set):
    dataset = DetectionDataset(small_set, "train", transform=Transform("pair", [24], 64), cache="ram")
    dataset.preload()
    before = [pixels.clone() for pixels in dataset._cache.values()]
    for _ in range(10):
        dataset[0]
    assert all(torch.equal(a, b) for a, b in zip(before, dataset._cache.values(), strict=True))


def test_odd_colour_modes_become_rgb(tmp_path):
    grey = np.linspace(0, 255, 600, dtype=np.uint8).reshape(20, 30)
    rgb = Image.fromarray(PIXELS)
    pictures = {
        "grey.png": Image.fromarray(grey),
        "palette.png": rgb.quantize(16),
        "alpha.png": rgb.convert("RGBA"),
        "one_bit.png": Image.fromarray(grey).convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "grey_alpha.png": Image.fromarray(grey).convert("LA"),
        "float.tif": Image.fromarray(grey.astype(np.float32) / 255),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.shape == (3, 20, 30) and image.dtype == torch.uint8, name
        assert int(image.max()) > 150, name
    for name in ("grey.png", "deep.png"):
        assert torch.equal(read_image(tmp_path / name)[1], torch.from_numpy(grey)), name
    assert torch.equal(read_image(tmp_path / "alpha.png").permute(1, 2, 0), torch.from_numpy(PIXELS))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", exif=exif)
    upright = (20, 30) if orientation < 5 else (30, 20)
    assert (
        tuple(read_image(tmp_path / "photo.png").shape[1:])
        == read_header(tmp_path / "photo.png").upright[::-1]
        == upright
    )
    assert tuple(read_image(tmp_path / "photo.png", upright).shape[1:]) == upright
    if orientation >= 5:
        stored = read_image(tmp_path / "photo.png", (20, 30))
        assert torch.equal(stored.permute(1, 2, 0), torch.from_numpy(PIXELS)), (
            "annotated as stored: not turned"
        )


def test_class_names_that_cannot_be_written_are_refused(tmp_path):
    """JSON may hold half a character, which no file or terminal takes."""
    import json

    from tiny_world import make_set

    from mrt.data.registry import find_dataset

    make_set(tmp_path, "clear", images=2)
    file = tmp_path / "clear" / "train.json"
    coco = json.loads(file.read_text())
    coco["categories"][0]["name"] = "a\udfff\ud800"
    file.write_text(json.dumps(coco))
    with pytest.raises(MrtError, match=r"categories.*half a character"):
        DetectionDataset(find_dataset("clear", tmp_path), "train")
