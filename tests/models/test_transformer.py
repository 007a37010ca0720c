"""The deformable transformer against the recorded numbers, forward and backward, and its parts."""

from __future__ import annotations

import pytest
import torch
from golden import assert_close
from model_cases import SHAPES, golden_features, golden_transformer, per_level

from mrt.errors import MrtError
from mrt.models.attention import MSDeformAttn
from mrt.models.transformer import DeformableTransformer, grid_points


def test_transformer_reproduces_golden(golden):
    data = golden("transformer")
    transformer = golden_transformer(data)
    levels = [level.requires_grad_() for level in per_level(data, "in/src.")]
    query_embed = torch.from_numpy(data["in/query_embed"]).requires_grad_()
    features = golden_features(data, per_level(data, "in/mask."), levels)

    memory = transformer.encode(
        features.tokens(), features.positions, SHAPES, features.reference_points, features.token_mask()
    )
    position, content = query_embed.expand(2, -1, -1).chunk(2, -1)
    references = transformer.reference_points(position).sigmoid()
    hidden, _ = transformer.decoder(
        content, position, references, memory, SHAPES, features.valid_ratios, features.token_mask()
    )

    assert_close(references, data["out/init_reference"], what="references")
    assert_close(memory, data["out/memory"], what="memory")
    assert_close(hidden, data["out/hs"], what="hidden")
    assert torch.equal(~features.token_mask(), torch.from_numpy(data["out/valid"]))

    loss = (hidden * torch.from_numpy(data["in/cot_hs"])).sum()
    loss = loss + (memory * torch.from_numpy(data["in/cot_memory"])).sum()
    assert_close(loss, data["out/loss"], what="loss")
    loss.backward()
    for level, tensor in enumerate(levels):
        assert_close(tensor.grad, data[f"grad/in/src.{level}"], what=f"gradient of level {level}")
    assert_close(query_embed.grad, data["grad/in/query_embed"], what="gradient of the query embedding")
    for name, parameter in transformer.named_parameters():
        assert_close(parameter.grad, data[f"grad/sd/{name}"], what=f"gradient of {name}")


def test_reference_boxes_scale_the_offsets():
    """With boxes of 2 P cells, half a box divided by P is one cell, so boxes and points must agree."""
    attention = MSDeformAttn(16, 2, 2, 4).double()
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    shapes = ((8, 16), (4, 8))
    query, tokens = torch.randn(2, 5, 16).double(), torch.randn(2, 160, 16).double()
    points = torch.rand(2, 5, 2, 2).double()
    sizes = torch.tensor([[2 * 4 / w, 2 * 4 / h] for h, w in shapes]).double().expand(2, 5, 2, 2)
    as_boxes = attention(query, 0 * query, torch.cat((points, sizes), -1), tokens, shapes)
    assert torch.allclose(as_boxes, attention(query, 0 * query, points, tokens, shapes), atol=1e-12)


def test_masked_values_have_no_influence():
    attention = MSDeformAttn(16, 1, 2, 4)
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[:, ::3] = True
    tokens, query, points = torch.randn(1, 32, 16), torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2)
    changed = torch.where(mask[..., None], torch.randn(1, 32, 16), tokens)
    inputs = (query, torch.zeros(1, 5, 16), points)
    first, second = (attention(*inputs, values, ((4, 8),), mask) for values in (tokens, changed))
    assert torch.equal(first, second)


@pytest.mark.parametrize("count", [1, 2, 7, 40, 300])
def test_grid_points_are_distinct_and_inside(count):
    points = grid_points(count)
    assert points.shape == (count, 2)
    assert ((points > 0) & (points < 1)).all()
    assert len({tuple(point) for point in points.tolist()}) == count


def test_proposals_lie_on_their_cells_and_skip_padding():
    transformer = DeformableTransformer(32, 4, 1, 1, 64, 2, 2, 0.0, two_stage=True)
    shapes, mask = ((4, 8), (2, 4)), torch.zeros(1, 40, dtype=torch.bool)
    mask[:, 5] = True
    features, boxes, valid = transformer.propose(torch.randn(1, 40, 32), shapes, torch.ones(1, 2, 2), mask)
    assert features.shape == (1, 40, 32)
    assert torch.allclose(boxes.sigmoid()[0, 0], torch.tensor([0.0625, 0.125, 0.05, 0.05]))
    assert torch.allclose(boxes.sigmoid()[0, 32], torch.tensor([0.125, 0.25, 0.1, 0.1]))
    assert not valid[0, 5] and valid.sum() == 39


def test_unusable_sizes_are_refused():
    with pytest.raises(MrtError, match="num_heads 3"):
        MSDeformAttn(32, 1, 3, 4)
    with pytest.raises(MrtError, match="query_init"):
        DeformableTransformer(32, 4, 1, 1, 64, 1, 2, query_init="random")
