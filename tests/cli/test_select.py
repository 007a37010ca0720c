"""``mrt select``: what it prints and writes, and that no annotation of the target is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import mrt, refused
from tiny_world import make_run_with_teachers

from mrt.data.card import read_json
from mrt.engine.load import load_detector
from mrt.evaluate.unlabelled import SIGNALS
from mrt.models.weights import read_metadata


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Path:
    return make_run_with_teachers(tmp_path_factory.mktemp("chosen"))


def roots(world: Path) -> list[str]:
    return ["--data-root", str(world / "data"), "--run-root", str(world / "runs")]


def done(*words: object) -> str:
    result = mrt("select", *words)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_ranks_and_writes(chosen, tmp_path):
    out = done("run", "--limit", "6", "--json", str(tmp_path / "found.json"), "--apply", *roots(chosen))
    assert "3 detectors on 6 images of hazy train, without labels" in out and "last teacher" in out
    found = json.loads((tmp_path / "found.json").read_text())
    (one, two, last) = found["candidates"]
    assert set(last["signals"]) == set(one["signals"]) == set(SIGNALS)
    assert one["signals"]["partner"]["value"] is None and last["signals"]["partner"]["value"] is not None
    for name in set(SIGNALS) - {"partner"}:
        ranks = [row["signals"][name]["rank"] for row in (one, two, last)]
        values = [row["signals"][name]["value"] for row in (one, two, last)]
        known = sorted(rank for rank in ranks if rank is not None)
        assert known == list(range(1, len(known) + 1)), name
        if None not in values:
            best = (max if SIGNALS[name].high else min)(values)
            assert values[ranks.index(1)] == best
    assert found["images"]["number"] == 6 and len(set(found["images"]["names"])) == 6
    file = chosen / "runs" / "run" / "selected.safetensors"
    weights, facts = load_detector(file)
    expected = load_detector(chosen / "runs" / "run")[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights.state_dict().items())
    assert facts["selected"]["by"] == "prototypes" and facts["selected"]["chosen"] == "last teacher"
    assert "By prototypes: last teacher" in out, "six images are too few for another one"
    assert read_metadata(file)["classes"] == ["red", "green"]
    again = done("run", "--limit", "6", "--json", str(tmp_path / "two.json"), *roots(chosen))
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in content["candidates"]]
        for content in (found, read_json(tmp_path / "two.json"))
    ]
    assert timeless[0] == timeless[1] and "Took " in again and "--apply writes its weights" in again
    assert "By last: last teacher" in done("run", "--limit", "2", "--by", "last", *roots(chosen))


def test_images_of_ones_own_and_no_source(chosen, tmp_path):
    """Without the source's images their signals are left out, and it is said."""
    photos = tmp_path / "photos"
    shutil.copytree(chosen / "data" / "hazy" / "images" / "val", photos)
    out = done(
        *("run", "--images", str(photos), "--data-root", str(tmp_path)),
        *("--run-root", str(chosen / "runs")),
    )
    assert "on 8 images of" in out and "Left out, for want of what they look at: atc, prototypes" in out
    why = "the last one, for prototypes is not known here: it looks at the source's images"
    assert f"By prototypes: last teacher ({why})" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--by", "luck"], "--by luck: no such signal"),
        (["run", "--images", "a", "--target", "hazy"], "both say which images"),
        (["run", "--target", "nowhere"], "nowhere"),
        (["run", "--split", "night"], "night"),
        (["absent", "run"], "absent"),
        (["run", "--images", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_message(chosen, words, message):
    assert message in refused("select", *words, *roots(chosen))


def test_assess_says_which_of_two_to_trust(chosen, tmp_path):
    pytest.importorskip("jinja2")
    out = tmp_path / "page"
    result = mrt(
        *("assess", "run", "--limit", "6", "--pictures", "2", "--suggest", "3", "--out", out), *roots(chosen)
    )
    assert result.exit_code == 0, result.output
    record = json.loads((out / "assess.json").read_text())
    assert record["verdict"][0] in result.output and len(record["to_label"]) == 3
    assert record["before"].endswith("source/teacher.safetensors") and record["images"]["number"] == 6
    assert set(record["signals"]) == set(SIGNALS) - {"partner"}
    page = (out / "assess.html").read_text()
    assert "Which of the two?" in page and "AP50 is not estimated" in page and "no label was read" in page
    labels = json.loads((out / "to-label" / "coco" / "annotations" / "instances_default.json").read_text())
    assert {image["file_name"] for image in labels["images"]} == set(record["to_label"])
    if record["disagree_most"]:
        assert (out / "figures" / "disagree.png").is_file()
    again = mrt("assess", "run", "--limit", "4", *roots(chosen))
    assert again.exit_code == 0 and (chosen / "runs" / "run" / "assess" / "assess.html").is_file()
    assert mrt("doctor", chosen / "runs" / "run").exit_code == 0, "pages and chosen weights do no harm"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source"], "does not say which detector it started from"),
        (["run", "--against", "absent"], "absent"),
        (["run", "--format", "tiff"], "--format tiff: unknown"),
        (["run", "--images", "a", "--target", "hazy"], "both say which images"),
    ],
)
def test_bad_input_of_assess_is_one_message(chosen, words, message):
    assert message in refused("assess", *words, *roots(chosen))
