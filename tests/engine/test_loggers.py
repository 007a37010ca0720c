"""Numbers that also go to Weights & Biases and MLflow: by the real libraries without a network, and what
happens when they fail.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_stages import StopAt
from tiny_world import tiny_config

from mrt.engine import loggers, stages
from mrt.engine.facts import read_facts
from mrt.engine.report import Watcher, read_log
from mrt.errors import Interrupted, MrtError


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    """A folder for MLflow; its client."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def settings(*names: str, **changes):
    return tiny_config(
        **{"engine.loggers": list(names), "engine.log_every": 1, "engine.eval_every": 1} | changes
    )


def curves(client, run: Path) -> dict[str, dict[int, float]]:
    """What MLflow has of a run: name -> step -> value."""
    (experiment,) = [one for one in client.search_experiments() if one.name == "mrt"]
    (found,) = [
        one
        for one in client.search_runs([experiment.experiment_id])
        if one.data.tags["mrt.folder"] == run.name
    ]
    names = list(found.data.metrics)
    return {
        name: {one.step: one.value for one in client.get_metric_history(found.info.run_id, name)}
        for name in names
    }


def test_mlflow_has_the_numbers_of_the_log(world, tmp_path, tracking):
    listener = Listener()
    run = stages.pretrain_source(settings("mlflow"), tmp_path / "run", data_root=world, watcher=listener)
    found = curves(tracking, run)
    lines = [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) > 3 and found["pretrain/total"] == {
        line["step"]: pytest.approx(line["total"]) for line in lines
    }
    assert "pretrain/source/class" in found or any(name.startswith("pretrain/source") for name in found)
    (experiment,) = [one for one in tracking.search_experiments() if one.name == "mrt"]
    (one,) = tracking.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED" and one.data.params["pretrain.lr"] == str(settings().pretrain.lr)
    assert any(line.startswith("MLflow: run") for line in listener.said)


def test_a_run_that_goes_on_is_the_same_run_there(world, tmp_path, tracking):
    config = settings("mlflow")
    with pytest.raises(Interrupted):
        stages.pretrain_source(config, tmp_path / "run", data_root=world, watcher=StopAt(1))
    (experiment,) = [one for one in tracking.search_experiments() if one.name == "mrt"]
    (one,) = tracking.search_runs([experiment.experiment_id])
    assert one.info.status == "FAILED"
    run = stages.pretrain_source(config, tmp_path / "run", data_root=world, resume=True)
    (one,) = tracking.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    lines = [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "train"]
    assert curves(tracking, run)["pretrain/total"] == {
        line["step"]: pytest.approx(line["total"]) for line in lines
    }


def test_weights_and_biases_offline(world, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    listener = Listener()
    run = stages.pretrain_source(settings("wandb"), tmp_path / "run", data_root=world, watcher=listener)
    assert not [line for line in listener.said if line.startswith("wandb:")]
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(200):  # another process writes it
        if b"pretrain/total" in (content := file.read_bytes()):
            break
        time.sleep(0.1)
    assert b"pretrain/total" in content and b"pretrain/step" in content
    assert capfd.readouterr().out == "", "nothing that would disturb the live view"


class Fake:
    """In the place of wandb: notes what it is told."""

    __spec__ = object()

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.url = "https://example.org/run"
        self.Settings = SimpleNamespace

    def init(self, **how):
        self.calls.append(("init", how))
        return self

    def define_metric(self, name, step_metric=None):
        self.calls.append(("define", name, step_metric))

    def log(self, numbers):
        self.calls.append(("log", numbers))

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))


def test_each_stage_counts_its_own_steps(world, tmp_path, monkeypatch):
    fake, listener = Fake(), Listener()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "fog")
    source = stages.pretrain_source(settings(), tmp_path / "source", data_root=world)
    run = stages.adapt(
        settings("wandb"), tmp_path / "run", init=str(source), data_root=world, watcher=listener
    )
    (_, how), *rest = fake.calls
    assert (how["project"], how["name"], how["dir"]) == ("fog", "run", str(run)) and how["resume"] == "allow"
    assert how["config"]["teach"]["epochs"] == settings().teach.epochs
    assert [call[1:] for call in rest if call[0] == "define"] == [
        *(("mae/step", None), ("mae/*", "mae/step"), ("teach/step", None), ("teach/*", "teach/step"))
    ]
    logged = [call[1] for call in rest if call[0] == "log"]
    lines = read_log(run / "metrics.jsonl")
    assert len(logged) == len(lines) and rest[-1] == ("finish", 0)
    for numbers, line in zip(logged, lines, strict=True):
        assert numbers[f"{line['stage']}/step"] == line["step"]
    teacher = next(numbers for numbers in logged if "teach/teacher/AP50" in numbers)
    assert teacher["teach/step"] > 0
    assert any("https://example.org/run" in line for line in listener.said)
    key = how["id"]
    again = loggers.Loggers(["wandb"], run, read_facts(run)["started"], {}, listener.say)
    again.close(failed=True)
    assert fake.calls[-2][1]["id"] == key and fake.calls[-1] == ("finish", 1)


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_what_fails_there_ends_no_run(world, tmp_path, monkeypatch, when):
    fake, listener = Fake(), Listener()

    def fail(*_, **__):
        raise OSError("the server is on fire\nand more")

    setattr(fake, when, fail)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = stages.pretrain_source(settings("wandb"), tmp_path / "run", data_root=world, watcher=listener)
    told = [line for line in listener.said if "on fire" in line]
    assert told == [
        "wandb: the server is on fire. Nothing more is logged there; metrics.jsonl has everything"
    ]
    assert read_facts(run)["finished"] == ["pretrain"]


def test_a_library_that_is_missing_is_said_before_anything_is_written(world, tmp_path, monkeypatch):
    original = loggers.importlib.util.find_spec
    monkeypatch.setattr(
        loggers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else original(name)
    )
    with pytest.raises(MrtError, match=r"--log mlflow \(engine.loggers\): mlflow is not installed") as caught:
        stages.pretrain_source(settings("mlflow"), tmp_path / "run", data_root=world)
    assert "pip install mlflow" in caught.value.hint and not (tmp_path / "run").exists()


def test_loggers_change_no_result(world, tmp_path, monkeypatch):
    from mrt.ablate import content_hash

    monkeypatch.setitem(sys.modules, "wandb", Fake())
    assert content_hash(settings("wandb")) == content_hash(settings())
