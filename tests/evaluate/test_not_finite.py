"""Detections that are not finite are never scored, and figures that are not finite never win."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mrt.ablate.table import estimate, spread, summarise
from mrt.config import load_config
from mrt.data.card import DatasetCard, SplitCard
from mrt.data.dataset import DetectionDataset
from mrt.engine import inference
from mrt.engine.inference import evaluate_detector, read_validation
from mrt.errors import MrtError, RunFailed
from mrt.evaluate.bootstrap import confidence_intervals
from mrt.evaluate.coco import ImageDetections, NotFinite, score
from mrt.evaluate.errors import split_errors
from mrt.evaluate.labels import as_pseudo_labels, label_quality
from mrt.evaluate.matching import average_precision, match
from mrt.models.detector import BoxHead
from mrt.models.weights import load_weights, save_weights

NAN = float("nan")


@pytest.fixture
def dataset(tmp_path):
    """Five images with a car each."""
    size = {"height": 100, "width": 200}
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(1, 6)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
            for i in range(1, 6)
        ],
        "categories": [{"id": 1, "name": "car"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(coco))
    card = DatasetCard("set", "", ("car",), {"val": SplitCard("val.json", ".")}, folder=tmp_path)
    return DetectionDataset(card, "val")


def detections(broken=(), where="boxes", value=NAN):
    """The right box in each image, with one value of some images changed."""
    found = []
    for image in range(1, 6):
        scores, boxes = np.array([0.9], np.float32), np.array([[10, 10, 50, 50]], np.float32)
        if image in broken:
            {"boxes": boxes, "scores": scores}[where].flat[0] = value
        found.append(ImageDetections(image, scores, np.array([0]), boxes))
    return found


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["boxes", "scores"])
def test_they_are_refused_with_the_images_concerned(dataset, where, value):
    broken = detections((2, 3, 4, 5), where, value)
    for judge in (score, match, confidence_intervals, split_errors, label_quality):
        with pytest.raises(
            NotFinite, match=r"on 4 of 5 images of set/val: 2\.png, 3\.png, 4\.png, \.\.\.\n"
        ) as e:
            judge(broken, dataset)
        assert isinstance(e.value, MrtError) and e.value.hint
    with pytest.raises(NotFinite, match=r"on 1 of 5 images of set/val: 2\.png\n"):
        score(detections((2,), where, value), dataset)
    with pytest.raises(NotFinite, match=f"image 2: {where} of its"):
        as_pseudo_labels(broken, [0.3], 0.7)
    good = score(detections(), dataset).AP50
    assert good == pytest.approx(100)


def test_matches_and_precision_of_them_are_refused(dataset):
    matches = match(detections(), dataset)
    for name in ("scores", "boxes"):
        values = getattr(matches, name).copy()
        values.flat[0] = NAN
        with pytest.raises(NotFinite):
            replace(matches, **{name: values})
    hits = np.ones((2, 1), bool)
    with pytest.raises(NotFinite):
        average_precision(
            np.array([0.5, NAN]), hits, ~hits, np.arange(2), np.ones((1, 2), int), np.array([2])
        )
    with pytest.raises(NotFinite, match="thresholds"):
        as_pseudo_labels(detections(), [NAN], 0.7)


def dead_network(source, path, change):
    detector, metadata = load_weights(source / "student.safetensors")
    change(detector)
    save_weights(path, detector, metadata)
    return path


def poison(detector):
    detector.query_embed.weight.data.fill_(NAN) if not detector.two_stage else None
    detector.transformer.level_embed.data[0, 0] = NAN


def overflow(detector):
    """Finite weights whose output is not."""
    for head in detector.modules():
        if isinstance(head, BoxHead):
            first, second, last = (layer.state_dict() for layer in head.layers)
            first["weight"].zero_(), first["bias"].fill_(1e30), second["weight"].fill_(1e30)
            last["weight"][:, ::2], last["weight"][:, 1::2] = 1.0, -1.0  # infinite minus infinite


def test_a_dead_network_is_no_success(source, world, tmp_path):
    dead = dead_network(source, tmp_path / "dead.safetensors", poison)
    with pytest.raises(MrtError, match=r"dead\.safetensors: .* is not finite"):
        evaluate_detector(dead, data="hazy", data_root=world)
    wild = dead_network(source, tmp_path / "wild.safetensors", overflow)
    with pytest.raises(NotFinite, match=r"wild\.safetensors: .* on \d of 8 images of hazy/val: 1\.png"):
        evaluate_detector(wild, data="hazy", data_root=world)


def test_a_dead_network_fails_the_run_that_trains_it(source, world, tmp_path, monkeypatch):
    from tiny_world import tiny_config

    from mrt.engine import stages, validation

    measure = validation.measure

    def killed(networks, *args, **options):
        for network in networks.values():
            overflow(network)
        return measure(networks, *args, **options)

    monkeypatch.setattr(validation, "measure", killed)
    with pytest.raises(RunFailed, match=r"(?s)not finite .* training has diverged") as error:
        stages.pretrain_source(tiny_config(**{"engine.eval_every": 1}), tmp_path / "run", data_root=world)
    assert not isinstance(error.value, MrtError) and "pretrain.lr=" in str(error.value)


def test_the_best_epoch_is_one_with_a_figure(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(load_config("small").plain()))
    monkeypatch.setattr(inference, "read_facts", lambda folder: {"data": {"target": {"name": "hazy"}}})

    def log(*values):
        lines = [
            {"kind": "eval", "network": "teacher", "stage": "teach", "epoch": n, "AP50": value}
            for n, value in enumerate(values, 1)
        ]
        monkeypatch.setattr(inference, "read_log", lambda path: lines)

    log(NAN, 20.0, None, 30.0, float("inf"), "99", 25.0)
    found = read_validation(tmp_path)
    assert (found.best["teacher"]["epoch"], found.last["teacher"]["epoch"]) == (4, 7)
    log(NAN, None)
    with pytest.raises(MrtError, match="measured nothing"):
        read_validation(tmp_path)


def test_a_table_shows_no_mean_with_nan():
    def result(seed, value, name="base"):
        row = {"name": name, "settings": {}, "end": "", "paper": None, "note": ""}
        return {"row": row, "seed": seed, "node": f"{name}{seed}", "metrics": {"AP50": value, "AP": 1.0}}

    results = [result(0, 30.0), result(1, NAN), result(0, 33.0, "more"), result(1, 34.0, "more")]
    base, more = summarise(results, "base")
    assert base["metrics"]["AP50"]["mean"] == 30 and base["metrics"]["AP50"]["n"] == 1
    assert base["failures"] == [{"seed": 1, "node": "base1", "failed": "AP50 is nan"}]
    assert more["delta"]["AP50"]["mean"] == pytest.approx(3)
    for function in (spread, estimate):
        with pytest.raises(MrtError, match="not finite"):
            function([1.0, NAN])
