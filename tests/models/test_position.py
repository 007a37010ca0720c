"""Sine encoding and reference points against the recorded numbers."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close
from model_cases import SHAPES, per_level

from mrt.models.position import (
    cell_centres,
    encode_boxes,
    encoder_reference_points,
    sine_encoding,
    unpadded_geometry,
    valid_ratios,
)


@pytest.mark.parametrize("per_axis", [128, 16])
def test_sine_encoding_reproduces_golden(golden, per_axis):
    data = golden("positional_encoding")
    encoding = sine_encoding(torch.from_numpy(data["in/mask"]), 2 * per_axis)
    expected = torch.from_numpy(data[f"out/pos_feats{per_axis}"]).permute(0, 2, 3, 1)
    where = torch.from_numpy(data["out/well_conditioned"])
    assert_close(encoding[where], expected[where])


@pytest.mark.parametrize("case", ["pad", "rand"])
def test_reference_points_reproduce_golden(golden, case):
    data = golden("reference_points")
    ratios = valid_ratios(per_level(data, f"{case}/in/mask."))
    assert_close(ratios, data[f"{case}/out/valid_ratios"])
    assert_close(encoder_reference_points(SHAPES, ratios), data[f"{case}/out/reference_points"])


def test_unpadded_geometry_is_that_of_empty_masks():
    shapes = ((4, 6), (2, 3))
    masks = [torch.zeros(1, h, w, dtype=torch.bool) for h, w in shapes]
    encoding, ratios, references, empty = unpadded_geometry(shapes, 32, torch.device("cpu"))
    assert torch.equal(encoding, torch.cat([sine_encoding(mask, 32).flatten(1, 2) for mask in masks], 1))
    assert torch.equal(ratios, valid_ratios(masks))
    assert torch.equal(references, encoder_reference_points(shapes, ratios))
    assert all(torch.equal(a, b) for a, b in zip(empty, masks, strict=True))


def test_kept_geometry_made_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        kept = unpadded_geometry(((3, 5), (2, 2)), 16, torch.device("cpu"))
    assert not any(tensor.is_inference() for tensor in kept[:3])


def test_cell_centres_are_x_first_and_in_the_valid_part():
    centres = cell_centres(((2, 4),), torch.tensor([[[0.5, 1.0]]]))
    assert torch.allclose(centres[0, :4, 0], torch.tensor([0.25, 0.75, 1.25, 1.75]))
    assert torch.allclose(centres[0, ::4, 1], torch.tensor([0.25, 0.75]))


def test_boxes_are_encoded_number_by_number():
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    encoded = encode_boxes(boxes, 8)
    assert encoded.shape == (1, 1, 32)
    assert torch.equal(encoded[..., 8:16], encode_boxes(boxes[..., 1:2], 8))
