from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from mrt.ablate import Axis, content_hash, find_key, finish_run, make_axes, plan, spread, summarise, to_csv
from mrt.config import known_keys, load_config
from mrt.errors import MrtError


def test_a_setting_is_found_by_its_last_name_or_its_whole_key():
    assert find_key("mask-ratio") == find_key("mask_ratio") == find_key("mae.mask_ratio") == find_key("mae.mask-ratio") == "mae.mask_ratio"
    assert all(find_key(key) == key for key in known_keys())
    with pytest.raises(MrtError, match=r"pretrain\.epochs, mae_stage\.epochs, teach\.epochs"):
        find_key("epochs")
    with pytest.raises(MrtError, match="did you mean --decay"):
        find_key("decai")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([("mask-ratio", [])], "no values"),
        ([("", ["1"])], "no setting is named"),
        ([("mask-ratio", ["1"]), ("mae.mask_ratio", ["2"])], "given twice"),
        ([("seed", ["1"])], "--seeds"),
    ],
)
def test_axes_that_make_no_sense(given, word):
    with pytest.raises(MrtError, match=word):
        make_axes(given)


def test_the_grid_is_every_combination_once():
    trials = plan(
        "demo", [Axis("mae.mask_ratio", ("0.5", "0.80", "0.8")), Axis("mae.decay", ("hard", "linear"))], [0, 1], ["teach.epochs=2"]
    )
    assert [(t.settings["mae.mask_ratio"], t.settings["mae.decay"], t.config.seed) for t in trials] == [
        (ratio, decay, seed) for ratio in (0.5, 0.8) for decay in ("hard", "linear") for seed in (0, 1)
    ]
    assert all(trial.config.teach.epochs == 2 for trial in trials) and len({trial.digest for trial in trials}) == 8
    assert trials[0].title == "mask-ratio 0.5  decay hard  seed 0"


PAPER = {  # the rows of the paper's ablation tables (docs/method.md) as axes
    "mask ratio": [Axis("mae.mask_ratio", ("0.5", "0.8", "0.9"))],
    "decay": [Axis("mae.decay", ("none", "linear", "hard"))],
    "MAE data": [Axis("mae.data", ("source", "both", "target"))],
    "MAE use": [Axis("mae.use", ("none", "pretrain", "branch"))],
    "retrained parts": [Axis("retrain.parts", ("none", "all", "encoder+decoder", "backbone+decoder", "backbone+encoder"))],
    "retraining from": [Axis("retrain.source", ("random", "source", "mae"))],
    "components": [Axis("teacher.dynamic", ("false", "true")), Axis("mae.use", ("none", "branch")), Axis("retrain.every", ("0", "40"))],
    "source and source+MAE": [Axis("teach.epochs", ("0",)), Axis("mae_stage.epochs", ("0", "40"))],
}


@pytest.mark.parametrize("table", PAPER)
def test_every_table_of_the_paper_is_a_grid(table):
    rows = 1
    for axis in PAPER[table]:
        rows *= len(axis.values)
    assert len(plan("city2foggy", PAPER[table], [0])) == rows


def test_the_hash_is_of_what_changes_a_result(tmp_path):
    base = load_config("demo")
    same = load_config("demo", ["engine.device=cpu", "engine.workers=3", "engine.threads=2", "preset=other"])
    assert content_hash(base) == content_hash(same)
    for change in ("seed=1", "mae.mask_ratio=0.5", "engine.batch_size=4", "data.target=other", "model.dropout=0.1"):
        assert content_hash(base) != content_hash(load_config("demo", [change])), change


def test_the_hash_knows_the_starting_weights_by_their_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher.safetensors").write_bytes(b"weights")
    configs = [load_config("demo", changes={"init": str(tmp_path / name)}) for name in ("a", "b")]
    before = content_hash(configs[0])
    assert (
        before
        == content_hash(configs[1])
        == content_hash(load_config("demo", changes={"init": str(tmp_path / "a" / "teacher.safetensors")}))
    )
    (tmp_path / "a" / "teacher.safetensors").write_bytes(b"other weights")
    assert before != content_hash(configs[0])


def test_mean_and_sample_deviation():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert spread([1.0]) == {"mean": 1.0, "std": None}
    assert spread([None, 2.0]) == {"mean": 2.0, "std": None}
    assert spread([]) == {"mean": None, "std": None}


def result(ratio: float, seed: int, ap50: float | None) -> dict:
    if ap50 is None:
        return {"settings": {"mae.mask_ratio": ratio}, "seed": seed, "failed": "nan"}
    metrics = {"AP": ap50 / 2, "AP50": ap50, "AP75": None, "per_class": {"car": {"AP50": ap50}, "bus": {"AP50": None}}}
    return {"settings": {"mae.mask_ratio": ratio}, "seed": seed, "metrics": metrics}


def test_rows_gather_seeds_and_count_failures():
    rows = summarise([result(0.5, 0, 40.0), result(0.8, 0, 44.0), result(0.5, 1, 42.0), result(0.8, 1, None)])
    assert [(row["settings"], row["seeds"], row["failed"]) for row in rows] == [
        ({"mae.mask_ratio": 0.5}, [0, 1], 0),
        ({"mae.mask_ratio": 0.8}, [0], 1),
    ]
    assert rows[0]["metrics"]["AP50"]["mean"] == 41.0 and rows[0]["metrics"]["AP50 bus"] == {"mean": None, "std": None}
    table = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert (table[0]["mae.mask_ratio"], table[0]["AP50"], table[0]["AP50 std"], table[0]["AP75"]) == ("0.5", "41.0000", "1.4142", "")
    assert (table[1]["seeds"], table[1]["failed"], table[1]["AP50 std"]) == ("1", "1", "")


def make_run(folder: Path, config, finished: list[str], checkpoint: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    (folder / "run.json").write_text(f'{{"finished": {str(finished).replace(chr(39), chr(34))}}}')
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.pt").touch()


def test_a_run_is_brought_to_its_end_from_wherever_it_stands(tmp_path):
    config, calls = load_config("demo"), []
    assert finish_run(tmp_path / "new", config, "teach", calls.append) and calls == [False]
    make_run(tmp_path / "half", config, ["mae"], checkpoint=True)
    assert finish_run(tmp_path / "half", config, "teach", calls.append) and calls == [False, True]
    make_run(tmp_path / "killed", config, [], checkpoint=False)  # before its first checkpoint: begun anew
    assert finish_run(tmp_path / "killed", config, "teach", calls.append) and calls == [False, True, False]
    assert not (tmp_path / "killed").exists()
    make_run(tmp_path / "done", config, ["mae", "teach"], checkpoint=True)
    assert not finish_run(tmp_path / "done", config, "teach", calls.append) and len(calls) == 3
    foreign = {"finished": {"run.json": '{"finished": ["mae"]}', "config.json": config.to_json()}, "mine": {"thesis.tex": "years of work"}}
    foreign["last-lost"] = {"run.json": '{"finished": []}', "config.json": config.to_json(), "checkpoints/step3.pt": ""}
    for name, files in foreign.items():  # nothing that was not begun here is deleted
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        with pytest.raises(MrtError, match="no run that could be continued"):
            finish_run(tmp_path / name, config, "teach", calls.append)
        assert len(calls) == 3 and all((tmp_path / name / file).is_file() for file in files)
    with pytest.raises(MrtError, match="other settings"):
        finish_run(tmp_path / "done", load_config("demo", ["seed=1"]), "teach", calls.append)
