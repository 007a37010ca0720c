"""Signals without labels: each against a case computed by hand, and on a detector that collapses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mrt.errors import MrtError
from mrt.evaluate.unlabelled import SIGNALS, Look, Looks, Truth, interval, look, shaken
from mrt.evaluate.unlabelled.atc import calibrate
from mrt.evaluate.unlabelled.estimate import ratio
from mrt.evaluate.unlabelled.pairs import agreement, box_iou

LEFT, RIGHT, HALF = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9), (0.0, 0.0, 0.4, 0.2)


def a_look(*images: list[tuple[tuple[float, ...], int, float]], queries=None, classes: int = 2) -> Look:
    """Objects (box, class, score) of each image; the other class of a query has a score of 0."""
    most = max(1, *map(len, images))
    scores = np.zeros((len(images), most, classes), dtype=np.float32)
    boxes = np.zeros((len(images), most, 4), dtype=np.float32)
    for number, objects in enumerate(images):
        for place, (box, label, score) in enumerate(objects):
            scores[number, place, label], boxes[number, place] = score, box
    if queries is None:
        queries = np.zeros((len(images), most, 3), dtype=np.float32)
    return Look(scores, boxes, np.asarray(queries, dtype=np.float32))


def value(name: str, looks: Looks) -> float:
    return SIGNALS[name].of(looks).value


def test_confidence_entropy_and_expected_objects():
    looks = Looks(a_look([(LEFT, 0, 0.9), (RIGHT, 1, 0.5), (HALF, 0, 0.05)], [(LEFT, 0, 0.7)]))
    assert value("confidence", looks) == pytest.approx((0.9 + 0.5 + 0.7) / 3)
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.5, 0.7)]
    assert value("entropy", looks) == pytest.approx(sum(entropies) / 3)
    assert value("found", looks) == pytest.approx((0.9 + 0.5 + 0.7) / 2)


def test_nothing_found_has_no_value_where_it_would_be_divided_by_nothing():
    looks = Looks(a_look([], []), boxes_per_image=np.array([2.0, 2.0]))
    assert all(math.isnan(value(name, looks)) for name in ("confidence", "entropy", "class-drift"))
    assert value("found", looks) == 0 and value("count-drift", looks) == math.inf


def test_atc_estimates_precision_by_the_source():
    """Of four source objects three are right: one of the second image has no labelled partner."""
    source = a_look([(LEFT, 0, 0.9), (RIGHT, 1, 0.6)], [(LEFT, 0, 0.8), (RIGHT, 0, 0.4)])
    truth = [
        Truth(np.array([LEFT, RIGHT]), np.array([0, 1])),
        Truth(np.array([LEFT]), np.array([0])),
    ]
    assert calibrate(source, truth) == pytest.approx(0.4), "three of four lie above"
    looks = Looks(a_look([(LEFT, 0, 0.5), (RIGHT, 0, 0.3)], [(LEFT, 0, 0.2)]), source=source, truth=truth)
    assert value("atc", looks) == pytest.approx(1 / 3)
    wrong = [Truth(np.array([LEFT]), np.array([1]))] * 2
    assert calibrate(source, wrong) == pytest.approx(0.9), "none is right: none lies above"
    right = [Truth(source.boxes[image], np.array(labels)) for image, labels in enumerate(([0, 1], [0, 0]))]
    assert (source.scores.max(2) > calibrate(source, right)).all(), "all are right: all lie above"
    assert calibrate(a_look([]), [Truth(np.zeros((0, 4)), np.zeros(0))]) == 1.0


def test_a_labelled_object_makes_one_detection_right():
    source = a_look([(LEFT, 0, 0.9), (LEFT, 0, 0.8)])
    truth = [Truth(np.array([LEFT]), np.array([0]))]
    assert calibrate(source, truth) == pytest.approx(0.8), "the second one is a duplicate"


def test_overlap_by_hand():
    found = box_iou(np.array([LEFT, LEFT]), np.array([HALF, RIGHT]))
    assert np.allclose(found, [[0.5, 0], [0.5, 0]])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_agreement_matches_one_to_one_by_the_largest_overlap():
    first = a_look([(LEFT, 0, 0.9), (HALF, 0, 0.8)], [])
    second = a_look([(HALF, 0, 0.9), (LEFT, 0, 0.8)], [])
    assert agreement(first, second, classes=True).value == pytest.approx(1.0), "empty images do not count"
    second = a_look([(LEFT, 1, 0.9)], [(LEFT, 0, 0.9)])
    assert agreement(first, second, classes=False).value == pytest.approx(1 / 3), "of two objects and one"
    assert agreement(first, second, classes=True).value == 0


def test_stability_of_boxes_and_classes():
    plain = a_look([(LEFT, 0, 0.9), (RIGHT, 1, 0.8)])
    moved = a_look([(HALF, 0, 0.7), (RIGHT, 1, 0.8)])
    looks = Looks(plain, view=moved, shaken=moved, partner=moved)
    assert value("boxes", looks) == pytest.approx((0.5 + 1) / 2)
    assert value("flatness", looks) == pytest.approx((0.5 * (1 - 0.1) + 1) / 2)
    assert value("views", looks) == value("partner", looks) == pytest.approx(0.75)


def test_prototypes_by_hand():
    """Two classes 2 apart in the target; each 0.5 from its place in the source."""
    plain = a_look([(LEFT, 0, 0.6), (RIGHT, 1, 0.8)], queries=[[[1, 0, 0.5], [-1, 0, 0.5]]])
    source = a_look([(LEFT, 0, 0.9), (RIGHT, 1, 0.9)], queries=[[[1, 0, 0], [-1, 0, 0]]])
    looks = Looks(plain, source=source, truth=[])
    assert value("prototypes", looks) == pytest.approx(2 / 0.5)
    alone = Looks(a_look([(LEFT, 0, 0.6)], queries=[[[1, 0, 0.5]]]), source=source, truth=[])
    assert math.isnan(value("prototypes", alone)), "one class cannot be told apart from others"
    weighted = a_look(
        [(LEFT, 0, 0.2), (LEFT, 0, 0.6), (RIGHT, 1, 0.8)], queries=[[[5, 0, 0], [1, 0, 0], [0, 0, 0]]]
    )
    expected = 2 / ((1 + 1) / 2)  # class 0 at (0.2 * 5 + 0.6 * 1) / 0.8 = 2
    assert value("prototypes", replace(looks, plain=weighted)) == pytest.approx(expected)


def test_prototypes_of_what_is_seldom_found_count_little():
    """Class 0: 8 objects with score 0.5 in both; class 1: 2 with 0.5, moved by 4; 3 apart."""

    def many(first: float, second: float):
        objects = [*[(LEFT, 0, 0.5)] * 8, *[(RIGHT, 1, 0.5)] * 2]
        return a_look(objects, queries=[[*[[first, 0, 0]] * 8, *[[second, 0, 0]] * 2]])

    looks = Looks(many(1, 4), source=many(0, 0), truth=[])
    counts = 4 / (4 + 3), 1 / (1 + 3)
    expected = 3 / ((counts[0] * 1 + counts[1] * 4) / sum(counts))
    assert value("prototypes", looks) == pytest.approx(expected)
    rare = [(LEFT, 0, 0.5)] * 8 + [(RIGHT, 1, 0.1001)]
    found = Looks(
        a_look(rare, queries=[[*[[1, 0, 0]] * 8, [50, 0, 0]]]),
        source=a_look(rare, queries=[[*[[0, 0, 0]] * 8, [49, 0, 0]]]),
        truth=[],
    )
    assert value("prototypes", found) == pytest.approx(49 / 1), "one rare class is still a class"


def test_drift_by_hand():
    plain = a_look([(LEFT, 0, 0.9), (RIGHT, 0, 0.8), (HALF, 1, 0.5)], [(LEFT, 0, 0.4)])
    looks = Looks(plain, boxes_per_image=np.array([0.5, 0.5]))
    assert value("count-drift", looks) == pytest.approx(1.0), "2 an image where the source has 1"
    assert value("class-drift", looks) == pytest.approx(0.25), "shares 0.75 and 0.25 for 0.5 and 0.5"


def test_what_was_not_looked_at_is_left_out():
    looks = Looks(a_look([(LEFT, 0, 0.9)]))
    assert {name for name, signal in SIGNALS.items() if signal.of(looks)} == {
        "confidence",
        "entropy",
        "found",
    }


def test_the_interval_is_that_of_images_drawn_again():
    estimate = ratio(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    draws = estimate.draws(4000)
    assert estimate.value == 0.5 and set(np.unique(draws)) == {0.0, 0.5, 1.0}
    assert abs((draws == 0.5).mean() - 0.5) < 0.03 and interval(draws) == (0.0, 1.0)
    assert interval(np.array([math.nan])) == (None, None)
    looks = Looks(a_look([(LEFT, 0, 0.9)], [], [(RIGHT, 1, 0.3)]), boxes_per_image=np.array([1.0, 1.0]))
    for name in ("confidence", "found", "count-drift", "class-drift"):
        one = SIGNALS[name].of(looks)
        repeated = Looks(
            Look(*(part[[2, 2, 0]] for part in (looks.plain.scores, looks.plain.boxes, looks.plain.queries))),
            boxes_per_image=looks.boxes_per_image,
        )
        weights = np.array([1, 0, 2]) / 3
        assert one.reduce(weights @ one.rows) == pytest.approx(value(name, repeated)), name


# --- a detector that collapses, by steps: fewer and fewer objects, then one class everywhere ---


def healthy(images: int = 40) -> list[list[tuple[tuple[float, ...], int, float]]]:
    return [[(LEFT, number % 2, 0.8), (RIGHT, 1 - number % 2, 0.7)] for number in range(images)]


@pytest.mark.parametrize("name", ["count-drift", "class-drift", "found"])
def test_a_collapse_is_seen(name):
    expected = np.array([1.0, 1.0])
    vanishing = [objects if number % 10 == 0 else [] for number, objects in enumerate(healthy())]
    one_class = [[(box, 0, score) for box, _, score in objects] for objects in healthy()]
    exploding = [[(LEFT, number % 2, 0.8)] * 20 for number in range(40)]
    of = {
        key: value(name, Looks(a_look(*images), boxes_per_image=expected))
        for key, images in {
            "healthy": healthy(),
            "vanishing": vanishing,
            "one class": one_class,
            "exploding": exploding,
        }.items()
    }
    if name == "count-drift":
        assert of["healthy"] == of["one class"] == 0 and of["vanishing"] > 3 and of["exploding"] > 3
    elif name == "class-drift":
        assert of["healthy"] == 0 and of["one class"] == 0.5
    else:
        assert of["vanishing"] < of["healthy"] / 5 < of["exploding"] / 25


def test_unstable_detectors_agree_less():
    generator = np.random.default_rng(0)
    plain = a_look(*healthy())
    values = []
    for size in (0.0, 0.05, 0.2):
        moved = replace(plain, boxes=plain.boxes + generator.normal(0, size, plain.boxes.shape))
        looks = Looks(plain, view=moved, shaken=moved, partner=moved)
        values.append([value(name, looks) for name in ("boxes", "flatness", "views", "partner")])
    assert all(a > b > c for a, b, c in zip(*values, strict=True)) and values[0] == pytest.approx([1] * 4)


# --- looking ---


class Painter(torch.nn.Module):
    """Finds one box: the bright part of the image. Its weights only count for being shaken."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 4))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        boxes = []
        for bright in (images.mean(1) > images.mean((1, 2, 3))[:, None, None]).float():
            height, width = bright.shape
            xs, ys = bright.amax(0).nonzero(), bright.amax(1).nonzero()
            x0, x1 = xs.min() / width, (xs.max() + 1) / width
            y0, y1 = ys.min() / height, (ys.max() + 1) / height
            boxes.append(torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]))
        logits = torch.full((1, len(images), 1, 2), self.weight.mean())
        queries = torch.zeros(len(images), 1, 3)
        output = type("Output", (), {})()
        output.logits, output.boxes, output.queries = logits, torch.stack(boxes)[None, :, None], queries
        return output


