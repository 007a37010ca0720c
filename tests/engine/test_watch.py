"""Watching for a collapse: what counts as one, by sequences of epochs, and what a run does about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import make_set, tiny_config

from mrt.data.dataset import DetectionDataset
from mrt.data.registry import find_dataset
from mrt.engine import stages, watch
from mrt.engine.facts import read_facts
from mrt.engine.kept import kept_teachers
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher, read_log
from mrt.engine.snapshots import spread_evenly
from mrt.engine.watch import Sight, Watch
from mrt.errors import MrtError, RunFailed
from mrt.evaluate.unlabelled import Looks, look
from mrt.models.weights import read_metadata
from mrt.predict.network import Preprocessing

SOURCE = {"car": 6.0, "person": 4.0}
SOURCE_FREE = {"domain.enabled": False, "mae.use": "none", "retrain.every": 0, "engine.keep_teachers": 3}


def seen(*totals: float, car: float | list[float] = 0.6, expected=SOURCE) -> list:
    """The kinds of alarms after each epoch with so many labels an image, of which a share are cars."""
    shares = car if isinstance(car, list) else [car] * len(totals)
    watcher, found = Watch(expected), []
    for epoch, (total, share) in enumerate(zip(totals, shares, strict=True), 1):
        labels = {"car": total * share, "person": total * (1 - share)}
        sight = Sight(epoch, labels, thresholds={"car": 0.4, "person": 0.3})
        found.append([alarm.kind for alarm in watcher.see(sight)])
    return found


def test_healthy_runs_raise_no_alarm():
    assert seen(2, 3, 4, 5, 5.5, 5.6) == [[]] * 6
    assert seen(0.5, 0.9, 1.4, 2.0) == [[]] * 4, "few at first, but growing"
    assert seen(6, 5, 4.2, 4.0) == [[]] * 4, "thresholds that settle"
    assert seen(5, 5, 5, car=[0.6, 0.75, 0.8]) == [[]] * 3
    assert seen(2, 3, 4, expected={}) == [[]] * 3, "a source that nobody has counted"


def test_labels_that_vanish():
    assert seen(0.05, 0.05)[0] == ["vanishing"], "0.05 an image against 10 boxes"
    assert seen(5, 4, 2.4) == [[], [], ["vanishing"]], "less than half of what there was"
    assert seen(0.8, 0.8) == [[], ["vanishing"]], "few, and not growing"
    assert seen(5, 4, 2.4, 1.0, 0.2)[2:] == [["vanishing"], [], []], "said once"
    assert seen(3, 1, expected={}) == [[], ["vanishing"]]
    assert seen(0, 0, expected={})[0] == ["vanishing"], "nothing is nothing, whatever the source has"


@pytest.mark.parametrize("there", [True, False])
def test_weaker_discriminators_are_advised_only_where_there_are_some(there):
    sights = [Sight(1, SOURCE, prototypes=0.9), Sight(2, {"car": 0.1}, prototypes=0.5)]
    watcher = Watch(SOURCE, discriminators=there)
    texts = {alarm.kind: alarm.text for sight in sights for alarm in watcher.see(sight)}
    assert set(texts) >= {"vanishing", "falling"}
    for kind in ("vanishing", "falling"):
        assert ("discriminators" in texts[kind]) == there, texts[kind]
        assert ", or " in texts[kind] and texts[kind].endswith(".")


@pytest.mark.parametrize("expected", [SOURCE, {}])
def test_a_limit_is_advised_where_the_source_is_known(expected):
    watcher = Watch(expected, discriminators=False)
    sights = [Sight(1, {"car": 5.0}), Sight(2, {"car": 40.0})]
    text = next(alarm.text for sight in sights for alarm in watcher.see(sight))
    assert "explode" in text and ("teacher.most_labels=0.8" in text) == bool(expected), text
    assert "discriminators" not in text and "teacher.ema" in text


def test_labels_that_explode():
    assert seen(5, 16) == [[], ["exploding"]]
    assert seen(3, 9.5, 10.5) == [[], [], ["exploding"]], "three times the first epoch's, above the source's"
    assert seen(1, 4, 6) == [[]] * 3, "many times more, but no more than the source has"


def test_a_class_that_explodes_alone():
    """As platelets did from one laboratory's blood smears to another's: 2 % of them were right at the end."""
    watcher = Watch({"WBC": 1.1, "RBC": 22.1, "Platelets": 1.0})
    counts = [(1.0, 13.0, 0.1), (1.0, 14.6, 0.8), (1.1, 15.4, 2.0), (1.3, 16.6, 3.4), (1.6, 19.0, 13.2)]
    found = []
    for epoch, labels in enumerate(counts, 1):
        found.append(watcher.see(Sight(epoch, dict(zip(("WBC", "RBC", "Platelets"), labels, strict=True)))))
    assert [[alarm.kind for alarm in alarms] for alarms in found] == [[], [], [], ["exploding"], []]
    assert "of a class explode: Platelets 3.4 an image, 1.0 on the source, 0.1 at first" in found[3][0].text
    assert watcher.active == {"exploding"} and watcher.good == 3
    rare = Watch({"car": 5.0, "train": 0.01})
    assert not rare.see(Sight(1, {"car": 4.0, "train": 0.4})), "too few to say"


def test_a_class_that_takes_over():
    assert seen(5, 5, car=[0.6, 0.97]) == [[], ["one class"]]
    assert seen(5, car=0.97) == [["one class"]]
    only = Watch({"car": 9.6, "person": 0.4})
    assert not only.see(Sight(1, {"car": 5.0, "person": 0.1})), "as on the source"
    assert seen(0.04, 0.041, 0.045, car=1.0, expected={}) == [[]] * 3, "too few to say"


@pytest.mark.parametrize(
    ("prototypes", "falling"),
    [  # as in runs of the study: healthy, too strong discriminators, thresholds too high
        ([3.11, 3.16, 3.21, 3.32, 3.43, 3.42, 3.45, 3.64], []),
        ([3.14, 3.12, 3.21, 3.29, 3.36, 3.41, 3.31, 3.23], [8]),
        ([3.03, 2.89, 2.80, 2.77], [3, 4]),
        ([None, 2.0, None, 1.0], [4]),
    ],
)
def test_a_teacher_that_gets_worse(prototypes, falling):
    watcher, found = Watch(SOURCE), []
    for epoch, value in enumerate(prototypes, 1):
        watcher.see(Sight(epoch, {"car": 5.0, "person": 4.0}, value))
        if "falling" in watcher.active:
            found.append(epoch)
    assert found == falling


def test_words_tell_what_thresholds_did_and_what_to_change():
    watcher = Watch(SOURCE)
    watcher.see(Sight(1, {"car": 5.0, "person": 3.0}, thresholds={"car": 0.4, "person": 0.4}))
    (alarm,) = watcher.see(Sight(2, {"car": 0.4, "person": 0.3}, thresholds={"car": 0.5, "person": 0.4}))
    assert "0.70 an image, 8.00 before" in alarm.text and "car 0.40 -> 0.50, person 0.40" in alarm.text
    assert "teacher.threshold_min" in alarm.text


def test_of_many_classes_those_that_moved_most_are_named():
    names = [f"class {number}" for number in range(80)]
    seen = Watch(dict.fromkeys(names, 0.1))
    seen.see(Sight(1, dict.fromkeys(names, 0.1), thresholds=dict.fromkeys(names, 0.3)))
    moved = {name: 0.3 + 0.001 * number for number, name in enumerate(names)}
    (alarm,) = seen.see(Sight(2, dict.fromkeys(names, 0.0), thresholds=moved))
    assert "class 79 0.30 -> 0.38 and 72 more" in alarm.text and "class 71" not in alarm.text
    assert len(alarm.text) < 600


@pytest.mark.parametrize(
    ("prototypes", "stale", "best"),
    [
        ([2.5, 2.6, 2.6, 2.5, 2.7], [0, 0, 1, 2, 0], 5),
        ([None, 2.6, None, 2.5], [0, 0, 1, 2], 2),
        ([None, None, None], [0, 0, 0], 0),
    ],
)
def test_staleness_counts_epochs_without_a_rise(prototypes, stale, best):
    watcher, found = Watch(), []
    for epoch, value in enumerate(prototypes, 1):
        watcher.see(Sight(epoch, {"car": 1.0}, value))
        found.append(watcher.stale())
    assert (found, watcher.best) == (stale, best)


def test_what_is_seen_again_in_a_log_is_what_was_seen():
    lines = [
        {"kind": "epoch", "epoch": 1, "labels_per_image": {"car": 5.0}, "prototypes": 2.5},
        {"kind": "eval", "epoch": 1},
        {"kind": "epoch", "epoch": 2, "labels_per_image": {"car": 5.0}, "retrained": 7},
        {"kind": "epoch", "epoch": 3, "labels_per_image": {"car": 1.0}},
    ]
    one, two = Watch({"car": 6.0}), Watch({"car": 6.0})
    one.replay(lines, 2)
    two.replay(lines, 3)
    assert (len(one.sights), one.good, one.active, one.best) == (2, 2, set(), 1)
    assert two.active == {"vanishing"} and two.good == 2


# --- runs ---


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def settings(**changes):
    return tiny_config(**{"teach.epochs": 4, "engine.eval_every": 0} | changes)


@pytest.fixture
def collapse_in(monkeypatch):
    """Makes labels "vanish" from an epoch on."""

    def at(epoch: int) -> None:
        def few(self: Watch, now: Sight):
            return [watch.Alarm("vanishing", "labels vanish.")] if now.epoch >= epoch else []

        monkeypatch.setattr(Watch, "_few", few)
        for name in ("_many", "_one_class", "_falling"):
            monkeypatch.setattr(Watch, name, lambda self, now: [])

    return at


def epochs_of(run: Path) -> list[dict]:
    lines = read_log(run / "metrics.jsonl")
    return [line for line in lines if line["kind"] == "epoch" and line["stage"] == "teach"]


def test_a_run_is_warned_and_goes_on(world, source, tmp_path, collapse_in):
    collapse_in(3)
    listener = Listener()
    run = stages.adapt(settings(), tmp_path / "run", init=str(source), data_root=world, watcher=listener)
    assert [line for line in listener.said if "labels vanish" in line] == [
        "Warning: epoch 3: labels vanish."
    ], "once"
    assert [line.get("alarms") for line in epochs_of(run)] == [None, None, ["vanishing"], ["vanishing"]]
    assert all(0 <= line["agreement"] <= 1 for line in epochs_of(run))
    assert "ended" not in read_facts(run)


def test_a_run_stops_and_can_go_on_all_the_same(world, source, tmp_path, collapse_in):
    collapse_in(2)
    config = settings(**{"engine.on_collapse": "stop"})
    with pytest.raises(RunFailed, match=r"vanishing after epoch 2.*on_collapse=warn"):
        stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
    with pytest.raises(RunFailed, match="vanishing after epoch 2"):
        stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, resume=True)
    changes = {"config": settings(init=str(source)), "settings": {"engine.on_collapse": ["stop", "warn"]}}
    again = stages.adapt(
        config, tmp_path / "run", init=str(source), data_root=world, resume=True, changes=changes
    )
    plain = stages.adapt(settings(), tmp_path / "plain", init=str(source), data_root=world)
    assert same(again, plain)


def same(one: Path, two: Path) -> bool:
    first, second = (load_detector(path)[0].state_dict() for path in (one, two))
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_goes_back_to_its_last_good_teacher(world, source, tmp_path, collapse_in, epoch):
    collapse_in(epoch)
    listener = Listener()
    config = settings(**{"engine.on_collapse": "restore", "engine.keep_teachers": 3, "engine.eval_every": 1})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, watcher=listener)
    ended = read_facts(run)["ended"]["teach"]
    assert (ended["epoch"], ended["teacher"], ended["why"]) == (epoch, epoch - 1, "collapse: vanishing")
    assert same(run, kept_teachers(run)["teach", epoch - 1])
    headers = [
        read_metadata(path) for path in (run / "teacher.safetensors", kept_teachers(run)["teach", epoch - 1])
    ]
    assert headers[0]["thresholds"] == headers[1]["thresholds"], "those of that teacher, not of the collapse"
    assert not same(run, kept_teachers(run)["teach", epoch])
    assert len(epochs_of(run)) == epoch and any("ends after epoch" in line for line in listener.said)
    evals = [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "eval"]
    teach = [line for line in evals if line["stage"] == "teach"]
    student, teacher = teach[-2:]
    assert (student["epoch"], student["network"]) == (epoch, "student")
    assert (teacher["epoch"], teacher["network"]) == (epoch - 1, "teacher"), "the epoch that it is of"
    before = [line for line in teach[:-2] if (line["epoch"], line["network"]) == (epoch - 1, "teacher")]
    assert len(before) == (epoch > 1) and all(line["AP50"] == teacher["AP50"] for line in before)
    assert "finished" in "\n".join(
        listener.said
        if stages.adapt(config, run, init=str(source), data_root=world, resume=True, watcher=listener)
        else []
    )


def test_in_bf16_agreement_is_that_of_the_same_labels(world, source, tmp_path):
    run = stages.adapt(
        settings(**{"engine.amp": "bf16"}), tmp_path / "run", init=str(source), data_root=world
    )
    values = [line["agreement"] for line in epochs_of(run)]
    assert len(values) == 4 and all(0 <= value <= 1 for value in values)
    scores = [
        score
        for line in read_log(run / "pseudo_labels.jsonl")
        for image in line["images"]
        for score in image["scores"]
    ]
    assert all(0 < score <= 1 for score in scores)


@pytest.mark.parametrize("where", ["restore_teacher", "note_end", "asdict"])
def test_a_run_that_is_killed_while_its_stage_ends_early_ends_the_same(
    world, source, tmp_path, collapse_in, monkeypatch, where
):
    """Before the teacher went back, before that is on record, and before the last weights are written."""
    from mrt.engine import early

    collapse_in(3)
    changes = {"engine.on_collapse": "restore", "engine.keep_teachers": 3, "model.dropout": 0.1}
    config = settings(**changes)
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=world)
    original = getattr(early, where)

    def killed(*arguments):
        if where != "restore_teacher":
            original(*arguments)
        raise KeyError("killed")

    monkeypatch.setattr(early, where, killed)
    with pytest.raises(KeyError, match="killed"):
        stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
    monkeypatch.setattr(early, where, original)
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, resume=True)
    assert read_facts(run)["ended"] == read_facts(whole)["ended"] and same(run, whole)
    assert epochs_without_time(run) == epochs_without_time(whole)


def epochs_without_time(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "time"} for line in epochs_of(run)]


def test_patience_ends_with_the_teacher_of_the_best_epoch(world, source, tmp_path, monkeypatch):
    from mrt.engine import snapshots

    values = iter([3.0, 3.1, 3.4, 3.3, 3.2])  # before the first epoch, and after each
    monkeypatch.setattr(snapshots.LabelSnapshots, "_prototypes", lambda self, target: next(values))
    config = settings(**{"engine.patience": 2, "engine.keep_teachers": 3, "teach.epochs": 9})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
    assert read_facts(run)["ended"]["teach"] == {
        "why": "no rise of prototypes in 2 epochs",
        "epoch": 4,
        "teacher": 2,
    }
    assert [line["prototypes"] for line in epochs_of(run)] == [3.1, 3.4, 3.3, 3.2]
    assert same(run, kept_teachers(run)["teach", 2])


def test_a_teacher_that_gets_worse_goes_back_to_its_best(world, source, tmp_path, monkeypatch):
    from mrt.engine import snapshots

    values = iter([3.0, 3.1, 3.4, 3.3, 3.0])
    monkeypatch.setattr(snapshots.LabelSnapshots, "_prototypes", lambda self, target: next(values))
    monkeypatch.setattr(Watch, "_few", lambda self, now: [])
    listener = Listener()
    config = settings(**{"engine.on_collapse": "restore", "engine.keep_teachers": 3, "teach.epochs": 9})
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, watcher=listener)
    ended = {"why": "collapse: falling", "epoch": 4, "teacher": 2}
    assert read_facts(run)["ended"]["teach"] == ended and same(run, kept_teachers(run)["teach", 2])
    assert any("prototypes fall to 3.00 from 3.40 after epoch 2" in line for line in listener.said)


@pytest.mark.parametrize("setting", [{"engine.patience": 5}, {"engine.on_collapse": "restore"}])
def test_the_best_teacher_is_kept_however_long_ago_it_was(world, source, tmp_path, monkeypatch, setting):
    from mrt.engine import snapshots

    values = iter([3.0, 3.0, 3.4, 3.38, 3.36, 3.33, 3.30, 3.2, 3.1, 3.0])
    monkeypatch.setattr(snapshots.LabelSnapshots, "_prototypes", lambda self, target: next(values))
    monkeypatch.setattr(Watch, "_few", lambda self, now: [])
    config = settings(**{"engine.keep_teachers": 3, "teach.epochs": 9} | setting)
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
    ended = read_facts(run)["ended"]["teach"]
    assert (ended["epoch"], ended["teacher"]) == (7, 2) and same(run, kept_teachers(run)["teach", 2])
    assert list(kept_teachers(run)) == [("teach", epoch) for epoch in (2, 5, 6, 7)]


def test_patience_of_one_class_is_refused_before_anything_is_trained(tmp_path):
    for name in ("clear", "hazy"):
        make_set(tmp_path / "data", name, haze=0.5 * (name == "hazy"))
        folder = tmp_path / "data" / name
        card = json.loads((folder / "dataset.json").read_text()) | {"classes": ["red"]}
        for split, facts in card["splits"].items():
            content = json.loads((folder / f"{split}.json").read_text())
            content["categories"] = content["categories"][:1]
            for annotation in content["annotations"]:
                annotation["category_id"] = 1
            (folder / f"{split}.json").write_text(json.dumps(content))
            facts["sha256"] = ""
        (folder / "dataset.json").write_text(json.dumps(card))
    config = settings(**{"engine.patience": 2, "engine.keep_teachers": 1})
    source = stages.pretrain_source(tiny_config(), tmp_path / "source", data_root=tmp_path / "data")
    with pytest.raises(MrtError, match="prototypes compare classes"):
        stages.adapt(config, tmp_path / "run", init=str(source), data_root=tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_prototypes_are_those_of_the_snapshots_images(world, source, tmp_path, monkeypatch):
    """They are computed from what mrt select sees of the same images; a run without looks is the same run."""
    seen = []

    def computed(looks: Looks):
        seen.append(looks)
        return SimpleNamespace(value=1.25)

    monkeypatch.setattr("mrt.engine.snapshots.prototypes", computed)
    changes = {"teach.epochs": 1, "engine.snapshots": 4, "model.dropout": 0.1}
    config = settings(**changes)
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world)
    plain = settings(**changes | {"engine.snapshots": 0})
    plain = stages.adapt(plain, tmp_path / "plain", init=str(source), data_root=world)
    assert same(run, plain) and "prototypes" not in epochs_of(plain)[0]
    detector, facts = load_detector(run)
    looks = []
    for name in ("hazy", "clear"):
        card = find_dataset(name, world)
        records = DetectionDataset(card, "train", classes=facts["classes"]).records
        paths = [records[place].path for place in spread_evenly(len(records), 4)]
        read = [lambda path=path: Image.open(path).convert("RGB") for path in paths]
        looks.append(look(detector, read, Preprocessing.of(config.data).size))
    assert [line["prototypes"] for line in epochs_of(run)] == [1.25] and len(seen) == 2
    for mine, theirs in zip((seen[-1].plain, seen[-1].source), looks, strict=True):
        for name in ("scores", "boxes", "queries"):
            assert np.allclose(getattr(mine, name), getattr(theirs, name), atol=1e-4), name


def test_what_watching_needs_is_asked_for():
    with pytest.raises(MrtError, match="watches the teacher's pseudo labels"):
        settings(**{"engine.patience": 2, "teacher.pseudo_labels": False, "distill.enabled": True})
    with pytest.raises(MrtError, match="keep_teachers=3"):
        settings(**{"engine.on_collapse": "restore", "engine.keep_teachers": 2})
    with pytest.raises(MrtError, match="snapshots"):
        settings(**{"engine.patience": 2, "engine.snapshots": 0})
    with pytest.raises(MrtError, match="keep_teachers=1"):
        settings(**{"engine.patience": 2, "engine.keep_teachers": 0})
    with pytest.raises(MrtError, match="source images"):
        settings(**{"engine.patience": 2, "method.source_free": True} | SOURCE_FREE)


def test_watching_reads_no_label_of_the_target(world, source, tmp_path):
    """Its boxes may be anything."""
    runs = []
    for number, shift in enumerate((0, 7)):
        root = tmp_path / str(number)
        root.mkdir()
        for name in ("clear", "hazy"):
            make_set(root, name, haze=0.5 * (name == "hazy"), seed=1 + (name == "hazy"))
        file = root / "hazy" / "train.json"
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            annotation["bbox"][0] += shift
        file.write_text(json.dumps(content))
        card = json.loads((root / "hazy" / "dataset.json").read_text())
        card["splits"]["train"]["sha256"] = ""
        (root / "hazy" / "dataset.json").write_text(json.dumps(card))
        runs.append(stages.adapt(settings(), tmp_path / f"run{number}", init=str(source), data_root=root))
    keep = ("labels_per_image", "agreement", "prototypes", "thresholds", "alarms")
    first, second = ([{key: line.get(key) for key in keep} for line in epochs_of(run)] for run in runs)
    assert first == second
