"""A limit on the labels of a class: thresholds that rise until there are no more."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_world import tiny_config

from mrt.adapt.pseudo_labels import PendingLabels
from mrt.adapt.thresholds import WINDOW, LabelLimit
from mrt.engine import stages
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError


def filled(most, scores, images=10):
    """A limit that has seen 10 images with these scores of class 0."""
    limit = LabelLimit(torch.tensor([most, 1.0]))
    limit.add(torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64), images)
    limit.settle()
    return limit


@pytest.fixture
def data(world, tmp_path):
    """A data root whose source says how many objects of each class it has."""
    root = shutil.copytree(world, tmp_path / "data")
    card = json.loads((root / "clear" / "dataset.json").read_text())
    card["splits"]["train"]["boxes_per_class"] = {"red": 8, "green": 8}
    (root / "clear" / "dataset.json").write_text(json.dumps(card))
    return root


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (0.0, []),
        (0.1, [0.955]),
        (0.25, [0.955, 0.855]),
        (0.3, [0.955, 0.855, 0.755]),
        (0.4, "all"),
        (9.0, "all"),
    ],
)
def test_the_lowest_threshold_that_leaves_so_many(most, kept):
    scores = [0.555, 0.755, 0.855, 0.955]
    first, second = filled(most, scores).values().tolist()
    assert sorted(score for score in scores if score > first) == (scores if kept == "all" else sorted(kept))
    assert second == 0 and (first == 0) == (kept == "all")


def test_what_was_counted_before_fades():
    limit = filled(0.1, [0.9] * 10)
    assert limit.values()[0] >= 0.9
    limit.add(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 20 * WINDOW)
    limit.settle()
    assert limit.values()[0] == 0


def test_nothing_new_changes_nothing():
    limit = filled(0.1, [0.9, 0.8])
    before = limit.state_dict()
    limit.settle()
    assert torch.equal(limit.histogram, before["histogram"]) and limit.images == before["images"]
    other = LabelLimit(limit.most)
    other.load_state_dict(before)
    assert torch.equal(other.values(), limit.values())


def test_processes_count_together():
    limit = LabelLimit(torch.tensor([0.5]))
    limit.add(torch.tensor([0.9]), torch.tensor([0]), 1)
    limit.settle(lambda tensor: tensor.mul_(2))
    assert limit.images == 2 and limit.histogram.sum() == 2


def test_possible_labels_are_those_of_the_lower_thresholds():
    logits = torch.tensor([[[2.0, -5.0], [0.0, -5.0], [-3.0, -5.0]]])
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    high, low = torch.tensor([0.8, 0.8]), torch.tensor([0.3, 0.3])
    plain, counted = PendingLabels(logits, boxes, high), PendingLabels(logits, boxes, high, possible=low)
    (expected,), (found,) = plain.result(), counted.result()
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in found)
    assert plain.possible is None and len(found["labels"]) == 1
    scores, labels = counted.possible
    assert scores.tolist() == pytest.approx([0.880797, 0.5]) and labels.tolist() == [0, 0]


def test_a_run_keeps_to_it(world, data, source, tmp_path):
    """Without thresholds every query that survives is a label; with a limit, far fewer are. A card that does
    not say how many objects of each class there are limits nothing, which is said.
    """
    said = Watcher()
    said.say = (lines := []).append

    def thresholds(most, root, name):
        changes = {
            "teacher.most_labels": most,
            "teacher.dynamic": False,
            "mae.use": "none",
            "retrain.every": 0,
        }
        run = stages.adapt(
            tiny_config(**changes), tmp_path / name, init=str(source), data_root=root, watcher=said
        )
        return set(load_detector(run)[1]["thresholds"].values())

    assert thresholds(0.5, world, "unknown") == {0.0} and "limits nothing" in "\n".join(lines)
    assert thresholds(0.0, data, "free") == {0.0}
    assert max(thresholds(0.5, data, "limited")) > 0.0


def test_a_run_that_goes_on_is_limited_alike(data, source, tmp_path):
    config = tiny_config(**{"teacher.most_labels": 0.5, "mae.use": "none", "retrain.every": 0})
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=data)

    class Stops(Watcher):
        def __init__(self):
            self.left, self.inside = 3, False

        def begin(self, task, total, done=0):
            self.inside = task == "teach"

        def advance(self, n=1, **numbers):
            self.left -= self.inside
            if self.inside and not self.left:
                raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        stages.adapt(config, tmp_path / "run", init=str(source), data_root=data, watcher=Stops())
    again = stages.adapt(config, tmp_path / "run", resume=True, data_root=data)
    (one, first), (two, second) = load_detector(whole), load_detector(again)
    assert first["thresholds"] == second["thresholds"] and max(first["thresholds"].values()) > 0
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_negative_limit_is_refused():
    with pytest.raises(MrtError, match=r"teacher\.most_labels"):
        tiny_config(**{"teacher.most_labels": -1})
