from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny_world import make_set, tiny_config

from mrt.data.card import file_sha256
from mrt.domains import SOURCE
from mrt.engine import distributed, prepare, stages
from mrt.engine.data import classes_of, find_cards
from mrt.engine.inference import evaluate_detector
from mrt.engine.learner import training_step
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError, RunFailed
from mrt.parts.base import Moment


def lines(folder: Path, kind: str | None = None) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def numbers(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in ("time", "images_per_second")}


def weights(folder: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return load_detector(folder, which=name)[0].state_dict()


class StopAt(Watcher):
    """Sends a signal to this process after so many steps, as Ctrl-C or a scheduler would."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.left, self.number = step, number

    def advance(self, n: int = 1, **_: float) -> None:
        self.left -= n
        if self.left == 0:
            signal.raise_signal(self.number)


class Listener(Watcher):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_source_run_leaves_all_that_is_promised(source):
    names = {path.name for path in source.iterdir()}
    assert {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "student.safetensors",
        "teacher.safetensors",
        "checkpoints",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    facts = json.loads((source / "run.json").read_text())
    assert facts["finished"] == ["pretrain"] and facts["environment"]["torch"] == torch.__version__
    assert {
        "source/class",
        "source/box",
        "source/giou",
        "source/proposal_class",
        "total",
        "grad_norm",
        "lr",
    } <= set(lines(source, "train")[0])


def test_adaptation_uses_every_part_of_the_method(world, source, tmp_path):
    run = stages.adapt(tiny_config(), tmp_path / "run", init=str(source), data_root=world)
    mae = [line for line in lines(run, "train") if line["stage"] == "mae"]
    teach = [line for line in lines(run, "train") if line["stage"] == "teach"]
    assert len(mae) == len(teach) == 4
    assert "target/mae" in mae[0] and "target/class" not in mae[0] and "source/domain" not in mae[0]
    assert {
        "target/mae",
        "target/class",
        "source/domain",
        "target/domain_backbone",
        "target/domain_encoder",
        "target/domain_decoder",
    } <= set(teach[0])
    assert "target/box" not in teach[0], "box losses on pseudo labels are off"
    assert "target/mae" not in teach[-1], "the hard decay switches the branch off after decay_epoch"
    assert teach[0]["pseudo_labels"] > 0
    epochs = [line for line in lines(run, "epoch") if line["stage"] == "teach"]
    assert epochs[0]["thresholds"] != epochs[1]["thresholds"]
    counted = sum(epochs[0]["labels_per_image"].values())
    assert counted == pytest.approx(sum(line["pseudo_labels"] for line in teach[:2]) / 2, abs=1e-3), (
        "two steps make an epoch"
    )
    assert "retrained" in epochs[0] and "retrained" not in epochs[-1], "never after the last epoch"


def test_the_fair_baseline_takes_the_same_steps_without_adaptive_parts(world, source, tmp_path):
    config = tiny_config()
    fair = stages.pretrain_source(
        config, tmp_path / "fair", init=str(source), match_compute=True, data_root=world
    )
    mrt = stages.adapt(config, tmp_path / "mrt", init=str(source), data_root=world)
    steps = [
        [(line["stage"], line["step"], line["lr"]) for line in lines(run, "train")] for run in (fair, mrt)
    ]
    assert steps[0] == steps[1]
    assert not any(
        name.startswith("target") or "domain" in name for line in lines(fair, "train") for name in line
    )
    assert (fair / "teacher.safetensors").is_file()


def test_the_oracle_learns_from_target_labels(world, source, tmp_path):
    for oracle in ("target", "source+target"):
        run = stages.pretrain_source(
            tiny_config(),
            tmp_path / oracle,
            init=str(source),
            match_compute=True,
            oracle=oracle,
            data_root=world,
        )
        assert json.loads((run / "run.json").read_text())["oracle"] == oracle


def test_an_oracle_learns_what_only_target_labels_say(source, tmp_path):
    """The target's labels call everything green, the source's half of it: what was learned from shows in the
    detections.
    """
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=1)
    annotations = tmp_path / "hazy" / "train.json"
    coco = json.loads(annotations.read_text())
    for item in coco["annotations"]:
        item["category_id"] = 2
    annotations.write_text(json.dumps(coco))
    settings = tiny_config(
        **{"mae_stage.epochs": 1, "teach.epochs": 12, "teach.lr": 3e-3, "teacher.ema": 0.5}
    )

    def green(oracle: str | None) -> float:
        run = stages.pretrain_source(
            settings,
            tmp_path / str(oracle),
            init=str(source),
            match_compute=True,
            oracle=oracle,
            data_root=tmp_path,
        )
        found = evaluate_detector(run, data="hazy", data_root=tmp_path).metrics.detections
        labels = [label for image in found for label in image.labels[:8]]
        return sum(label == 1 for label in labels) / len(labels)

    shares = {oracle: green(oracle) for oracle in (None, "target", "source+target")}
    assert shares["target"] > 0.9 and shares["source+target"] > 0.5 and shares[None] < 0.1, shares
    both, target = (weights(tmp_path / name) for name in ("source+target", "target"))
    assert not all(torch.equal(both[key], target[key]) for key in both)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_resuming_equals_never_having_stopped(world, source, tmp_path, stop, number):
    config = tiny_config()
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=world)
    with pytest.raises(Interrupted, match=r"last\.pt"):
        stages.adapt(
            config, tmp_path / "stopped", init=str(source), data_root=world, watcher=StopAt(stop, number)
        )
    stopped = stages.adapt(config, tmp_path / "stopped", resume=True, data_root=world)
    for name in ("student", "teacher"):
        expected, found = weights(whole, name), weights(stopped, name)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert [numbers(line) for line in lines(whole, "train")][-2:] == [
        numbers(line) for line in lines(stopped, "train")
    ][-2:]
    assert [numbers(line) for line in lines(whole, "epoch")] == [
        numbers(line) for line in lines(stopped, "epoch")
    ]
    assert (whole / "pseudo_labels.jsonl").read_text() == (stopped / "pseudo_labels.jsonl").read_text()


def test_a_killed_run_goes_on_from_its_last_epoch(world, source, tmp_path):
    class Killed(Exception):
        pass

    class Kill(StopAt):
        def advance(self, n: int = 1, **_: float) -> None:
            self.left -= n
            if self.left == 0:
                raise Killed

    config = tiny_config()
    whole = stages.adapt(config, tmp_path / "whole", init=str(source), data_root=world)
    with pytest.raises(Killed):
        stages.adapt(config, tmp_path / "killed", init=str(source), data_root=world, watcher=Kill(7))
    killed = stages.adapt(config, tmp_path / "killed", resume=True, data_root=world)
    expected, found = weights(whole), weights(killed)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_one_seed_one_result_and_workers_do_not_matter(world, tmp_path):
    runs = [
        stages.pretrain_source(
            tiny_config(**{"engine.workers": workers, "seed": seed}),
            tmp_path / f"{seed}-{workers}",
            data_root=world,
        )
        for seed, workers in ((0, 0), (0, 1), (1, 0))
    ]
    first, workers, other = (weights(run) for run in runs)
    assert all(torch.equal(first[key], workers[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_accumulated_batches_give_the_whole_batchs_gradient(world, source, tmp_path):
    """Without anything that looks at a whole batch (batch norm), two halves take the step that the whole
    takes.
    """
    frozen = {
        "model.dropout": 0.0,
        "model.freeze": "none",
        "pretrain.epochs": 1,
        "pretrain.steps_per_epoch": 1,
    }
    norms = []
    for accumulate in (1, 2):
        config = tiny_config(**frozen, **{"engine.accumulate": accumulate})
        plan = stages.source_training(config)
        cards = find_cards([plan], config, world)
        start, alone = str(source), distributed.join("cpu")
        classes = classes_of(config, cards, start)
        shop = prepare.open_workshop(config, alone, cards, classes, [plan], start, False, tmp_path)
        stage = prepare.prepare(plan, shop)
        stage.learner.student.eval()
        batches = [{SOURCE: next(stage.streams[SOURCE])} for _ in range(accumulate)]
        seen = training_step(stage.learner, batches, Moment(0, 1, 0))
        norms.append((float(seen["total"]), float(seen["grad_norm"])))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_shown(world, tmp_path):
    with pytest.raises(RunFailed, match="not finite"):
        stages.pretrain_source(tiny_config(**{"pretrain.lr": 1e30}), tmp_path / "run", data_root=world)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, s, t: stages.adapt(tiny_config(), t / "r", data_root=w), "mrt pretrain-source"),
        (
            lambda w, s, t: stages.adapt(tiny_config(), t / "r", init="nothing", data_root=w),
            "no run folder, weights file",
        ),
        (lambda w, s, t: stages.adapt(tiny_config(), s, init=str(s), data_root=w), "exists already"),
        (lambda w, s, t: stages.adapt(tiny_config(), t / "r", resume=True, data_root=w), "not a run folder"),
        (
            lambda w, s, t: stages.adapt(tiny_config(), s, resume=True, data_root=w),
            "is a run of mrt pretrain-source",
        ),
        (
            lambda w, s, t: stages.adapt(tiny_config(), t / "r", init=str(s), stages=("tech",), data_root=w),
            "tech",
        ),
        (
            lambda w, s, t: stages.adapt(
                tiny_config(**{"data.target": "foggy"}), t / "r", init=str(s), data_root=w
            ),
            "mrt prepare-data foggy",
        ),
        (
            lambda w, s, t: stages.adapt(
                tiny_config(**{"model.hidden_dim": 32}), t / "r", init=str(s), data_root=w
            ),
            "--set model.hidden_dim=16",
        ),
        (
            lambda w, s, t: stages.adapt(
                tiny_config(**{"data.classes": ["red", "blue"]}), t / "r", init=str(s), data_root=w
            ),
            "blue",
        ),
        (
            lambda w, s, t: stages.adapt(
                tiny_config(**{"engine.batch_size": 64}), t / "r", init=str(s), data_root=w
            ),
            "do not fill a batch",
        ),
    ],
)
def test_bad_input_gives_one_clear_error(world, source, tmp_path, call, message):
    with pytest.raises(MrtError, match=message):
        call(world, source, tmp_path)


def test_evaluating_a_run_and_its_weights_file_agree(world, source):
    by_run = evaluate_detector(source, data="hazy", data_root=world)
    by_file = evaluate_detector(source / "teacher.safetensors", data="hazy", data_root=world)
    assert by_run.network == "teacher" and by_run.metrics.to_dict() == by_file.metrics.to_dict()
    assert by_run.metrics.num_images == 8 and len(by_run.detections) == 8


def test_the_baseline_takes_adaptations_steps_when_they_follow_the_data(world, source, tmp_path):
    """One pass over the smaller domain, for whoever runs the stage and whatever it loads."""
    make_set(tmp_path, "clear", images=12, seed=1)
    make_set(tmp_path, "hazy", images=4, haze=0.5, seed=2)
    changes = {f"{stage}.steps_per_epoch": 0 for stage in ("pretrain", "mae_stage", "teach")} | {
        "engine.batch_size": 2
    }
    config = tiny_config(**changes)
    fairly = {"init": str(source), "match_compute": True, "data_root": tmp_path}
    fair = stages.pretrain_source(config, tmp_path / "fair", **fairly)
    both = stages.pretrain_source(config, tmp_path / "both", oracle="source+target", **fairly)
    adapted = stages.adapt(config, tmp_path / "mrt", init=str(source), data_root=tmp_path)
    steps = [[(line["stage"], line["step"]) for line in lines(run, "epoch")] for run in (fair, both, adapted)]
    assert steps[0] == steps[1] == steps[2] == [("mae", 2), ("mae", 4), ("teach", 2), ("teach", 4)]


def test_teaching_alone_carries_the_autoencoder_over(world, source, tmp_path):
    class Ear(Watcher):
        heard = ""

        def say(self, text: str) -> None:
            self.heard += text

    config = tiny_config()
    mae = stages.adapt(config, tmp_path / "mae", stages=("mae",), init=str(source), data_root=world)
    assert (mae / "mae.safetensors").is_file()
    carried, missing = Ear(), Ear()
    stages.adapt(
        config, tmp_path / "teach", stages=("teach",), init=str(mae), data_root=world, watcher=carried
    )
    stages.adapt(
        config, tmp_path / "bare", stages=("teach",), init=str(source), data_root=world, watcher=missing
    )
    assert "No masked autoencoder" not in carried.heard and "No masked autoencoder" in missing.heard


def test_a_run_goes_on_from_another_folder_and_without_its_start(world, source, tmp_path, monkeypatch):
    start = tmp_path / "start"
    shutil.copytree(source, start)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), Path("run"), init="start", data_root=world, watcher=StopAt(3))
    shutil.rmtree(start)
    monkeypatch.chdir("/")
    stages.adapt(tiny_config(), tmp_path / "run", resume=True, data_root=world)
    steps = [(line["stage"], line["step"]) for line in lines(tmp_path / "run", "train")]
    assert steps == [(stage, step) for stage in ("mae", "teach") for step in (1, 2, 3, 4)], (
        "no line twice, none missing"
    )


def test_data_that_changed_is_noticed(source, tmp_path):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2)
    with pytest.raises(Interrupted):
        stages.adapt(tiny_config(), tmp_path / "run", init=str(source), data_root=tmp_path, watcher=StopAt(3))
    card, file = tmp_path / "hazy" / "dataset.json", tmp_path / "hazy" / "train.json"
    facts = json.loads(card.read_text())
    file.write_text(file.read_text() + "\n")
    facts["splits"]["train"]["sha256"] = file_sha256(file)
    card.write_text(json.dumps(facts))
    with pytest.raises(MrtError, match="'hazy' has changed"):
        stages.adapt(tiny_config(), tmp_path / "run", resume=True, data_root=tmp_path)
    file.write_text(file.read_text() + "\n")
    again = {"resume": True, "data_root": tmp_path}
    for how in (again, {"init": str(source), "data_root": tmp_path}):
        with pytest.raises(
            MrtError, match=r"train\.json: has been changed since .*dataset\.json was written"
        ):
            stages.adapt(tiny_config(), tmp_path / ("run" if how is again else "new"), **how)


def test_a_class_map_renames_the_targets_classes_only(source, tmp_path):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2, classes=("red", "verde"))
    config = tiny_config(
        **{"data.class_map.verde": "green", "engine.eval_every": 1, "mae_stage.epochs": 1, "teach.epochs": 1}
    )
    stages.adapt(config, tmp_path / "run", init=str(source), data_root=tmp_path)
    assert {line["network"] for line in lines(tmp_path / "run", "eval")} == {"student", "teacher"}
    found = evaluate_detector(tmp_path / "run", data_root=tmp_path)
    assert found.metrics.per_class["green"].num_boxes > 0


def test_a_watcher_hears_how_the_stage_stands_and_tensorboard_has_the_same_numbers(world, source, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Diary(Watcher):
        def __init__(self) -> None:
            self.epochs, self.networks = [], []

        def epoch(self, facts) -> None:
            self.epochs.append(facts)

        def measured(self, network, figures) -> None:
            self.networks.append(network)

    diary, config = (
        Diary(),
        tiny_config(**{"engine.eval_every": 1, "retrain.every": 1, "mae_stage.epochs": 1}),
    )
    run = stages.adapt(config, tmp_path / "run", init=str(source), data_root=world, watcher=diary)
    mae, teach = diary.epochs[:2], diary.epochs[2:]
    assert [facts["epoch"] for facts in mae] == [0, 1] and [facts["epoch"] for facts in teach] == [0, 1, 2]
    assert (
        "thresholds" not in mae[1]
        and teach[0]["thresholds"] == {"red": 0.0, "green": 0.0}
        and teach[0]["epochs"] == 2
    )
    told = [facts["retraining"] for facts in teach]
    assert told == [["next after epoch 1"], *[["backbone+encoder after epoch 1"]] * 2]
    assert diary.networks == [
        "student",
        "student",
        "teacher",
        "student",
        "teacher",
    ]

    written = lines(run, "epoch")[-1]["thresholds"]
    assert {name: round(value, 6) for name, value in teach[2]["thresholds"].items()} == written
    assert all(line["images_per_second"] > 0 for line in lines(run, "train"))
    board = EventAccumulator(str(run)).Reload()
    for tag, value in (
        ("teach/images_per_second", lines(run, "train")[-1]["images_per_second"]),
        ("teach/grad_norm", lines(run, "train")[-1]["grad_norm"]),
        ("teach/lr", lines(run, "train")[-1]["lr"]),
        ("teach/pseudo_labels", lines(run, "train")[-1]["pseudo_labels"]),
        ("teach/thresholds/red", written["red"]),
        ("teach/teacher/AP50", lines(run, "eval")[-1]["AP50"]),
    ):
        assert board.Scalars(tag)[-1].value == pytest.approx(value, rel=1e-5), tag


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_sixteen_bit_training_runs(world, source, tmp_path, amp):
    runs = [
        stages.adapt(tiny_config(**{"engine.amp": kind}), tmp_path / kind, init=str(source), data_root=world)
        for kind in (amp, "off")
    ]
    mixed, plain = (lines(run, "train") for run in runs)
    assert [line.keys() for line in mixed] == [line.keys() for line in plain]
    assert (
        mixed[0]["total"] == pytest.approx(plain[0]["total"], rel=0.1)
        and mixed[0]["total"] != plain[0]["total"]
    )
    begin, end = weights(source, "student"), weights(runs[0])
    assert all(value.isfinite().all() for value in end.values()) and not all(
        torch.equal(begin[key], end[key]) for key in end
    )


def test_a_refused_run_leaves_no_folder(world, source, tmp_path):
    with pytest.raises(MrtError):
        stages.adapt(
            tiny_config(**{"engine.batch_size": 64}), tmp_path / "run", init=str(source), data_root=world
        )
    assert not (tmp_path / "run").exists()


def test_an_unlabelled_target_is_enough_to_adapt_but_not_to_evaluate(world, source, tmp_path):
    make_set(tmp_path, "clear", seed=1)
    make_set(tmp_path, "hazy", haze=0.5, seed=2, labelled=False, classes=())
    config, watcher = tiny_config(**{"engine.eval_every": 1}), Listener()
    stages.adapt(config, tmp_path / "run", init=str(source), data_root=tmp_path, watcher=watcher)
    assert watcher.said.count("hazy has no labels: nothing is measured during training") == 1
    assert lines(tmp_path / "run", "eval") == []
    with pytest.raises(MrtError, match="no labels"):
        evaluate_detector(tmp_path / "run", data_root=tmp_path)
