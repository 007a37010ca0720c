"""What a run records of its teacher's pseudo labels."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_world import CLASSES, make_set, tiny_config

from mrt.engine import stages
from mrt.engine.load import load_detector
from mrt.engine.snapshots import spread_evenly


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_set(root, "clear", seed=1)
    make_set(root, "hazy", haze=0.5, seed=2)
    return root


@pytest.fixture(scope="module")
def source(world, tmp_path_factory):
    return stages.pretrain_source(tiny_config(), tmp_path_factory.mktemp("runs") / "source", data_root=world)


def adapt(world, source, folder, **changes):
    return stages.adapt(tiny_config(**changes), folder, init=str(source), data_root=world)


def test_a_line_per_epoch_of_the_same_images_and_one_before_the_first(world, source, tmp_path):
    run = adapt(world, source, tmp_path / "run", **{"engine.snapshots": 3, "engine.eval_every": 1})
    lines = [json.loads(line) for line in (run / "pseudo_labels.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"], line["step"]) for line in lines] == [
        ("teach", 0, 0),
        ("teach", 1, 2),
        ("teach", 2, 4),
    ]
    assert [[image["image_id"] for image in line["images"]] for line in lines] == [[2, 5, 7]] * 3
    assert sum(len(image["scores"]) for image in lines[0]["images"]) > 0, (
        "the thresholds of this world start at 0"
    )
    for line in lines:
        assert set(line["thresholds"]) == set(CLASSES)
        for image in line["images"]:
            assert all(
                score > line["thresholds"][name] - 1e-4
                for score, name in zip(image["scores"], image["classes"], strict=True)
            )
            assert all(-64 <= value <= 128 for box in image["boxes"] for value in box)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [
        line["pseudo_labels"]
        for line in metrics
        if line["kind"] == "eval" and line["stage"] == "teach" and "pseudo_labels" in line
    ]
    assert [item["num_boxes"] > 0 and item["num_labels"] > 0 for item in judged] == [True, True], (
        "the teacher's, once per epoch"
    )


def test_recording_changes_nothing_and_can_be_switched_off(world, source, tmp_path):
    """A baseline records nothing, nor does a run without snapshots; weights are the same to the last bit."""
    runs = [
        adapt(world, source, tmp_path / str(count), **{"engine.snapshots": count, "model.dropout": 0.1})
        for count in (0, 16)
    ]
    assert [(run / "pseudo_labels.jsonl").exists() for run in runs] == [False, True]
    without, recorded = (load_detector(run, which="student")[0].state_dict() for run in runs)
    assert all(torch.equal(without[key], recorded[key]) for key in without)
    fair = stages.pretrain_source(
        tiny_config(), tmp_path / "fair", init=str(source), match_compute=True, data_root=world
    )
    assert not (fair / "pseudo_labels.jsonl").exists()


def test_indices_are_spread_evenly():
    assert spread_evenly(800, 4) == [100, 300, 500, 700]
    assert spread_evenly(3, 16) == [0, 1, 2]
