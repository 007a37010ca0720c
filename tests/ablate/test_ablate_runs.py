"""Whole studies on two tiny domains: what is trained, shared, resumed, and told of failures.

Here, in processes, and as jobs. Detectors of so few steps find nothing, so every figure of theirs is 0: tests
compare weights, or put figures of their own into the results.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_world import make_set, tiny_config

from mrt import ablate
from mrt.ablate import device
from mrt.ablate.launch import LocalProcesses, Submitit, run_with, visible_gpus
from mrt.ablate.work import Work, do_work, finish_run, locked
from mrt.config import load_config
from mrt.engine import stages
from mrt.engine.facts import write_facts
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
        next(i for i, trial in enumerate(trials) if trial.row.name == name)
        for name in ("+ DT + MAE + retraining", "fair source-only")
    )
    source = next(trial.node for trial in trials if trial.row.end == "source").folder(root)
    adapted = stages.adapt(trials[whole].config, tmp_path / "adapt", init=str(source), data_root=world)
    baseline = stages.pretrain_source(
        trials[fair].config, tmp_path / "fair", init=str(source), match_compute=True, data_root=world
    )
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
    study = plan(world, ablate.STUDIES["mae-use"].rows)  # none and branch are rows of the components
    run(world, root, study, other)
    assert (other.tasks["pretrain"], other.tasks["mae"], other.tasks["teach"]) == (0, 0, 1)
    measured = Count()
    train = ablate.Planner(world, "train").trials([trials[0].row], [0], world / "tiny.json", [], {})
    run(world, root, train, measured)
    assert measured.tasks == {"evaluate on hazy train": 1}


def test_retraining_from_the_source_goes_behind_stage_2(world, components, tmp_path):
    (trial,) = plan(world, [ablate.Row("source", {"retrain.source": "source"})], (0,), source_of(components))
    run(world, tmp_path / "a", [trial])
    whole = stages.adapt(trial.config, tmp_path / "run", data_root=world)
    assert weights(whole) == weights(trial.node.folder(tmp_path / "a"))


@pytest.mark.parametrize("step", [3, 9])
def test_after_a_kill_only_what_is_missing_is_done_and_the_result_is_the_same(
    world, components, tmp_path, step
):
    """Killed in stage 1 and in stage 3; each stage has 4 steps."""
    trials = [trial for trial in components[1] if trial.row.name == "+ DT"]
    expected = [result for result in components[2] if result["row"]["name"] == "+ DT"]
    with pytest.raises(Killed):
        run(world, tmp_path, trials, Count(die_at=step))
    watcher = Count()
    found = run(world, tmp_path, trials, watcher)
    assert [item["node"] for item in found] == [item["node"] for item in expected]
    assert weights(trials[0].node.folder(tmp_path)) == weights(trials[0].node.folder(components[0]))
    finished = (step - 1) // 4
    assert sum(watcher.tasks[name] for name in ("pretrain", "mae", "teach")) == 3 - finished
    assert not (trials[0].node.folder(tmp_path) / "checkpoints").exists(), "only resuming needs them"


def test_a_failure_stops_only_what_needs_it_and_is_told(world, components, tmp_path, monkeypatch):
    rows = [
        ablate.Row("good"),
        ablate.Row("bad", {"mae.mask_ratio": 0.5}),
        ablate.Row("worse", {"mae_stage.lr": 1e-5}),
    ]
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
    assert (
        "total nan" in Path(bad["log"]).read_text() and "ZeroDivisionError" in Path(worse["log"]).read_text()
    )
    report = report_of([good, bad, worse], trials, "good")
    assert [(row["name"], len(row["failures"])) for row in report["rows"]] == [
        ("good", 0),
        ("bad", 1),
        ("worse", 1),
    ]
    assert ablate.lines(report)[1][1:3] == ["failed", "0 (1 failed)"]
    monkeypatch.undo()
    watcher = Count()
    assert all("metrics" in item for item in run(world, tmp_path, trials, watcher))
    assert watcher.tasks["mae"] == 1 and watcher.tasks["teach"] == 2


def report_of(results, trials, base: str) -> dict:
    return ablate.make_report(
        results, trials, title="T", subject="row", base=base, about={"preset": "small", "smoke": False}
    )


def test_tables_csv_and_picture_hold_the_numbers_of_the_json(components, tmp_path):
    _, trials, results, _ = components
    figures = [
        {name: 10 * place + 3 * number + 0.25 for place, name in enumerate(result["metrics"])}
        for number, result in enumerate(results)
    ]
    told = [{**result, "metrics": own} for result, own in zip(results, figures, strict=True)]
    report = report_of(told, trials, "teacher-student")
    paths = ablate.write_report(report, tmp_path / "t")
    names = [f"t{suffix}" for suffix in (".json", ".csv", ".md", ".png", ".svg")]
    assert [path.name for path in paths] == [*names, "t-epochs.png", "t-epochs.svg"]
    stored = json.loads(paths[0].read_text())
    by_name = {row["row"]: row for row in csv.DictReader(io.StringIO(paths[1].read_text()))}
    cells = [line.strip("| ").split(" | ") for line in paths[2].read_text().splitlines() if " | " in line]
    markdown = {line[0]: line for line in cells}
    assert list(by_name) == [row["name"] for row in stored["rows"]] and len(by_name) == 8
    base = figures[[result["row"]["name"] for result in results].index("teacher-student")]
    for row, own in zip(stored["rows"], figures, strict=True):
        line, shown = by_name[row["name"]], markdown[row["name"]]
        assert line["paper AP50"] == ("" if row["paper"] is None else str(row["paper"]))
        for name, figure in own.items():
            assert row["metrics"][name]["mean"] == row["trials"][0]["metrics"][name] == figure
            assert float(line[f"{name} mean"]) == figure
            gain = "" if row["base"] else str(figure - base[name])
            assert line[f"delta {name} mean"] == gain
        gain = "base" if row["base"] else f"{own['AP50'] - base['AP50']:+.1f}"
        assert shown[1:6] == [f"{own['AP50']:.1f}", "1", gain, f"{own['AP']:.1f}", f"{own['AP75']:.1f}"]
    width, height = Image.open(paths[3]).size
    assert width > 1200 and height > 400 and paths[4].read_text().startswith("<?xml")
    assert any("not comparable" in note for note in ablate.notes(report))
    assert "City→Foggy" in paths[2].read_text()


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    if path.name == "run.json":
        write_facts(path.parent, content)
    else:
        path.write_text(json.dumps(content))


@pytest.fixture
def copied(components, tmp_path) -> tuple[Path, list]:
    """The components' folder, to be changed."""
    shutil.copytree(components[0], tmp_path / "copied")
    return tmp_path / "copied", components[1]