def picture(width: int = 64, height: int = 40) -> Image.Image:
    """Dark, with a bright rectangle in the upper left quarter."""
    image = Image.new("RGB", (width, height), (10, 10, 10))
    image.paste((250, 200, 150), (0, 0, width // 2, height // 2))
    return image


def test_both_views_give_boxes_in_the_frame_of_the_image():
    pictures = [picture, lambda: picture(40, 64), picture]
    done = []
    for view in (False, True):
        network = Painter()
        found = look(network, pictures, lambda h, w: (2 * h, 2 * w), view=view, batch=2, done=done.append)
        assert np.allclose(found.boxes[:, 0], (0, 0, 0.5, 0.5), atol=0.02), view
        assert found.scores.shape == (3, 1, 2) and len(found) == 3
        assert {size[-2:] for size in network.sizes} == (
            {(64, 102), (102, 64)} if view else {(80, 128), (128, 80)}
        )
        assert sorted(size[0] for size in network.sizes) == [1, 2]
    assert sum(done) == 6


def test_no_images_and_numbers_that_are_not_finite_are_errors():
    with pytest.raises(MrtError, match="no images"):
        look(Painter(), [], lambda h, w: (h, w))
    network = Painter()
    network.weight.data[0, 0] = math.nan
    with pytest.raises(MrtError, match="NaN or infinite"):
        look(network, [picture], lambda h, w: (h, w))


def test_shaking_changes_a_copy_the_same_way_each_time():
    network = Painter()
    with shaken(network, seed=3) as one, shaken(network, seed=3) as two, shaken(network, seed=4) as other:
        change = one.weight - network.weight
        assert change.norm().item() == pytest.approx(0.02 * network.weight.norm().item(), rel=1e-4)
        assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, other.weight)
    assert torch.equal(network.weight, torch.ones(4, 4)), "the detector itself is as it was"
