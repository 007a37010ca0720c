"""Every mistake of a user ends with exit code 2, one clear message, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from command_line import TINY, mrt, refused
from mrt_cli.evaluate import _write, save_picture
from PIL import Image
from tiny_set import write_set

from mrt.errors import Interrupted, MrtError, RunFailed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # commands and options
        ("adopt", ["No such command", "adopt"]),
        ("adapt --mask-ratio 0.5 --target foggy", ["No such option", "--set mae.mask_ratio=0.5"]),
        ("adapt --mask-rat 0.5 --target foggy", ["No such option", "--mask-rat"]),
        ("adapt --seed x --target foggy", ["--seed", "integer"]),
        ("adapt --seed -1 --target foggy", ["--seed"]),
        ("adapt foggy", ["unexpected", "foggy"]),
        ("predict small-source clip.mp4 --every 2s", ["--every", "2s: a number of frames"]),
        ("predict small-source clip.mp4 --every 0", ["--every", "0: a number of frames"]),
        ("adapt --target --seed 1", ["--target", "it is missing", "--seed"]),
        ("adapt --target foggy --set --seed 1", ["--set", "it is missing"]),
        ("adapt --target foggy --epochs 3", ["No such option: --epochs", "--set teach.epochs=3"]),
        ("adapt --target foggy --batch-size=3", ["a setting: --set engine.batch_size=3"]),
        ("pretrain-source --epochs 3", ["a setting: --set pretrain.epochs=3"]),
        ("pretrain-source --lr", ["a setting: --set pretrain.lr=VALUE"]),
        # data
        ("adapt", ["adapt to what?", "prepare-data custom --raw FOLDER --name camera"]),
        ("adapt --target foggy", ["cityscapes", "mrt prepare-data cityscapes"]),
        ("adapt --target cityscapes", ["sim10k", "mrt prepare-data sim10k"]),
        ("adapt --target bdd100k", ["cityscapes", "mrt prepare-data cityscapes"]),
        ("adapt --target synthetic-foggy", ["synthetic-clear", "mrt prepare-data synthetic"]),
        ("adapt --target mars", ["No data set 'mars'", "prepare-data custom --raw FOLDER --name mars"]),
        ("adapt --target fogy", ["No data set 'fogy'", "Did you mean 'foggy'?"]),
        ("adapt --target synthetic-fogy", ["Did you mean 'synthetic-foggy'?"]),
        ("adapt --target foggy --init small-sorce --dry-run", ["small-sorce", "did you mean small-source?"]),
        ("pretrain-source --source mars", ["No data set 'mars'", "prepare-data custom"]),
        ("pretrain-source", ["cityscapes", "mrt prepare-data cityscapes"]),
        ("adapt --target synth-night", ["synth-clear", "synthetic --benchmark --domain clear --data-root"]),
        ("pretrain-source --preset small", ["synthetic-clear", "mrt prepare-data synthetic"]),
        ("demo --set mae.mask_ratio=2", ["mae.mask_ratio"]),
        ("demo --set init=nowhere", ["'nowhere'", "mrt demo --from-scratch"]),
        ("prepare-data foggy", ["--raw", "where are its files"]),
        ("prepare-data foggy --raw nowhere.zip", ["nowhere.zip", "no such file"]),
        ("prepare-data custom --raw .", ["--name"]),
        ("prepare-data custom --raw . --name a --map-class b", ["--map-class b", "NAME=VALUE"]),
        ("prepare-data bdd100k --raw . --where timeofday", ["--where timeofday", "NAME=VALUE"]),
        ("prepare-data cityscapes --name a/b --raw .", ["a/b", "plain folder name"]),
        ("prepare-data --check", ["no prepared set"]),
        ("prepare-data synthetik", ["synthetik", "did you mean synthetic"]),
        ("prepare-data custm --raw . --name a", ["custm: unknown data set, did you mean custom?"]),
        ("prepare-data custm --help", ["did you mean custom?"]),
        ("prepare-data --raw . --name a", ["mrt prepare-data custom --raw . --name a"]),
        ("prepare-data --overwrite --raw .", ["mrt prepare-data custom --overwrite --raw . --name WORD"]),
        ("prepare-data synthetic --domain fogy", ["fogy", "did you mean foggy"]),
        ("prepare-data synthetic --size 640", ["--size 640", "640x320"]),
        ("prepare-data synthetic --size 6x3", ["6x3"]),
        ("prepare-data synthetic --domain clear --beta 0.1", ["--beta", "foggy"]),
        ("prepare-data synthetic --domain foggy --beta -1", ["beta", "-1"]),
        ("prepare-data synthetic --train 0 --val 0 --test 0", ["split"]),
        # settings
        ("adapt --preset city2fog", ["city2fog", "city2foggy"]),
        ("adapt --preset nowhere.toml", ["nowhere.toml"]),
        ("adapt --target foggy --set mae.mask_ration=0.5", ["mae.mask_ration", "mae.mask_ratio"]),
        ("adapt --target foggy --set mae.mask_ratio=2", ["mae.mask_ratio", "2", "less than 1"]),
        ("adapt --target foggy --set mae.mask_ratio", ["section.key=value"]),
        ("adapt --target foggy --amp fp8", ["mrt: engine.amp = 'fp8'", "bf16"]),
        ("adapt --target foggy --set data.sides=[1]", ["mrt: data.sides.0 = 1", "equal to 32"]),
        ("adapt --target foggy --set data.sides=96", ["data.sides = 96", "a list, such as [96]"]),
        ("adapt --target foggy --device tpu", ["engine.device", "tpu"]),
        ("adapt --target foggy --stage tech", ["--stage tech", "mae and teach"]),
        ("pretrain-source --oracle both", ["--oracle both", "source+target"]),
        # runs
        ("adapt --resume --name nothing", ["nothing", "no run to continue"]),
        ("adapt --target foggy --resume-from teach-0001", ["not a run folder", "without --resume"]),
        ("pretrain-source --resume-from pretrain-0001", ["not a run folder", "without --resume"]),
        ("adapt --target foggy --allow-change", ["--allow-change", "add --resume"]),
        ("adapt --target foggy --on-nonfinite skip", ["engine.on_nonfinite", "skip N"]),
        ("adapt --preset small --set method.plugins=[gone.py]", ["gone.py: no such plug-in file"]),
        (
            "adapt --preset small --set model.detector=cells",
            ["model.detector = 'cells'", "deformable_detr", "method.plugins"],
        ),
        ("adapt --target foggy --name ../out", ["--name ../out"]),
        ("eval nothing", ["nothing", "no run folder"]),
        ("eval", ["mrt eval", "name a run or weights: small-source"]),
        ("eval x --which best", ["--which best"]),
        ("eval small-source --device banana", ["banana", "auto, cpu, cuda or mps"]),
        ("eval x --picture p.pdf", ["p.pdf", ".png"]),
        # ablations
        ("ablate", ["nothing to vary", "--mask-ratio 0.5 0.8"]),
        ("ablate --mask-ration 0.5", ["--mask-ration", "did you mean", "mask"]),
        ("ablate --mask-ratio", ["--mask-ratio", "no values"]),
        ("ablate --mask-ratio 0.5 --mask-ratio 0.8", ["given twice"]),
        ("ablate --epochs 1 2", ["pretrain.epochs", "teach.epochs", "--axis"]),
        ("ablate --axis", ["no setting is named"]),
        ("ablate --axis mae.mask_ratio", ["no values"]),
        ("ablate --mask-ratio 0.5 high --dry-run", ["mae.mask_ratio", "high"]),
        ("ablate --seed 1 2", ["--seeds 0 1 2"]),
        ("ablate --mask-ratio 0.5 0.8", ["synthetic-clear", "mrt prepare-data synthetic"]),
        ("ablate --study component", ["--study component", "did you mean components"]),
        ("ablate --study decay --mask-ratio 0.5", ["--study decay and --mask-ratio", "leave out one"]),
        ("ablate --study decay --base soft", ["--base soft", "none; linear; hard"]),
        ("ablate --study decay --rows none soft", ["--rows 'soft'", "none; linear; hard; fair source-only"]),
        ("ablate --study decay --smoke --preset small --source /a/b", ["/a/b is a path"]),
        ("adapt --target foggy --method +dtt", ["--method +dtt", "+dt"]),
        ("pretrain-source --augment stronger", ["--augment stronger", "weak or strong"]),
        ("ablate 0.5 --mask-ratio 0.8", ["unexpected", "0.5"]),
    ],
)
def test_a_mistake_is_named_with_what_to_do(words, expected):
    message = refused(words)
    for word in expected:
        assert word in message, message


def test_a_data_root_from_the_environment_is_used(monkeypatch, worlds):
    monkeypatch.setenv("MRT_DATA_ROOT", str(worlds))
    assert "init" in refused("adapt --target synthetic-foggy --set init=none")


def test_a_split_that_is_not_there(worlds, runs):
    message = refused("eval small-source --split dev", "--data-root", worlds, "--run-root", runs)
    assert "no split 'dev'" in message


def test_a_file_that_is_no_checkpoint(worlds, somewhere):
    (somewhere / "weights.safetensors").write_bytes(b"no weights")
    message = refused("eval weights.safetensors --data synthetic-foggy", "--data-root", worlds)
    assert "weights.safetensors" in message


def test_a_run_is_not_overwritten_and_keeps_its_settings(worlds, runs):
    words = ["pretrain-source --preset small", "--data-root", worlds, "--run-root", runs]
    message = refused(*words, "--set", *TINY)
    assert "exists already" in message and "--resume" in message and "--name" in message
    message = refused(*words, "--resume", "--set", "pretrain.lr=1")
    assert "keeps its settings" in message and "pretrain" in message


@pytest.mark.parametrize(
    "words",
    ["adapt --target foggy --name file", "adapt --target foggy --name file/below", "demo --name file"],
)
def test_a_run_folder_that_is_a_file_or_below_one(words, somewhere):
    (somewhere / "runs").mkdir()
    (somewhere / "runs" / "file").touch()
    assert "runs/file is a file" in refused(words)
    (somewhere / "roots").touch()
    assert "roots is a file" in refused("pretrain-source --preset small --run-root roots")


def test_figures_and_pictures_that_cannot_be_written(somewhere):
    (somewhere / "file").touch()
    with pytest.raises(MrtError, match=r"file/p.png: could not be written: (Not a directory|File exists)"):
        save_picture(Image.new("RGB", (4, 4)), somewhere / "file" / "p.png")
    with pytest.raises(MrtError, match=r"file/t.csv: could not be written: (Not a directory|File exists)"):
        _write(None, somewhere / "file" / "t.csv", [])


def test_a_picture_that_fails_leaves_nothing_behind(somewhere):
    with pytest.raises(MrtError, match="could not be written"):
        save_picture(Image.new("F", (4, 4)), somewhere / "p.jpg")
    assert not list(somewhere.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PermissionError(13, "Permission denied", "runs/x"), 2, "runs/x: Permission denied"),
        (OSError("lost"), 1, "lost"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ..."),
            1,
            "out of memory on the GPU: CUDA out of memory take",
        ),
        (torch.OutOfMemoryError(""), 1, "take fewer images at a time: --set engine.accumulate=2"),
    ],
)
def test_errors_of_the_machine_are_one_message(error, code, words, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("mrt.experiment.plan.find_roots", fail)
    result = mrt("adapt --target foggy")
    assert result.exit_code == code and "Traceback" not in result.output
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--launcher pbs", "--launcher pbs: unknown"),
        ("--slurm partition=gpu", "add --launcher slurm"),
        ("--launcher local --slurm partition", "expected NAME=VALUE"),
        ("--launcher local --gpus 1", "gpus_per_node=1"),
        ("--launcher slurm", "--launcher slurm"),
        ("--gpus 9", "torch sees"),
        ("--split dev", "no split 'dev'"),
        ("--init nothing", "no run folder"),
    ],
)
def test_an_ablation_that_cannot_begin(worlds, words, expected):
    assert expected in refused(f"ablate --study decay {words}", "--data-root", worlds)


@pytest.fixture
def nothing(somewhere):
    """A data root with three sets.

    "zero" is labelled, but has no box that counts; "lm" is unlabelled; "one" has one box.
    """
    box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
    for name, objects, labelled in (
        ("zero", [{**box, "iscrowd": 1}], True),
        ("lm", [], False),
        ("one", [box], True),
    ):
        images = {number: np.full((64, 96, 3), 90, np.uint8) for number in (1, 2)}
        classes = ["car", "person"] if labelled else []
        write_set(somewhere / "data" / name, images, objects, classes, labelled=labelled)
    return somewhere / "data"


CONTINUE = "continue with: mrt pretrain-source --resume --name small-source"
SHORT = ["--set", "pretrain.epochs=1", "pretrain.steps_per_epoch=2", "engine.batch_size=2"]
NO_BOX = "data set 'zero', split 'train': no box to learn from: 2 images, 1 ignored boxes"
NO_LABELS = "data set 'lm' has no labels to train on"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(("name", "expected"), [("zero", NO_BOX), ("lm", NO_LABELS)])
def test_a_source_that_there_is_nothing_to_learn_from(nothing, somewhere, name, expected, dry):
    for words in (
        f"pretrain-source --preset small --source {name} --name z",
        f"pretrain-source --preset small --source {name} --target one --match-compute",
        f"pretrain-source --preset small --source one --target {name} --oracle target",
        f"pretrain-source --preset small --source one --target {name} --oracle source+target",
        f"pretrain-source --source {name}",
        f"adapt --preset small --source {name} --target one",
        f"adapt --source {name} --target one",
        f"ablate --preset small --source {name} --target one --decay none hard",
        f"ablate --preset small --source {name} --target one --decay none hard --smoke",
        f"ablate --preset small --source one --target {name} --baselines",
    ):
        if not (dry and "--smoke" in words):
            assert refused(words, *SHORT, *dry).startswith(f"mrt: {expected}"), words
    assert not (somewhere / "runs").exists()


def test_the_python_functions_refuse_the_same(nothing, somewhere):
    import mrt as functions

    for name, expected in (("zero", NO_BOX), ("lm", NO_LABELS)):
        with pytest.raises(MrtError, match=expected):
            functions.pretrain_source(name, preset="small")
        with pytest.raises(MrtError, match=expected):
            functions.adapt("one", source=name, preset="small")
    assert not (somewhere / "runs").exists()


def test_a_set_that_there_is_nothing_to_measure_with(nothing, somewhere):
    no_box = "data set 'zero', split 'train': no box to measure with"
    message = refused("eval small-source --data zero --split train")
    assert message.startswith(f"mrt: {no_box}: 2 images, 1 ignored boxes") and "--data" in message
    message = refused("eval small-source --data lm --split train")
    assert "data set 'lm' has no labels to evaluate on" in message
    command = "ablate --preset small --source one --target zero --decay none --split train"
    message = refused(command, *SHORT)
    assert no_box in message and "Name another set with --target" in message
    assert not (somewhere / "runs").exists()


def test_a_run_that_cannot_be_measured_is_not_to_be_evaluated(nothing):
    def call_it_val(name: str) -> None:
        card = nothing / name / "dataset.json"
        card.write_text(card.read_text().replace('"train": {', '"val": {'))

    call_it_val("one")
    command = "pretrain-source --preset small --source one --target zero"
    words = [command, "--set", *TINY, "data.source_split=val"]
    # The only split with boxes is the one that it has learned from.
    assert "See what it finds: mrt predict runs/small-source-one data/zero" in mrt(*words).stdout
    call_it_val("zero")
    words[0] = words[0].replace("--target zero", "--target lm")
    assert "mrt predict runs/second data/lm" in mrt(*words, "seed=1", "--name", "second").stdout


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("mrt.experiment.plan.find_roots", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mrt("adapt --target foggy")


@pytest.mark.parametrize("words", ["demo", "ablate --mask-ratio 0.5 0.8"])
def test_commands_of_several_runs_refuse_torchrun(words, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refused(words)
    assert "WORLD_SIZE is 2" in message and "torchrun" in message


@pytest.mark.parametrize(
    ("stop", "word"),
    [(Interrupted("stopped at step 3"), "stopped at step 3"), (KeyboardInterrupt(), "stopped")],
)
@pytest.mark.parametrize("words", ["ablate --mask-ratio 0.5", "demo --quick --from-scratch"])
def test_an_interruption_of_several_runs_says_that_repeating_goes_on(
    stop, word, words, worlds, runs, monkeypatch
):
    def fail(*_, **__):
        raise stop

    monkeypatch.setattr("mrt.engine.stages.adapt", fail)
    monkeypatch.setattr("mrt.engine.stages.pretrain_source", fail)
    start = [f"init={runs / 'small-source'}"] if "ablate" in words else []
    result = mrt(words, "--data-root", worlds, "--set", *TINY, *start)
    message = " ".join(result.stderr.split())
    assert result.exit_code == 1 and word in message
    assert f"repeat the mrt {words.split()[0]} command to go on" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RunFailed("a loss is not finite: class nan"), ["a loss is not finite"]),
        (Interrupted("stopped at step 3"), ["stopped at step 3", CONTINUE]),
        (KeyboardInterrupt(), ["stopped at once", CONTINUE]),
    ],
)
def test_a_failed_or_stopped_run_ends_with_exit_code_1(error, words, worlds, monkeypatch):
    def fail(_config, folder, **_options):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.pt").touch()
        raise error

    monkeypatch.setattr("mrt.engine.stages.pretrain_source", fail)
    result = mrt("pretrain-source --preset small", "--data-root", worlds)
    assert result.exit_code == 1
    for word in words:
        assert word in " ".join(result.stderr.split())


def test_failed_trials_do_not_stop_the_others(worlds, runs, monkeypatch):
    from mrt.engine import stages

    adapt = stages.adapt

    def fail_at(config, *args, **options):
        if config.mae.mask_ratio == 0.5:
            raise RunFailed("a loss is not finite")
        return adapt(config, *args, **options)

    monkeypatch.setattr(stages, "adapt", fail_at)
    words = ["--init", runs / "small-source", "--data-root", worlds, "--set", *TINY]
    result = mrt("ablate --mask-ratio 0.5 0.8", *words)
    assert result.exit_code == 1
    assert "1 of 2 trials failed" in result.stderr and "failed" in result.stdout and "±" not in result.stdout
    assert "mask-ratio 0.5, seed 0: needs mae-" in result.stderr and ".log)" in result.stderr


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(worlds, runs, somewhere):
    """With a real process and a real signal."""
    command = [sys.executable, "-m", "mrt_cli", "pretrain-source", "--preset", "small", "--name", "stopped"]
    process = subprocess.Popen(
        [*command, "--data-root", str(worlds), "--set", *TINY, "pretrain.epochs=2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    log = somewhere / "runs" / "stopped" / "metrics.jsonl"
    try:
        for _ in range(600):
            if process.poll() is not None or (log.is_file() and log.read_text().count("\n") > 2):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in errors
    assert "continue with: mrt pretrain-source --resume --name stopped" in errors
    assert (somewhere / "runs" / "stopped" / "checkpoints" / "last.pt").is_file()
