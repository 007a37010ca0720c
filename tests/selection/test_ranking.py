"""Choosing among detectors without the target's labels: which there are, what is opened, what is written."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_world import make_run_with_teachers

from mrt import selection
from mrt.data.card import read_json
from mrt.engine.facts import read_facts, write_facts
from mrt.engine.load import load_detector
from mrt.errors import MrtError
from mrt.evaluate.unlabelled import SIGNALS, Look, Looks, ratio
from mrt.models.weights import save_weights
from mrt.selection.candidates import Candidate
from mrt.selection.looking import Measured, target_images
from mrt.selection.ranking import choose


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_run_with_teachers(tmp_path_factory.mktemp("world"))


def test_candidates_are_the_kept_teachers_and_the_last(world):
    found = selection.find_candidates([world / "runs" / "run"])
    assert [one.name for one in found] == ["epoch 1", "epoch 2", "last teacher"], "epoch 3 is the last one"
    assert [one.last for one in found] == [False, False, True]
    assert found[-1].partner == world / "runs" / "run" / "student.safetensors" and found[0].partner is None
    both = selection.find_candidates([world / "runs" / "run", world / "runs" / "source"])
    assert [one.name for one in both][-2:] == ["run last teacher", "source last teacher"]
    with pytest.raises(MrtError, match="one detector, so there is nothing to choose"):
        selection.find_candidates([world / "runs" / "source"])
    with pytest.raises(MrtError, match="named twice"):
        selection.find_candidates([world / "runs" / "source", world / "runs" / "source"])


def test_a_folder_that_splits_share_is_refused(world, tmp_path):
    from mrt.data.registry import find_dataset

    shutil.copytree(world / "data" / "hazy", tmp_path / "hazy")
    card = read_json(tmp_path / "hazy" / "dataset.json")
    card["splits"]["val"]["images"] = "images"
    (tmp_path / "hazy" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(MrtError, match="in one folder") as error:
        target_images(find_dataset("hazy", tmp_path), "train")
    assert "--images" in error.value.hint


# --- what is beyond noise ---


def measured(name: str, scores: list[float], last: bool = False) -> Measured:
    """A candidate that gives one object of these scores in each image."""
    plain = Look(
        np.array(scores, dtype=np.float32).reshape(-1, 1, 1),
        np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (len(scores), 1, 1)),
        np.zeros((len(scores), 1, 2), dtype=np.float32),
    )
    looks = Looks(plain)
    known = {key: found for key, signal in SIGNALS.items() if (found := signal.of(looks)) is not None}
    return Measured(Candidate(name, Path(name), last=last), looks, known, 0.0)


def test_a_pick_counts_only_beyond_noise():
    generator = np.random.default_rng(0)
    base = generator.uniform(0.3, 0.9, 100)
    clear, vague = base + 0.05, base + generator.normal(0.001, 0.1, 100).clip(-0.2, 0.1)
    vague += base.mean() + 0.0005 - vague.mean()
    for other, beyond in ((clear, True), (vague, False)):
        ranking = selection.rank([measured("one", list(other)), measured("end", list(base), last=True)])
        pick = ranking["picks"]["confidence"]
        assert ranking["base"] == "end" and pick["candidate"] == "one"
        assert pick["beyond_noise"] is beyond and pick["difference"] > 0
        assert pick["low"] <= pick["difference"] <= pick["high"]
        assert choose(ranking, "confidence") == ("one" if beyond else "end")
        assert choose(ranking, "last") == "end"
    entropy = selection.rank([measured("one", [0.99] * 20), measured("end", [0.5] * 20, last=True)])
    assert entropy["picks"]["entropy"]["beyond_noise"] and entropy["picks"]["entropy"]["difference"] < 0


def test_a_candidate_without_a_value_is_ranked_by_none():
    nothing = measured("nothing", [0.0, 0.0])
    ranking = selection.rank([nothing, measured("end", [0.5, 0.6], last=True)])
    rows = {row["name"]: row["signals"]["confidence"] for row in ranking["candidates"]}
    assert rows["nothing"]["value"] is None and rows["nothing"]["rank"] is None and rows["end"]["rank"] == 1
    assert ranking["picks"]["confidence"]["is_base"]
    json.dumps(ranking, allow_nan=False)


@pytest.mark.parametrize(("images", "beyond"), [(30, True), (5, False)])
def test_a_last_detector_that_finds_nothing_loses(images, beyond):
    """Unless there are too few images to say anything."""
    one, end = measured("one", [0.5] * images), measured("end", [0.0] * images, last=True)
    for item in (one, end):
        looks = Looks(item.looks.plain, boxes_per_image=np.array([1.0]))
        item.estimates["count-drift"] = SIGNALS["count-drift"].of(looks)
    ranking = selection.rank([one, end])
    for name in ("confidence", "count-drift"):
        pick = ranking["picks"][name]
        assert (pick["candidate"], pick["difference"], pick["beyond_noise"]) == ("one", None, beyond), name
        assert choose(ranking, name) == ("one" if beyond else "end")
    assert ranking["candidates"][1]["signals"]["count-drift"]["infinite"]


def test_the_best_of_many_needs_a_larger_difference():
    """Twenty detectors that differ by chance alone: the luckiest is seldom taken for better."""
    generator, taken = np.random.default_rng(1), 0
    for _ in range(40):
        scores = generator.uniform(0.3, 0.9, (20, 50))
        ranking = selection.rank([measured(str(k), list(row), last=k == 19) for k, row in enumerate(scores)])
        taken += ranking["picks"]["confidence"]["beyond_noise"]
    assert taken <= 6, "one in 20 is what the level allows"
    assert ranking["level"] == pytest.approx(1 - 0.05 / 19)


def test_equal_file_names_are_told_apart_by_their_paths(world, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(world / "runs" / "run" / "teacher.safetensors", tmp_path / name)
    found = selection.find_candidates([tmp_path / name / "teacher.safetensors" for name in ("a", "b")])
    assert [one.name for one in found] == [str(tmp_path / n / "teacher.safetensors") for n in ("a", "b")]


def test_a_run_that_was_stopped_or_ended_early(world, tmp_path):
    """One without its last weights has its kept teachers; one that ended early has no teacher twice."""
    shutil.copytree(world / "runs" / "run", tmp_path / "run")
    run = tmp_path / "run"
    facts = read_facts(run)
    write_facts(run, {**facts, "ended": {"teach": {"why": "collapse", "epoch": 3, "teacher": 2}}})
    found = selection.find_candidates([run])
    assert [one.name for one in found] == ["epoch 1", "epoch 3", "last teacher"] and found[-1].partner is None
    (run / "teacher.safetensors").unlink()
    write_facts(run, {**{k: v for k, v in facts.items() if k != "left"}, "finished": ["mae"]})
    found = selection.find_candidates([run])
    assert [(one.name, one.last) for one in found] == [
        ("epoch 1", False),
        ("epoch 2", False),
        ("epoch 3", True),
    ]


def test_detectors_of_other_classes_are_not_compared(world, tmp_path):
    detector, facts = load_detector(world / "runs" / "run")
    other = tmp_path / "other.safetensors"
    save_weights(other, detector, {**facts, "classes": ["green", "red"]})
    with pytest.raises(MrtError, match="detects green, red"):
        selection.find_candidates([world / "runs" / "run", other])


def test_infinite_drift_ranks_last():
    one = measured("end", [0.5, 0.6], last=True)
    two = measured("nothing", [0.0, 0.0])
    for item in (one, two):
        looks = Looks(item.looks.plain, boxes_per_image=np.array([1.0]))
        item.estimates["count-drift"] = SIGNALS["count-drift"].of(looks)
    assert two.estimates["count-drift"].value == math.inf
    ranking = selection.rank([two, one])
    assert [row["signals"]["count-drift"]["rank"] for row in ranking["candidates"]] == [2, 1]
    json.dumps(ranking, allow_nan=False)
    assert ratio(np.ones(2), np.ones(2)).value == 1