def test_every_trial_has_its_own_figures_and_environments(world, copied, monkeypatch):
    """What was trained and measured at other commits keeps them, whatever the code is at the table's time."""
    root, trials = copied
    for number, trial in enumerate(trials):

        def measure(result: dict, number: int = number) -> None:
            result["metrics"]["AP50"] = 1.5 * number
            result["environment"]["commit"] = f"measured{number}"

        rewrite(trial.result_file(root), measure)
        for node in trial.node.chain:
            file = node.folder(root) / "run.json"
            rewrite(file, lambda facts, name=node.name: facts["environment"].update(commit=name))
    monkeypatch.setattr("mrt.engine.folder._commit", lambda: "today")
    report = report_of(run(world, root, trials), trials, "teacher-student")
    for number, (row, trial) in enumerate(zip(report["rows"], trials, strict=True)):
        (found,) = row["trials"]
        assert found["metrics"]["AP50"] == 1.5 * number and found["measured"]["commit"] == f"measured{number}"
        stages = [(node.name, [node.name]) for node in trial.node.chain]
        assert [
            (name, [one["commit"] for one in known]) for name, known in found["trained"].items()
        ] == stages
    notes = "\n".join(ablate.notes(report))
    assert "today" not in ablate.to_markdown(report) + ablate.to_csv(report)
    assert report["written_with"]["commit"] == "today" and "environment" not in report
    assert "MIXED: trained at different commits: source-" in notes
    assert "MIXED: measured at different commits: measured0 (source); measured1 (source + MAE);" in notes
    assert "on different" not in notes and "trained and measured with mrt " in notes


