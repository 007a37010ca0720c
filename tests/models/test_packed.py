"""A packed detector computes the same as before, for any backbone, input and mode."""

from __future__ import annotations

import copy

import pytest
import torch
from model_cases import small_backbone, small_detector
from torch import nn

from mrt.models.backbone import build_backbone
from mrt.models.fast import packed
from mrt.models.fast.carried_norms import fold_carried_norms
from mrt.models.fast.packed import (
    PackedBasicBlock,
    PackedBottleneck,
    PackedConv2d,
    PackedEncoderLayer,
    PackedLinear,
    pack,
)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def stirred(detector, seed: int = 0):
    """Random values in all weights and buffers, including those of norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*detector.named_parameters(), *detector.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return detector.eval()


def pair(detector):
    """The detector with folded norms, and a packed copy of it."""
    plain = stirred(detector)
    fold_carried_norms(plain.backbone)
    rebuilt = copy.deepcopy(plain)
    pack(rebuilt)
    return plain, rebuilt


def images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def assert_same(one, other, tolerance: float = 2e-5):
    torch.testing.assert_close(other.boxes, one.boxes, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(other.logits, one.logits, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"box_refine": True}),
        ("resnet50", {}),
        ("tf_efficientnet_lite0", {"box_refine": True, "two_stage": True, "num_queries": 6}),
    ],
    ids=["resnet18", "resnet50", "lite0"],
)
def test_it_finds_the_same_at_every_size(name, options):
    backbone = build_backbone(name, weights="checkpoint")
    plain, rebuilt = pair(small_detector(backbone, **options))
    with torch.inference_mode():
        for height, width, batch in ((64, 96, 1), (97, 70, 2), (64, 96, 1), (80, 80, 1), (64, 96, 2)):
            shown = images(height, width, batch)
            assert_same(plain(shown), rebuilt(shown))


def test_what_is_rebuilt():
    plain, rebuilt = pair(small_detector(build_backbone("resnet50", weights="checkpoint")))
    kinds = [type(module) for module in rebuilt.modules()]
    assert nn.Linear not in kinds and nn.Conv2d not in kinds
    assert kinds.count(PackedBottleneck) == 16 and kinds.count(PackedEncoderLayer) == 1
    assert PackedLinear in kinds and PackedConv2d in kinds
    assert plain.state_dict().keys() == rebuilt.state_dict().keys()


def test_blocks_with_norms_that_train_keep_them():
    plain, rebuilt = pair(small_detector(small_backbone()))
    assert not any(isinstance(module, PackedBasicBlock) for module in rebuilt.modules())
    with torch.inference_mode():
        assert_same(plain(images(96, 96)), rebuilt(images(96, 96)))


def test_padding_and_many_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(packed, "ROWS", 7)
    plain, rebuilt = pair(small_detector(build_backbone("resnet18", weights="checkpoint")))
    mask = torch.zeros(2, 96, 64, dtype=torch.bool)
    mask[1, 60:], mask[1, :, 40:] = True, True
    with torch.inference_mode():
        assert_same(plain(images(96, 64, 2), mask), rebuilt(images(96, 64, 2), mask))


def test_with_gradients_it_computes_as_before():
    plain, rebuilt = pair(small_detector(build_backbone("resnet18", weights="checkpoint")))
    for detector in (plain, rebuilt):
        detector(images(96, 96)).boxes.sum().backward()
    gradients = [
        dict(detector.named_parameters())["transformer.encoder.layers.0.linear1.weight"].grad
        for detector in (plain, rebuilt)
    ]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_in_16_bits_it_differs_by_no_more_than_they_round():
    plain, rebuilt = pair(small_detector(build_backbone("resnet18", weights="checkpoint")))
    shown = images(64, 96)
    with torch.inference_mode():
        exact = plain(shown)
        with torch.autocast("cpu", torch.bfloat16):
            usual, found = plain(shown), rebuilt(shown)
    apart = (usual.boxes - exact.boxes).abs().max()
    assert found.boxes.dtype == torch.float32 and (found.boxes - exact.boxes).abs().max() < 3 * apart + 1e-3


def test_copies_and_changed_weights_are_laid_out_anew():
    layer = nn.Linear(16, 8)
    layer.__class__ = PackedLinear
    x = torch.randn(4, 16)
    with torch.no_grad():
        first = layer(x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * first)
        torch.testing.assert_close(copy.deepcopy(layer)(x), 2 * first)
        layer.weight = nn.Parameter(layer.weight / 2)
        layer.bias = nn.Parameter(layer.bias / 2)
        torch.testing.assert_close(layer(x), first)


def test_few_layouts_of_a_kernel_are_kept():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    plain = copy.deepcopy(conv)
    conv.__class__ = PackedConv2d
    with torch.no_grad():
        for side in (8, 9, 10, 8):
            x = torch.randn(1, 4, side, side)
            torch.testing.assert_close(conv(x), plain(x))
    assert len(conv._laid_out[1]) == packed.KEPT


class Boxes(nn.Module):
    """Only the boxes of a detector."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, shown):
        return self.detector(shown).boxes


def test_a_rebuilt_detector_can_be_traced():
    plain, rebuilt = pair(small_detector(build_backbone("resnet18", weights="checkpoint")))
    shown = images(96, 96)
    with torch.no_grad():
        program = torch.export.export(Boxes(rebuilt), (shown,), strict=False)
        assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(shown), plain(shown).boxes, atol=2e-5, rtol=2e-5)
