"""Soft distillation, alone and in whole runs; and as a plug-in outside the package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_stages import StopAt, weights
from tiny_world import tiny_config

from mrt.ablate.nodes import stage_settings
from mrt.ablate.studies import METHODS
from mrt.config import load_config
from mrt.data.loader import Batch
from mrt.domains import TARGET
from mrt.engine import stages
from mrt.errors import Interrupted, MrtError
from mrt.parts.base import Moment, Site
from mrt.parts.distill import Distill

PLUGIN = Path(__file__).parent / "soft_labels_plugin.py"


def part(**settings) -> Distill:
    config = load_config("small", changes=METHODS["aldi"] | settings)
    found = Distill()
    found.site = Site(config, config.teach, ["a", "b"], None, None, say=print)
    return found


def test_the_teachers_best_queries_are_soft_labels():
    """Three queries of one image, the best two are kept; they count as many objects as they are sure of."""
    logits = torch.tensor([[[0.0, -2.0], [-4.0, -3.0], [1.0, 2.0]]])
    boxes = torch.arange(12.0).reshape(1, 3, 4)
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), [{}], padded=False)
    asked = part(**{"distill.top": 2})
    output = SimpleNamespace(logits=logits[None], boxes=boxes[None])
    asked.before_step([{TARGET: batch}], lambda images, mask: output, Moment(0, 1, 0))
    labels = asked.label(0, {TARGET: batch}, {})[TARGET]
    (target,) = labels.targets

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert target["boxes"].tolist() == [boxes[0, 2].tolist(), boxes[0, 0].tolist()]
    assert target["labels"].tolist() == [1, 0]
    assert target["probabilities"].flatten().tolist() == pytest.approx([sigmoid(x) for x in (1, 2, 0, -2)])
    assert target["weights"].tolist() == pytest.approx([sigmoid(2), 0.5])
    assert labels.count == pytest.approx(sigmoid(2) + 0.5) and labels.with_boxes
    sharp = part(**{"distill.top": 2, "distill.temperature": 0.5})
    sharp.before_step([{TARGET: batch}], lambda images, mask: output, Moment(0, 1, 0))
    (target,) = sharp.label(0, {TARGET: batch}, {})[TARGET].targets
    assert target["weights"].tolist() == pytest.approx([sigmoid(4), 0.5])


@pytest.fixture(scope="module")
def whole(world, source, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("aldi") / "whole"
    return stages.adapt(tiny_config(**METHODS["aldi"]), folder, init=str(source), data_root=world)


def same(one: Path, other: Path) -> bool:
    pairs = [(weights(one, name), weights(other, name)) for name in ("student", "teacher")]
    return all(torch.equal(mine[key], theirs[key]) for mine, theirs in pairs for key in mine)


def train_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_a_run_learns_from_soft_labels_and_goes_on_to_the_same_weights(world, source, whole, tmp_path):
    teach = [line for line in train_lines(whole) if line["stage"] == "teach"]
    assert all(line["target/class"] > 0 and line["target/giou"] > 0 for line in teach)
    assert not any("domain" in name or "mae" in name or "pseudo" in name for line in teach for name in line)
    for stop in (2, 6):
        run = tmp_path / str(stop)
        how = {"init": str(source), "data_root": world}
        with pytest.raises(Interrupted):
            stages.adapt(tiny_config(**METHODS["aldi"]), run, watcher=StopAt(stop), **how)
        stages.adapt(tiny_config(), run, resume=True, data_root=world)
        assert same(run, whole), stop


def test_the_same_idea_outside_the_package_gives_the_same_run(world, source, whole, tmp_path):
    plugged = METHODS["aldi"] | {"distill.enabled": False, "method.plugins": [str(PLUGIN)]}
    run = stages.adapt(tiny_config(**plugged), tmp_path / "run", init=str(source), data_root=world)
    for mine, theirs in zip(train_lines(run), train_lines(whole), strict=True):
        for name in ("total", "target/class", "target/box", "target/giou", "target/proposal_class"):
            if name in theirs:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_its_settings_count_when_and_only_when_they_act():
    def teach(**changes) -> dict:
        return stage_settings(load_config("small", changes=changes), "teach")

    off, on = {"distill.enabled": False}, METHODS["aldi"]
    for key, value in (("distill.temperature", 0.5), ("distill.top", 7), ("distill.boxes", False)):
        assert teach(**off) == teach(**off, **{key: value}) == teach()
        assert teach(**on) != teach(**on, **{key: value})
    config = load_config("small", changes={**on, "distill.top": 7})
    for kind in ("source", "mae", "fair"):
        assert "distill" not in stage_settings(config, kind)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"distill.enabled": True}, "takes the place of pseudo labels; set teacher.pseudo_labels=false"),
        (METHODS["aldi"] | {"teacher.labels": "x.json"}, "not fused with soft distillation"),
        (METHODS["aldi"] | {"distill.temperature": 0}, "distill.temperature = 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(MrtError, match=words):
        load_config("small", changes=changes)