def test_kept_results_make_the_same_table_without_the_runs(world, copied, tmp_path):
    root, trials = copied
    kept = tmp_path / "kept"
    trials = [dataclasses.replace(trial, results=kept) for trial in trials]
    expected = run(world, root, trials)
    assert len(list(kept.iterdir())) == len({trial.result_file(root) for trial in trials})
    watcher = Count()
    elsewhere = run(world, tmp_path / "elsewhere", trials, watcher)
    assert not watcher.tasks and not (tmp_path / "elsewhere").exists(), "nothing was trained or measured"
    changed = {"run", "result"}
    for one, other in zip(expected, elsewhere, strict=True):
        assert {k: v for k, v in one.items() if k not in changed} == {
            k: v for k, v in other.items() if k not in changed
        }
    assert any(one["minutes"] for one in elsewhere) and any(one["curves"] for one in elsewhere)
    file = trials[0].kept_file()
    file.write_text(file.read_text().replace('"AP50": 0.0', '"AP50": 9.0', 1))
    with pytest.raises(MrtError, match="is not what mrt wrote"):
        run(world, tmp_path / "elsewhere", trials)


def test_a_result_is_kept_as_soon_as_it_is_there(world, copied, tmp_path):
    """Not at the end of the study: nothing could be kept after a kill."""
    root, trials = copied
    kept = tmp_path / "kept"
    trials = [dataclasses.replace(trial, results=kept) for trial in trials]
    for trial in trials:
        trial.result_file(root).unlink(missing_ok=True)
    counts: list[int] = []

    class Looking(Watcher):
        def say(self, text: str) -> None:
            if text.startswith("["):
                counts.append(len(list(kept.iterdir())) if kept.is_dir() else 0)

    run(world, root, trials, Looking())
    assert counts == list(range(len(counts))) and len(counts) > 3


def test_results_without_an_environment_still_count(world, copied):
    root, trials = copied
    for file in [*root.glob("nodes/*/run.json"), *root.glob("nodes/*/result-*.json")]:
        rewrite(file, lambda content: content.pop("environment"))
    results = run(world, root, trials[:2])
    assert [item["measured"] for item in results] == [None, None] and "metrics" in results[0]
    assert list(results[0]["trained"].values()) == [[None]]
    report = report_of(results, trials[:2], "source")
    notes = ablate.notes(report)
    assert "not recorded what these were trained with: source, source + MAE" in notes
    assert "not recorded what these were measured with: source, source + MAE" in notes
    (line, _) = csv.DictReader(io.StringIO(ablate.to_csv(report)))
    assert line["trained: commit"] == line["measured: torch"] == "not recorded"
    assert "not recorded what these were trained with: source" in ablate.to_markdown(report)


def test_a_stage_that_is_resumed_with_other_code_tells_both(world, components, tmp_path, monkeypatch):
    trials = plan(world, [ablate.Row("source + MAE", end="mae")], (0,), source_of(components))
    for commit, step in (("one", 3), ("two", None), ("three", None)):
        monkeypatch.setattr("mrt.engine.folder._commit", lambda commit=commit: commit)
        if step:
            with pytest.raises(Killed):
                run(world, tmp_path, trials, Count(die_at=step))
        else:
            (result,) = run(world, tmp_path, trials)
    trained = {name: [one["commit"] for one in known] for name, known in result["trained"].items()}
    assert trained[trials[0].node.name] == ["one", "two"] and result["measured"]["commit"] == "two"
    notes = ablate.notes(report_of([result], trials, "source + MAE"))
    (mixed,) = (note for note in notes if note.startswith("MIXED: trained at different commits"))
    assert "one (source + MAE)" in mixed and "two (source + MAE)" in mixed


