"""``mrt export`` on the command line."""

from __future__ import annotations

import pytest
from command_line import mrt, refused
from mrt_cli.export import FORMATS

from mrt.export import write


def test_the_formats_are_those_of_the_program():
    assert FORMATS == write.FORMATS


def test_a_run_in_several_formats(runs, tmp_path):
    folders = ["--run-root", runs, "--out", tmp_path / "out"]
    result = mrt("export --format safetensors huggingface small-source", *folders)
    assert result.exit_code == 2, result.output  # transformers does not support two stages of 16 channels
    for word in ("Written to", "largest score difference", "rendered street scenes"):
        assert word in result.output
    assert "cannot be written for transformers" in result.stderr
    assert (tmp_path / "out" / "safetensors" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "huggingface").exists()


def test_what_does_not_detect_the_same_is_a_failed_run(runs, monkeypatch, tmp_path):
    original = write.save_weights

    def change(path, detector, *rest, **options):
        detector.class_embed[-1].bias.data[0] += 1
        original(path, detector, *rest, **options)

    monkeypatch.setattr(write, "save_weights", change)
    result = mrt("export", runs / "small-source", "--format", "safetensors")
    assert result.exit_code == 1 and "nothing was written" in result.stderr
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "coreml"], "--format coreml: unknown choose of safetensors, huggingface"),
        ([], "as what? add --format with one or several of safetensors, huggingface"),
        (["--format", "onnx", "--size", "640"], "--size 640: expected WIDTHxHEIGHT"),
        (["--format", "onnx", "--size", "0x10"], "--size 0x10: expected"),
        (["--format", "onnx", "onnx"], "each once"),
        (["--format", "onnx", "--which", "both"], "--which both: expected teacher, student or auto"),
        (["--format", "onnx", "--opset", 9], "opset 9: expected 18"),
    ],
)
def test_mistakes(words, message):
    assert message in refused("export", "small-source", *words)
