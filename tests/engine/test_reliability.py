"""What a run survives: interruptions anywhere, damaged files, other processes, settings that change, numbers
that are not finite. ``make soak`` does the same many times over (tests/soak).
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_stages import Listener, StopAt, lines, numbers, weights
from tiny_world import tiny_config

from mrt import files, seal
from mrt.domains import SOURCE
from mrt.engine import learner, stages, store
from mrt.engine.diagnosis import NOTE, WRONG, diagnose
from mrt.engine.facts import read_facts, write_facts
from mrt.engine.report import read_log
from mrt.errors import Diverged, Interrupted, MrtError, RunFailed
from mrt.experiment import resolve_started
from mrt.files import replacing, whole_folder
from mrt.lock import NAME, RunLock, owner_of


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, log, label snapshots and TensorBoard are those of an undisturbed run, but for times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for network in ("student", "teacher"):
        if (whole / f"{network}.safetensors").is_file():
            ours, theirs = weights(run, network), weights(whole, network)
            assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert [numbers(line) for line in lines(run)] == [numbers(line) for line in lines(whole)]
    snapshots = [folder / "pseudo_labels.jsonl" for folder in (run, whole)]
    assert snapshots[0].exists() == snapshots[1].exists()
    if snapshots[0].exists():
        assert snapshots[0].read_bytes() == snapshots[1].read_bytes()
    boards = [EventAccumulator(str(folder)).Reload() for folder in (run, whole)]
    names = [sorted(board.Tags()["scalars"]) for board in boards]
    assert names[0] == names[1]
    for name in names[0]:
        values = [[(event.step, repr(event.value)) for event in board.Scalars(name)] for board in boards]
        assert values[0] == values[1] or name.endswith("images_per_second")
    for text in (NAME, ".tmp"):
        assert not [file.name for file in run.rglob("*") if file.name.endswith(text) and text != NAME]


@pytest.fixture(scope="module")
def adapted(world, source, tmp_path_factory):
    """An undisturbed run of both stages that is measured after each epoch and logs every third step."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return stages.adapt(CONFIG(), folder, init=str(source), data_root=world)


class StopAtStep(StopAt):
    """Counts steps of training only."""

    def advance(self, n: int = 1, **numbers: float) -> None:
        if n == 1:
            super().advance(n, **numbers)


def CONFIG(**more):
    return tiny_config(
        **{
            "engine.eval_every": 1,
            "engine.log_every": 3,
            "engine.checkpoint_minutes": 1e-5,
            "mae_stage.steps_per_epoch": 4,
            "teach.steps_per_epoch": 4,
            **more,
        }
    )


