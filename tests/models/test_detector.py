"""The whole detector: options, padding, gradients, autocast, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from model_cases import images_and_masks, small_backbone, small_detector

from mrt.errors import MrtError

OPTIONS = [
    {},
    {"query_init": "grid"},
    {"box_refine": True},
    {"two_stage": True},
    {"box_refine": True, "two_stage": True},
    {"box_refine": True, "two_stage": True, "proposal_content": "features"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_shapes_start_and_gradients(options):
    detector = small_detector(num_levels=4, **options)
    out = detector(*images_and_masks([(64, 96), (80, 64)]))
    cells = sum(h * w for h, w in out.features.shapes)
    assert out.logits.shape == (2, 2, 12, 3) and out.boxes.shape == (2, 2, 12, 4)
    assert out.memory.shape == (2, cells, 32) and out.queries.shape == (2, 12, 32)
    assert ((out.boxes > 0) & (out.boxes < 1)).all()
    assert abs(out.logits.sigmoid().mean().item() - 0.01) < 0.01
    loss = out.logits.square().sum() + out.boxes.square().sum()
    if detector.two_stage:
        assert out.proposal_logits.shape == (2, cells, 1) and out.proposal_boxes.shape == (2, cells, 4)
        loss = loss + out.proposal_logits.square().sum() + out.proposal_boxes.square().sum()
    loss.backward()
    without = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not without


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5])
def test_any_number_of_levels(num_levels):
    out = small_detector(num_levels=num_levels, two_stage=num_levels == 5)(torch.randn(2, 3, 64, 64))
    assert len(out.features.levels) == num_levels and out.boxes.isfinite().all()


def test_fewer_cells_than_queries():
    out = small_detector(num_levels=1, two_stage=True)(torch.randn(1, 3, 64, 64))
    assert out.boxes.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_empty_mask_is_no_mask(options):
    detector = small_detector(num_levels=3, **options).eval()
    images = torch.randn(2, 3, 64, 96)
    plain, masked = detector(images), detector(images, torch.zeros(2, 64, 96, dtype=torch.bool))
    assert torch.equal(plain.boxes, masked.boxes) and torch.equal(plain.logits, masked.logits)


def test_values_under_padding_do_not_matter():
    """Queries must not see padding. Sizes are multiples of 64, so that no cell is partly padding."""
    detector = small_detector(small_backbone(), num_levels=3).eval()
    images, mask = images_and_masks([(64, 128), (64, 64)])
    features = detector.extract(images, mask)
    expected = detector.detect(features)
    for level, padding in zip(features.levels, features.masks, strict=True):
        level.data[padding[:, None].expand_as(level)] = 7.0
    assert torch.equal(detector.detect(features).boxes[:, 1], expected.boxes[:, 1])


def test_boxes_are_shares_of_the_unpadded_image():
    """A reference point in the middle is the middle of the valid part, whatever is padded around it."""
    detector = small_detector(num_levels=3).eval()
    image = torch.randn(1, 3, 64, 64)
    images, mask = images_and_masks([(64, 64), (64, 128)])
    images[0, :, :, :64] = image[0]
    alone, padded = detector(image), detector(images, mask)
    assert torch.allclose(padded.features.valid_ratios[0, :, 0], torch.tensor(0.5))
    assert torch.allclose(alone.boxes[0, 0], padded.boxes[0, 0], atol=0.02)


def test_refinement_starts_from_the_layer_before():
    detector = small_detector(num_levels=3, box_refine=True, query_init="grid")
    out = detector(torch.randn(1, 3, 64, 64))
    assert torch.allclose(out.boxes[0], out.boxes[1])  # heads start at "no change"
    detector.bbox_embed[0].layers[2].bias.data[0] += 1.0
    moved = detector(torch.randn(1, 3, 64, 64)).boxes
    assert (moved[0, ..., 0] > out.boxes[0, ..., 0]).all() and torch.allclose(moved[0], moved[1])


def test_grid_queries_cover_the_image():
    detector = small_detector(num_levels=3, query_init="grid", num_queries=50)
    boxes = detector(torch.randn(1, 3, 64, 128)).boxes[0, 0]
    assert len(boxes[:, 0].unique()) == 10 and len(boxes[:, 1].unique()) == 5


def test_dropout_can_be_changed():
    detector = small_detector(num_levels=3).train()
    images = torch.randn(1, 3, 64, 64)
    detector.backbone.eval()  # batch statistics would differ too
    assert torch.equal(detector(images).logits, detector(images).logits)
    detector.set_dropout(0.3)
    assert not torch.equal(detector(images).logits, detector(images).logits)
    assert {m.dropout for m in detector.modules() if isinstance(m, torch.nn.MultiheadAttention)} == {0.3}
    detector.eval()
    assert torch.equal(detector(images).logits, detector(images).logits)


def test_a_copy_is_independent_and_equal():
    detector = small_detector(num_levels=3, two_stage=True, box_refine=True).eval()
    teacher = copy.deepcopy(detector)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(detector(images).boxes, teacher(images).boxes)
    with torch.inference_mode():
        detector(images)
    detector(images).boxes.sum().backward()  # geometry kept in inference mode must not stop training


@pytest.mark.parametrize("options", OPTIONS[3:])
def test_autocast(options):
    detector = small_detector(num_levels=3, **options)
    with torch.autocast("cpu", torch.bfloat16):
        out = detector(*images_and_masks([(64, 96), (64, 64)]))
    assert out.boxes.dtype == torch.float32 and out.boxes.isfinite().all()
    (out.logits.float().sum() + out.boxes.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_unusable_sizes_are_refused():
    with pytest.raises(MrtError, match="hidden_dim 30"):
        small_detector(hidden_dim=30)
    with pytest.raises(MrtError, match="num_queries 0"):
        small_detector(num_queries=0)
    with pytest.raises(MrtError, match="proposal_content"):
        small_detector(two_stage=True, proposal_content="class")


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]])
def test_compiles_as_one_graph(options):
    detector = small_detector(num_levels=3, **options).eval()
    compiled = torch.compile(detector, fullgraph=True, backend="eager")
    images, mask = images_and_masks([(64, 96), (64, 64)])
    assert torch.allclose(compiled(images, mask).boxes, detector(images, mask).boxes, atol=1e-6)
    torch._dynamo.reset()
