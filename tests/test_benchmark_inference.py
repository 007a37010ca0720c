"""The inference benchmark: sizes, comparison of detections, table; and a complete run on small images."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from benchmarks import inference
from benchmarks.inference import HUGGING_FACE, disagreement, make_images, measure, parse_size, table


def detections(scores, labels, boxes):
    return (np.array([scores], np.float32), np.array([labels]), np.array([boxes], np.float32))


BOXES = [[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]]


def test_detections_in_another_order_agree_and_others_do_not():
    reference = detections([0.9, 0.8, 0.1], [1, 2, 3], BOXES)
    assert disagreement(reference, reference) == 0
    other_last = detections([0.9, 0.8, 0.1], [1, 2, 7], BOXES)
    assert disagreement(other_last, reference) == 0, "the last detection may differ"
    near = detections([0.9, 0.8, 0.1], [1, 2, 3], [[0.1, 0.1, 0.2, 0.25], *BOXES[1:]])
    assert disagreement(near, reference) == pytest.approx(0.05)
    other_class = detections([0.9, 0.8, 0.1], [1, 1, 3], BOXES)
    assert disagreement(other_class, reference) == 1, "no detection has its class"
    tied = detections([0.8, 0.8, 0.1], [2, 2, 3], BOXES)
    swapped = detections([0.8, 0.8, 0.1], [2, 2, 3], [BOXES[1], BOXES[0], BOXES[2]])
    assert disagreement(tied, swapped) == 0


def test_images_are_the_same_everywhere():
    first, again = make_images((32, 48), 2), make_images((32, 48), 2)
    assert first.shape == (2, 3, 32, 48) and (first == again).all()
    assert first.float().std() > 5 and len(first.unique()) > 50


def test_sizes_are_height_times_width():
    assert parse_size("480x640") == (480, 640)
    with pytest.raises(argparse.ArgumentTypeError, match="HEIGHTxWIDTH"):
        parse_size("480")


class Clock:
    """A worker that takes a known time."""

    def __init__(self, seconds, fails=False):
        self.seconds, self.fails, self.ended = seconds, fails, False

    def first(self, size, batch):
        if self.fails:
            raise RuntimeError("it: out of memory")
        return (10 * self.seconds, self.seconds), detections([0.9, 0.8, 0.1], [1, 2, 3], BOXES)

    def __call__(self):
        return 2 * self.seconds, self.seconds

    def end(self):
        self.ended = True


@pytest.mark.parametrize(("by_cpu", "batch"), [(True, 1), (False, 2)])
def test_figures_and_ratios(by_cpu, batch, capsys):
    broken = Clock(1, fails=True)
    workers = {HUGGING_FACE: Clock(4.0), "eager": Clock(1.0), "openvino": broken}
    rows = measure(workers, (32, 32), batch, rounds=3, seconds=60, by_cpu=by_cpu)
    assert list(rows) == [HUGGING_FACE, "eager"]
    assert broken.ended and "out of memory" in capsys.readouterr().out
    assert rows["eager"]["ratio"] == 4 and rows["eager"]["rounds"] == 3 and rows["eager"]["disagreement"] == 0
    assert rows["eager"]["cpu_ms"] == 1000 / batch and rows["eager"]["wall_ms"] == 2000 / batch
    assert rows["eager"]["images_per_s"] == batch / (1 if by_cpu else 2)
    assert "4.00" in table(rows, by_cpu) and "eager" in table(rows, by_cpu)


def test_a_form_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(inference.NEEDS, "openvino", ("no_such_package",))
    assert inference._absent("openvino") == "no_such_package not installed (pip install no_such_package)"


@pytest.mark.soak
@pytest.mark.parametrize("variant", inference.VARIANTS)
def test_all_forms_detect_what_hugging_face_does(variant, tmp_path):
    pytest.importorskip("transformers")
    file = tmp_path / "r.json"
    forms = [form for form in inference.FORMS if form != "compiled"]
    arguments = ["--sizes", "192x256", "--batch", "1", "--rounds", "1"]
    arguments += ["--variant", variant, "--json", str(file), "--forms", *forms]
    report = inference.main(arguments)
    (case,) = json.loads(file.read_text())["cases"]
    assert case == report["cases"][0] and {HUGGING_FACE, "eager"} <= set(case["forms"])
    for form, row in case["forms"].items():
        allowed = 0.2 if form == "bf16" else inference.ALLOWED
        assert row["ratio"] > 0 and row["disagreement"] <= allowed, form