@pytest.mark.parametrize("stop", [5, 14])
def test_a_stopped_run_is_the_undisturbed_one(world, source, tmp_path, adapted, stop):
    """A stop in the middle of an epoch and of the means that are logged leaves no trace in the log."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(CONFIG(), run, init=str(source), data_root=world, watcher=StopAtStep(stop))
    stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert_same_run(run, adapted)


def test_finishing_twice_changes_nothing(world, source, tmp_path, adapted):
    run, heard = tmp_path / "run", Listener()
    shutil.copytree(adapted, run)

    def content() -> dict[str, bytes]:
        return {
            file.name: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name != NAME
        }

    before = content()
    stages.adapt(CONFIG(), run, resume=True, data_root=world, watcher=heard)
    assert content() == before
    assert "is finished; nothing is left to do" in heard.said[-1]


def test_a_kill_between_the_checkpoint_and_its_evaluation_loses_no_line(world, source, tmp_path, adapted):
    class KilledBeforeEvaluating(Listener):
        def begin(self, task, total, done=0):
            if task.startswith("evaluate"):
                raise OSError("killed")

    run = tmp_path / "run"
    with pytest.raises(OSError, match="killed"):
        stages.adapt(CONFIG(), run, init=str(source), data_root=world, watcher=KilledBeforeEvaluating())
    stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert_same_run(run, adapted)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
def test_a_notice_of_preemption_saves_the_state_and_the_run_goes_on(world, source, tmp_path, adapted):
    heard = Listener()
    run = tmp_path / "run"

    class Notice(StopAt):
        def say(self, text):
            heard.say(text)

    config = CONFIG(**{"engine.checkpoint_minutes": 0})
    before = signal.getsignal(signal.SIGUSR1)
    stages.adapt(
        config, run, init=str(source), data_root=world, watcher=Notice(2, signal.SIGUSR1), stages=("mae",)
    )
    assert signal.getsignal(signal.SIGUSR1) == before
    assert any("Asked for a checkpoint" in text for text in heard.said)
    steps = [store.read_facts(file)["step"] for file in (run / "checkpoints").glob("*.pt")]
    assert sorted(steps) == [4, 8]  # the one of step 2 has been followed by those of two epochs
    assert [numbers(line) for line in lines(run)] == [
        numbers(line) for line in lines(adapted) if line["stage"] == "mae"
    ]


def test_checkpoints_are_written_every_few_minutes(world, tmp_path, monkeypatch):
    written = []
    write = store.Checkpoints.write
    monkeypatch.setattr(
        store.Checkpoints,
        "write",
        lambda self, state, facts, epoch=None: (
            written.append(facts["step"]) or write(self, state, facts, epoch)
        ),
    )
    for minutes, expected in ((1e-6, [1, 2, 3, 4]), (0, [2, 4]), (60, [2, 4])):
        written.clear()
        settings = tiny_config(**{"engine.checkpoint_minutes": minutes})
        stages.pretrain_source(settings, tmp_path / str(minutes), data_root=world)
        assert written == expected


def test_writing_in_the_background_gives_the_same_checkpoints(world, source, tmp_path, adapted, monkeypatch):
    """As on a GPU: the state is copied, and a thread writes it while training goes on."""
    threads = []
    original = store.Checkpoints.__init__

    def in_background(self, *arguments, **more):
        original(self, *arguments, **{**more, "background": True})

    write = store.Checkpoints._write
    monkeypatch.setattr(store.Checkpoints, "__init__", in_background)
    monkeypatch.setattr(
        store.Checkpoints, "_write", lambda *a: threads.append(threading.current_thread().name) or write(*a)
    )
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(CONFIG(), run, init=str(source), data_root=world, watcher=StopAtStep(7))
    stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert_same_run(run, adapted)
    assert set(threads) == {"mrt-checkpoint"}


def test_a_background_write_that_fails_ends_the_run(world, tmp_path, monkeypatch):
    original = store.Checkpoints.__init__
    monkeypatch.setattr(
        store.Checkpoints, "__init__", lambda self, *a, **m: original(self, *a, **{**m, "background": True})
    )
    calls = []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RunFailed("no space left")
        return store_write(*arguments)

    store_write = store.write
    monkeypatch.setattr(store, "write", full)
    with pytest.raises(RunFailed, match="no space left"):
        stages.pretrain_source(CONFIG(), tmp_path / "run", data_root=world)
    monkeypatch.undo()
    stages.pretrain_source(CONFIG(), tmp_path / "run", resume=True, data_root=world)
    assert read_facts(tmp_path / "run")["finished"] == ["pretrain"]


class Executed:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["checkpoints/last.pt", "checkpoints/previous.pt", "mae-random.pt"])
@pytest.mark.parametrize(
    "how",
    [pytest.param("pickle", marks=pytest.mark.soak), "torch", pytest.param("sealed", marks=pytest.mark.soak)],
)
def test_nothing_in_a_run_is_executed(world, source, tmp_path, mae_run, name, how, monkeypatch):
    run, mark = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(mae_run, run)
    evil = {"schema": 2, "stage": "mae", "step": 1, "seed": 0, "state": Executed(mark)}
    path = run / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif how == "torch":
        torch.save(evil, path)
    else:
        monkeypatch.setattr(store, "require_plain", lambda state, where: None)
        store.write(path, evil, {"stage": "mae", "step": 1})
    (run / "checkpoints" / "last.pt").unlink() if "previous" in name else None
    write_facts(run, {**read_facts(run), "finished": []})
    with pytest.raises(MrtError, match=r"could execute code|not a readable checkpoint"):
        if "random" in name:
            stages.adapt(tiny_config(), tmp_path / "next", stages=("teach",), init=str(run), data_root=world)
        else:
            stages.adapt(*(tiny_config(), run), stages=("mae",), resume=True, data_root=world, **from_(name))
    diagnose(run)
    assert not mark.exists()


def from_(name: str) -> dict[str, str]:
    return {"from_checkpoint": Path(name).stem}


@pytest.fixture(scope="module")
def mae_run(world, source, tmp_path_factory):
    """Stage 2 alone, with everything it leaves behind."""
    folder = tmp_path_factory.mktemp("mae") / "run"
    return stages.adapt(tiny_config(), folder, stages=("mae",), init=str(source), data_root=world)


def test_nothing_is_unpickled_anywhere():
    """Every torch.load says weights_only=True; nothing else opens a pickle."""
    import ast

    found = 0
    for file in [*Path("mrt").rglob("*.py"), *Path("cli").rglob("*.py"), *Path("benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("torch.load", "load") and name == "torch.load":
                found += 1
                only = [word.value for word in node.keywords if word.arg == "weights_only"]
                assert [getattr(value, "value", None) for value in only] == [True], f"{file}:{node.lineno}"
            assert name not in ("pickle.load", "pickle.loads", "joblib.load", "pickle.Unpickler"), file
            if name in ("np.load", "numpy.load"):
                allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
                assert not any(getattr(value, "value", True) for value in allowed), f"{file}:{node.lineno}"
            assert name not in ("eval", "exec", "yaml.load", "marshal.loads", "shelve.open"), file
    assert found >= 2


@pytest.mark.parametrize(
    "damage",
    ["flip", pytest.param("cut", marks=pytest.mark.soak), pytest.param("empty", marks=pytest.mark.soak)],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(world, source, tmp_path, adapted, damage):
    run, heard = tmp_path / "run", Listener()
    with pytest.raises(Interrupted):
        stages.adapt(CONFIG(), run, init=str(source), data_root=world, watcher=StopAtStep(11))
    last = run / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 16
    last.write_bytes({"flip": content, "cut": content[: len(content) // 3], "empty": b""}[damage])
    stages.adapt(CONFIG(), run, resume=True, data_root=world, watcher=heard)
    assert any("last.pt: not a readable checkpoint" in text for text in heard.said)
    assert any("Going on from previous.pt" in text for text in heard.said)
    assert (run / "checkpoints" / "last.pt.damaged").read_bytes() == content or damage != "flip"
    assert_same_run(run, adapted)


def test_all_checkpoints_damaged_is_one_error(world, source, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    write_facts(run, {**read_facts(run), "finished": []})
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"rot")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(MrtError, match=r"last\.pt: not a readable checkpoint.*nor any of the other 1"):
        stages.pretrain_source(tiny_config(), run, resume=True, data_root=world)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_no_flipped_bit_of_a_checkpoint_passes(tmp_path):
    path = tmp_path / "last.pt"
    state = {"stage": "teach", "step": 3, "student": {"weight": torch.randn(4, 5)}}
    store.write(path, state, {"stage": "teach", "step": 3})
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for bit in torch.randperm(8 * len(whole), generator=generator)[:400].tolist():
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(MrtError, match="not a readable checkpoint"):
            store.read(path)
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(MrtError):
            store.read(path)


def test_two_processes_do_not_write_one_run(world, source, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(2))
    words = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(MrtError, match=rf"process {other.pid} on .* is writing this run"):
            stages.adapt(tiny_config(), run, resume=True, data_root=world)
        assert owner_of(run)["process"] == other.pid
        assert any(one.what == "lock" and one.state == NOTE for one in diagnose(run))
        other.kill()  # the lock dies with its process, while its children live
        other.wait()
        stages.adapt(tiny_config(), run, resume=True, data_root=world)
    assert owner_of(run) is None and read_facts(run)["finished"] == ["mae", "teach"]


HOLD = """
import sys, time, os
from pathlib import Path
from mrt.lock import RunLock
lock = RunLock(Path(sys.argv[1])); lock.take()
if os.fork() == 0:
    time.sleep(5); os._exit(0)
