"""The masked-autoencoder branch: the published variant in detail, the paper's, other sizes and levels."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden import assert_close
from model_cases import (
    SHAPES,
    SMALL,
    golden_features,
    golden_transformer,
    images_and_masks,
    per_level,
    small_detector,
    tensors,
)

from mrt.errors import MrtError
from mrt.losses import reconstruction_loss
from mrt.models.mae import ChannelStatistics, MaskedAutoencoder, random_masks
from mrt.models.position import valid_ratios
from mrt.models.published import published_state
from mrt.parts.rebuild import NORMALISED_ONLY

RENAMED = {"query_embed_list.0.weight": "query_embed.weight", "output_proj.0.weight": "output_proj.weight"}
RENAMED |= {"output_proj.0.bias": "output_proj.bias"}


def small_mae(detector, **options) -> MaskedAutoencoder:
    level = options.get("level", 2)
    sizes = {key: SMALL[key] for key in ("hidden_dim", "num_heads", "num_points", "feedforward_dim")}
    sizes |= {"num_levels": detector.num_levels, "out_channels": detector.backbone.channels[level]}
    return MaskedAutoencoder(**sizes, **options)


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_published_variant_reproduces_golden(golden, case):
    """Case B has fully masked rows and columns, whose non-finite sampling points must contribute nothing."""
    data = golden("mae")
    transformer = golden_transformer(data)
    options = {"variant": "published", "valid_ratios": "mask", "image_size": (3, 5)}
    mae = MaskedAutoencoder(32, 4, 4, 4, 64, 2, 64, **options)
    weights = tensors(data, "sd/mae_decoder.")
    mae.load_state_dict({RENAMED.get(key, key): value for key, value in weights.items()})
    masks = per_level(data, f"{case}/in/mae_mask.")
    assert_close(valid_ratios(masks), data[f"{case}/out/valid_ratios"])
    levels = [level.requires_grad_() for level in per_level(data, "in/src.")]
    padding = [torch.zeros_like(mask) for mask in masks]
    features = golden_features(data, padding, levels, torch.from_numpy(data["in/feature2"]))

    out = mae(SimpleNamespace(transformer=transformer), features, masks)
    assert_close(out.memory, data[f"{case}/out/memory"], what="memory")
    assert_close(out.prediction, data[f"{case}/out/mae_output"], what="output")
    loss = F.mse_loss(out.prediction, out.target)
    assert_close(loss, data[f"{case}/out/loss_mae"], what="loss")
    loss.backward()
    gradients = dict(transformer.named_parameters())
    gradients |= {f"mae_decoder.{key}": value for key, value in mae.named_parameters()}
    published = {f"mae_decoder.{our}": f"mae_decoder.{their}" for their, our in RENAMED.items()}
    compared = 0
    for name, parameter in gradients.items():
        key = f"{case}/grad/sd/{published.get(name, name)}"
        if key in data.files:
            assert_close(parameter.grad, data[key], what=key)
            compared += 1
    assert compared == sum(key.startswith(f"{case}/grad/sd/") for key in data.files)
    for level, tensor in enumerate(levels):
        if f"{case}/grad/in/src.{level}" in data.files:  # not recorded for case B
            assert_close(tensor.grad, data[f"{case}/grad/in/src.{level}"], what=f"gradient of level {level}")


def test_random_masks_reproduce_golden(golden):
    torch.manual_seed(8008)
    masks = random_masks(SHAPES, 2, 0.8)
    for mask, expected in zip(masks, per_level(golden("mae_masks_seed8008"), "out/mae_mask."), strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("ratios", ["padding", "mask"])
@pytest.mark.parametrize("variant", ["published", "paper"])
def test_any_image_size_with_padding(variant, ratios):
    detector = small_detector(num_levels=4)
    mae = small_mae(detector, variant=variant, valid_ratios=ratios, image_size=(3, 5))
    for sizes in ([(96, 160), (64, 128)], [(100, 70), (100, 70)]):
        features = detector.extract(*images_and_masks(sizes))
        masks = random_masks(features.shapes, 2, 0.8)
        out = mae(detector, features, masks)
        assert out.prediction.shape == out.target.shape == features.maps[2].shape
        assert torch.equal(out.mask, masks[2]) and torch.equal(out.padding, features.masks[2])
        assert not out.target.requires_grad and out.prediction.isfinite().all()
        F.mse_loss(out.prediction, out.target).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in mae.parameters())
        assert detector.transformer.encoder.layers[0].linear1.weight.grad.isfinite().all()


@pytest.mark.parametrize("variant", ["published", "paper"])
@pytest.mark.parametrize(("level", "num_levels"), [(0, 3), (1, 4), (1, 2), (2, 1)])
def test_any_level_can_be_rebuilt(variant, level, num_levels):
    detector = small_detector(num_levels=num_levels)
    mae = small_mae(detector, variant=variant, level=level)
    features = detector.extract(torch.randn(1, 3, 64, 96))
    out = mae(detector, features, random_masks(features.shapes, 1, 0.5))
    assert out.prediction.shape == features.maps[level].shape


def test_a_level_out_of_use_is_refused():
    detector = small_detector(num_levels=1)
    features = detector.extract(torch.randn(1, 3, 64, 64))
    with pytest.raises(MrtError, match="mae level is 0"):
        small_mae(detector, level=0)(detector, features, random_masks(features.shapes, 1, 0.5))


def test_the_paper_keeps_padding_masked_and_the_published_code_forgets_it():
    detector = small_detector(num_levels=3)
    images, padding = images_and_masks([(64, 128), (64, 64)])
    features = detector.extract(images, padding)
    masks = [torch.zeros_like(mask) for mask in features.masks]
    changed = [level.clone() for level in features.levels]
    for level, mask in zip(changed, features.masks, strict=True):
        level.add_(mask[:, None] * 3.0)  # only padding cells change
    other = detector.extract(images, padding)
    other.levels = changed
    cases = (
        ("paper", None, True),
        ("published", None, False),
        ("published", True, True),
        ("paper", False, False),
    )
    for variant, keep_padding, same in cases:
        mae = small_mae(detector, variant=variant, keep_padding=keep_padding)
        inside = ~features.masks[2][1]
        first = mae(detector, features, masks).prediction[1]
        second = mae(detector, other, masks).prediction[1]
        assert torch.equal(first[:, inside], second[:, inside]) == same


def test_visible_cells_of_the_paper_variant_hold_the_encoders_output():
    detector = small_detector(num_levels=3)
    mae = small_mae(detector, variant="paper", num_layers=0)
    features = detector.extract(torch.randn(1, 3, 64, 64))
    masks = random_masks(features.shapes, 1, 0.5)
    out = mae(detector, features, masks)
    cells = torch.where(masks[2].flatten(1)[..., None], mae.mask_query.weight, out.memory[:, -4:])
    assert torch.equal(out.prediction.flatten(2).transpose(1, 2), mae.output_proj(cells))


def test_unknown_settings_are_refused():
    with pytest.raises(MrtError, match="variant"):
        MaskedAutoencoder(32, 4, 4, 4, 64, variant="mine")
    with pytest.raises(MrtError, match="valid_ratios"):
        MaskedAutoencoder(32, 4, 4, 4, 64, valid_ratios="none")


def test_channel_statistics_are_those_of_the_cells(monkeypatch):
    """However the images are divided into batches, and without their padding."""
    monkeypatch.setattr(ChannelStatistics, "MOMENTUM", 1e-9)  # a plain average of equal steps
    scale, shift = torch.tensor([0.01, 1.0, 300.0]), torch.tensor([5.0, -2.0, 1000.0])
    maps = torch.randn(12, 3, 5, 6) * scale[:, None, None] + shift[:, None, None]
    padding = torch.zeros(12, 5, 6, dtype=torch.bool)
    padding[::2, :, 4:] = True
    whole, parts = ChannelStatistics(3), ChannelStatistics(3)
    for images, hidden in zip(maps.split(4), padding.split(4), strict=True):
        whole.add(images, hidden)
        for part in range(4):
            parts.add(images[part : part + 1], hidden[part : part + 1])
        for statistics in (whole, parts):
            statistics.update()
    for statistics in (whole, parts):
        cells = maps.double().transpose(0, 1)[:, ~padding]
        torch.testing.assert_close(statistics.mean.double(), cells.mean(1), rtol=1e-4, atol=0)
        torch.testing.assert_close(statistics.var.double(), cells.var(1, correction=0), rtol=2e-3, atol=0)
        assert statistics.updates == 3 and not statistics.added.any()


def test_channel_statistics_follow_a_map_that_changes():
    statistics, seen = ChannelStatistics(2), []
    for step in range(2000):
        statistics.add(torch.randn(1, 2, 4, 4) * (1 if step < 1000 else 10) + (0 if step < 1000 else 50))
        statistics.update()
        seen.append(float(statistics.mean.mean()))
    assert abs(seen[999]) < 0.2 and seen[1000] == pytest.approx(0.5, abs=0.3)
    assert seen[-1] == pytest.approx(50, abs=1)
    torch.testing.assert_close(statistics.var, torch.full((2,), 100.0), rtol=0.2, atol=0)


def test_channel_statistics_without_cells_stay():
    statistics = ChannelStatistics(2)
    statistics.add(torch.randn(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    statistics.update()
    assert statistics.updates == 0 and statistics.var.tolist() == [1, 1]


def test_a_channel_that_never_moves_is_not_blown_up():
    statistics = ChannelStatistics(3)
    maps = torch.randn(2, 3, 4, 4)
    maps[:, 1] = 7.0
    maps[:, 2] *= 1e-6
    statistics.add(maps)
    statistics.update()
    normal = statistics(maps)
    assert normal[:, 0].std() == pytest.approx(1, abs=0.05)
    assert not normal[:, 1].any() and normal[:, 2].abs().max() < 1e-3


@pytest.mark.parametrize("variant", ["published", "paper"])
def test_a_normalised_map_does_not_depend_on_the_backbones_scale(variant):
    """An error of 1 is that of an output that knows nothing."""
    torch.manual_seed(0)
    detector = small_detector()
    mae = small_mae(detector, variant=variant, normalise=True).train()
    images, mask = images_and_masks([(96, 128), (80, 96)])
    features = detector.extract(images, mask)
    masks = random_masks(features.spatial_shapes, len(images), 0.8)
    first = mae(detector, features, masks)
    mae.statistics.update()
    real = ~first.padding[:, None].expand_as(first.target)
    assert reconstruction_loss(
        torch.zeros_like(first.target), first.target, padding=first.padding
    ) == pytest.approx(1, abs=0.05)
    scaled = copy.deepcopy(mae)
    features.maps[2] = 40 * features.maps[2] + 3
    scaled.statistics = ChannelStatistics(len(mae.statistics.mean))
    again = scaled(detector, features, masks)
    torch.testing.assert_close(again.target[real], first.target[real], rtol=1e-2, atol=1e-3)
    scaled.eval()
    added = scaled.statistics.added.clone()
    scaled(detector, features, masks)
    assert torch.equal(scaled.statistics.added, added)  # looking at it is not learning
    assert set(mae.state_dict()) - set(small_mae(detector, variant=variant).state_dict()) == NORMALISED_ONLY


def test_statistics_of_nothing_change_nothing():
    """A branch that never ran: the report looks at it all the same."""
    statistics, maps = ChannelStatistics(2).eval(), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(statistics(maps), maps)


def test_the_first_step_has_its_own_images_only():
    statistics, maps = ChannelStatistics(2).train(), 5 + 3 * torch.randn(2, 2, 6, 6)
    statistics.add(maps)
    first = statistics(maps)
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    statistics.update()
    torch.testing.assert_close(statistics(maps), first, atol=1e-5, rtol=1e-5)
    statistics.add(100 * maps)  # counts from the next update on
    torch.testing.assert_close(statistics(maps), first, atol=1e-5, rtol=1e-5)


def test_a_normalised_autoencoder_has_no_place_in_the_published_layout():
    detector = small_detector()
    with pytest.raises(MrtError, match="no normalised autoencoder"):
        published_state(detector, mae=small_mae(detector, normalise=True))
