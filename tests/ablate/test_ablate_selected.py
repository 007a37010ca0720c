"""Beside the last teacher of a trial, the one that a signal takes without labels: chosen, measured, told."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from tiny_world import make_set, tiny_config

from mrt import ablate, selection
from mrt.ablate.selected import select
from mrt.engine import stages
from mrt.engine.facts import read_facts, write_facts
from mrt.engine.inference import evaluate_detector
from mrt.engine.kept import kept_teachers
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.evaluate.unlabelled import SIGNALS
from mrt.signals import JUDGES, OF_THE_LAST, require_signal

SETTINGS = {"teach.epochs": 3, "engine.eval_every": 0, "model.class_prior": 0.3}
ROWS = [ablate.Row("teacher", {**ablate.METHODS["teacher"]}), ablate.BASELINES[0]]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_set(root, "clear", seed=1)
    make_set(root, "hazy", haze=0.5, seed=2)
    (root / "tiny.json").write_text(tiny_config(**SETTINGS).to_json())
    stages.pretrain_source(tiny_config(**SETTINGS), root / "source", data_root=root)
    return root


def plan(world: Path, *overrides: str, **more) -> list[ablate.Trial]:
    planner = ablate.Planner(world, "val", **more)
    return planner.trials(
        ROWS, [0], world / "tiny.json", [f"init={world / 'source'}", *overrides], {"engine.keep_teachers": 10}
    )


def run(world: Path, root: Path, trials) -> list[dict]:
    return ablate.run(trials, root, data_root=world)


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory) -> tuple[Path, list, list[dict]]:
    root = tmp_path_factory.mktemp("runs")
    trials = plan(world, select_by="boxes", results=root / "kept")
    return root, trials, run(world, root, trials)


def report_of(results, trials) -> dict:
    about = {"preset": "small", "study": None, "axes": {}, "set": [], "smoke": False}
    return ablate.make_report(results, trials, title="T", subject="row", base="teacher", about=about)


def test_the_choice_is_that_of_select_and_is_measured(world, measured):
    root, trials, (teacher, fair) = measured
    folder = trials[0].node.folder(root)
    candidates = selection.find_candidates([folder])
    assert len(candidates) == 3
    images = selection.images_for(candidates[0], data_root=world)
    ranking = selection.rank([selection.measure(one, images, data_root=world) for one in candidates])
    taken = next(one for one in candidates if one.name == selection.choose(ranking, "boxes"))
    assert teacher["selected"]["epoch"] == taken.epoch
    assert teacher["selected"]["images"] == {"from": "hazy train", "number": len(images)}
    found = evaluate_detector(taken.file, data="hazy", split="val", device="cpu", data_root=world)
    assert teacher["selected"]["metrics"]["AP50"] == found.metrics.to_dict()["AP50"]
    assert "selected" not in fair, "a baseline has no teachers of teaching"
    assert len(list(folder.glob("result-*.json"))) == 1, "which a report takes for the last detector's"


def test_another_than_the_last_can_be_taken(world, measured, monkeypatch):
    root, trials, _ = measured
    folder = trials[0].node.folder(root)
    monkeypatch.setattr(selection, "choose", lambda ranking, by: "epoch 2")
    found = select(folder, "boxes", "cpu", world, Watcher())
    assert (found["epoch"], found["among"]) == (2, 3)
    assert Path(found["file"]) == kept_teachers(folder)["teach", 2]


def test_a_signal_that_cannot_be_computed_is_one_message(world, measured, monkeypatch):
    root, trials, _ = measured
    monkeypatch.setattr("mrt.selection.looking._source", lambda *_: None)  # the source is not here
    with pytest.raises(MrtError, match="--select-by atc: cannot be computed"):
        select(trials[0].node.folder(root), "atc", "cpu", world, Watcher())


@pytest.mark.parametrize("epochs", [1, 201])
def test_epochs_that_cannot_be_chosen_among(epochs):
    with pytest.raises(MrtError, match=f"teach.epochs={epochs}"):
        ablate.require_epochs(tiny_config(**{"teach.epochs": epochs}))


def test_a_run_that_was_begun_without_keeping_is_refused(world, measured, tmp_path):
    root, trials, _ = measured
    folder = tmp_path / "begun"
    shutil.copytree(trials[0].node.folder(root), folder)
    facts = json.loads((folder / "run.json").read_text())
    for key in ("sha256", "schema", "config_sha256"):
        facts.pop(key, None)
    (folder / "run.json").write_text(json.dumps(facts | {"finished": []}))
    ablate.require_teachers(folder)
    config = json.loads((folder / "config.json").read_text())
    config["engine"]["keep_teachers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MrtError, match="without keeping the teacher of each epoch"):
        ablate.require_teachers(folder)


def test_only_teaching_keeps_its_teachers(world, tmp_path):
    planner = ablate.Planner(world, "val", select_by="boxes")
    changes = {"engine.keep_teachers": ablate.KEEP}
    trials = planner.trials(ROWS, [0], world / "tiny.json", [f"init={world / 'source'}"], changes)
    keep = {
        work.kind: work.config["engine"]["keep_teachers"]
        for work in ablate.missing_work(trials, tmp_path, world)
    }
    assert keep.pop("teach") == ablate.KEEP and set(keep.values()) == {0}


def test_a_metric_that_is_not_finite_is_a_failure(measured):
    _, trials, results = measured
    chosen = {
        **results[0]["selected"],
        "metrics": {**results[0]["selected"]["metrics"], "AP50": float("nan")},
    }
    report = report_of([{**results[0], "selected": chosen}, results[1]], trials)
    assert report["rows"][0]["failures"] and not report["rows"][0]["trials"]


def test_an_early_end_is_told(world, measured, tmp_path):
    root, trials, _ = measured
    shutil.copytree(root / "nodes", tmp_path / "nodes")
    ended = {"why": "collapse: falling", "epoch": 2, "teacher": 1}
    folder = trials[0].node.folder(tmp_path)
    write_facts(folder, read_facts(folder) | {"ended": {"teach": ended}})
    notes = ablate.notes(report_of(run(world, tmp_path, trials), trials))
    told = "teacher, seed 0: ended early, after epoch 2, with the teacher of epoch 1: collapse: falling"
    assert told in notes and len([note for note in notes if "ended early" in note]) == 1


def test_the_table_tells_what_choosing_gains(measured):
    _, trials, results = measured
    for number, result in enumerate(results):
        result["metrics"] = {**result["metrics"], "AP50": 40.0 + number}
    results[0]["selected"] = {**results[0]["selected"], "epoch": 2}
    results[0]["selected"]["metrics"] = {**results[0]["selected"]["metrics"], "AP50": 41.5}
    report = report_of(results, trials)
    heads = ablate.columns(report)
    place = heads.index("AP50 by boxes (Δ to last)")
    assert [line[place] for line in ablate.lines(report)] == ["41.5 (+1.5)", "-"]
    row, other = report["rows"]
    assert row["selected"]["epochs"] == {"0": 2} and other["selected"] is None
    assert any("mrt select --by boxes" in note and "hazy train" in note for note in ablate.notes(report))
    line, _ = csv.DictReader(io.StringIO(ablate.to_csv(report)))
    assert (line["selected by"], float(line["selected delta mean"])) == ("boxes", 1.5)
    json.dumps(report)


def test_kept_results_need_no_runs(world, measured, tmp_path):
    root, trials, _ = measured
    (again, _) = run(world, tmp_path / "elsewhere", trials)
    assert again["selected"]["by"] == "boxes" and not (tmp_path / "elsewhere").exists()
    kept = next((root / "kept").glob("teach-*-by-boxes.json"))
    kept.write_text(kept.read_text().replace('"epoch"', '"epocH"', 1))
    with pytest.raises(MrtError, match="is not what mrt wrote"):
        run(world, tmp_path / "elsewhere", trials)


def test_without_a_signal_nothing_is_asked_for(world, measured, tmp_path):
    root, trials, _ = measured
    plain = plan(world, results=root / "kept")
    assert [trial.node.digest for trial in plain] == [trial.node.digest for trial in trials]
    assert all(trial.is_done(tmp_path) for trial in plain)
    found = run(world, tmp_path / "elsewhere", plain)
    assert not any("selected" in result for result in found)
    assert not any("by boxes" in head for head in ablate.columns(report_of(found, plain)))


def test_a_run_without_its_teachers_says_so(world, measured, tmp_path):
    root, trials, _ = measured
    shutil.copytree(root / "nodes", tmp_path / "nodes")
    folder = trials[0].node.folder(tmp_path)
    shutil.rmtree(folder / "teachers")
    next(folder.glob("selected-*-by-boxes.json")).unlink()
    with pytest.raises(MrtError, match="without keeping the teacher of each epoch"):
        ablate.require_teachers(folder)
    other = plan(world, select_by="boxes")
    results = run(world, tmp_path, other)
    assert "without keeping the teacher of each epoch" in results[0]["not_selected"]["reason"]
    assert results[0]["metrics"], "the last teacher's figures are told all the same"
    report = report_of(results, other)
    assert any("no teacher was selected: " in note for note in ablate.notes(report))


@pytest.mark.parametrize("name", ["found", "partner", "AP50"])
def test_only_signals_that_judge_one_detector(name):
    with pytest.raises(MrtError, match=f"--select-by {name}: no such signal"):
        require_signal(name, "--select-by", among=True)


def test_the_names_that_are_known_early_are_those_of_the_signals():
    assert [name for name, signal in SIGNALS.items() if signal.judges] == list(JUDGES)
    assert [name for name, signal in SIGNALS.items() if "partner" in signal.needs] == list(OF_THE_LAST)
