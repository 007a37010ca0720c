"""Pictures of detections: sizes, and which boxes are drawn."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tiny_set import write_set

from mrt.data.dataset import DetectionDataset
from mrt.evaluate.coco import ImageDetections
from mrt.evaluate.draw import COLOURS, MIN_WIDTH, draw_detections, enlarge, side_by_side
from mrt.evaluate.judged import comparison

GREY = Image.new("RGB", (100, 50), (90, 90, 90))


def has_colour(picture, colour):
    return bool((np.asarray(picture) == np.array(colour)).all(-1).any())


def test_narrow_images_are_not_enlarged_without_end():
    for size in ((1, 400), (400, 1), (30, 4000), (3, 20000)):
        canvas, scale = enlarge(Image.new("RGB", size), None)
        assert canvas.size == (size[0] * scale, size[1] * scale) and max(canvas.size) <= max(8192, *size)


def test_small_images_are_enlarged_and_the_input_stays():
    before = GREY.tobytes()
    drawn = draw_detections(GREY, {"boxes": [[10, 10, 40, 30]], "labels": [1]}, ["car", "person"])
    assert drawn.size == (700, 350) and drawn.width >= MIN_WIDTH
    assert has_colour(drawn, COLOURS[1]) and not has_colour(drawn, COLOURS[0])
    assert GREY.tobytes() == before


def test_detections_below_the_threshold_are_left_out():
    boxes = np.array([[10, 10, 40, 30], [50, 10, 80, 30.0]])
    found = ImageDetections(1, np.array([0.9, 0.1]), np.array([0, 1]), boxes)
    drawn = draw_detections(GREY, found, ["car", "person"], threshold=0.3)
    assert has_colour(drawn, COLOURS[0]) and not has_colour(drawn, COLOURS[1])


def test_boxes_over_the_edge_and_tensors_and_no_boxes_are_fine():
    boxes = torch.tensor([[-20.0, -20, 150, 80], [90, 40, 100, 50], [0, 0, 1, 1]])
    detections = {"boxes": boxes, "labels": torch.tensor([0, 9, 2]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    draw_detections(GREY, detections, [f"class {i}" for i in range(10)], scale=1)
    nothing = draw_detections(GREY, {"boxes": [], "labels": [], "scores": []}, ["car"], scale=1)
    assert nothing.tobytes() == GREY.tobytes()


def test_grid_of_rows_and_titles():
    grid = side_by_side([[GREY, GREY, GREY], [GREY, GREY, GREY]], ["before", "after", "ground truth"], gap=4)
    assert grid.width == 3 * 104 + 4 and 2 * 54 < grid.height < 2 * 54 + 40
    assert side_by_side([[GREY]], width=50).size == (66, 41)


def test_comparison_puts_ground_truth_last(tmp_path):
    bus = {"image_id": 4, "category_id": 2, "bbox": [20, 20, 40, 20]}
    card = write_set(tmp_path / "set", {4: np.zeros((50, 100, 3), np.uint8)}, [bus], ["car", "bus"])
    dataset = DetectionDataset(card, "train")
    nothing = ImageDetections(4, np.zeros(0), np.zeros(0, int), np.zeros((0, 4)))
    picture = comparison(dataset, [4], {"before": [nothing], "after": [nothing]})
    third = picture.width // 3
    bus = [
        int((np.asarray(picture.crop((k * third, 40, (k + 1) * third, 400))) == COLOURS[1]).all(-1).sum())
        for k in range(3)
    ]
    assert 0 < bus[0] == bus[1] < 0.7 * bus[2], "corners of what was missed; the whole box of the truth"
