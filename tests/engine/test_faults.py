"""Faults that were found while the engine was read, each as the right behaviour."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_plain_step import STAGES, assert_same, batch, batches_of, config, make_learner, take_steps
from test_stages import Listener, StopAt, lines, numbers, weights
from tiny_world import tiny_config

from benchmarks.plain_step import plain_step
from mrt.data.loader import Batch
from mrt.domains import SOURCE, TARGET
from mrt.engine import checkpoint, learner, prepare, stages, store
from mrt.engine.distributed import World
from mrt.engine.facts import read_facts, text_digest, write_facts
from mrt.engine.inference import evaluate_detector
from mrt.engine.step import training_step
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.models.detector import DeformableDETR
from mrt.models.weights import read_header


def padded(domain: str, height: int, width: int) -> Batch:
    """One image that fills part of 48x64 pixels."""
    whole = batch([(48, 64)], 3 if domain == SOURCE else 4, boxes=(2,))
    mask = torch.ones(1, 48, 64, dtype=torch.bool)
    mask[:, :height, :width] = False
    return Batch(whole.images * ~mask, mask, whole.targets, whole.strong_images * ~mask)


@pytest.mark.parametrize("stage", ["source+mae", "teach+mae", "teach+mae, both domains"])
@pytest.mark.parametrize("model", ["demo's kind", "paper's kind"])
def test_one_padded_image_a_domain_has_its_own_positions(model, stage):
    """With one padded image per domain, the target's masked pass took the source's positions."""
    batches = [[{SOURCE: padded(SOURCE, 40, 64), TARGET: padded(TARGET, 48, 40)}]]
    assert_same(*(take_steps(step, config(model), stage, batches) for step in (training_step, plain_step)))


def test_a_loss_that_is_not_finite_changes_no_weight_and_is_told_with_its_step(
    world, source, tmp_path, monkeypatch
):
    """It is looked for in each step, before the optimiser; the log is written every hundred steps only."""
    run_step, before = learner.training_step, {}

    def poisoned(one, batches, moment):
        if one.step == 2:
            before.update({key: value.clone() for key, value in one.student.state_dict().items()})
            batches[0][SOURCE].images.fill_(math.nan)
        seen = run_step(one, batches, moment)
        if one.step == 4:
            after = one.student.state_dict()
            trained = [key for key, _ in one.student.named_parameters()]
            assert [key for key in trained if not torch.equal(after[key], before[key])] == []
        return seen

    monkeypatch.setattr("mrt.engine.loop.training_step", poisoned)
    monkeypatch.setattr(
        "mrt.losses.matcher._assign", lambda costs, counts, queries, pairs, *_: pairs.fill(0)
    )  # it would notice first
    settings = tiny_config(**{"engine.log_every": 100, "pretrain.epochs": 1, "pretrain.steps_per_epoch": 6})
    with pytest.raises(RunFailed, match=r"not finite since step 3: [a-z/_]+ nan"):
        stages.pretrain_source(settings, tmp_path / "run", data_root=world)
    assert len(before) > 0 and not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_killed_before_its_first_checkpoint_has_no_line_twice(world, source, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = tiny_config()
    whole = stages.adapt(settings, tmp_path / "whole", stages=("teach",), init=str(source), data_root=world)
    run = tmp_path / "run"
    with pytest.raises(Killed):
        stages.adapt(settings, run, stages=("teach",), init=str(source), data_root=world, watcher=Kill(1))
    assert lines(run) and (run / "pseudo_labels.jsonl").read_text() and not (run / "checkpoints").exists()
    stages.adapt(settings, run, stages=("teach",), resume=True, data_root=world)
    assert [numbers(line) for line in lines(run)] == [numbers(line) for line in lines(whole)]
    assert (run / "pseudo_labels.jsonl").read_text() == (whole / "pseudo_labels.jsonl").read_text()
    boards = [EventAccumulator(str(folder)).Reload() for folder in (run, whole)]
    totals = [[(event.step, event.value) for event in board.Scalars("teach/total")] for board in boards]
    assert totals[0] == totals[1] and len(totals[0]) == 4


def test_tensorboard_has_each_step_once_after_an_interruption(world, source, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(5))
    stages.adapt(tiny_config(), run, resume=True, data_root=world)
    board = EventAccumulator(str(run)).Reload()
    for stage in ("mae", "teach"):
        drawn = [(event.step, event.value) for event in board.Scalars(f"{stage}/total")]
        written = [(line["step"], line["total"]) for line in lines(run, "train") if line["stage"] == stage]
        assert [step for step, _ in drawn] == [step for step, _ in written] == [1, 2, 3, 4]
        assert [value for _, value in drawn] == pytest.approx([value for _, value in written])


def test_a_resumed_run_knows_its_backbone_and_what_it_is_resumed_with(world, source, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("mrt.engine.prepare._trained_weights", known(prepare._trained_weights, "f" * 64))
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(5))
    monkeypatch.setattr("mrt.engine.folder._commit", lambda: "another")
    stages.adapt(tiny_config(), run, resume=True, data_root=world)
    for network in ("student", "teacher"):
        assert read_header(run / f"{network}.safetensors")["backbone"]["fingerprint"] == "f" * 64
    assert [item["commit"] for item in read_facts(run)["resumed"]] == ["another"]


def known(load, fingerprint):
    """A loader of weights whose backbone's pretrained weights are known."""

    def loaded(detector, *arguments):
        state = load(detector, *arguments)
        detector.backbone.fingerprint = fingerprint
        return state

    return loaded


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_figures_of_training_are_those_of_mrt_eval(world, tmp_path, amp):
    """Whatever training computes in, figures are measured in float32."""
    settings = tiny_config(
        **{
            "engine.amp": amp,
            "engine.eval_every": 2,
            "pretrain.epochs": 12,
            "pretrain.lr": 3e-3,
            "pretrain.ema": False,
        }
    )
    run = stages.pretrain_source(settings, tmp_path / "run", data_root=world)
    last = lines(run, "eval")[-1]
    found = evaluate_detector(run, which="student", data="clear", data_root=world).metrics.to_dict()
    assert last["AP50"] > 0
    assert {key: last[key] for key in ("AP", "AP50", "APs", "per_class")} == {
        key: found[key] for key in ("AP", "AP50", "APs", "per_class")
    }


