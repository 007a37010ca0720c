"""Every command on tiny synthetic data sets, from data to table."""

from __future__ import annotations

import csv
import json
import shlex
import shutil

import pytest
from command_line import TINY, mrt
from mrt_cli.demo import recorded_figures
from PIL import Image

from mrt.config import load_config
from mrt.data.synthetic import Family
from mrt.errors import Interrupted


def test_prepare_data_writes_sets_and_previews(somewhere):
    command = "prepare-data synthetic --domain night rain --train 2 --val 1 --test 0 --size 96x64 --workers 1"
    result = mrt(command, "--preview", 2)
    assert result.exit_code == 0, result.output
    for name in ("night", "rain"):
        folder = somewhere / "data" / f"synthetic-{name}"
        card = json.loads((folder / "dataset.json").read_text())
        counts = {split: part["num_images"] for split, part in card["splits"].items()}
        assert card["domain"] == name and counts == {"train": 2, "val": 1}
        assert Image.open(folder / "preview.png").size[0] >= 2 * 96
    assert mrt(command).exit_code == 2
    assert mrt(command, "--overwrite").exit_code == 0


def test_several_fog_levels(somewhere):
    words = "--domain foggy --beta 0.05 0.2 --train 2 --val 0 --test 0 --size 96x64 --workers 1"
    assert mrt(f"prepare-data synthetic {words}").exit_code == 0
    card = json.loads((somewhere / "data" / "synthetic-foggy" / "dataset.json").read_text())
    assert card["details"]["beta"] == [0.05, 0.2]


def test_pretrain_source_leaves_a_run(runs):
    folder = runs / "small-source"
    assert (folder / "student.safetensors").is_file() and (folder / "config.json").is_file()
    assert json.loads((folder / "config.json").read_text())["model"]["hidden_dim"] == 16


