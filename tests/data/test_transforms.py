"""Transforms against the recorded numbers, and the properties that training relies on."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from golden import assert_close
from torchvision.transforms.v2 import functional

from mrt.data import colour
from mrt.data.dataset import DetectionDataset
from mrt.data.transforms import (
    Region,
    Transform,
    crop_boxes,
    crop_pixels,
    denormalise,
    flip_boxes,
    normalise,
    resize,
    resized_size,
    strong_view,
)
from mrt.errors import MrtError


@pytest.fixture
def recorded(golden):
    return golden("transforms")


@pytest.fixture
def converted(recorded):
    """The golden image (3, 40, 50) uint8 and its three valid boxes."""
    image = torch.from_numpy(recorded["in/image_hwc_uint8"]).permute(2, 0, 1)
    return image, torch.from_numpy(recorded["convert/out/boxes"])


def hwc(image):
    return image.permute(1, 2, 0)


def test_resize_table(recorded):
    for width, height, side, max_size, new_width, new_height in recorded["resize_table"].tolist():
        assert resized_size(height, width, side, max_size) == (new_height, new_width)


def test_resize(recorded, converted):
    image, boxes = resize(*converted, (31, 39))
    assert np.array_equal(hwc(image).numpy(), recorded["resize32_39/out/image"])
    assert_close(boxes, recorded["resize32_39/out/boxes"])


def test_flip(recorded, converted):
    image, boxes = converted
    assert np.array_equal(hwc(image.flip(-1)).numpy(), recorded["hflip/out/image"])
    assert_close(flip_boxes(boxes, 50), recorded["hflip/out/boxes"])


def test_crop(recorded, converted):
    image, boxes = converted
    region = Region(*recorded["crop/in/region_tlhw"].tolist())
    moved, keep = crop_boxes(boxes, region)
    assert np.array_equal(hwc(crop_pixels(image, region)).numpy(), recorded["crop/out/image"])
    assert_close(moved[keep], recorded["crop/out/boxes"])
    assert recorded["convert/out/labels"][keep.numpy()].tolist() == recorded["crop/out/labels"].tolist()


@pytest.mark.parametrize(
    ("case", "short_side", "max_size", "flip"), [("base", 40, 50, 0.0), ("flip_resize_base", 32, 39, 1.0)]
)
def test_whole_weak_transform(recorded, converted, case, short_side, max_size, flip):
    image, boxes = converted
    labels = torch.from_numpy(recorded["convert/out/labels"])
    transform = Transform("weak", [short_side], max_size, flip=flip)
    sample = transform(image, {"boxes": boxes, "labels": labels}, random.Random(0))
    assert_close(sample.image, recorded[f"{case}/out/image"])
    assert_close(sample.target["boxes"], recorded[f"{case}/out/boxes"])
    assert sample.target["labels"].tolist() == recorded[f"{case}/out/labels"].tolist()
    assert list(sample.target["size"]) == recorded[f"{case}/out/size"].tolist()


def test_conversion_of_annotations(recorded, make_set):
    boxes = recorded["convert/in/bbox_xywh"].tolist()
    categories, crowds = recorded["convert/in/category_id"], recorded["convert/in/iscrowd"]
    annotations = []
    for box, category, crowd in zip(boxes, categories, crowds, strict=True):
        annotation = {"image_id": 77, "category_id": int(category), "bbox": box}
        annotations.append(annotation if crowd < 0 else {**annotation, "iscrowd": int(crowd)})
    classes = [f"class {index}" for index in range(1, 9)]
    card = make_set("convert", {77: recorded["in/image_hwc_uint8"]}, annotations, classes)
    dataset = DetectionDataset(card, "train")
    sample = dataset[0]
    assert_close(torch.as_tensor(sample.target["boxes"]), recorded["convert/out/boxes"])
    assert (sample.target["labels"] + 1).tolist() == recorded["convert/out/labels"].tolist()
    assert sample.target["image_id"] == 77 and sample.target["original_size"] == (40, 50)
    assert dataset.dropped == {"no area inside the image": 2}


def test_pair_shares_geometry_and_only_strong_changes_colour(converted):
    image, boxes = converted
    target = {"boxes": boxes, "labels": torch.arange(3)}
    transform = Transform("pair", [30, 36], 60, crop=True)
    for seed in range(20):
        pair = transform(image, target, random.Random(seed))
        weak = Transform("weak", [30, 36], 60, crop=True)(image, target, random.Random(seed))
        assert pair.strong.shape == pair.image.shape
        assert torch.equal(pair.image, weak.image) and torch.equal(pair.target["boxes"], weak.target["boxes"])
    assert torch.equal(target["boxes"], boxes), "a transform must not write into the dataset's boxes"


def test_crop_keeps_boxes_on_their_pixels():
    """A bright rectangle is found where its box says, whatever the cut, scale and mirror."""
    image = torch.zeros(3, 128, 256, dtype=torch.uint8)
    image[:, 40:80, 100:180] = 255
    target = {"boxes": torch.tensor([[100.0, 40, 180, 80]]), "labels": torch.tensor([0])}
    transform = Transform("weak", [96, 128], 256, crop=True)
    cropped = 0
    for seed in range(60):
        sample = transform(image, target, random.Random(seed))
        height, width = sample.target["size"]
        assert (sample.image.shape == (3, height, width) and min(height, width) in (96, 128)) or max(
            height, width
        ) == 256
        bright = denormalise(sample.image)[0] > 127
        cropped += bright.float().mean() != 40 * 80 / (128 * 256)
        if len(sample.target["boxes"]) == 0:
            assert not bright.any()
            continue
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        cx, cy, w, h = (sample.target["boxes"][0] * torch.tensor([width, height, width, height])).tolist()
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        for expected, actual in zip((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), found, strict=True):
            assert abs(expected - float(actual)) <= 1.5
    assert cropped > 10


def test_labels_follow_their_boxes_when_a_crop_drops_some():
    boxes = torch.tensor([[0.0, 0, 4, 4], [60, 30, 70, 40]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([3, 5]),
        "ignore_boxes": boxes.flip(0),
        "ignore_labels": torch.tensor([5, 3]),
    }
    transform = Transform("weak", [50], 100, crop=True)
    for seed in range(40):
        out = transform(torch.zeros(3, 50, 100, dtype=torch.uint8), target, random.Random(seed)).target
        lengths = {len(out[name]) for name in ("boxes", "labels", "ignore_boxes", "ignore_labels")}
        assert len(lengths) == 1
        assert out["labels"].tolist() == out["ignore_labels"].tolist()[::-1]


def test_eval_never_changes_anything_but_the_size(converted):
    image, boxes = converted
    transform = Transform("eval", [480, 80], 400, crop=True, flip=1.0)
    sample = transform(image, {"boxes": boxes, "labels": torch.arange(3)}, random.Random(0))
    assert sample.target["size"] == (80, 100)
    assert_close(sample.target["boxes"][0], [0.3, 0.275, 0.4, 0.25])


@pytest.mark.parametrize("shape", [(40, 56), (300, 700)])
def test_colour_agrees_with_torchvision(shape):
    image = torch.rand(3, *shape) * 255
    image[:, :5, :5] = 100.0  # grey has no hue
    cases = {
        "brightness": (
            colour.adjust_brightness(image.clone(), 1.3),
            functional.adjust_brightness(image / 255, 1.3),
        ),
        "contrast": (
            colour.adjust_contrast(image.clone(), 0.7),
            functional.adjust_contrast(image / 255, 0.7),
        ),
        "saturation": (
            colour.adjust_saturation(image.clone(), 1.4),
            functional.adjust_saturation(image / 255, 1.4),
        ),
        "hue": (colour.adjust_hue(image.clone(), -0.08), functional.adjust_hue(image / 255, -0.08)),
        "grey": (colour.grey_plane(image)[None], functional.rgb_to_grayscale(image / 255, 1)),
        "blur": (
            colour.gaussian_blur(image.clone(), 1.7),
            functional.gaussian_blur(image / 255, [13, 13], [1.7, 1.7]),
        ),
    }
    for name, (actual, expected) in cases.items():
        # torchvision's grey weights add up to 0.9999
        assert_close(actual / 255, expected, rel=2e-4, what=name)


def test_blur_of_an_image_smaller_than_the_kernel():
    assert colour.gaussian_blur(torch.rand(3, 3, 2), 2.0).shape == (3, 3, 2)
    assert colour.gaussian_blur(torch.rand(3, 1, 9), 2.0).shape == (3, 1, 9)


def test_strong_view_is_seeded_and_leaves_its_input_alone():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    before = image.clone()
    first, second, other = (strong_view(image, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(image, before)
    assert first.min() >= 0 and first.max() <= 255


def test_normalise_and_back():
    image = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8)
    assert torch.equal(denormalise(normalise(image)), image)


@pytest.mark.parametrize("turn", [-0.9, -0.5, -0.3, -1 / 6, 0.0, 0.1, 0.4, 1.0])
def test_hue_turns_by_any_amount_and_keeps_primary_colours_exact(turn):
    """torchvision accepts -0.5..0.5; one more full turn changes nothing."""
    image = torch.rand(3, 31, 47) * 255
    image[:, 0, :8] = torch.tensor(
        [[255, 255, 0, 0, 0, 255, 255, 0], [0, 255, 255, 255, 0, 0, 255, 0], [0, 0, 0, 255, 255, 255, 255, 0]]
    )
    expected = functional.adjust_hue(image / 255, (turn + 0.5) % 1 - 0.5)
    # float32, hue to a millionth
    assert_close(colour.adjust_hue(image.clone(), turn) / 255, expected, rel=2e-4, what=f"turn {turn}")


def test_jitter_is_its_four_steps_in_the_drawn_order():
    """Working in bands, with the contrast computed inside them, changes nothing.

    Tried with more rows than a band has, and with contrast at every position of the order.
    """
    image = torch.rand(3, 2100, 70) * 255
    assert image[0].numel() > colour._BAND_PIXELS
    changes = [colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue]
    places = set()
    for seed in range(12):
        rng = random.Random(seed)
        amounts = [rng.uniform(0.6, 1.4) for _ in range(3)] + [rng.uniform(-0.1, 0.1)]
        steps = list(zip(changes, amounts, strict=True))
        rng.shuffle(steps)
        places.add([change for change, _ in steps].index(colour.adjust_contrast))
        expected = image.clone()
        for change, amount in steps:
            change(expected, amount)
        actual = colour.jitter(
            image.clone(), random.Random(seed), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        )
        assert torch.equal(actual, expected)
    assert places == {0, 1, 2, 3}


def test_blur_in_bands_is_the_blur_of_the_whole():
    image = torch.rand(1, 2100, 70) * 255
    assert image[0].numel() > colour._BAND_PIXELS
    assert_close(
        colour.gaussian_blur(image, 2.0) / 255,
        functional.gaussian_blur(image / 255, [13, 13], [2.0, 2.0]),
        rel=2e-4,
    )


def test_a_grey_strong_view_has_three_equal_planes():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    views = [strong_view(image, random.Random(seed)) for seed in range(60)]
    assert all(view.shape == (3, 20, 30) for view in views)
    grey = [view for view in views if torch.equal(view[0], view[1])]
    # 12 expected; four deviations
    assert 4 <= len(grey) <= 24 and all(torch.equal(view[0], view[2]) for view in grey)


def test_largest_holds_every_result():
    sizes = [(40, 50), (60, 30), (33, 90)]
    transform = Transform("weak", [30, 36], 60)
    results = [resized_size(*size, side, 60) for size in sizes for side in (30, 36)]
    assert transform.largest(sizes) == (max(h for h, _ in results), max(w for _, w in results))
    assert Transform("eval", [30, 36], 60).largest([(40, 50)]) == (36, 45)


@pytest.mark.parametrize(
    ("height", "width", "sides", "expected"),
    [
        (363, 360, (192, 288), (192, 192)),  # 193 x 192 otherwise: 7 cells of stride 32 where 6.03 are image
        (480, 640, (192, 288), (192, 256)),
        (1080, 1920, (800, 1333), (736, 1312)),
        (100, 3000, (192, 288), (32, 288)),
        (5, 5, (10, 40), (32, 32)),
    ],
)
def test_sides_of_a_multiple(height, width, sides, expected):
    assert resized_size(height, width, *sides, 32) == expected
    assert resized_size(width, height, *sides, 32) == expected[::-1]
    transform = Transform("eval", [sides[0]], sides[1], multiple=32)
    assert transform.largest([(height, width)]) == expected
    target = {"boxes": torch.tensor([[0.0, 0.0, width, height / 2]]), "labels": torch.tensor([0])}
    image, shares, _ = transform(torch.zeros(3, height, width, dtype=torch.uint8), target, random.Random(0))
    assert image.shape[1:] == expected and torch.allclose(shares["boxes"], torch.tensor([0.5, 0.25, 1, 0.5]))


def test_bad_settings_are_named():
    with pytest.raises(MrtError, match="blurry"):
        Transform("blurry", [800], 1333)
    with pytest.raises(MrtError, match="short_sides"):
        Transform("weak", [], 1333)
