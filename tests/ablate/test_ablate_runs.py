"""Whole studies on two tiny domains: what is trained, shared, resumed, and told of failures; here, in processes, as jobs."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_world import make_set, tiny_config

from mrt import ablate
from mrt.ablate.launch import LocalProcesses, Submitit, run_with, visible_gpus
from mrt.ablate.work import Work, finish_run, locked
from mrt.config import load_config
from mrt.engine import stages
from mrt.engine.inference import evaluate_detector
from mrt.engine.report import Watcher
from mrt.errors import MrtError, RunFailed

DECAY = ablate.STUDIES["decay"].rows


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_set(root, "clear", seed=1)
    make_set(root, "hazy", haze=0.5, seed=2)
    (root / "tiny.json").write_text(tiny_config().to_json())
    return root


def plan(world: Path, rows, seeds=(0,), *overrides: str) -> list[ablate.Trial]:
    return ablate.Planner(world, "val").trials(rows, list(seeds), world / "tiny.json", list(overrides), {})


class Count(Watcher):
    """Counts the tasks that began, and can be made to fail or to be killed at a step."""

    def __init__(self, die_at: int | None = None) -> None:
        self.tasks: Counter[str] = Counter()
        self.said: list[str] = []
        self.left = die_at

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks[task] += 1

    def advance(self, n: int = 1, **_: float) -> None:
        if self.left is not None and n:
            self.left -= 1
            if self.left == 0:
                raise Killed

    def say(self, text: str) -> None:
        self.said.append(text)


class Killed(BaseException):
    """As sudden as a kill: nothing catches it."""


def run(world: Path, root: Path, trials, watcher: Watcher | None = None, launcher: Any = None) -> list[dict]:
    return ablate.run(trials, root, data_root=world, watcher=watcher, launcher=launcher)


@pytest.fixture(scope="module")
def components(world, tmp_path_factory) -> tuple[Path, list, list[dict], Count]:
    root, watcher = tmp_path_factory.mktemp("components"), Count()
    trials = plan(world, [*ablate.STUDIES["components"].rows, ablate.BASELINES[0]])
    return root, trials, run(world, root, trials, watcher), watcher


def source_of(components) -> str:
    """Trained weights to start from, so that a test need not train stage 1."""
    root, trials, *_ = components
    return f"init={next(trial.node for trial in trials if trial.row.end == 'source').folder(root)}"


def test_a_study_trains_every_stage_once(components):
    _, trials, results, watcher = components
    assert all("metrics" in result for result in results) and len(results) == len(trials) == 8
    assert watcher.tasks["pretrain"] == 1
    assert watcher.tasks["mae"] == 2 + 1, "with and without the autoencoder; the baseline has its own"
    assert watcher.tasks["teach"] == 5 + 1 and watcher.tasks["evaluate on hazy val"] == 8


def test_a_trial_of_nodes_is_what_one_run_gives(world, components, tmp_path):
    root, trials, results, _ = components
    whole, fair = (
        next(i for i, trial in enumerate(trials) if trial.row.name == name) for name in ("+ DT + MAE + retraining", "fair source-only")
    )
    source = next(trial.node for trial in trials if trial.row.end == "source").folder(root)
    adapted = stages.adapt(trials[whole].config, tmp_path / "adapt", init=str(source), data_root=world)
    baseline = stages.pretrain_source(trials[fair].config, tmp_path / "fair", init=str(source), match_compute=True, data_root=world)
    for index, folder in ((whole, adapted), (fair, baseline)):
        found = evaluate_detector(folder, data="hazy", split="val", data_root=world)
        assert ablate.flat_metrics(found.metrics.to_dict()) == results[index]["metrics"]
        mine = (trials[index].node.folder(root) / "teacher.safetensors").read_bytes()
        assert len(mine) > 1000 and weights(folder) == weights(trials[index].node.folder(root))


def weights(folder: Path) -> dict[str, bytes]:
    from mrt.engine.load import load_detector

    return {key: value.numpy().tobytes() for key, value in load_detector(folder)[0].state_dict().items()}


def test_repeating_does_nothing_and_another_study_reuses(world, components):
    root, trials, results, _ = components
    again = Count()
    assert run(world, root, trials, again) == results
    assert not again.tasks and again.said == ["8 of 8 trials are already done"]
    other = Count()
    run(world, root, plan(world, ablate.STUDIES["mae-use"].rows), other)  # none and branch are rows of the components
    assert (other.tasks["pretrain"], other.tasks["mae"], other.tasks["teach"]) == (0, 0, 1)
    measured = Count()
    run(world, root, [ablate.Planner(world, "train").trials([trials[0].row], [0], world / "tiny.json", [], {})[0]], measured)
    assert measured.tasks == {"evaluate on hazy train": 1}


def test_retraining_from_the_source_goes_behind_stage_2(world, components, tmp_path):
    (trial,) = plan(world, [ablate.Row("source", {"retrain.source": "source"})], (0,), source_of(components))
    run(world, tmp_path / "a", [trial])
    whole = stages.adapt(trial.config, tmp_path / "run", data_root=world)
    assert weights(whole) == weights(trial.node.folder(tmp_path / "a"))


@pytest.mark.parametrize("step", [3, 9])
def test_after_a_kill_only_what_is_missing_is_done_and_the_result_is_the_same(world, components, tmp_path, step):
    """Killed in stage 1 and in stage 3; each stage has 4 steps."""
    trials = [trial for trial in components[1] if trial.row.name == "+ DT"]
    expected = [result for result in components[2] if result["row"]["name"] == "+ DT"]
    with pytest.raises(Killed):
        run(world, tmp_path, trials, Count(die_at=step))
    watcher = Count()
    found = run(world, tmp_path, trials, watcher)
    assert [item["metrics"] for item in found] == [item["metrics"] for item in expected]
    finished = (step - 1) // 4
    assert sum(watcher.tasks[name] for name in ("pretrain", "mae", "teach")) == 3 - finished
    assert not (trials[0].node.folder(tmp_path) / "checkpoints").exists(), "only resuming needs them"


def test_a_failure_stops_only_what_needs_it_and_is_told(world, components, tmp_path, monkeypatch):
    rows = [ablate.Row("good"), ablate.Row("bad", {"mae.mask_ratio": 0.5}), ablate.Row("worse", {"mae_stage.lr": 1e-5})]
    adapt = stages.adapt

    def fail(config, folder, **options):
        if config.mae.mask_ratio == 0.5 and options["stages"] == ("teach",):
            raise RunFailed("a loss is not finite: total nan")
        if config.mae_stage.lr == 1e-5:
            raise ZeroDivisionError("a bug")
        return adapt(config, folder, **options)

    monkeypatch.setattr(stages, "adapt", fail)
    trials = plan(world, rows, (0,), source_of(components))
    good, bad, worse = run(world, tmp_path, trials)
    assert "metrics" in good and bad["failed"] == "a loss is not finite: total nan"
    assert worse["failed"].startswith("needs mae-") and worse["failed"].endswith("ZeroDivisionError: a bug")
    assert "total nan" in Path(bad["log"]).read_text() and "ZeroDivisionError" in Path(worse["log"]).read_text()
    report = report_of([good, bad, worse], trials, "good")
    assert [(row["name"], len(row["failures"])) for row in report["rows"]] == [("good", 0), ("bad", 1), ("worse", 1)]
    assert ablate.lines(report)[1][1:3] == ["failed", "0 (1 failed)"]
    monkeypatch.undo()
    watcher = Count()
    assert all("metrics" in item for item in run(world, tmp_path, trials, watcher))
    assert watcher.tasks["mae"] == 1 and watcher.tasks["teach"] == 2


def report_of(results, trials, base: str) -> dict:
    return ablate.make_report(results, trials, title="T", subject="row", base=base, about={"preset": "demo", "smoke": False})


def test_tables_csv_and_picture_hold_the_numbers_of_the_json(components, tmp_path):
    _, trials, results, _ = components
    report = report_of(results, trials, "teacher-student")
    paths = ablate.write_report(report, tmp_path / "t")
    assert [path.suffix for path in paths] == [".json", ".csv", ".md", ".png", ".svg"]
    stored = json.loads(paths[0].read_text())
    by_name = {row["row"]: row for row in csv.DictReader(io.StringIO(paths[1].read_text()))}
    markdown = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in paths[2].read_text().splitlines() if " | " in line
    }
    assert list(by_name) == [row["name"] for row in stored["rows"]] and len(by_name) == 8
    for row in stored["rows"]:
        mean, line = row["metrics"]["AP50"]["mean"], by_name[row["name"]]
        assert mean == row["trials"][0]["metrics"]["AP50"] and float(line["AP50 mean"]) == mean
        assert line["paper AP50"] == ("" if row["paper"] is None else str(row["paper"]))
        assert markdown[row["name"]][1] == f"{mean:.1f}"
        base = next(item for item in stored["rows"] if item["base"])["metrics"]["AP50"]["mean"]
        if row["base"]:
            assert markdown[row["name"]][3] == "base" and line["delta AP50 mean"] == ""
        else:
            assert float(line["delta AP50 mean"]) == mean - base and markdown[row["name"]][3] == f"{mean - base:+.1f}"
    width, height = Image.open(paths[3]).size
    assert width > 1200 and height > 400 and paths[4].read_text().startswith("<?xml")
    assert any("not comparable" in note for note in ablate.notes(report)) and "City→Foggy" in paths[2].read_text()


def test_without_matplotlib_there_are_still_tables(components, tmp_path, monkeypatch):
    _, trials, results, _ = components
    monkeypatch.setitem(sys.modules, "mrt.ablate.plot", None)
    paths = ablate.write_report(report_of(results, trials, "teacher-student"), tmp_path / "t")
    assert [path.suffix for path in paths] == [".json", ".csv", ".md"]


def test_processes_share_the_work_and_tell_the_same(world, components, tmp_path):
    """Two at a time; one fails, and the other does not mind."""
    rows, init = [ablate.Row("good", end="mae"), ablate.Row("broken", {"mae_stage.lr": 1e30}, end="mae")], source_of(components)
    trials = plan(world, rows, (0,), init)
    watcher = Count()
    found = run(world, tmp_path, trials, watcher, LocalProcesses(2))
    *good, broken = found
    assert all("metrics" in item for item in good) and "not finite" in broken["failed"] and "not finite" in Path(broken["log"]).read_text()
    assert [text[:16] for text in watcher.said[:2]] == ["started: stage 2"] * 2
    here = run(world, tmp_path / "here", trials[:1])
    assert here[0]["metrics"] == found[0]["metrics"]


def test_jobs_of_a_cluster_do_the_same(world, components, tmp_path):
    trials = plan(world, [ablate.Row("source + MAE", end="mae")], (0,), source_of(components))
    found = run(world, tmp_path, trials, None, Submitit("local", tmp_path / "logs", 1, {"partition": "gpu", "timeout_min": "5"}))
    assert "metrics" in found[0], found
    assert list((tmp_path / "logs" / "jobs").glob("*/*_log.out"))


def test_options_of_a_cluster_that_do_not_exist(tmp_path):
    with pytest.raises(MrtError, match="partitoin"):
        Submitit("local", tmp_path, 1, {"partitoin": "gpu"})
    with pytest.raises(MrtError, match="--launcher slurm"):
        Submitit("slurm", tmp_path, 1, {})


class Scripted:
    """A launcher whose processes are shell commands."""

    slots = 2

    def __init__(self, *commands: str) -> None:
        self.commands, self.processes = list(commands), LocalProcesses(2)
        self.most = 0
        self.now: set[str] = set()

    def start(self, work: Work, file: Path, log: Path) -> Any:
        self.now.add(work.name)
        self.most = max(self.most, len(self.now))
        return subprocess.Popen(["sh", "-c", self.commands.pop(0).format(outcome=file.with_suffix(".outcome"))]), None, work.name

    def ended(self, handle: Any) -> str | None:
        end = self.processes.ended(handle[:2])
        if end is not None:
            self.now.discard(handle[2])
        return end

    def stop(self, handles) -> None:
        self.processes.stop([handle[:2] for handle in handles])

    def log(self, handle: Any, log: Path) -> Path:
        return log


def work(name: str, *needs: str) -> Work:
    return Work(name, "mae", {}, "", "", needs=list(needs), titles=[name])


DONE = "echo '{{\"failed\": null}}' > {outcome}"


def test_a_process_that_dies_without_a_word_is_a_failure_with_a_reason(tmp_path):
    launcher = Scripted(DONE, "kill -9 $$", "exit 3", DONE)
    failures = run_with(launcher, [work("a"), work("b"), work("c"), work("d", "b"), work("e", "a")], tmp_path, Watcher())
    assert launcher.most == 2 and set(failures) == {"b", "c", "d"}
    assert "SIGKILL" in failures["b"].reason and "exit code 3" in failures["c"].reason and "needs b" in failures["d"].reason


def test_two_processes_never_work_on_one_node_and_the_dead_do_not_lock(tmp_path):
    holder = (
        "import sys, time; from pathlib import Path; from mrt.ablate.work import locked; from mrt.engine.report import Watcher\n"
        "with locked(Path(sys.argv[1]), Watcher()):\n    print('in', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in\n"
        watcher = Count()

        class Kill(Count):
            def say(self, text: str) -> None:
                super().say(text)
                os.kill(process.pid, signal.SIGKILL)

        watcher = Kill()
        start = time.monotonic()
        with locked(tmp_path / "lock", watcher):
            assert time.monotonic() - start < 60 and "waiting" in watcher.said[0]
    finally:
        process.kill()
        process.wait()


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_gpus(2) == ["5", "7"]
    with pytest.raises(MrtError, match="torch sees 2"):
        visible_gpus(3)


def test_each_process_gets_a_gpu_of_its_own(tmp_path, monkeypatch):
    """The worker is replaced by one that writes down which GPU it sees."""
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nf="$4"; echo "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" > {seen}/$(basename "$f")\n'
        'echo \'{"failed": null}\' > "${f%.json}.outcome"; sleep 0.3\n'
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = LocalProcesses(2, ["5", "7"])
    names = ["a", "b", "c"]
    assert run_with(launcher, [work(name) for name in names], tmp_path / "logs", Watcher()) == {}
    gpus = [(seen / f"{name}.json").read_text().split() for name in names]
    assert [gpu for gpu, _ in gpus[:2]] == ["5", "7"] and gpus[2][0] in ("5", "7")
    assert all(int(threads) == launcher.threads for _, threads in gpus)


def test_a_source_run_of_the_same_settings_is_taken_for_stage_1(world, tmp_path):
    folder = stages.pretrain_source(load_config(world / "tiny.json"), tmp_path / "demo-source", data_root=world)

    def nodes(*overrides: str) -> str | None:
        planner = ablate.Planner(world, "val", find_source=lambda config: folder)
        return planner.trials(DECAY[:1], [0], world / "tiny.json", list(overrides), {})[0].node.parent.parent.place

    assert nodes() == nodes("mae.mask_ratio=0.5") == str(folder)
    assert nodes("pretrain.lr=0.5") is None and nodes("model.num_queries=9") is None
    plain = ablate.Planner(world, "val").trials(DECAY[:1], [0], world / "tiny.json", [], {})[0].node
    assert plain.parent.parent.place is None and plain.digest, "the place is not part of the digest"


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
