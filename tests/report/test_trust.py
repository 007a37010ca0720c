"""A report tells what was seen without labels: by epoch, by the watch, and by mrt select since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_world import tiny_config

from mrt import selection
from mrt.engine import stages
from mrt.engine.facts import read_facts, write_facts
from mrt.errors import MrtError
from mrt.report import write_report


@pytest.fixture(scope="module")
def kept(world, runs, tmp_path_factory) -> Path:
    """An adapted run that kept its teachers."""
    folder = tmp_path_factory.mktemp("kept") / "kept"
    changes = {"engine.eval_every": 0, "engine.keep_teachers": 9, "teach.epochs": 3, "model.class_prior": 0.3}
    stages.adapt(tiny_config(**changes), folder, init=str(runs / "source"), data_root=world)
    return folder


@pytest.fixture
def run(kept, tmp_path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(kept, tmp_path / "kept")
    return tmp_path / "kept"


def section(run: Path, world: Path, out: Path) -> str:
    """The section's text."""
    page = write_report([run], out, data_root=world, quick=True)
    text = page.with_suffix(".md").read_text()
    begin = text.index("## Seen without target labels")
    return text[begin : text.index("\n## ", begin + 1)]


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_lines(run: Path, lines: list[dict]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(run / "checkpoints")  # they have the log's sha256
    facts = json.loads((run / "run.json").read_text())
    for key in ("sha256", "schema", "config_sha256", "logs"):  # as an earlier mrt wrote it, without checksums
        facts.pop(key, None)
    (run / "run.json").write_text(json.dumps(facts))


def chosen(run: Path, better: bool = True) -> dict:
    """What mrt select might have found: by ``boxes`` the first teacher is best."""
    names = [(one.name, one.epoch) for one in selection.find_candidates([run])]
    rows = [
        {"name": name, "epoch": epoch, "signals": {"boxes": {"value": 0.9 - 0.1 * place, "infinite": False}}}
        for place, (name, epoch) in enumerate(names)
    ]
    rows[-1]["signals"]["count-drift"] = {"value": None, "infinite": True}
    picks = {"boxes": {"candidate": names[0][0], "beyond_noise": better}}
    record = {"base": "last teacher", "images": {"from": "hazy train", "number": 8}}
    record |= {"candidates": rows, "picks": picks}
    selection.keep_record(run, record)
    return record


def test_labels_by_epoch_and_that_nobody_has_looked(run, world, tmp_path):
    text = section(run, world, tmp_path / "out")
    epochs = [line for line in lines_of(run) if line["kind"] == "epoch" and line["stage"] == "teach"]
    for line in epochs:
        assert f"| {line['epoch']} | {sum(line['labels_per_image'].values()):.2f} |" in text
    assert "alarms" in text and f"mrt select {run}" in text


def test_alarms_are_told_with_what_to_do_and_how_it_ended(run, world, tmp_path):
    lines = lines_of(run)
    for line in lines:
        if line["kind"] == "epoch" and line["stage"] == "teach":
            line["labels_per_image"] = dict.fromkeys(line["labels_per_image"], 0.0)
            line["prototypes"] = 2.5
            if line["epoch"] > 1:
                line["alarms"] = ["vanishing"]
    write_lines(run, lines)
    ended = {"why": "collapse: vanishing", "epoch": 3, "teacher": 1}
    facts = json.loads((run / "run.json").read_text()) | {"ended": {"teach": ended}}
    (run / "run.json").write_text(json.dumps(facts))
    text = section(run, world, tmp_path / "out")
    assert "alarm vanishing in 2 epochs, first in epoch 2. Lower the thresholds" in text
    assert "ended early, after epoch 3, with the teacher of epoch 1: collapse: vanishing" in text
    assert "| 1 | 0.00 | - | 2.50 |" in text


@pytest.mark.parametrize("better", [True, False])
def test_what_select_found_is_there_and_picks_are_marked(run, world, tmp_path, better):
    record = chosen(run, better)
    text = section(run, world, tmp_path / "out")
    assert "| epoch 1 | 0.900 \\* | - |" in text and "| last teacher | 0.700 | inf |" in text
    assert "on 8 images of hazy train, without labels" in text and "lower is better for count-drift" in text
    assert ("Better than the last teacher beyond noise are, by boxes: epoch 1." in text) == better
    assert ("No signal finds another teacher better" in text) != better
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["runs"]["kept"]["selection"]["picks"] == record["picks"]


@pytest.mark.parametrize("how", ["anew", "another teacher", "a teacher is gone", "other weights", "goes on"])
def test_what_was_found_before_the_run_went_on_does_not_count(run, world, tmp_path, how):
    chosen(run)
    facts = read_facts(run)
    if how == "anew":
        write_facts(run, facts | {"started": "2020-01-01T00:00:00+00:00"})
    elif how == "another teacher":
        shutil.copy(run / "teachers" / "teach-0003.safetensors", run / "teachers" / "teach-0007.safetensors")
    elif how == "a teacher is gone":
        (run / "teachers" / "teach-0001.safetensors").unlink()
    elif how == "other weights":  # as after --resume-from, up to the same epoch
        write_facts(run, facts | {"left": {**facts["left"], "teacher.safetensors": "0" * 64}})
    else:
        write_facts(run, facts | {"finished": []})
    text = section(run, world, tmp_path / "out")
    assert "trained since mrt select looked" in text and "| last teacher |" not in text


def test_of_a_run_that_went_back_what_was_found_is_shown(run, world, tmp_path):
    """Its last weights are an earlier epoch's."""
    facts = json.loads((run / "run.json").read_text())
    write_facts(run, facts | {"ended": {"teach": {"why": "collapse: falling", "epoch": 3, "teacher": 1}}})
    record = chosen(run)
    assert [row["name"] for row in record["candidates"]] == ["epoch 2", "epoch 3", "last teacher"]
    assert "| epoch 2 | 0.900 \\* |" in section(run, world, tmp_path / "out")


@pytest.mark.parametrize(
    "ended", [[], {"teach": []}, {"teach": {"why": "x", "epoch": 1}}, {"teach": {"why": 1}}]
)
def test_a_damaged_end_is_one_message(run, world, tmp_path, ended):
    facts = json.loads((run / "run.json").read_text())
    for key in ("sha256", "schema"):
        facts.pop(key, None)
    (run / "run.json").write_text(json.dumps(facts | {"ended": ended}))
    with pytest.raises(MrtError, match=r"run\.json"):
        section(run, world, tmp_path / "out")


def test_runs_without_teaching_have_nothing_to_tell(runs, world, tmp_path):
    assert "Not shown" in section(runs / "fair", world, tmp_path / "out")