def test_student_and_teacher_are_measured_in_one_pass(world, source, tmp_path, monkeypatch):
    from mrt.engine import inference

    begun = []
    build_loader = inference.build_loader
    monkeypatch.setattr(inference, "build_loader", lambda *a, **k: begun.append(1) or build_loader(*a, **k))
    settings = tiny_config(**{"engine.eval_every": 2, "mae_stage.epochs": 0})
    run = stages.adapt(settings, tmp_path / "run", init=str(source), data_root=world)
    networks = [line["network"] for line in lines(run, "eval")]
    assert networks == ["student", "student", "teacher"] and len(begun) == 2


def test_a_run_goes_on_from_a_numbered_checkpoint(world, source, tmp_path):
    settings = tiny_config(**{"engine.keep_checkpoints": 2, "teach.epochs": 3})
    whole = stages.adapt(settings, tmp_path / "whole", init=str(source), data_root=world)
    kept = sorted(path.name for path in (whole / "checkpoints").iterdir())
    numbered = ["mae-0001.pt", "mae-0002.pt", "previous.pt", "teach-0002.pt", "teach-0003.pt"]
    assert kept == ["last.pt", *numbered]
    for name in ("teach-0002", "mae-0001.pt"):
        run = tmp_path / name
        shutil.copytree(whole, run)
        (run / "checkpoints" / "last.pt").write_bytes(b"cut short")
        with pytest.raises(MrtError, match=r"not a readable checkpoint[\s\S]*--resume-from teach-0003"):
            stages.adapt(settings, run, resume=True, from_checkpoint="last", data_root=world)
        stages.adapt(settings, run, resume=True, from_checkpoint=name, data_root=world)
        assert_same_weights(run, weights(whole))
        assert [numbers(line) for line in lines(run)] == [numbers(line) for line in lines(whole)]
        assert json.loads((run / "run.json").read_text())["finished"] == ["mae", "teach"]
    with pytest.raises(MrtError, match=r"no such checkpoint[\s\S]*there are: last, mae-0001"):
        stages.adapt(settings, run, resume=True, from_checkpoint="teach-0009", data_root=world)


def assert_same_weights(run: Path, whole: dict[str, torch.Tensor], which: str = "student") -> None:
    ours = weights(run, which)
    assert [key for key, value in whole.items() if not torch.equal(value, ours[key])] == []


class Killed(Exception):
    pass


