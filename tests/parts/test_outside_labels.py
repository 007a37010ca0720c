"""Runs that learn from labels of somebody else's, alone or fused with the teacher's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_stages import StopAt, weights
from tiny_world import make_set, tiny_config

from mrt.ablate import missing_work
from mrt.ablate.nodes import Planner, stage_settings
from mrt.ablate.studies import Row, grid_rows, make_axes
from mrt.ablate.work import do_work
from mrt.config import load_config
from mrt.engine import stages
from mrt.engine.inference import evaluate_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError
from mrt.parts.settings import decayed

PLAIN = {"mae.use": "none", "retrain.every": 0}


def lines(run: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind and line["stage"] == "teach"]


def same(one: Path, other: Path) -> bool:
    pairs = [(weights(one, name), weights(other, name)) for name in ("student", "teacher")]
    return all(torch.equal(mine[key], theirs[key]) for mine, theirs in pairs for key in mine)


@pytest.fixture
def labels(world, tmp_path) -> Path:
    """The target's true labels, as somebody else's file."""
    shutil.copy(world / "hazy" / "train.json", tmp_path / "labels.json")
    return tmp_path / "labels.json"


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_alone_they_are_all_there_is_to_learn_from(world, source, labels, tmp_path):
    """The numbers of labels in a step are those of its images."""
    config = tiny_config(**PLAIN, **{"teacher.labels": str(labels), "teacher.pseudo_labels": False})
    told = Listener()
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, watcher=told)
    coco = json.loads(labels.read_text())
    mean = len(coco["annotations"]) / len(coco["images"])
    train = lines(run, "train")
    assert sum(line["pseudo_labels"] for line in train[:2]) / 2 == pytest.approx(mean), (
        "an epoch sees them all"
    )
    assert [line for line in told.said if f"{len(coco['annotations'])} on 8 target images" in line]
    assert all(line["target/class"] > 0 for line in train) and not any("target/box" in line for line in train)
    assert lines(run, "epoch")[-1].keys() == {"stage", "kind", "step", "time", "epoch"}


def test_with_the_targets_true_labels_the_target_is_learned_as_by_an_oracle(tmp_path, source):
    """The labels call everything green, which the source does not: so they are what was learned."""
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=1)
    coco = json.loads((tmp_path / "hazy" / "train.json").read_text())
    for item in coco["annotations"]:
        item["category_id"] = 2
    (tmp_path / "green.json").write_text(json.dumps(coco))
    settings = PLAIN | {"mae_stage.epochs": 1, "teach.epochs": 12, "teach.lr": 3e-3, "teacher.ema": 0.5}
    settings |= {"domain.enabled": False}

    def green(**changes) -> float:
        name = f"run{len(list(tmp_path.glob('run*')))}"
        run = stages.adapt(
            tiny_config(**settings, **changes), tmp_path / name, init=str(source), data_root=tmp_path
        )
        found = evaluate_detector(run, data="hazy", data_root=tmp_path).metrics.detections
        labels = [label for image in found for label in image.labels[:8]]
        return sum(label == 1 for label in labels) / len(labels)

    outside = {"teacher.labels": str(tmp_path / "green.json")}
    alone = green(**outside, **{"teacher.pseudo_labels": False})
    assert alone > 0.5 > 0.2 > green(**{"teacher.pseudo_labels": False})


@pytest.mark.parametrize("stop", [2, 5])
def test_a_fused_run_goes_on_to_the_same_weights(world, source, labels, tmp_path, stop):
    changes = PLAIN | {
        "teacher.labels": str(labels),
        "teacher.labels_alone": "weigh",
        "teacher.box_loss": True,
    }
    changes |= {
        "teacher.labels_decay": "linear",
        "teacher.labels_decay_epoch": 2,
        "teacher.ignore_above": 0.0,
    }
    changes |= {"teacher.labels_score": 0.0}
    how = {"init": str(source), "data_root": world}
    whole = stages.adapt(tiny_config(**changes), tmp_path / "whole", **how)
    shares = lines(whole, "epoch")[0]["outside_labels"]
    assert shares.keys() == {"agreed", "teacher_alone", "outside_alone", "conflict"}
    assert shares["outside_alone"] + shares["agreed"] + shares["conflict"] > 0
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(**changes), tmp_path / "run", watcher=StopAt(stop), **how)
    run = stages.adapt(tiny_config(), tmp_path / "run", resume=True, data_root=world)
    assert same(run, whole)
    assert [line["outside_labels"] for line in lines(run, "epoch")] == [
        line["outside_labels"] for line in lines(whole, "epoch")
    ]


def test_names_of_the_labels_are_mapped_beside_those_of_the_target(world, source, labels, tmp_path):
    coco = json.loads(labels.read_text())
    coco["categories"][0]["name"] = "rouge"
    labels.write_text(json.dumps(coco))
    changes = {"teacher.labels": str(labels), "data.class_map": {"rouge": "red"}, "engine.eval_every": 2}
    told = Listener()
    run = stages.adapt(
        tiny_config(**PLAIN, **changes), tmp_path / "run", init=str(source), data_root=world, watcher=told
    )
    assert [line for line in told.said if f"{len(coco['annotations'])} on 8 target images" in line]
    assert any(line["kind"] == "eval" for line in map(json.loads, (run / "metrics.jsonl").open()))


@pytest.mark.parametrize("stop", [2, 6])
def test_labels_that_changed_are_noticed_before_anything_is_written(world, source, labels, tmp_path, stop):
    """Also where the run was stopped before it had begun to read them."""
    run, text = tmp_path / "run", labels.read_text()
    config = tiny_config(**PLAIN, **{"teacher.labels": str(labels), "engine.keep_checkpoints": 3})
    with pytest.raises(Interrupted):
        stages.adapt(config, run, init=str(source), data_root=world, watcher=StopAt(stop))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    labels.write_text(text + "\n")
    first = sorted(path.stem for path in (run / "checkpoints").glob("*-*.pt"))[0]
    for checkpoint in (None, first):
        with pytest.raises(MrtError, match=r"teacher\.labels = '.*labels\.json' has another content"):
            stages.adapt(config, run, resume=True, from_checkpoint=checkpoint, data_root=world)
    assert {path: path.read_bytes() for path in before} == before
    labels.write_text(text)
    stages.adapt(config, run, resume=True, data_root=world)


def test_work_that_was_planned_with_other_labels_is_not_done(world, labels, tmp_path):
    data = {"data.target": "hazy", "data.source": "clear"}
    row = Row("row", {"teacher.labels": str(labels)})
    trials = Planner(world, "val").trials([row], [0], "small", (), data)
    *_, work = missing_work(trials, tmp_path, world)
    assert work.kind == "teach" and work.reads.keys() == {"teacher.labels"}
    labels.write_text(labels.read_text() + "\n")
    with pytest.raises(MrtError, match=r"teacher\.labels: has changed since this was planned"):
        do_work(work, Watcher())


def test_a_preset_names_labels_beside_itself_and_sets_keep_their_names(labels, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('[teacher]\nlabels = "labels.json"\n')
    monkeypatch.chdir("/")
    assert load_config(tmp_path / "mine.toml").teacher.labels == str(labels)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hazy").mkdir()
    (tmp_path / "hazy" / "dataset.json").write_text("{}")
    assert load_config("small", ["teacher.labels=hazy"]).teacher.labels == "hazy"
    assert load_config("small", ["teacher.labels=labels.json"]).teacher.labels == str(labels)


@pytest.mark.parametrize(
    "setting", ["teacher.labels_weight=inf", "teacher.labels_weight=-1", "distill.temperature=1e300"]
)
def test_numbers_that_ruin_a_run_are_refused(setting):
    with pytest.raises(MrtError, match=setting.partition("=")[0]):
        load_config("small", [setting])


def test_files_as_an_axis_have_short_names(labels, tmp_path):
    shutil.copy(labels, tmp_path / "other.json")
    axes = make_axes([("teacher.labels", [str(labels), str(tmp_path / "other.json")])])
    assert [row.name for row in grid_rows(axes, "small")] == ["labels labels.json", "labels other.json"]
    assert grid_rows(make_axes([("teacher.labels", ["none"])]), "small")[0].name == "labels none"


def test_without_weight_they_change_nothing_and_without_cover_the_teacher_stands(
    world, source, labels, tmp_path
):
    how = {"init": str(source), "data_root": world}
    plain = stages.adapt(tiny_config(**PLAIN), tmp_path / "plain", **how)
    outside = {"teacher.labels": str(labels)}
    nothing = stages.adapt(
        tiny_config(**PLAIN, **outside, **{"teacher.labels_weight": 0}), tmp_path / "0", **how
    )
    assert same(plain, nothing)
    coco = json.loads(labels.read_text())
    first = coco["images"][0]["id"]
    coco["images"] = coco["images"][:1]
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] == first]
    labels.write_text(json.dumps(coco))
    one = stages.adapt(tiny_config(**PLAIN, **outside), tmp_path / "1", **how)
    shares = lines(one, "epoch")[0]["outside_labels"]
    assert shares["outside_alone"] + shares["agreed"] + shares["conflict"] <= len(coco["annotations"])
    config = tiny_config(**PLAIN, **outside, **{"teacher.pseudo_labels": False})
    with pytest.raises(MrtError, match="1 images do not fill a batch"):
        stages.adapt(config, tmp_path / "2", **how)


def test_what_cannot_work_is_said_before_anything_is_made(world, source, tmp_path):
    for where, words in (("gone.json", "no such file"), ("clear", None)):
        config = tiny_config(**PLAIN, **{"teacher.labels": where})
        if words is None:  # another set with images of the same names: its labels are taken
            stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
            continue
        with pytest.raises(MrtError, match=words):
            stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "decay, expected", [("none", [2, 2, 2, 2]), ("hard", [2, 2, 0, 0]), ("linear", [2, 1, 0, 0])]
)
def test_the_weight_decays_by_epoch(decay, expected):
    assert [decayed(2.0, decay, 2, epoch) for epoch in range(4)] == expected


def test_settings_count_when_and_only_when_they_act(world, labels):
    def teach(**changes) -> dict:
        return stage_settings(load_config("small", changes=changes), "teach")

    on = {"teacher.labels": str(labels)}
    off = {"teacher.pseudo_labels": False}
    for key, value in (
        ("teacher.threshold_start", 0.1),
        ("teacher.dynamic", False),
        ("teacher.ignore_above", 0.1),
    ):
        assert teach(**off, **{key: value}) == teach(**off) and teach(**{key: value}) != teach()
    alone = on | {"teacher.pseudo_labels": False}
    fused = {"teacher.labels_iou": 0.4, "teacher.labels_alone": "weigh", "teacher.labels_weight": 2.0}
    for key, value in fused.items():
        assert teach(**{key: value}) == teach()
        assert teach(**alone, **{key: value}) == teach(**alone)
        assert teach(**on, **{key: value}) != teach(**on)
    assert teach(**{"teacher.labels_score": 0.5}) == teach()
    assert teach(**alone, **{"teacher.labels_score": 0.5}) != teach(**alone)
    hard = {"teacher.labels_decay": "hard"}
    assert teach(**on, **{"teacher.labels_decay_epoch": 3}) == teach(**on)
    assert teach(**on, **hard, **{"teacher.labels_decay_epoch": 3}) != teach(**on, **hard)

    def digest(**changes) -> list[str]:
        row = Row("row", changes)
        (trial,) = Planner(world, "val").trials(
            [row], [0], "small", (), {"data.target": "hazy", "data.source": "clear"}
        )
        return [node.digest for node in trial.node.chain]

    plain, before = digest(), digest(**on)
    assert [a == b for a, b in zip(plain, before, strict=True)] == [True, True, False]
    labels.write_text(labels.read_text() + "\n")
    assert digest(**on)[:2] == before[:2] and digest(**on)[2] != before[2], "they count by their content"
