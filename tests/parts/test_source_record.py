"""What weights have on record of the source that they were trained on."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_stages import StopAt, weights
from tiny_world import tiny_config

from mrt.engine import stages
from mrt.engine.inference import write_slim
from mrt.engine.load import source_record
from mrt.errors import Interrupted
from mrt.losses import Judged
from mrt.losses.matcher import Matches
from mrt.models.weights import read_metadata
from mrt.parts.base import Site
from mrt.parts.source_record import SourceRecord


def test_it_counts_confidences_by_predicted_class_and_boxes_by_true_class():
    """Two images with three boxes; one matched query is taken for another class."""
    part = SourceRecord()
    world = SimpleNamespace(device=torch.device("cpu"), main=True, sum=lambda tensor: tensor)
    part.site = Site(None, None, ["red", "green", "blue"], None, world, say=print)
    part.begin(part.site)
    scores = torch.tensor([[[0.9, 0.1, 0.1], [0.2, 0.5, 0.1]], [[0.1, 0.3, 0.2], [0.1, 0.1, 0.1]]])
    matches = Matches(
        image=torch.tensor([0, 0, 1]),
        query=torch.tensor([[0, 1, 0]]),
        target=torch.tensor([[0, 1, 2]]),
        labels=torch.tensor([0, 0, 1]),
        boxes=torch.zeros(3, 4),
        counts=(2, 1),
        num_queries=2,
    )
    part.judged({"source": Judged(scores.logit(), matches)})
    assert part.header() == {}, "an epoch must be over"
    part.after_epoch(1, {})
    assert part.header() == {
        "source": {
            "confidences": {"red": pytest.approx(0.9), "green": pytest.approx(0.4)},
            "boxes_per_image": {"red": 1.0, "green": 0.5, "blue": 0.0},
        }
    }
    part.judged({"source": Judged(scores.logit(), matches)})  # the next epoch begins anew
    part.after_epoch(2, {})
    assert part.header()["source"]["boxes_per_image"]["red"] == 1.0


def test_every_run_that_sees_source_images_records_them(world, source, tmp_path):
    cards = json.loads((world / "clear" / "train.json").read_text())
    counted = len(cards["annotations"]) / len(cards["images"])
    adapted = stages.adapt(tiny_config(), tmp_path / "adapted", init=str(source), data_root=world)
    fair = stages.pretrain_source(
        tiny_config(), tmp_path / "fair", init=str(source), match_compute=True, data_root=world
    )
    for run in (source, adapted, fair):
        record = source_record(str(run))
        assert set(record["confidences"]) <= {"red", "green"} and record["confidences"]
        assert sum(record["boxes_per_image"].values()) == pytest.approx(counted), run
    assert source_record(None) == {} and source_record("small-source")["confidences"]["car"] > 0.5


def test_it_goes_on_where_a_run_was_stopped(world, source, tmp_path):
    with pytest.raises(Interrupted):
        stages.pretrain_source(tiny_config(), tmp_path / "run", data_root=world, watcher=StopAt(3))
    run = stages.pretrain_source(tiny_config(), tmp_path / "run", data_root=world, resume=True)
    mine, theirs = weights(run), weights(source)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert source_record(str(run)) == source_record(str(source))


def test_weights_to_ship_keep_it(world, source, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    monkeypatch.setattr(
        "mrt.engine.inference.save_weights",
        lambda path, _, metadata, **how: path.write_text(json.dumps(metadata)),
    )
    write_slim(run, tmp_path / "slim.json")
    assert json.loads((tmp_path / "slim.json").read_text())["source"] == source_record(str(source))
    assert read_metadata(source / "student.safetensors")["source"]
