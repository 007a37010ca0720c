"""The output of ``mrt eval`` for known metrics."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from types import SimpleNamespace

import pytest
from command_line import refused
from made_up import annotations_of, dataset_of, detections_of
from mrt_cli import evaluate

from mrt.config import load_config
from mrt.evaluate.coco import score

IMAGES = 30


@pytest.fixture
def results(tmp_path):
    """Two detectors on one split: the second is better."""
    annotations = annotations_of(IMAGES, seed=4, crowds=0.05)
    dataset = dataset_of(tmp_path, annotations, IMAGES)
    found = []
    for network, skill, last in (("student", 1.0, False), ("teacher", 2.0, True)):
        metrics = score(detections_of(annotations, IMAGES, skill=skill), dataset)
        changed = {"name": "streets", "domain": "fog", "image_sizes": {"256x128": IMAGES}}
        card = dataclasses.replace(dataset.card, **changed)
        found.append(
            SimpleNamespace(
                network=network,
                last=last,
                averaged=False,
                card=card,
                split="val",
                dataset=dataset,
                metrics=metrics,
                detections=metrics.detections,
            )
        )
    return found


def cells(text: str) -> dict[str, list[list[str]]]:
    """Table rows by their first cell, in the order of the tables."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("│"):
            first, *rest = (cell.strip() for cell in line.strip("│").split("│"))
            found.setdefault(first, []).append(rest)
    return found


def shown(value: float | None, bounds: dict | None = None, sign: str = "") -> str:
    if value is None:
        return "-"
    low, high = (bounds["low"], bounds["high"]) if bounds else (None, None)
    return f"{value:{sign}.1f}" + (f" [{low:{sign}.1f}, {high:{sign}.1f}]" if bounds else "")


def test_the_tables_and_the_csv_hold_what_the_json_holds(results, tmp_path, capsys):
    names = ["before.pth", "after"]
    titles = evaluate.headings(names, results)
    records = evaluate.analyse(names, results, samples=50, level=0.95, errors=True)
    evaluate.show(titles, records, evaluate.describe(results[0]))
    text = capsys.readouterr().out
    table = cells(text)
    evaluate.write(names, records, tmp_path, tmp_path / "a.json", tmp_path / "a.csv")
    first, second = kept = json.loads((tmp_path / "a.json").read_text())
    assert kept == json.loads(json.dumps(records))

    bounds = [item["intervals"]["figures"] for item in kept]
    for name, label in evaluate.SUMMARY.items():
        pairs = zip(kept, bounds, strict=True)
        assert table[label][0] == [shown(item["metrics"][name], limits.get(name)) for item, limits in pairs]
    change = second["difference"]["figures"]
    for name in ("AP50", "AP", "AP75"):
        assert table[name][1] == [shown(change[name]["value"], change[name], "+")]
        gain = second["metrics"][name] - first["metrics"][name]
        assert change[name]["value"] == pytest.approx(gain, abs=1e-6)
    for name, values in first["metrics"]["per_class"].items():
        expected = [str(values["num_boxes"])]
        for item, limits in zip(kept, bounds, strict=True):
            mine = item["metrics"]["per_class"][name]
            expected += [shown(mine["AP50"], limits[f"AP50 {name}"]), shown(mine["AP"])]
        assert table[name][0] == expected
    assert table["train"][0] == ["0", "-", "-", "-", "-"]
    for kind, values in first["errors"].items():
        if kind != "AP50":
            both = values, second["errors"][kind]
            expected = [f"{item['dAP']:.1f} ({item['count']})" for item in both]
            assert table[kind.replace("_", " ")][-1] == expected
    assert "before\n" not in text
    assert "(student *)" in text and "perhaps on target labels" in text and "(last teacher)" in text

    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["class"] for row in rows] == ["all", "person", "car", "bus", "train"] * 2
    everything, bus = rows[5], rows[8]
    assert everything["AP50"] == f"{second['metrics']['AP50']:.4f}"
    assert everything["APs"] == f"{second['metrics']['APs']:.4f}"
    assert everything["AP50 low"] == f"{bounds[1]['AP50']['low']:.4f}"
    assert everything["AP difference high"] == f"{change['AP']['high']:.4f}"
    assert everything["number missed"] == str(second["errors"]["missed"]["count"]) and bus["APs"] == ""
    assert bus["AP50 difference"] == f"{change['AP50 bus']['value']:.4f}"
    assert bus["num_boxes"] == str(results[0].metrics.per_class["bus"].num_boxes)


