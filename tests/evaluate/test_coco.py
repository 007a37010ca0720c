"""COCO metrics compared with the recorded evaluator, and on difficult cases."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from golden import GOLDEN

from mrt.data.card import DatasetCard, SplitCard
from mrt.data.dataset import DetectionDataset
from mrt.errors import MrtError
from mrt.evaluate.coco import collect, evaluate, score


@pytest.fixture
def make_dataset(tmp_path):
    """make_dataset(coco) -> DetectionDataset; evaluation never opens the images."""

    def make(coco, **options):
        (tmp_path / "val.json").write_text(json.dumps(coco))
        classes = tuple(category["name"] for category in coco["categories"])
        card = DatasetCard("set", "", classes, {"val": SplitCard("val.json", ".")}, folder=tmp_path)
        return DetectionDataset(card, "val", **options)

    return make


def coco_of(annotations, images=2, classes=("car", "person")):
    size = {"height": 100, "width": 200}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(1, images + 1)],
        "annotations": [
            {"id": n, "area": a["bbox"][2] * a["bbox"][3], **a} for n, a in enumerate(annotations, 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)],
    }


def batches(dataset):
    for record in dataset.records:
        yield SimpleNamespace(targets=[{"image_id": record.image_id, "original_size": record.size}])


def predictor(found):
    """found: image id -> list of (score, label, box xyxy)."""

    def predict(batch):
        results = []
        for target in batch.targets:
            rows = found.get(target["image_id"], [])
            results.append(
                {
                    "scores": torch.tensor([r[0] for r in rows], dtype=torch.float32),
                    "labels": torch.tensor([r[1] for r in rows], dtype=torch.int64),
                    "boxes": torch.tensor([r[2] for r in rows], dtype=torch.float32).reshape(-1, 4),
                }
            )
        return results

    return predict


def test_recorded_evaluator(make_dataset, capsys):
    recorded = json.loads((GOLDEN / "evaluator.json").read_text())
    dataset = make_dataset(recorded["gt_coco_ids_from_1"])
    found = {}
    for image_id, part in recorded["predictions"].items():
        rows = zip(part["scores"], part["labels"], part["boxes_xyxy"], strict=True)
        found[int(image_id)] = [(s, label - 1, box) for s, label, box in rows]
    metrics = evaluate(predictor(found), batches(dataset), dataset)
    by_class = recorded["ap50_per_category_ids_from_1"]
    for expected, (name, values) in zip(by_class, metrics.per_class.items(), strict=True):
        if expected == -1:
            assert values.AP50 is None and values.num_boxes == 0, name
        else:
            assert pytest.approx(100 * expected, rel=2e-5) == values.AP50, name
    assert pytest.approx(100 * recorded["map50_ids_from_1"], rel=2e-5) == metrics.AP50
    assert metrics.num_images == len(recorded["gt_coco_ids_from_1"]["images"])
    assert capsys.readouterr().out == ""


def test_annotation_ids_from_zero_do_not_cost_a_hit(make_dataset):
    coco = coco_of([{"id": 0, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}], images=1)
    dataset = make_dataset(coco)
    predict = predictor({1: [(0.9, 0, [10, 10, 50, 50])]})
    assert pytest.approx(100) == evaluate(predict, batches(dataset), dataset).AP


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_detections_of_ignored_objects_do_not_count(make_dataset, flag):
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]},
        {"image_id": 2, "category_id": 1, "bbox": [100, 20, 30, 30], flag: 1},
        {"image_id": 2, "category_id": 2, "bbox": [100, 20, 30, 30], flag: 1},
    ]
    dataset = make_dataset(coco_of(annotations))
    found = {1: [(0.5, 0, [10, 10, 50, 50])], 2: [(0.9, 0, [100, 20, 130, 50])]}
    metrics = evaluate(predictor(found), batches(dataset), dataset)
    assert pytest.approx(100) == metrics.AP50
    assert metrics.per_class["person"].AP50 is None and metrics.per_class["person"].num_boxes == 0
    assert metrics.num_boxes == 1


def test_nothing_found_and_nothing_to_find(make_dataset):
    nothing_found = make_dataset(coco_of([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}]))
    metrics = evaluate(predictor({}), batches(nothing_found), nothing_found)
    assert metrics.AP == metrics.AP50 == 0 and metrics.per_class["person"].AP is None
    nothing_there = make_dataset(coco_of([]))
    metrics = evaluate(predictor({1: [(0.9, 0, [0, 0, 9, 9])]}), batches(nothing_there), nothing_there)
    assert metrics.AP is None and metrics.to_dict()["per_class"]["car"]["AP50"] is None


def test_sizes_are_split_as_coco_does(make_dataset):
    boxes = {"APs": [0, 0, 20, 20], "APm": [30, 0, 50, 50], "APl": [90, 0, 100, 100]}
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes.values()]
    dataset = make_dataset(coco_of(annotations))
    x, y, w, h = boxes["APm"]
    metrics = evaluate(predictor({1: [(0.9, 0, [x, y, x + w, y + h])]}), batches(dataset), dataset)
    assert (metrics.APs, metrics.APl) == (0, 0) and metrics.APm == pytest.approx(100)


def test_the_files_area_decides_what_is_small(make_dataset):
    thin = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 500}
    dataset = make_dataset({**coco_of([]), "annotations": [{"id": 1, **thin}]})
    metrics = evaluate(predictor({1: [(0.9, 0, [0, 0, 50, 50])]}), batches(dataset), dataset)
    assert pytest.approx(100) == metrics.APs and metrics.APm is None


def test_rows_and_dict_are_plain(make_dataset):
    dataset = make_dataset(coco_of([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}]))
    seen = []
    predict = predictor({1: [(0.9, 0, [10, 10, 50, 50])]})
    metrics = evaluate(predict, batches(dataset), dataset, lambda *step: seen.append(step))
    assert json.loads(json.dumps(metrics.to_dict()))["AP50"] == pytest.approx(100)
    rows = metrics.rows()
    assert [row["class"] for row in rows] == ["car", "person", "all"]
    assert len({tuple(row) for row in rows}) == 1
    assert seen == [(1, 2), (2, 2)]
    assert [found.image_id for found in metrics.detections] == [1, 2]


def test_images_seen_twice_count_once(make_dataset):
    dataset = make_dataset(coco_of([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}]))
    predict = predictor({1: [(0.9, 0, [10, 10, 50, 50])]})
    collected = collect(predict, batches(dataset))
    assert score(collected + collected, dataset) == score(collected, dataset)


def test_errors_say_what_is_wrong(make_dataset):
    coco = coco_of([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}])
    unlabelled = make_dataset(coco, labelled=False)
    with pytest.raises(MrtError, match="no labels"):
        evaluate(predictor({}), batches(unlabelled), unlabelled)
    dataset = make_dataset(coco, limit=1)
    second = [SimpleNamespace(targets=[{"image_id": 2, "original_size": (1, 1)}])]
    with pytest.raises(MrtError, match="image 2"):
        evaluate(predictor({}), second, dataset)
    with pytest.raises(MrtError, match="image 2"):
        score(collect(predictor({}), second), dataset)