class Kill(StopAt):
    def advance(self, n: int = 1, **_: float) -> None:
        self.left -= n
        if self.left == 0:
            raise Killed


def test_going_back_holds_through_a_kill_and_forgets_what_came_after(world, source, tmp_path):
    settings = tiny_config(**{"engine.keep_checkpoints": 2, "teach.epochs": 4})
    run = stages.adapt(settings, tmp_path / "run", init=str(source), data_root=world)
    whole = weights(run)
    with pytest.raises(Killed):
        back = {"resume": True, "from_checkpoint": "mae-0001", "watcher": Kill(1)}
        stages.adapt(settings, run, data_root=world, **back)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["last.pt", "mae-0001.pt"]
    stages.adapt(settings, run, resume=True, data_root=world)
    assert_same_weights(run, whole)
    assert json.loads((run / "run.json").read_text())["finished"] == ["mae", "teach"]
    assert [line["step"] for line in lines(run, "train")] == [1, 2, 3, 4, *range(1, 9)]


def test_a_run_whose_checkpoints_are_gone_keeps_its_log(world, source, tmp_path):
    finished, run = tmp_path / "finished", tmp_path / "run"
    shutil.copytree(source, finished)
    shutil.rmtree(finished / "checkpoints")
    heard = Listener()
    before = (finished / "metrics.jsonl").read_text()
    stages.pretrain_source(tiny_config(), finished, resume=True, data_root=world, watcher=heard)
    assert (finished / "metrics.jsonl").read_text() == before and "is finished" in heard.said[-1]
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(3))
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(MrtError, match=r"has no checkpoint to go on from \(there were some\)"):
        stages.adapt(tiny_config(), run, resume=True, data_root=world)
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_nothing_is_trained_after_a_step_that_failed(amp):
    one = make_learner(config("demo's kind", **{"engine.amp": amp}), STAGES["source"], smooth=False)
    good = [micro for step in batches_of("one size", steps=1) for micro in step]
    training_step(one, good, 1.0, 1.0)
    before = {key: value.detach().clone() for key, value in one.student.named_parameters()}
    plain = one.wrapped.criterion.weights["box"]
    one.wrapped.criterion.weights["box"] = math.nan
    training_step(one, good, 1.0, 1.0)
    one.wrapped.criterion.weights["box"] = plain
    for _ in range(2):
        training_step(one, good, 1.0, 1.0)
    assert int(one.failed) == 2
    assert [key for key, value in one.student.named_parameters() if not torch.equal(value, before[key])] == []


class TwoProcesses(World):
    """This process and another whose numbers are three times its own."""

    def __init__(self) -> None:
        super().__init__(0, 2, torch.device("cpu"))

    def sum(self, tensor):
        return tensor.mul_(4) if tensor.is_floating_point() else tensor

    def gather(self, mine):
        return [mine, mine]

    def wrap(self, module):
        return module


def test_saving_a_checkpoint_changes_nothing(tmp_path):
    """Batch-norm statistics are averaged over the processes in the file, not in the networks that go on
    learning.
    """
    one = make_learner(
        config("demo's kind", **{"model.freeze": "none", "model.weights": "none"}), STAGES["teach"]
    )
    training_step(one, [{SOURCE: batch([(48, 64)] * 3, 0), TARGET: batch([(48, 64)] * 3, 1)}], 1.0, 1.0)
    one.world = TwoProcesses()
    for part in one.method:
        object.__setattr__(part.site, "world", one.world)
    states = [network.state_dict() for network in (one.student, one.teacher.module)]
    before = [{key: value.clone() for key, value in state.items()} for state in states]
    thresholds = one.thresholds.state_dict()
    state = checkpoint.state_of("teach", one, {}, [0.1] * len(one.optimiser.param_groups))
    store.write(tmp_path / "last.pt", state, {})
    for state, old in zip(states, before, strict=True):
        assert [key for key in old if not torch.equal(state[key], old[key])] == []
    assert all(torch.equal(value, thresholds[key]) for key, value in one.thresholds.state_dict().items())
    saved = store.read(tmp_path / "last.pt")[0]["student"]
    averaged = [key for key in saved if key.endswith("running_mean")]
    assert averaged and all(torch.allclose(saved[key], 2 * before[0][key]) for key in averaged)
    checkpoint.synchronise_statistics(one)
    assert all(torch.allclose(one.student.state_dict()[key], saved[key]) for key in averaged), (
        "the loop does so after each epoch"
    )