print("locked", flush=True); time.sleep(60)
"""


def test_a_process_does_not_write_a_run_twice(tmp_path):
    with RunLock(tmp_path), pytest.raises(MrtError, match=f"process {os.getpid()} is writing"):
        RunLock(tmp_path).take()
    RunLock(tmp_path).take()


def test_a_run_appears_whole_or_not_at_all(world, tmp_path, monkeypatch):
    """A kill while the folder was made left one that neither resumed nor started."""
    monkeypatch.setattr("mrt.engine.folder.write_facts", lambda *a: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises((OSError, MrtError)):
        stages.pretrain_source(tiny_config(), tmp_path / "runs" / "run", data_root=world)
    monkeypatch.undo()
    assert not (tmp_path / "runs").exists()
    stages.pretrain_source(tiny_config(), tmp_path / "runs" / "run", data_root=world)


def test_a_half_made_run_of_before_is_told_what_it_is(world, source, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(source / "config.json", run)
    with pytest.raises(MrtError, match=r"killed before it was one[\s\S]*delete it"):
        stages.pretrain_source(tiny_config(), run, data_root=world)
    with pytest.raises(MrtError, match=r"killed before it was one[\s\S]*delete it"):
        stages.pretrain_source(tiny_config(), run, resume=True, data_root=world)
    assert [one.state for one in diagnose(run)] == [WRONG]


def test_an_edited_setting_is_noticed_and_a_stated_one_recorded(world, source, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(2))
    before = (run / "config.json").read_text()
    (run / "config.json").write_text(before.replace('"lr": ', '"lr": 1'))
    for go_on in (
        lambda: stages.adapt(tiny_config(), run, resume=True, data_root=world),
        lambda: resolve_started(run, [], {}),
    ):
        with pytest.raises(MrtError, match=r"config\.json: has been changed[\s\S]*--allow-change"):
            go_on()
    (run / "config.json").write_text(before)
    with pytest.raises(MrtError, match=r"teach\.lr = .*-> 1e-07[\s\S]*--allow-change"):
        resolve_started(run, ["teach.lr=1e-7"], {})
    with pytest.raises(MrtError, match=r"cannot have another engine\.batch_size"):
        resolve_started(run, ["engine.batch_size=2"], {}, allow_change=True)
    config, changed = resolve_started(run, ["teach.lr=1e-7"], {}, allow_change=True)
    changes = {"config": config, "settings": changed}
    stages.adapt(tiny_config(), run, resume=True, changes=changes, data_root=world)
    assert max(line["lr"] for line in lines(run, "train") if line["stage"] == "teach") == 1e-7
    (record,) = read_facts(run)["changed"]
    assert record["settings"] == changed == {"teach.lr": [tiny_config().teach.lr, 1e-7]}
    assert (record["stage"], record["step"]) == ("mae", 3)
    assert resolve_started(run, [], {})[0].teach.lr == 1e-7
    assert any("teach.lr" in one.found for one in diagnose(run))


def test_damaged_facts_and_logs_are_told(world, source, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    assert {one.state for one in diagnose(run)} <= {"fine"}
    facts = (run / "run.json").read_text()
    for text in (
        facts.replace("clear", "cleaR"),
        facts[:-40],
        "[]",
        '{"command": 3}',
        facts.replace('"red"', "7"),
    ):
        (run / "run.json").write_text(text)
        with pytest.raises(MrtError, match=r"run\.json"):
            read_facts(run)
        assert [one.state for one in diagnose(run)] == [WRONG]
    (run / "run.json").write_text(facts)
    log = run / "metrics.jsonl"
    text = log.read_text()
    for damaged in (text.replace('"step": 2', '"step": 3', 1), text[: len(text) // 2], "x" + text[1:]):
        log.write_text(damaged)
        with pytest.raises(MrtError, match=r"metrics\.jsonl"):
            read_log(log)
        assert [one.what for one in diagnose(run) if one.state == WRONG] == ["metrics.jsonl"]
    mended: list[str] = []
    diagnose(run, mended)
    assert mended and {one.state for one in diagnose(run)} <= {"fine"} and read_log(log)


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    killed = subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(file.name for file in tmp_path.iterdir())
    assert len(left) == 2 and left[0].startswith(".a.json.") and left[1].startswith(".b.")
    others = [tmp_path / ".c.json.abcdefgh.tmp", tmp_path / left[0].replace(files.HOST, "0" * 6)]
    for other in others:  # another program's, and another machine's
        other.write_text("x")
    with replacing(tmp_path / "c.json") as file, whole_folder(tmp_path / "d"):
        assert sorted(files.unfinished(tmp_path))[:2] == left  # made a moment ago: perhaps not locked yet
        assert sorted(files.remove_litter(tmp_path, again=True)) == left
        file.write(b"1")
    for name in left:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    files._looked_at.clear()
    with replacing(tmp_path / "c.json") as file:
        file.write(b"1")
    there = sorted(file.name for file in tmp_path.iterdir())
    assert there == sorted(["c.json", "d", *(other.name for other in others)])


LEAVE = """
import os, signal, sys
from pathlib import Path
from mrt.files import replacing, whole_folder
root = Path(sys.argv[1])
with replacing(root / "a.json") as file, whole_folder(root / "b") as folder:
    file.write(b"half"); (folder / "x").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def poison(monkeypatch, steps):
    """The batches of these steps (from 0) have images that are not finite."""
    run_step = learner.training_step

    def poisoned(one, batches, moment):
        if one.step in steps:
            batches[0][SOURCE].images.fill_(math.nan)
        return run_step(one, batches, moment)

    monkeypatch.setattr("mrt.engine.loop.training_step", poisoned)


