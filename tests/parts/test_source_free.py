"""Adapting from weights alone: no source image, no source set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_stages import StopAt, weights
from tiny_world import make_set, tiny_config

from mrt.ablate.nodes import Planner, content_hash, describe_data
from mrt.ablate.studies import METHODS, Row
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import load_config
from mrt.engine import stages
from mrt.engine.inference import evaluate_detector
from mrt.engine.load import settings_of, source_record
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError
from mrt.models.weights import load_weights, save_weights

FREE = METHODS["source-free"]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """A data root that has the target only."""
    root = tmp_path_factory.mktemp("alone")
    shutil.copytree(world / "hazy", root / "hazy")
    return root


@pytest.fixture(scope="module")
def whole(alone, source, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("free") / "whole"
    config = tiny_config(**FREE, **{"engine.eval_every": 1})
    return stages.adapt(config, folder, init=str(source), data_root=alone)


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def lines(run: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def same(one: Path, other: Path) -> bool:
    pairs = [(weights(one, name), weights(other, name)) for name in ("student", "teacher")]
    return all(torch.equal(mine[key], theirs[key]) for mine, theirs in pairs for key in mine)


def test_a_run_needs_weights_and_a_target_and_nothing_else(alone, source, whole):
    facts = json.loads((whole / "run.json").read_text())
    assert facts["finished"] == ["teach"] and facts["stages"] == ["teach"]
    assert facts["classes"] == ["red", "green"] and facts["data"].keys() == {"target"}
    train = lines(whole, "train")
    assert train and not any(name.startswith("source/") for line in train for name in line)
    assert all(line["target/class"] > 0 for line in train)
    assert lines(whole, "eval"), "measured on the target's validation images, where it has labels"
    assert evaluate_detector(whole, data="hazy", data_root=alone).metrics.num_images == 8


@pytest.mark.parametrize("stop", [1, 3])
def test_it_goes_on_to_the_same_weights_without_the_weights_it_came_from(
    alone, source, whole, tmp_path, stop
):
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    with pytest.raises(Interrupted):
        stages.adapt(
            tiny_config(**FREE), tmp_path / "run", init=str(moved), data_root=alone, watcher=StopAt(stop)
        )
    shutil.rmtree(moved)
    run = stages.adapt(tiny_config(), tmp_path / "run", resume=True, data_root=alone)
    assert same(run, whole)
    assert [line["thresholds"] for line in lines(run, "epoch")] == [
        line["thresholds"] for line in lines(whole, "epoch")
    ]


def test_thresholds_follow_what_the_weights_have_on_record(source, whole):
    record, settings = source_record(str(source)), tiny_config(**FREE).teacher
    known = record["confidences"]
    names = [name for name in ("red", "green") if name in known]
    expected = DynamicThresholds(
        2,
        settings.threshold_alpha,
        settings.threshold_gamma,
        settings.threshold_start,
        settings.threshold_min,
        settings.threshold_max,
    )
    for line in lines(whole, "epoch"):
        labels = torch.tensor([("red", "green").index(name) for name in names])
        expected.record(torch.tensor([known[name] for name in names]), labels)
        assert list(line["thresholds"].values()) == pytest.approx(expected.update().tolist(), abs=1e-6)
    assert source_record(str(whole)) == record, "what is known of the source goes on with the weights"


def test_classes_without_a_record_keep_their_thresholds(alone, source, tmp_path):
    detector, metadata = load_weights(source / "student.safetensors")
    metadata["source"]["confidences"].pop("red", None)
    metadata["source"]["confidences"]["green"] = 0.04
    save_weights(tmp_path / "half.safetensors", detector, metadata)
    config = tiny_config(**FREE, **{"teacher.threshold_start": 0.001})
    run = stages.adapt(config, tmp_path / "run", init=str(tmp_path / "half.safetensors"), data_root=alone)
    for line in lines(run, "epoch"):
        assert line["thresholds"]["red"] == 0.001 != line["thresholds"]["green"]


@pytest.mark.parametrize(
    "record",
    [
        "text",
        {"confidences": None, "boxes_per_image": {}},
        {"confidences": {"red": 2.0}, "boxes_per_image": {}},
    ],
)
def test_a_damaged_record_is_refused(alone, source, tmp_path, record):
    detector, metadata = load_weights(source / "student.safetensors")
    save_weights(tmp_path / "odd.safetensors", detector, {**metadata, "source": record})
    with pytest.raises(MrtError, match=r"odd\.safetensors: source = .*not a record"):
        stages.adapt(
            tiny_config(**FREE), tmp_path / "run", init=str(tmp_path / "odd.safetensors"), data_root=alone
        )
    assert not (tmp_path / "run").exists()


def without_record(source: Path, path: Path) -> Path:
    detector, metadata = load_weights(source / "student.safetensors")
    save_weights(path, detector, {key: value for key, value in metadata.items() if key != "source"})
    return path


def test_weights_without_a_record_keep_their_thresholds_and_it_is_said(alone, source, tmp_path):
    file, told = without_record(source, tmp_path / "old.safetensors"), Listener()
    config = tiny_config(**FREE, **{"teacher.threshold_start": 0.001})
    run = stages.adapt(config, tmp_path / "run", init=str(file), data_root=alone, watcher=told)
    assert [line["thresholds"] for line in lines(run, "epoch")] == [{"red": 0.001, "green": 0.001}] * 2
    assert [line for line in told.said if "no record of how sure they were" in line]
    static = Listener()
    config = tiny_config(**FREE, **{"teacher.dynamic": False})
    stages.adapt(config, tmp_path / "2", init=str(file), data_root=alone, watcher=static)
    assert not [line for line in static.said if "no record" in line]


def test_the_classes_are_the_weights_or_some_of_them(alone, source, tmp_path):
    config = tiny_config(**FREE, **{"data.classes": ["green"]})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=alone)
    assert json.loads((run / "run.json").read_text())["classes"] == ["green"]
    config = tiny_config(**FREE, **{"data.classes": ["green", "blue"]})
    with pytest.raises(MrtError, match="blue not known to"):
        stages.adapt(config, tmp_path / "2", init=str(source), data_root=alone)
    assert not (tmp_path / "2").exists()


def test_a_target_without_labels_and_classes_is_enough(source, tmp_path):
    make_set(tmp_path, "hazy", haze=0.5, labelled=False, classes=())
    run = stages.adapt(tiny_config(**FREE), tmp_path / "run", init=str(source), data_root=tmp_path)
    assert not lines(run, "eval")


@pytest.mark.parametrize(
    "more", [{"mae.use": "branch"}, {"retrain.every": 1}, {"teacher.fast_ema": 0.5}, METHODS["aldi"]]
)
def test_what_needs_no_source_images_joins_it(alone, source, tmp_path, more):
    config = tiny_config(**{**FREE, "mae.decay": "none", **more})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=alone)
    assert all(line["target/class"] > 0 for line in lines(run, "train"))
    assert all(
        ("target/mae" in line) == ("mae.use" in more and more["mae.use"] == "branch")
        for line in lines(run, "train")
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domain.enabled": True}, "there are no source images; set domain.enabled=false"),
        ({"mae.use": "branch", "mae.data": "both"}, "set mae.data=target"),
        ({"teacher.pseudo_labels": False}, "nothing labels the target"),
    ],
)
def test_what_needs_source_images_is_refused(changes, words):
    with pytest.raises(MrtError, match=words):
        load_config("small", changes={**FREE, **changes})


def test_an_ablation_knows_what_it_needs(world):
    def chain(**changes) -> list:
        data = {"data.target": "hazy", "data.source": "clear"}
        (trial,) = Planner(world, "val").trials([Row("row", changes)], [0], "small", (), data)
        return trial

    free = chain(**FREE)
    assert [node.kind for node in free.node.chain] == ["given", "teach"] and free.learned_from == set()
    assert [facts["name"] for facts in describe_data(free.config, "teach", world)] == ["hazy"]
    assert chain(**FREE, **{"data.source": "other"}).learned_from == set()
    assert chain(**FREE, **{"data.source": "other"}).node.digest == free.node.digest
    assert chain(**FREE, **{"teach.augment": "weak"}).node.digest == free.node.digest
    assert chain(**{**FREE, "teacher.every": 2}).node.digest != free.node.digest
    other = {**FREE, "method.source_free": False}
    assert [node.kind for node in chain(**other).node.chain] == ["given", "mae", "teach"]
    assert content_hash(load_config("small", changes=other)) != content_hash(
        load_config("small", changes=FREE)
    )


def test_settings_of_weights_fit_them(source):
    found = settings_of(source)
    assert (
        found["model.hidden_dim"] == 16 and found["model.weights"] == "none" and found["data.sides"] == [48]
    )
    config = load_config("own", changes=found)
    assert config.model.two_stage and config.data.max_size == 64