def test_the_autoencoders_weight_decays_in_teaching_without_pseudo_labels(world, source, tmp_path):
    """It followed teacher.pseudo_labels, not the stage."""
    settings = tiny_config(**{"teacher.pseudo_labels": False, "mae.decay_epoch": 1})
    run = stages.adapt(settings, tmp_path / "run", init=str(source), data_root=world)
    teach = [line for line in lines(run, "train") if line["stage"] == "teach"]
    assert ["target/mae" in line for line in teach] == [True, True, False, False]


def old_layout(path: Path) -> None:
    """Write a checkpoint as mrt wrote it before parts had a place of their own (schema 1), with NumPy's and
    Python's own random states and without a checksum.
    """
    state, _ = store.read(path)
    assert state.pop("schema") == 3 and state.pop("own") and "bad_images" in state
    parts = state.pop("parts")
    for one in state["random"]:
        checkpoint.restore_random_state(one)
        one |= {"python": random.getstate(), "numpy": np.random.get_state()}
    empty = {"values": torch.zeros(2), "record": torch.zeros(2, 2)}
    labels = parts.get("pseudo_labels", {"thresholds": empty, "label_count": torch.zeros(3)})
    torch.save({**state, **labels, "reinit": parts.get("retrain", {}).get("weights", {})}, path)


@pytest.mark.parametrize("stop", [2, 6])
def test_a_checkpoint_of_before_is_continued(world, source, tmp_path, stop):
    whole = stages.adapt(tiny_config(), tmp_path / "whole", init=str(source), data_root=world)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), run, init=str(source), data_root=world, watcher=StopAt(stop))
    old_layout(run / "checkpoints" / "last.pt")
    settings = json.loads((run / "config.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("schema", "method")}
    del settings["model"]["detector"]
    (run / "config.json").write_text(json.dumps(settings))
    facts = json.loads((run / "run.json").read_text())
    new = ("schema", "sha256", "config_sha256", "checkpoints", "logs")
    (run / "run.json").write_text(json.dumps({key: facts[key] for key in facts if key not in new}))
    stages.adapt(tiny_config(), run, resume=True, data_root=world)
    for which in ("student", "teacher"):
        assert_same_weights(run, weights(whole, which), which)


def test_what_a_newer_mrt_wrote_is_refused(world, source, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        stages.pretrain_source(tiny_config(), run, data_root=world, watcher=StopAt(3))
    state, facts = store.read(run / "checkpoints" / "last.pt")
    torch.save({**state, "schema": 4}, run / "checkpoints" / "last.pt")
    with pytest.raises(MrtError, match="newer mrt"):
        stages.pretrain_source(tiny_config(), run, resume=True, data_root=world)
    store.write(run / "checkpoints" / "last.pt", state, facts)
    settings = json.dumps({**json.loads((run / "config.json").read_text()), "schema": 3})
    (run / "config.json").write_text(settings)
    write_facts(run, {**read_facts(run), "config_sha256": text_digest(settings)})
    with pytest.raises(MrtError, match=r"config\.json: schema = 3[\s\S]*update mrt"):
        stages.pretrain_source(tiny_config(), run, resume=True, data_root=world)


def test_a_detector_that_decodes_with_targets_gets_them(monkeypatch):
    """For denoising queries: labels of both domains, in the order of the images; losses stay as they are."""
    batches = batches_of("one size", steps=1)
    _, expected = take_steps(training_step, config("demo's kind"), "teach+mae", batches)
    decode, seen = DeformableDETR.decode, []

    def noting(self, features, memory, targets=None):
        if self.training:
            seen.append(targets)
        return decode(self, features, memory)

    monkeypatch.setattr(DeformableDETR, "decode", noting)
    take_steps(training_step, config("demo's kind"), "teach+mae", batches)
    assert seen == [None]
    monkeypatch.setattr(DeformableDETR, "decodes_with_targets", True)
    _, found = take_steps(training_step, config("demo's kind"), "teach+mae", batches)
    own = batches[0][0][SOURCE].targets
    assert len(seen[1]) == 6 and all(one is other for one, other in zip(seen[1], own, strict=False))
    assert {key: float(value) for key, value in found[0].items()} == {
        key: float(value) for key, value in expected[0].items()
    }