def test_adapt_starts_from_the_source_run_and_eval_compares(worlds, runs, somewhere):
    roots = ["--data-root", worlds, "--run-root", runs]
    start = ["--init", runs / "small-source", *roots, "--set", *TINY]
    result = mrt("adapt --target synthetic-foggy", *start)
    assert result.exit_code == 0, result.output
    assert json.loads((runs / "small-adapt" / "run.json").read_text())["finished"] == ["mae", "teach"]
    result = mrt("pretrain-source --preset small --match-compute", *start)
    assert result.exit_code == 0, result.output

    words = [runs / "small-adapt", "--split", "test", "--picture", "out/p.png", "--images", 2]
    result = mrt("eval small-fair", *words, *roots)
    assert result.exit_code == 0, result.output
    for word in ("Classes", "small-fair (last average) on the same images", "What mistakes cost"):
        assert word in result.output
    for word in ("1000 draws", "sha256", "beta"):
        assert word in result.output
    assert Image.open(somewhere / "out" / "p.png").size[0] > 3 * 96
    found = json.loads((runs / "small-adapt" / "eval-synthetic-foggy-test-teacher.json").read_text())
    assert found[0]["split"] == "test" and set(found[0]["metrics"]) >= {"AP", "AP50", "AP75", "per_class"}
    difference = found[0]["difference"]
    assert difference["to"] == {"run": "small-fair", "network": "teacher"}
    assert "AP50 car" in difference["figures"]
    with open(runs / "small-adapt" / "eval-synthetic-foggy-test-teacher.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][:2] == ["all", "person"] and len(rows) == 9

    words = "--which both --data synthetic-clear --bootstrap 20 --level 90 --json a.json --csv b.csv"
    result = mrt(f"eval small-adapt {words}", *roots)
    assert result.exit_code == 0, result.output
    found = json.loads((somewhere / "a.json").read_text())
    assert [item["network"] for item in found] == ["teacher", "student"]
    assert {(item["data"], item["split"], item["last"]) for item in found} == {
        ("synthetic-clear", "val", True)
    }
    assert found[0]["intervals"]["level"] == 0.9 and "90 % of 20 draws" in result.output
    text = (somewhere / "b.csv").read_text()
    assert text.startswith("run,network,data,split,class,AP50,AP,AP75,APs,") and text.count("\n") == 19

    plain = mrt("eval small-adapt --bootstrap 0 --no-errors --json c.json", *roots)
    assert plain.exit_code == 0 and "[" not in plain.output and "mistakes" not in plain.output
    assert not {"intervals", "difference", "errors"} & set(json.loads((somewhere / "c.json").read_text())[0])


def test_one_stage_after_the_other(worlds, runs, somewhere):
    words = ["--preset", "small", "--data-root", worlds, "--run-root", somewhere, "--set", *TINY]
    result = mrt("adapt", "--stage", "mae", "--init", runs / "small-source", *words)
    assert result.exit_code == 0, result.output
    assert json.loads((somewhere / "small-mae" / "run.json").read_text())["finished"] == ["mae"]
    result = mrt("adapt", "--stage", "teach", *words)
    assert result.exit_code == 0, result.output
    facts = json.loads((somewhere / "small-teach" / "run.json").read_text())
    assert facts["finished"] == ["teach"] and facts["init"] == str((somewhere / "small-mae").resolve())
    assert "No masked autoencoder" not in result.output


def test_a_method_has_a_run_of_its_own_and_goes_on(worlds, runs, somewhere):
    roots = ["--data-root", worlds, "--run-root", somewhere]
    for stage, start in (("mae", ["--init", runs / "small-source"]), ("teach", [])):
        command = f"adapt --preset small --stage {stage} --method +mae"
        result = mrt(command, *roots, *start, "--set", *TINY)
        assert result.exit_code == 0, result.output
    folder = somewhere / "small-teach-teacher-mae"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["init"] == str((somewhere / "small-mae-teacher-mae").resolve())
    assert json.loads((folder / "config.json").read_text())["retrain"]["every"] == 0


def test_ablate_prints_a_table_and_only_runs_what_is_missing(worlds, runs, somewhere):
    words = ["--init", runs / "small-source", "--data-root", worlds, "--set", *TINY]
    listed = mrt("ablate --decay none hard --dry-run", *words)
    assert listed.exit_code == 0 and listed.output.count("to run") == 2
    assert "3 stages to train: 1 mae, 2 teach" in listed.output

    result = mrt("ablate --decay none hard", *words)
    assert result.exit_code == 0, result.output
    for word in ("decay none", "decay hard", "AP50", "AP75", "base"):
        assert word in result.output
    with open(somewhere / "runs" / "ablate" / "decay.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["mae.decay"], row["seeds"], row["failed"]) for row in rows] == [
        ("decay none", "none", "0", "0"),
        ("decay hard", "hard", "0", "0"),
    ]
    report = json.loads((somewhere / "runs" / "ablate" / "decay.json").read_text())
    assert [len(row["trials"]) for row in report["rows"]] == [1, 1]
    assert report["axes"] == {"mae.decay": ["none", "hard"]}
    assert result.output.count("mae: 1/1 in") == 1 and result.output.count("teach: 1/1 in") == 2

    again = mrt("ablate --decay none hard --seeds 0 1 --name both --base", "decay hard", *words)
    assert again.exit_code == 0 and "2 of 4 trials are already done" in again.output
    assert again.output.count("teach: 1/1 in") == 2
    with open(somewhere / "runs" / "ablate" / "both.csv") as file:
        assert [(row["seeds"], row["AP50 n"]) for row in csv.DictReader(file)] == [("0 1", "2"), ("0 1", "2")]
    listed = mrt("ablate --decay none hard --dry-run", *words)
    assert listed.output.count("done") == 2 and "0 stages to train" in listed.output

    other = mrt("ablate --decay none --split test", *words)  # evaluates, and trains nothing
    assert other.exit_code == 0 and "teach:" not in other.output, other.output
    assert "evaluate on synthetic-foggy test" in other.output
    assert "1 of 1 trials are already done" in mrt("ablate --decay none", *words).output


def test_a_study_runs_as_a_smoke_test(worlds, runs, somewhere):
    words = ["--init", runs / "small-source", "--data-root", worlds]
    small = [item for item in TINY if not item.startswith(("teach.", "mae_stage.", "pretrain.", "mae.decay"))]
    result = mrt("ablate --study retrain-init --smoke", *words, "--set", *small)
    assert result.exit_code == 0, result.output
    for word in ("source + MAE", "City→Foggy", "51.2", "not comparable", "SMOKE TEST"):
        assert word in result.output
    written = {path.suffix for path in (somewhere / "runs" / "ablate" / "smoke").glob("retrain-init.*")}
    assert written == {".json", ".csv", ".md", ".png", ".svg"}
    assert result.output.count("mae: 2/2") == 1
    assert result.output.count("teach: 4/4") == result.output.count("selective retraining") == 3


def test_a_study_of_ones_own(worlds, runs, somewhere):
    rows = '[[row]]\nname = "mine"\nmethod = "+dt"\n[[row]]\nname = "top"\nend = "oracle-target"\n'
    (somewhere / "mine.toml").write_text(f'title = "two rows"\nset = {{ "teach.epochs" = 3 }}\n{rows}')
    words = ["--init", runs / "small-source", "--data-root", worlds, "--seeds", "0", "1"]
    result = mrt("ablate --study mine.toml --dry-run", *words)
    assert result.exit_code == 0, result.output
    assert "4 trials of preset small" in result.output and "oracle-target" in result.output
    (somewhere / "mine.toml").write_text(rows.replace("+dt", "+td"))
    result = mrt("ablate --study mine.toml --dry-run", *words)
    assert result.exit_code == 2 and "mine.toml: row 'mine': method = '+td'" in result.output, result.output


def test_doctor_says_what_to_do(worlds, somewhere):
    result = mrt("doctor", "--data-root", worlds)
    assert result.exit_code == 0, result.output
    for word in ("torch", "op on cpu", "data synthetic-foggy", "run root"):
        assert word in result.output
    assert "cityscapes" not in result.output, "nobody has asked for it"
    broken = somewhere / "data" / "mine"
    broken.mkdir(parents=True)
    (broken / "dataset.json").write_text("{")
    result = mrt("doctor")
    assert result.exit_code == 1 and "broken" in result.output and "mine" in result.output
    result = mrt("doctor", "--run-root", broken / "dataset.json" / "runs")
    assert "dataset.json is not a writable folder" in result.output


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo from scratch with its oracle, in seconds: on a few images, which it makes itself."""
    root = tmp_path_factory.mktemp("demo")
    words = ["demo --from-scratch --oracle --images 2", "--record", root / "record.json"]
    words += ["--data-root", root / "data", "--run-root", root, "--set", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        few = Family("synth-", (96, 64), {"train": 4, "val": 2, "test": 2})
        patch.setattr("mrt.data.synthetic.BENCHMARK", few)
        return root, words, mrt(*words)


def test_the_demo_ends_with_a_table_and_a_picture(demo):
    root, _, result = demo
    assert result.exit_code == 0, result.output
    assert "$ mrt prepare-data synthetic --benchmark --domain clear foggy --data-root" in result.output
    for word in ("fair source-only", "adapted (last teacher)", "oracle", "gain"):
        assert word in result.output
    assert Image.open(root / "demo" / "figures" / "before-after.png").size[0] > 3 * 96
    figures = json.loads((root / "demo" / "results.json").read_text())
    assert set(figures["columns"]) == {"fair source-only", "adapted (last teacher)", "oracle"}
    assert figures["data"] == "synth-foggy" and figures["split"] == "test" and "AP50" in figures["gain"]
    assert json.loads((root / "record.json").read_text()) == figures


def trained(said: str) -> list[list[str]]:
    """The commands that train, of those that the demo has shown."""
    shown = [shlex.split(line.removeprefix("$ mrt ")) for line in said.splitlines() if line.startswith("$ ")]
    return [words for words in shown if words[0] in ("pretrain-source", "adapt")]


def test_the_shown_commands_train_with_the_same_settings(demo):
    root, _, result = demo
    assert len(trained(result.output)) == 4
    for words in trained(result.output):
        told = mrt("", *words, "--dry-run")
        assert told.exit_code == 0, told.stderr
        folder = root / words[words.index("--name") + 1]
        used, typed = json.loads((folder / "config.json").read_text()), json.loads(told.stdout)
        del used["init"], typed["init"]  # where they start is in run.json: see below
        assert typed == used and folder.parent.name == "demo"


def test_the_quick_demo_is_the_small_world(worlds, tmp_path, monkeypatch):
    """Its own sets, preset, start, folder and record."""
    asked = []

    def compare(road, seed, start, oracle):
        asked.extend([road.config(seed, start), road.folder("x")])
        raise Interrupted("enough")

    monkeypatch.setattr("mrt_cli.demo.Road.compare", compare)
    result = mrt("demo --quick", "--data-root", worlds, "--run-root", tmp_path)
    assert result.exit_code == 1 and "enough" in result.stderr
    shown = "$ mrt prepare-data synthetic --domain clear foggy --data-root"
    assert shown in result.output and "already prepared" in result.output
    config, folder = asked
    assert config == load_config("small") and config.init == "small-source"
    assert folder == tmp_path / "demo-quick" / "x"
    assert recorded_figures({"settings": []}, "small")["data"] == config.data.target
    assert recorded_figures({"settings": []}, "own") is None


def test_the_demo_does_nothing_twice_and_refuses_to_mix_settings(demo):
    _, words, _ = demo
    again = mrt(*words)
    assert again.exit_code == 0 and again.output.count("already done") == 4, again.stderr
    assert "already prepared" in again.output
    other = mrt(*words, "mae.mask_ratio=0.1")
    assert other.exit_code == 2 and "other settings" in other.stderr


def test_the_baseline_gets_as_many_steps_as_the_adapted_detector(demo):
    root, _, _ = demo

    def steps(name: str) -> list[tuple[str, int]]:
        log = (root / "demo" / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        return [(line["stage"], line["step"]) for line in lines if line["kind"] == "train"]

    assert steps("fair-seed0") == steps("adapt-seed0") == steps("oracle-seed0")
    inits = {
        json.loads((root / "demo" / name / "run.json").read_text())["init"]
        for name in ("fair-seed0", "adapt-seed0", "oracle-seed0")
    }
    assert inits == {str(root / "demo" / "source")}


def test_profile_writes_a_trace_and_prints_the_most_expensive_calls(worlds, tmp_path):
    roots = ["--data-root", worlds, "--run-root", tmp_path]
    command = "pretrain-source --preset small --profile 1"
    result = mrt(command, *roots, "--set", *TINY, "pretrain.steps_per_epoch=4")
    assert result.exit_code == 0, result.output
    assert "pretrain: the most expensive calls" in result.output
    assert (tmp_path / "small-source" / "profile-pretrain.json.gz").stat().st_size > 1000


def test_what_a_run_says_to_do_next_works(worlds, runs, somewhere):
    """The printed command is typed unchanged: an evaluation on the set that has labels."""
    root = somewhere / "mine"
    shutil.copytree(worlds, root)
    for name, labelled in (("synthetic-foggy", True), ("synthetic-night", False)):
        if not (root / name).exists():
            shutil.copytree(root / "synthetic-foggy", root / name)
        card = root / name / "dataset.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), "name": name, "labelled": labelled}))
        command = f"adapt --preset small --source synthetic-clear --target {name} --name {name}"
        roots = ["--run-root", somewhere / "r", "--data-root", root]
        done = mrt(command, "--init", runs / "small-source", *roots, "--set", *TINY)
        assert done.exit_code == 0, done.output
        said = " ".join(done.stdout.split()).rpartition("Evaluate it: mrt ")[2]
        assert f"--data-root {root}" in said and ("--data synthetic-clear" in said) == (not labelled)
        typed = mrt(*shlex.split(said), "--bootstrap", 0)
        assert typed.exit_code == 0, typed.output