def test_what_was_trained_on_another_device_is_no_result(world, copied):
    """As a folder looks in which mrt trained on a GPU before the device counted."""
    root, (trial, *_) = copied
    here = trial.node.device
    other = "cuda" if here == "cpu" else "cpu"
    file = trial.node.folder(root) / "run.json"
    rewrite(file, lambda facts: facts.update(environment={"op": other}))
    with pytest.raises(MrtError, match=f"was trained on device {other}, not on {here}"):
        run(world, root, [trial])


def test_work_is_done_on_the_kind_of_device_that_it_was_planned_for(world, components, tmp_path, monkeypatch):
    trials = plan(world, [ablate.Row("source + MAE", end="mae")], (0,), source_of(components))
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    (planned,) = ablate.missing_work(trials, tmp_path, world)
    assert planned.device == "cpu"
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    with pytest.raises(MrtError, match="planned for device cpu, but on this machine it would be cuda"):
        do_work(planned, Watcher())
    assert not (tmp_path / "nodes").exists()


def test_without_matplotlib_there_are_still_tables(components, tmp_path, monkeypatch):
    _, trials, results, _ = components
    monkeypatch.setitem(sys.modules, "mrt.ablate.plot", None)
    paths = ablate.write_report(report_of(results, trials, "teacher-student"), tmp_path / "t")
    assert [path.suffix for path in paths] == [".json", ".csv", ".md"]


@pytest.fixture
def one_thread():
    """Rows that are computed on one thread wherever it is: sums on more are made in another order."""
    before = torch.get_num_threads()
    yield {"engine.threads": 1}
    torch.set_num_threads(before)


def test_processes_share_the_work_and_tell_the_same(world, components, tmp_path, one_thread):
    """Two at a time; one fails, and the other does not mind."""
    rows, init = (
        [ablate.Row("good", one_thread, end="mae"), ablate.Row("broken", {"mae_stage.lr": 1e30}, end="mae")],
        source_of(components),
    )
    trials = plan(world, rows, (0,), init)
    watcher = Count()
    found = run(world, tmp_path, trials, watcher, LocalProcesses(2))
    *good, broken = found
    assert (
        all("metrics" in item for item in good)
        and "not finite" in broken["failed"]
        and "not finite" in Path(broken["log"]).read_text()
    )
    assert [text[:16] for text in watcher.said[:2]] == ["started: stage 2"] * 2
    run(world, tmp_path / "here", trials[:1])
    assert weights(trials[0].node.folder(tmp_path / "here")) == weights(trials[0].node.folder(tmp_path))


def test_jobs_of_a_cluster_do_the_same(world, components, tmp_path, one_thread):
    trials = plan(world, [ablate.Row("source + MAE", one_thread, end="mae")], (0,), source_of(components))
    found = run(
        world,
        tmp_path,
        trials,
        None,
        Submitit("local", tmp_path / "logs", 1, {"partition": "gpu", "timeout_min": "5"}),
    )
    assert "metrics" in found[0], found
    assert list((tmp_path / "logs" / "jobs").glob("*/*_log.out"))
    run(world, tmp_path / "here", trials)
    assert weights(trials[0].node.folder(tmp_path / "here")) == weights(trials[0].node.folder(tmp_path))


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
        return (
            subprocess.Popen(["sh", "-c", self.commands.pop(0).format(outcome=file.with_suffix(".outcome"))]),
            None,
            work.name,
        )

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
    return Work(name, "mae", {}, "", "", "cpu", needs=list(needs), titles=[name])


DONE = "echo '{{\"failed\": null}}' > {outcome}"


def test_a_process_that_dies_without_a_word_is_a_failure_with_a_reason(tmp_path):
    launcher, ends = Scripted(DONE, "kill -9 $$", "exit 3", DONE), []
    works = [work("a"), work("b"), work("c"), work("d", "b"), work("e", "a")]
    failures = run_with(launcher, works, tmp_path, Watcher(), lambda: ends.append(launcher.most))
    assert launcher.most == 2 and set(failures) == {"b", "c", "d"}
    assert len(ends) == 2, "after each that was done"
    assert (
        "SIGKILL" in failures["b"].reason
        and "exit code 3" in failures["c"].reason
        and "needs b" in failures["d"].reason
    )