def test_tables_fit_a_narrow_terminal(results, capsys, monkeypatch):
    monkeypatch.setattr("mrt_cli.console.PLAIN_WIDTH", 80)
    names = ["city2foggy-fair", "city2foggy-adapt"]
    records = evaluate.analyse(names, results, samples=20, level=0.95, errors=True)
    evaluate.show(evaluate.headings(names, results), records, "")
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line[:1] in "│┃┏┡└") <= 80
    whole = sum(len(re.findall(r"\[[^]]*,[^]]*\]", line)) for line in lines)
    assert whole == 2 * (3 + 3) + 3 + 3 + 1, "no interval is broken over lines"


def write_run(folder, lines, target: bool = True):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(load_config("small").to_json())
    sets = {"source": {"name": "clear", "sha256": {}}}
    sets |= {"target": {"name": "fog", "sha256": {}}} if target else {}
    (folder / "run.json").write_text(
        json.dumps({"data": sets, "command": "adapt", "classes": [], "finished": []})
    )
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(log + '{"stage": "teach", "ki')


def measured(network: str, epoch: int, ap50: float | None, **more: object) -> dict:
    figures = {"AP50": ap50, "AP": ap50 and ap50 / 2, "AP75": 0.0, **more}
    when = {"stage": "teach", "kind": "eval", "step": 10 * epoch, "epoch": epoch}
    return {**when, "network": network, **figures}


def test_the_best_epochs_are_marked_as_what_they_are(tmp_path, capsys):
    from mrt.engine.inference import read_validation

    rest = [{"stage": "teach", "kind": "train", "step": 1}, measured("student", 4, None)]
    lines = [
        measured("student", 1, 30.0),
        measured("teacher", 1, 33.0),
        measured("student", 2, 28.0),
        measured("teacher", 2, 41.0),
    ]
    write_run(tmp_path / "run", [*lines, measured("student", 3, 26.0), measured("teacher", 3, 40.0), *rest])
    found = read_validation(tmp_path / "run")
    epochs = {name: (found.last[name]["epoch"], found.best[name]["epoch"]) for name in found.last}
    assert epochs == {"student": (3, 1), "teacher": (3, 2)}
    evaluate.show_best({"run": found})
    text = capsys.readouterr().out
    table = cells(text)
    assert table["last teacher"] == [["teach", "3", "40.0", "20.0", "0.0"]]
    assert table["best teacher *"] == [["teach", "2", "41.0", "20.5", "0.0"]]
    assert table["best student *"][0][1:3] == ["1", "30.0"] and table["last student"][0][1:3] == ["3", "26.0"]
    assert "on fog, split val" in text and "* selected on target labels" in text and "not comparable" in text
    write_run(tmp_path / "source", lines, target=False)
    evaluate.show_best({"source": read_validation(tmp_path / "source")})
    text = capsys.readouterr().out
    assert "on clear, split val" in text and "* selected on source labels" in text


def test_a_run_that_measured_nothing_has_no_best(tmp_path):
    write_run(tmp_path / "runs" / "quiet", [{"stage": "teach", "kind": "train", "step": 1}])
    message = refused("eval quiet --best", "--run-root", tmp_path / "runs")
    assert "measured nothing" in message and "engine.eval_every=1" in message
    assert "not a run folder" in refused("eval", tmp_path, "--best")


def test_both_networks_of_a_file_are_one(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert evaluate.networks("both", str(tmp_path)) == ("teacher", "student")
    assert evaluate.networks("both", str(tmp_path / "weights.safetensors")) == ("auto",)
    assert evaluate.networks("both", "small-source") == ("auto",)  # no folder here: it ships with mrt
    assert evaluate.networks("student", str(tmp_path / "weights.safetensors")) == ("student",)
