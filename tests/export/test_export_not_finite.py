"""NaN is a difference: a program or detector whose output is not finite is never the same as another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_export_parity import check, many

from mrt.export import detect, parity
from mrt.export.parity import Check, Tolerance, compare_tensors


@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("side", [0, 1])
def test_output_that_is_not_finite_is_never_the_same(side, part):
    sides = [many(), many()]
    sides[side][part].flat[0] = np.nan
    found = check(*sides)
    assert not found.ok and np.isnan([found.score, found.box]).all()


@pytest.mark.parametrize("name", ["score", "box"])
def test_a_largest_difference_of_nan_is_no_agreement(name):
    good = Check("test", 2, 0, 400, 100, 0, 0, 1e-6, 1e-3)
    assert good.ok and not replace(good, **{name: float("nan")}).ok


def test_partners_of_nan_are_missing():
    scores, labels, boxes = many(20)
    mine = parity.Detections(boxes * 100, scores, labels, ("car", "person"), (100, 100))
    theirs = replace(mine, boxes=np.full_like(mine.boxes, np.nan))
    found = parity._partners(mine, theirs, -1.0, Tolerance())
    assert found.missing == found.compared > 0


def test_proposals_of_nan_are_not_tied(two_stage, photos):
    from mrt import api

    eager = api.load(two_stage, device="cpu")
    head = eager.network.detector.proposal_class_embed
    head.register_forward_hook(lambda *given: torch.full_like(given[2], torch.nan))
    assert not parity._proposals_tied(eager, Image.new("RGB", (200, 100)))


def test_tensors_of_nan_are_different():
    nan = {"a": torch.tensor([float("nan")])}
    assert compare_tensors(nan, nan).different == ["a"]


def test_the_script_beside_a_program_says_it():
    pytest.importorskip("onnxruntime")

    class Session:
        def run(self, *_):
            return [np.array([[np.nan]]), np.zeros((1, 1), int), np.zeros((1, 1, 4))]

    card = {
        "classes": ["car"],
        "thresholds": {"values": {"car": 0.3}},
        "preprocessing": {"fixed": None, "short_side": 32, "max_size": 64},
    }
    with pytest.raises(ValueError, match="not finite"):
        detect.detect(Session(), card, Image.new("RGB", (32, 32)))
