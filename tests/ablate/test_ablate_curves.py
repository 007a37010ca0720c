"""What trials did on their way, what they cost, and how much of the gap they close."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_world import tiny_config

from mrt.ablate.curves import curves, images_per_step, of_rows, training_seconds
from mrt.ablate.plot import on_the_way
from mrt.ablate.table import columns, lines, notes, summarise


def write_log(folder: Path, *entries: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def train(stage: str, step: int, epoch: int, speed: float, **numbers: float) -> dict:
    return {
        "stage": stage,
        "kind": "train",
        "step": step,
        "epoch": epoch,
        "images_per_second": speed,
        **numbers,
    }


def measured(stage: str, step: int, epoch: int, network: str, ap50: float, **quality: float) -> dict:
    line = {"stage": stage, "kind": "eval", "step": step, "epoch": epoch, "network": network, "AP50": ap50}
    return {**line, "pseudo_labels": quality} if quality else line


LOG = (
    train("mae", 10, 0, 8.0, **{"target/mae_explained": -0.5}),
    train(
        "teach",
        10,
        0,
        4.0,
        pseudo_labels=3.0,
        **{"target/mae_explained": 0.1, "gradient_cosine/rebuild": -0.2},
    ),
    train("teach", 20, 0, 2.0, pseudo_labels=5.0),
    measured("teach", 20, 1, "student", 11.0),
    measured("teach", 20, 1, "teacher", 12.0, precision=60.0, recall=30.0),
    train("teach", 30, 1, 4.0, pseudo_labels=6.0),
    measured("teach", 40, 2, "teacher", 13.0, precision=70.0, recall=None),
)


def test_curves_are_those_of_the_stage_and_its_teacher(tmp_path: Path) -> None:
    assert curves(write_log(tmp_path / "a", *LOG), "teach") == {
        "AP50": [[1, 12.0], [2, 13.0]],
        "precision": [[1, 60.0], [2, 70.0]],
        "recall": [[1, 30.0]],
        "labels": [[1, 4.0], [2, 6.0]],
        "explained": [[1, 0.1]],
        "against": [[1, -0.2]],
    }
    student = write_log(tmp_path / "b", measured("pretrain", 20, 1, "student", 11.0))
    assert curves(student, "pretrain") == {"AP50": [[1, 11.0]]}
    assert curves(tmp_path / "nothing", "teach") == {}


def test_minutes_are_those_of_the_steps(tmp_path: Path) -> None:
    """10 steps of 8 images at 8 a second in stage 2; 10 at 4, 10 at 2 and 10 at 4 in stage 3."""
    assert training_seconds(write_log(tmp_path / "a", *LOG), 8) == pytest.approx(10 + 20 + 40 + 20)
    assert training_seconds(tmp_path / "nothing", 8) is None


@pytest.mark.parametrize(
    ("kind", "changes", "domains"),
    [
        ("source", {}, 1),
        ("fair", {}, 1),
        ("oracle-target", {}, 1),
        ("oracle-source+target", {}, 1),  # one stream of both sets
        ("mae", {}, 2),
        ("mae", {"mae.use": "none"}, 1),
        ("mae", {"mae.data": "source"}, 1),
        ("teach", {"teacher.pseudo_labels": False, "domain.enabled": False, "mae.use": "none"}, 1),
        ("teach", {}, 2),
        ("teach", {"method.source_free": True, "domain.enabled": False}, 1),
    ],
)
def test_images_of_a_step(kind: str, changes: dict, domains: int) -> None:
    assert images_per_step(tiny_config(**changes), kind) == 4 * domains


def result(
    name: str, end: str, seed: int, ap50: float | None, node: str | None = None, **more: object
) -> dict:
    row = {"name": name, "end": end, "paper": None, "note": "", "settings": {}}
    figures = {"AP50": ap50, "AP": ap50, "AP75": ap50}
    return {"row": row, "seed": seed, "node": node or f"{name}-{seed}", "metrics": figures, **more}


def table(*results: dict) -> dict:
    rows = summarise(results, results[0]["row"]["name"])
    about = {
        "base": results[0]["row"]["name"],
        "subject": "row",
        "seeds": [0, 1, 2],
        "data": [],
        "smoke": False,
    }
    return {**about, "title": "T", "split": "val", "preset": "small", "rows": rows}


def test_the_share_of_the_gap_is_taken_seed_by_seed() -> None:
    results = [result("fair", "fair", seed, 30 + seed) for seed in range(3)]
    results += [result("oracle", "oracle-target", seed, 50 + seed) for seed in range(3)]
    results += [result("mrt", "teach", seed, ap50) for seed, ap50 in enumerate((40.0, 36.0, 47.0))]
    report = table(*results)
    closed = {row["name"]: row["closed"] for row in report["rows"]}
    assert closed["fair"] is None and closed["oracle"] is None
    assert closed["mrt"]["mean"] == pytest.approx((50 + 25 + 75) / 3) and closed["mrt"]["n"] == 3
    assert closed["mrt"]["low"] < 25 and closed["mrt"]["high"] > 75
    place = columns(report).index("gap closed")
    assert [line[place] for line in lines(report)] == ["-", "-", "50 % [-12, 112]"]
    assert any(note.startswith("gap closed: (AP50 - fair") for note in notes(report))


def test_no_share_without_baselines_or_a_gap() -> None:
    without = table(result("fair", "fair", 0, 30.0), result("mrt", "teach", 0, 40.0))
    no_gap = table(
        result("fair", "fair", 0, 30.0),
        result("oracle", "oracle-target", 0, 30.0),
        result("mrt", "teach", 0, 40.0),
    )
    for report in (without, no_gap):
        assert "gap closed" not in columns(report)
    shared = table(
        *(result("fair", "fair", seed, 30.0, "one") for seed in range(2)),
        *(result("oracle", "oracle-target", seed, 50.0, "one") for seed in range(2)),
        *(result("mrt", "teach", seed, 40.0, "same") for seed in range(2)),
    )
    assert shared["rows"][2]["closed"]["n"] == 1  # detectors that all seeds share count once


def test_rows_are_means_over_seeds_where_all_were_measured() -> None:
    way = [{"AP50": [[1, 10.0], [2, 20.0], [3, 25.0]]}, {"AP50": [[1, 14.0], [2, 30.0]]}]
    results = [result("mrt", "teach", seed, 30.0, curves=way[seed], minutes=4.0 + seed) for seed in range(2)]
    report = table(*results)
    assert of_rows(report["rows"]) == {"AP50": {"mrt": [(1, 12.0, 10.0, 14.0), (2, 25.0, 20.0, 30.0)]}}
    assert lines(report)[0][columns(report).index("train min")] == "4.5"
    figure = on_the_way(report)
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == [
        "teacher on validation images"
    ]
    assert on_the_way(table(result("mrt", "teach", 0, 30.0))) is None
