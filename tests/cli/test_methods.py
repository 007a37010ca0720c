"""Methods beyond the paper's, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, mrt, refused
from tiny_set import write_set

from mrt.ablate.studies import METHOD_WORDS, METHODS
from mrt.engine.load import load_detector

SHORT = [text for text in TINY if not text.startswith("model.")]


@pytest.fixture
def camera(worlds, tmp_path) -> Path:
    """A data root with nothing but a target of one's own."""
    root = tmp_path / "only-target"
    shutil.copytree(worlds / "synthetic-foggy", root / "camera")
    card = json.loads((root / "camera" / "dataset.json").read_text())
    (root / "camera" / "dataset.json").write_text(json.dumps({**card, "name": "camera"}))
    return root


def settings(command: str, *more: object) -> dict:
    result = mrt(f"{command} --dry-run", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_help_has_a_line_for_each_method():
    told = " ".join(mrt("adapt --help").output.replace("│", " ").split())
    for name, words in METHOD_WORDS.items():
        assert f"* {name}: {words}" in told, name
    assert "--set teacher.labels=FILE" in told
    assert "unknown method" in refused("adapt --target foggy --method source-fre")


def test_a_dry_run_tells_what_a_method_sets():
    aldi = settings("adapt --target foggy --method aldi")
    assert (
        aldi["distill"]["enabled"] and not aldi["teacher"]["pseudo_labels"] and not aldi["domain"]["enabled"]
    )
    limited = settings("adapt --target foggy --method limited")
    assert limited["teacher"]["most_labels"] == 0.8 and not limited["teacher"]["dynamic"]
    assert not limited["domain"]["enabled"] and limited["retrain"]["every"] == 0
    free = settings("adapt --target camera --init small-source --method source-free")
    assert free["method"]["source_free"] and free["preset"] == "own"
    assert free["model"]["backbone"] == "tf_efficientnet_lite0" and free["data"]["sides"] == [128]
    words = "method.source_free=true domain.enabled=false mae.use=none"
    same = settings(f"adapt --target camera --init small-source --set {words}")
    assert same["model"] == free["model"]
    own = settings("adapt --target foggy --method +dt --set teacher.labels=not-yet")
    assert own["teacher"]["labels"] == "not-yet"


@pytest.mark.parametrize("preset", ["--preset own-small", "--preset own", ""])
def test_a_preset_may_be_made_for_a_method(preset):
    """Named methods and --set go before it, and its runs go on as they began."""
    command = f"adapt {preset} --source mine --target camera"
    usual = settings(command)
    assert not usual["domain"]["enabled"] and usual["mae"]["use"] == "none"
    assert usual["teacher"]["most_labels"] == 0.8
    assert settings(f"{command} --set teacher.most_labels=0.5")["teacher"]["most_labels"] == 0.5
    whole = settings(f"{command} --method mrt")
    assert whole["domain"]["enabled"] and whole["teacher"]["dynamic"]
    assert whole["retrain"]["every"] == (3 if "small" in preset else 10)
    assert whole["teacher"]["most_labels"] == 0


def test_a_run_of_such_a_preset_says_its_method_and_goes_on(runs, worlds):
    command = "adapt --preset own-small --source synthetic-clear --target synthetic-foggy --run-root runs"
    words = ["--data-root", worlds, "--set", *TINY, "model.num_encoder_layers=1"]
    begun = mrt(command, *words, "--init", runs / "small-source")
    assert begun.exit_code == 0, begun.output
    assert "method limited, as real photographs were measured with" in " ".join(begun.output.split())
    folder = "own-small-limited-synthetic-clear-synthetic-foggy"
    config = json.loads(Path("runs", folder, "config.json").read_text())
    assert config["teacher"]["most_labels"] == 0.8
    again = mrt(command, *words, "--init", runs / "small-source", "--resume")
    assert again.exit_code == 0, again.output


def test_source_free_needs_weights_and_a_target(runs, camera):
    """No source set is on disk; the network and the image sizes are the weights'."""
    roots = ["--data-root", camera, "--run-root", "runs"]
    short = [text for text in SHORT if not text.startswith("data.s")]
    result = mrt(
        f"adapt --target camera --method source-free --init {runs / 'small-source'}", *roots, "--set", *short
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "preset own (settings for your own data), the network and image sizes of" in said
    assert "mrt eval runs/own-source-free-camera" in said
    assert mrt("eval own-source-free-camera", *roots).exit_code == 0
    words = refused("adapt --target camera --method source-free --name other", *roots)
    assert "starts from a detector that was trained with them" in words and "--init RUN_OR_WEIGHTS" in words
    assert not Path("runs/other").exists()
    aldi = refused(f"adapt --target camera --method aldi --init {runs / 'small-source'}", *roots)
    assert "--method aldi: learns from labelled source images too, and none were named" in aldi
    both = refused(
        f"adapt --target camera --method source-free --source x --init {runs / 'small-source'}", *roots
    )
    assert "leave out --source" in both
    stage = refused(
        f"adapt --target camera --method source-free --stage mae --init {runs / 'small-source'}", *roots
    )
    assert "leave out --stage" in stage


def test_labels_of_a_detector_of_mrts_own_go_round(runs, worlds):
    """mrt label writes what mrt adapt takes; the target's boxes are not needed for it."""
    roots = ["--data-root", worlds, "--run-root", runs]
    made = mrt("label synthetic-foggy --detector small-source --threshold 0 --out labels.json", *roots)
    assert made.exit_code == 0, made.output
    command = (
        f"adapt --target synthetic-foggy --method +dt --init {runs / 'small-source'} --data-root {worlds}"
    )
    labels = ["teacher.labels=labels.json", "teacher.labels_score=0"]
    fused = mrt(command, "--run-root", "runs", "--set", *TINY, *labels)
    assert fused.exit_code == 0, fused.output
    assert "labels from outside, fused with the teacher's" in " ".join(fused.output.split())
    facts = json.loads(Path("runs/small-teacher-dt/run.json").read_text())
    assert facts["reads"].keys() == {"teacher.labels"}
    Path("cut.json").write_text('{"images": [')
    grid = refused(
        f"ablate --preset small --init {runs / 'small-source'} --data-root {worlds}",
        *("--axis", "teacher.labels", "labels.json", "cut.json", "--set", *TINY, "teacher.labels_score=0"),
    )
    assert "cut.json: not valid JSON" in grid and not Path("runs/ablate").exists(), (
        "before anything is trained"
    )
    Path("labels.json").rename("moved.json")
    gone = refused(command, "--run-root", "runs", "--resume", "--set", *TINY, *labels)
    assert "its teacher.labels are gone" in gone and "put the file back" in gone
    for wrong, words in (("gone.json", "no such file"), ("gone", "neither a file nor a prepared set")):
        told = refused(
            command, "--run-root", "runs", "--name", "x", "--set", *TINY, f"teacher.labels={wrong}"
        )
        assert words in told and "mrt label" in told and not Path("runs/x").exists()
    assert set(METHODS) == set(METHOD_WORDS)


def test_a_dry_run_warns_of_what_cannot_act():
    """On standard error: standard output is the settings, for other programs."""
    told = mrt("adapt --target synthetic-foggy --dry-run")
    assert told.stderr.count("Warning: ") == 2 and "model.freeze=stem" in told.stderr
    assert json.loads(told.stdout)["preset"] == "small"
    assert "Warning" not in mrt("adapt --target synthetic-foggy --set model.freeze=stem --dry-run").stderr
    assert "Warning" not in mrt("pretrain-source --preset small --dry-run").stderr


def test_the_source_is_taken_from_what_is_there_and_said(runs, worlds, camera, somewhere):
    """--source can be left out where there is one answer; with several, the message has a command."""
    init = ["--init", runs / "small-source", "--dry-run"]

    def taken(root: Path, *words: object) -> tuple[str, bool, str]:
        result = mrt("adapt --target camera", *words, "--data-root", root, "--run-root", "runs")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        return found["data"]["source"], found["method"]["source_free"], " ".join(result.stderr.split())

    source, free, said = taken(camera, *init)  # nothing but the target is here
    assert free and "method source-free, for no source set was named" in said
    both = somewhere / "both"
    shutil.copytree(camera, both)
    shutil.copytree(worlds / "synthetic-foggy", both / "synthetic-foggy")
    source, free, said = taken(both, "--dry-run")
    assert (source, free) == ("synthetic-foggy", False) and "the only labelled set here" in said
    shutil.copytree(worlds / "synthetic-clear", both / "synthetic-clear")
    source, free, said = taken(both, *init)
    assert (source, free) == ("synthetic-clear", False)
    assert f"source synthetic-clear, which {runs / 'small-source'} learned from" in said
    roots = ["--data-root", both, "--run-root", "runs"]
    message = refused("adapt --target camera", *roots)
    assert "a source detector is trained first" in message
    assert f"mrt pretrain-source --source synthetic-clear --data-root {both}" in message
    (somewhere / "runs" / "own-source-synthetic-foggy").mkdir(parents=True)
    source, free, said = taken(both, "--dry-run")
    assert source == "synthetic-foggy" and "of which there is a source detector" in said


def test_weights_of_other_classes_need_no_settings(runs, somewhere):
    """The network is that of --init; every weight but the classes' rows is kept, and that is said."""
    images = {number: np.full((64, 96, 3), 90, np.uint8) for number in (1, 2)}
    boxes = [{"image_id": number, "category_id": 1, "bbox": [10, 10, 20, 20]} for number in images]
    write_set(somewhere / "data" / "pets", images, boxes, ["Car", "cat"])
    short = [text for text in SHORT if not text.startswith("data.s")]
    words = ["pretrain-source --source pets --init", runs / "small-source", "--set", *short]
    result = mrt(*words, "pretrain.lr=1e-12", "pretrain.ema=false")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "1 of 2 classes are known to it by name; new, to be learned from the beginning: cat" in said
    assert f"the network and image sizes of {runs / 'small-source'}" in said
    before, _ = load_detector(runs / "small-source")
    after, facts = load_detector("runs/own-source-pets")
    assert facts["classes"] == ["Car", "cat"]
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    heads = [name for name in new if name.startswith("class_embed.")]
    car = 2  # of the synthetic sets' classes
    for name in heads:
        torch.testing.assert_close(new[name][0], old[name][car], rtol=0, atol=1e-5)
        assert not torch.allclose(new[name][1], old[name][0], atol=1e-5) or "bias" in name
    for name in new.keys() - {*heads}:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-5, msg=name)