def test_two_processes_never_work_on_one_node_and_the_dead_do_not_lock(tmp_path):
    holder = (
        "import sys, time; from pathlib import Path\n"
        "from mrt.ablate.work import locked; from mrt.engine.report import Watcher\n"
        "with locked(Path(sys.argv[1]), Watcher()):\n    print('in', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "in\n"

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


def test_a_source_run_of_the_same_settings_is_taken_for_stage_1(world, tmp_path, monkeypatch):
    config = load_config(world / "tiny.json")
    folder = stages.pretrain_source(config, tmp_path / "small-source", data_root=world)

    def stage_1(*overrides: str, taken: Path | None = folder) -> ablate.Node:
        planner = ablate.Planner(world, "val", find_source=lambda config: taken)
        return planner.trials(DECAY[:1], [0], world / "tiny.json", list(overrides), {})[0].node.chain[0]

    assert stage_1().place == stage_1("mae.mask_ratio=0.5").place == str(folder)
    assert stage_1("pretrain.lr=0.5").place is None and stage_1("model.num_queries=9").place is None
    plain = stage_1(taken=None)
    assert plain.place is None and plain.digest == stage_1().digest, "the place is not part of the digest"
    here = device.device_kind("auto")
    monkeypatch.setattr(device, "has_gpu", lambda: here == "cpu")
    assert stage_1().place is None, "it was trained on another kind of device"
    assert stage_1(f"engine.device={here}").place == str(folder)


FACTS = '{"command": "adapt", "classes": [], "data": {}, "finished": %s}'


def make_run(folder: Path, config, finished: list[str], checkpoint: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    write_facts(folder, {"command": "adapt", "classes": [], "data": {}, "finished": finished})
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.pt").touch()


def test_a_run_is_brought_to_its_end_from_wherever_it_stands(tmp_path, monkeypatch):
    config, calls = load_config("small"), []
    assert finish_run(tmp_path / "new", config, "teach", calls.append) and calls == [False]
    make_run(tmp_path / "half", config, ["mae"], checkpoint=True)
    assert finish_run(tmp_path / "half", config, "teach", calls.append) and calls == [False, True]
    make_run(tmp_path / "killed", config, [], checkpoint=False)  # before its first checkpoint: begun anew
    assert finish_run(tmp_path / "killed", config, "teach", calls.append) and calls == [False, True, False]
    assert not (tmp_path / "killed").exists()
    make_run(tmp_path / "done", config, ["mae", "teach"], checkpoint=True)
    assert not finish_run(tmp_path / "done", config, "teach", calls.append) and len(calls) == 3
    foreign = {
        "finished": {"run.json": FACTS % '["mae"]', "config.json": config.to_json()},
        "mine": {"thesis.tex": "years of work"},
    }
    foreign["last-lost"] = {
        "run.json": FACTS % "[]",
        "config.json": config.to_json(),
        "checkpoints/step3.pt": "",
    }
    for name, files in foreign.items():  # nothing that was not begun here is deleted
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        with pytest.raises(MrtError, match="no run that could be continued"):
            finish_run(tmp_path / name, config, "teach", calls.append)
        assert len(calls) == 3 and all((tmp_path / name / file).is_file() for file in files)
    with pytest.raises(MrtError, match="other settings"):
        finish_run(tmp_path / "done", load_config("small", ["seed=1"]), "teach", calls.append)
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    rewrite(tmp_path / "done" / "run.json", lambda facts: facts.update(environment={"device_type": "cuda"}))
    with pytest.raises(MrtError, match="trained on device cuda, not on cpu"):
        finish_run(tmp_path / "done", config, "teach", calls.append)
    assert len(calls) == 3
