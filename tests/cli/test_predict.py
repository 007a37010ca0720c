"""``mrt predict`` on the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import TINY, mrt, refused
from PIL import Image

from mrt.predict.detector import Detector


@pytest.fixture
def photos(somewhere) -> Path:
    folder = somewhere / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def adapted(worlds, runs) -> Path:
    """A run that was adapted with dynamic thresholds."""
    command = "adapt --target synthetic-foggy --init small-source --name adapted"
    result = mrt(command, "--data-root", worlds, "--run-root", runs, "--set", *TINY)
    assert result.exit_code == 0, result.output
    return runs / "adapted"


def test_a_folder_of_photos(photos, runs):
    result = mrt("predict", "small-source", photos, "--run-root", runs, "--threshold", "0")
    assert result.exit_code == 0, result.output
    assert "Teacher of" in result.stdout and "a.png  90x60: " in result.stdout and "Found" in result.stdout
    assert "0 for every class" in result.stdout
    assert sorted(path.name for path in Path("predictions").glob("[!.]*")) == ["a.png", "b.jpg"]
    assert mrt("predict", "small-source", photos, "--run-root", runs).exit_code == 0
    assert Path("predictions-2").is_dir()  # nothing is overwritten


def test_every_without_a_video_is_said_to_change_nothing(photos, runs):
    result = mrt("predict small-source", photos, "--run-root", runs, "--save", "none", "--every", "3")
    assert (
        result.exit_code == 0
        and "all images are looked at" in result.stdout
        and "2 images in" in result.stdout
    )


def test_what_to_write_and_where(photos, runs):
    def written(folder: str) -> list[str]:
        return sorted(path.name for path in Path(folder).glob("[!.]*"))

    command = "predict --save json csv --out found --threshold car=0 person=0.001 --run-root"
    result = mrt(command, runs, "--classes", "car,person", "small-source", photos)
    assert result.exit_code == 0, result.output
    assert written("found") == ["detections.csv", "images.json", "results.json"]
    assert {item["category_id"] for item in json.loads(Path("found/results.json").read_text())} <= {1, 3}
    words = [photos, "--save", "none", "--run-root", runs, "--classes", "car", "traffic light"]
    after = mrt("predict small-source", *words)
    assert after.exit_code == 2 and "class 'traffic light'" in after.stderr
    again = mrt("predict small-source", photos, "--save", "yolo,voc", "--out", "sets", "--run-root", runs)
    assert again.exit_code == 0 and written("sets") == ["voc", "yolo"]


def test_dynamic_thresholds_of_the_run_are_taken_and_said(photos, runs, adapted):
    result = mrt("predict", "adapted", photos, "--save", "none", "--run-root", runs)
    assert result.exit_code == 0, result.output
    assert "Teacher of" in result.stdout and "the run's dynamic thresholds (person 0." in result.stdout
    student = mrt("predict", adapted, photos, "--which", "student", "--save", "none", "--threshold", "0.9")
    for word in ("Student of", "0.9 for every class", "--threshold 0.1"):
        assert word in student.stdout


def test_thresholds_of_a_run_from_before_they_were_in_the_weights(adapted):
    from mrt.engine.load import dynamic_thresholds, load_detector

    _, facts = load_detector(adapted)
    kept = facts.pop("thresholds")
    assert dynamic_thresholds(facts) == kept and set(kept) == set(facts["classes"])  # from metrics.jsonl


def test_a_folder_that_has_weights_and_nothing_else(photos, runs, tmp_path):
    folder = tmp_path / "lost"
    folder.mkdir()
    shutil.copy(runs / "small-source" / "teacher.safetensors", folder)
    result = mrt("predict", folder, photos, "--run-root", runs)
    assert result.exit_code == 2
    assert f"mrt predict {folder / 'teacher.safetensors'} {photos}" in result.output


def test_one_image_on_standard_input(photos, runs, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((photos / "a.png").read_bytes())))
    from mrt_cli.app import app
    from typer.testing import CliRunner

    words = ["predict", "small-source", "-", "--save", "json", "--run-root", str(runs)]
    result = CliRunner().invoke(app, words, input=(photos / "a.png").read_bytes())
    assert result.exit_code == 0, result.output
    assert "stdin  90x60" in result.stdout


def test_broken_files_are_named_the_rest_is_done_and_the_exit_code_is_1(photos, runs):
    (photos / "bad.jpg").write_bytes(b"no image")
    (photos / "bad.mp4").write_bytes(b"no video")
    result = mrt("predict", "small-source", photos, "--save", "json", "--run-root", runs)
    assert result.exit_code == 1, result.output
    said = " ".join(result.stderr.split())
    assert "2 could not be read" in said
    assert "bad.jpg: cannot be read as an image" in said and "bad.mp4: cannot be read as a video" in said
    assert len(json.loads(Path("predictions/images.json").read_text())["images"]) == 2


def test_weights_as_an_option(photos, runs):
    result = mrt("predict", photos, "--weights", "small-source", "--save", "none", "--run-root", runs)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("small-source nothing.jpg", "nothing.jpg: no such file or folder"),
        ("no-such-run photos", "no-such-run: no run folder"),
        ("small-source", "predict on what?"),
        ("photos/a.png photos", "is an image or a video, not a detector"),
        ("small-source photos --threshold 2", "--threshold 2: expected a score between 0 and 1"),
        ("small-source photos --threshold 0.2 0.3", "given twice"),
        ("small-source photos --threshold car=0.2 0.3", "either one score"),
        ("small-source photos --threshold cat=0.2", "class 'cat': this detector does not know it"),
        ("small-source photos --classes cat", "class 'cat'"),
        ("small-source photos --save pdf", "--save pdf: unknown"),
        ("small-source photos --save none csv", "exclude each other"),
        ("small-source photos --which best", "expected teacher, student or auto"),
        ("small-source photos --out photos", "--out photos: holds files already"),
        ("small-source photos --amp fp8", "precision 'fp8' is unknown"),
        ("small-source photos --device tpu:9", "device"),
        ("small-source photos --nms 3", "nms 3"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(words, expected, photos, runs):
    assert expected in refused(f"predict {words}", "--run-root", runs)
    assert not Path("predictions").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_found_before_an_end_is_kept(number, photos, runs, monkeypatch):
    stream = Detector.stream

    def ended(self, frames, options):
        for found in stream(self, frames, options):
            yield found
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(Detector, "stream", ended)
    words = [photos, "--run-root", runs, "--save"]
    result = mrt("predict small-source", *words, "json", "--out", "found")
    assert result.exit_code == 1 and "stopped; what was found until then is in found" in result.stderr
    assert [item["file_name"] for item in json.loads(Path("found/images.json").read_text())["images"]] == [
        "a.png"
    ]
    result = mrt("predict small-source", *words, "none", "--out", "nothing")
    assert (
        result.exit_code == 1 and result.stderr.strip().endswith("stopped") and not Path("nothing").exists()
    )
    assert signal.getsignal(number) == before


def test_names_with_control_characters_stay_on_their_line_and_out_of_xml(runs, somewhere):
    folder = somewhere / "odd"
    folder.mkdir()
    Image.new("RGB", (60, 40)).save(folder / "a\nb\x1b.png")
    result = mrt(
        "predict small-source", folder, "--run-root", runs, "--threshold", "0", "--save", "voc", "--out", "o"
    )
    assert result.exit_code == 0 and "a\\nb\\x1b.png  60x40: " in result.stdout
    (file,) = (somewhere / "o" / "voc" / "Annotations").iterdir()
    assert ElementTree.parse(file).findtext("filename") == "a_b_.png"
    assert (somewhere / "o" / "voc" / "ImageSets" / "Main" / "train.txt").read_text() == "a_b_\n"


def test_a_window_where_there_is_no_display_is_said(photos, runs, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    result = mrt("predict", "small-source", photos, "--show", "--save", "none", "--run-root", runs)
    assert result.exit_code == 0 and "--show: nothing can be shown here" in result.stdout


def test_eval_takes_weights_as_an_option(worlds, runs):
    command = "eval --weights small-source --data synthetic-foggy --bootstrap 0 --json figures.json"
    result = mrt(command, "--data-root", worlds, "--run-root", runs)
    assert result.exit_code == 0 and Path("figures.json").is_file(), result.output
    assert "evaluate what?" in refused("eval")