@pytest.mark.parametrize("log_every", [1, 100])
def test_steps_that_are_not_finite_are_left_out_as_many_as_are_allowed(
    world, tmp_path, monkeypatch, log_every
):
    settings = {"engine.log_every": log_every, "pretrain.epochs": 2, "pretrain.steps_per_epoch": 4}
    poison(monkeypatch, (2, 5))
    config = tiny_config(**settings, **{"engine.on_nonfinite": "skip 2"})
    run = stages.pretrain_source(config, tmp_path / "run", data_root=world)
    last = lines(run, "train")[-1]
    assert last["skipped_steps"] == 2 and math.isfinite(last["total"])
    assert all(bool(value.isfinite().all()) for value in weights(run).values())
    config = tiny_config(**settings, **{"engine.on_nonfinite": "skip 1"})
    with pytest.raises(Diverged, match=r"not finite since step 3 \(2 steps; 1 may be skipped\)") as failed:
        stages.pretrain_source(config, tmp_path / "few", data_root=world)
    assert failed.value.how == ["--resume", "--set", "pretrain.lr=0.0005", "--allow-change"]
    assert "Images of that step: source: " in str(failed.value)


def test_what_is_not_finite_is_told_with_its_images_and_losses(world, tmp_path, monkeypatch):
    poison(monkeypatch, (2,))
    monkeypatch.setattr("mrt.losses.matcher._assign", lambda costs, counts, queries, pairs, *_: pairs.fill(0))
    settings = tiny_config(**{"engine.log_every": 100, "pretrain.epochs": 1, "pretrain.steps_per_epoch": 6})
    with pytest.raises(RunFailed, match=r"since step 3: .*source/class nan") as failed:
        stages.pretrain_source(settings, tmp_path / "run", data_root=world)
    text = str(failed.value)
    assert text.count(".png") == 4 and "Images of that step: source: " in text
    assert failed.value.how == [] and "with a lower learning rate;" in text  # there is no checkpoint


def test_the_matcher_names_the_images_too(world, tmp_path, monkeypatch):
    poison(monkeypatch, (1,))
    with pytest.raises(RunFailed, match=r"not finite[\s\S]*Images of that step: source: .*\.png"):
        stages.pretrain_source(tiny_config(), tmp_path / "run", data_root=world)


def test_skipping_allows_nothing_that_it_was_not_asked_to(world, source, tmp_path):
    """Without a step that is not finite, a run that may skip is the run that may not."""
    runs = [
        stages.pretrain_source(tiny_config(**more), tmp_path / name, data_root=world)
        for name, more in (("stop", {}), ("skip", {"engine.on_nonfinite": "skip 3"}))
    ]
    ours, theirs = (weights(run) for run in runs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_run_whose_folder_vanishes_ends_with_one_message(world, tmp_path):
    run = tmp_path / "run"

    class Vanish(StopAt):
        def advance(self, n=1, **_):
            self.left -= n
            if self.left == 0:
                shutil.rmtree(run)

    with pytest.raises(RunFailed, match="the run's folder has been removed"):
        stages.pretrain_source(tiny_config(), run, data_root=world, watcher=Vanish(1))
    assert not run.exists()


def test_a_full_disk_is_the_machines_failure_and_loses_nothing(world, source, tmp_path, adapted, monkeypatch):
    run, failing = tmp_path / "run", [0]
    fsync = os.fsync

    def full(descriptor):
        failing[0] += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if failing[0] == 12:
            raise OSError(28, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr("mrt.files.os.fsync", full)
    with pytest.raises(RunFailed, match=r"could not be written: No space left on device\nfree some space"):
        stages.adapt(CONFIG(), run, init=str(source), data_root=world)
    monkeypatch.undo()
    stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert_same_run(run, adapted)


def test_a_seal_can_be_read_without_what_it_seals(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        seal.write_seal(file, b"content", {"step": 3})
    assert seal.read_seal(path)["step"] == 3 and bytes(seal.open_seal(path.read_bytes())[0]) == b"content"
    path.write_bytes(b"content")
    assert seal.read_seal(path) is None


def test_a_part_cannot_keep_what_could_not_be_read_back(world, tmp_path, monkeypatch):
    from mrt.parts.supervise import Supervise

    monkeypatch.setattr(Supervise, "state_dict", lambda self: {"when": Path("x")})
    with pytest.raises(MrtError, match=r"part 'supervise', state_dict\(\)\['when'\]: is a pathlib"):
        stages.pretrain_source(tiny_config(), tmp_path / "run", data_root=world)


def test_waiting_for_another_process_does_not_hang(tmp_path):
    """The lock is refused at once."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        began = time.monotonic()
        with pytest.raises(MrtError, match="wait for it, or end it"):
            RunLock(tmp_path).take()
        assert time.monotonic() - began < 1
        other.kill()


def test_the_log_is_as_json(adapted):
    for line in (adapted / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)


def stopped(world, source, folder, step=11, **more):
    """A run that was stopped in teaching, with two checkpoints."""
    with pytest.raises(Interrupted):
        stages.adapt(CONFIG(**more), folder, init=str(source), data_root=world, watcher=StopAtStep(step))
    return folder


def test_a_rate_that_is_changed_is_learned_with(world, source, tmp_path, adapted):
    """It was logged and recorded, and the checkpoint's rate was used."""
    run = stopped(world, source, tmp_path / "run")
    for setting in ("teach.lr=1e-8", "engine.weight_decay=0.9"):
        copy = tmp_path / setting
        shutil.copytree(run, copy)
        config, changed = resolve_started(copy, [setting], {}, allow_change=True)
        changes = {"config": config, "settings": changed}
        stages.adapt(CONFIG(), copy, resume=True, changes=changes, data_root=world)
        ours, theirs = weights(copy), weights(adapted)
        assert any(not torch.equal(value, theirs[key]) for key, value in ours.items())
    stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert_same_run(run, adapted)


def test_less_memory_by_more_accumulation_is_allowed(world, source, tmp_path):
    run = stopped(world, source, tmp_path / "run")
    config, changed = resolve_started(run, ["engine.accumulate=2"], {}, allow_change=True)
    changes = {"config": config, "settings": changed}
    stages.adapt(CONFIG(), run, resume=True, changes=changes, data_root=world)
    assert [line["step"] for line in lines(run, "epoch")] == [4, 8, 4, 8]


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_settings_are_finite(value):
    from mrt.config import load_config

    with pytest.raises(MrtError, match=r"teach\.lr"):
        load_config("small", [f"teach.lr={value}"])


def test_nothing_is_written_through_a_link(world, source, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (".lock", "metrics.jsonl", "config.json"):
        run = tmp_path / f"run{name}"
        shutil.copytree(source, run)
        write_facts(run, {**read_facts(run), "finished": []})
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
        for use in (
            lambda run=run: stages.pretrain_source(tiny_config(), run, resume=True, data_root=world),
            lambda run=run: diagnose(run, []),
        ):
            try:
                found = use()
            except MrtError as error:
                assert "is a link" in str(error) or "no plain file" in str(error) or "changed" in str(error)
            else:
                assert any(one.state == WRONG for one in found)
            assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "pseudo_labels.jsonl", "checkpoints/last.pt", "mae.safetensors"]
)
def test_a_pipe_is_not_waited_for(world, source, tmp_path, name):
    run = stopped(world, source, tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(MrtError, match="no plain file"):
        stages.adapt(CONFIG(), run, resume=True, data_root=world)
    assert [one.state for one in diagnose(run)] == [WRONG]


def test_files_of_another_run_are_noticed(world, source, tmp_path, adapted):
    other = stages.adapt(CONFIG(seed=5), tmp_path / "other", init=str(source), data_root=world)
    run = stopped(world, source, tmp_path / "run")
    shutil.copy(other / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")
    with pytest.raises(MrtError, match="is a checkpoint of another run"):
        stages.adapt(CONFIG(), run, resume=True, data_root=world)
    for ours, theirs in (("teacher", other / "teacher"), ("student", adapted / "teacher")):
        run = tmp_path / ours
        shutil.copytree(adapted, run)
        shutil.copy(f"{theirs}.safetensors", run / f"{ours}.safetensors")
        with pytest.raises(MrtError, match="is not the file that this run wrote"):
            weights(run, ours)
        assert [one.what for one in diagnose(run) if one.state == WRONG] == [f"{ours}.safetensors"]
        stages.adapt(CONFIG(), run, resume=True, data_root=world)  # written again
        assert_same_run(run, adapted)


def test_what_was_added_to_a_finished_log_is_noticed(tmp_path, adapted):
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    log = run / "metrics.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    with pytest.raises(MrtError, match="has grown since the run was over"):
        read_log(log)
    assert [one.what for one in diagnose(run) if one.state == WRONG] == ["metrics.jsonl"]


def test_a_newer_part_of_a_log_is_checked_too(world, source, tmp_path):
    run = stopped(world, source, tmp_path / "run")
    log = run / "metrics.jsonl"
    head, _, last = log.read_text().rstrip("\n").rpartition("\n")
    assert '"teach"' in last
    log.write_text(f"{head}\n{last.replace('0.', '1.', 1)}\n")
    with pytest.raises(MrtError, match="is not what was written"):
        read_log(log)


def test_a_missing_last_checkpoint_is_told(world, source, tmp_path, adapted):
    run, heard = stopped(world, source, tmp_path / "run"), Listener()
    (run / "checkpoints" / "last.pt").unlink()
    stages.adapt(CONFIG(), run, resume=True, data_root=world, watcher=heard)
    assert any("last.pt: is missing" in text for text in heard.said)
    assert_same_run(run, adapted)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path):
    import zipfile

    from mrt.models.pretrained import read_state

    torch.save({"weight": torch.zeros(10)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb,
    ):
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item), compress_type=zipfile.ZIP_DEFLATED)
    assert set(read_state(tmp_path / "plain.pth")) == {"weight"}
    with pytest.raises(MrtError, match="is packed"):
        read_state(tmp_path / "bomb.pth")
    with pytest.raises(MrtError, match="is packed"):
        store.read(tmp_path / "bomb.pth")


def test_weights_that_the_last_step_has_ruined_are_not_written(world, tmp_path):
    one_step = {"pretrain.epochs": 1, "pretrain.steps_per_epoch": 1, "pretrain.lr": 1e38}
    with pytest.raises(Diverged, match="weights that are not finite"):
        stages.pretrain_source(tiny_config(**one_step), tmp_path / "run", data_root=world)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_class_names_that_could_not_be_read_back_are_refused_at_once(tmp_path):
    from tiny_world import make_set

    make_set(tmp_path, "clear", classes=("a\x1b[31m", "green"))
    with pytest.raises(MrtError, match=r"is no name of a class") as refused:
        stages.pretrain_source(tiny_config(), tmp_path / "run", data_root=tmp_path)
    assert "\x1b" not in str(refused.value) and not (tmp_path / "run").exists()


def test_epochs_that_are_over_cannot_be_taken_back(world, source, tmp_path):
    run = stopped(world, source, tmp_path / "run", step=15)
    config, changed = resolve_started(run, ["teach.epochs=1"], {}, allow_change=True)
    with pytest.raises(MrtError, match="steps are done"):
        stages.adapt(
            *(CONFIG(), run), resume=True, changes={"config": config, "settings": changed}, data_root=world
        )


def test_a_run_that_goes_on_keeps_its_weights_and_preset(world, source, tmp_path):
    from mrt.experiment import configure

    run = stopped(world, source, tmp_path / "run")
    how = {"name": "run", "resume": True, "run_root": tmp_path}
    assert configure("adapt", None, [], {}, init=str(source), **how)[1] == run  # as it was started
    with pytest.raises(MrtError, match="the run was started from"):
        configure("adapt", None, [], {}, init=str(run), **how)
    with pytest.raises(MrtError, match="the run was started with small"):
        configure("adapt", "city2foggy", [], {}, **how)
