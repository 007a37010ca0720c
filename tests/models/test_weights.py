"""Published checkpoints by an explicit map of names, and our own files."""

from __future__ import annotations

import argparse

import pytest
import torch
from model_cases import SMALL, official, random_state, small_backbone, small_detector

from mrt.errors import MrtError
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.discriminators import Discriminators
from mrt.models.mae import MaskedAutoencoder
from mrt.models.published import PUBLISHED_CLASSES, load_published, published_state
from mrt.models.sealed import pack, read_sealed
from mrt.models.weights import (
    backbone_identity,
    load_trainable,
    load_weights,
    read_metadata,
    save_weights,
    trainable_state_dict,
)

OUR_ORDER = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


@pytest.fixture(scope="module")
def paper_detector():
    return DeformableDETR(build_backbone("resnet50", weights="checkpoint"), num_classes=8)


def expect_back(state: dict[str, torch.Tensor], written: dict[str, torch.Tensor]) -> None:
    assert set(written) == set(state)
    for key, value in state.items():
        if key.startswith("class_embed"):
            assert torch.equal(written[key][1:], value[1:])
            column, prior = written[key][0], -4.59511985 if key.endswith("bias") else 0.0
            assert torch.allclose(column, torch.full_like(column, prior))
        else:
            assert torch.equal(written[key], value), key


def test_published_keys_load_and_come_back(paper_detector):
    state = random_state("state_dict_keys_r50.txt")
    assert len(state) == 561
    report = load_published(paper_detector, state, classes=OUR_ORDER)
    assert report.complete, str(report)
    car = 1 + PUBLISHED_CLASSES.index("car")
    assert torch.equal(paper_detector.class_embed.weight[2], state["class_embed.0.weight"][car])
    expect_back(state, published_state(paper_detector, classes=OUR_ORDER))
    report = load_published(paper_detector, state)  # by position
    assert torch.equal(paper_detector.class_embed.bias, state["class_embed.5.bias"][1:])
    expect_back(state, published_state(paper_detector))


def test_teaching_student_fills_the_branches_too(paper_detector):
    state = random_state("state_dict_keys_r50_teaching_student.txt")
    mae = MaskedAutoencoder(256, 8, 4, 4, 1024, 2, 2048, variant="published")
    discriminators = Discriminators(256, 4, 2048)
    report = load_published(paper_detector, state, mae=mae, discriminators=discriminators)
    assert report.complete, str(report)
    assert torch.equal(mae.query_embed.weight, state["transformer.mae_decoder.query_embed_list.0.weight"])
    assert torch.equal(discriminators.encoder[3].layers[1].bias, state["domain_pred_enc.3.layers.1.bias"])
    expect_back(state, published_state(paper_detector, mae=mae, discriminators=discriminators))
    report = load_published(paper_detector, state)
    assert len(report.unexpected) == 86 and not report.missing
    assert "transformer.mae_decoder.mask_query.weight" in str(report)


def published_small(**options) -> dict[str, torch.Tensor]:
    detector = small_detector(num_levels=4, **options)
    for parameter in detector.parameters():
        parameter.data.normal_()
    return published_state(detector, checkpoint_classes=("person", "car", "bus"))


def test_official_checkpoint_in_a_file(tmp_path):
    state = official(published_small())
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4), "epoch": 49}, tmp_path / "r18.pth")
    detector = small_detector(num_levels=4)
    before = detector.class_embed.weight[1].clone()
    report = load_published(detector, tmp_path / "r18.pth", classes=("car", "rider", "person"))
    assert report.layout == "deformable-detr" and report.new_classes == ["rider"]
    assert not report.missing + report.unexpected
    ours, theirs = detector.class_embed.weight, state["class_embed.0.weight"]
    assert torch.equal(ours[0], theirs[3]) and torch.equal(ours[2], theirs[1])  # COCO's car is 3, person is 1
    assert torch.equal(ours[1], before)
    assert "new_classes: rider" in str(report)


def test_two_stage_and_refinement_with_their_second_names():
    options = {"num_levels": 4, "box_refine": True, "two_stage": True}
    source = small_detector(**options)
    for parameter in source.parameters():
        parameter.data.normal_()
    state = published_state(source, classes=OUR_ORDER[:3])
    assert {key for key in state if key.startswith("class_embed")} == {
        f"class_embed.{i}.{p}" for i in range(3) for p in ("weight", "bias")
    }
    heads = [key for key in state if key.startswith(("class_embed", "bbox_embed"))]
    state |= {f"transformer.decoder.{key}": state[key] for key in heads}
    ours, theirs = "backbone.intermediate_getter.", "backbone.0.body."
    state = {key.replace(ours, theirs): value for key, value in state.items()}
    target = small_detector(**options)
    report = load_published(target, state, classes=OUR_ORDER[:3])
    assert report.complete, str(report)
    learned = dict(source.named_parameters())
    assert all(torch.equal(parameter, learned[name]) for name, parameter in target.named_parameters())


def test_what_does_not_fit_is_reported():
    state = published_small()
    state["surprise.weight"] = torch.zeros(1)
    del state["transformer.level_embed"]
    state["query_embed.weight"] = torch.zeros(5, 64)
    detector, classes = small_detector(num_levels=4), ("person", "car", "bus")
    report = load_published(detector, state, classes=classes, checkpoint_classes=classes)
    assert not report.complete
    assert report.unexpected == ["surprise.weight"]
    assert set(report.missing) == {"detector.transformer.level_embed", "detector.query_embed.weight"}
    assert "(5, 64)" in report.mismatched["query_embed.weight"]


def test_heads_that_differ_by_layer_are_not_merged():
    state = published_small()
    state["bbox_embed.1.layers.0.bias"] = state["bbox_embed.1.layers.0.bias"] + 1
    detector, classes = small_detector(num_levels=4), ("person", "car", "bus")
    with pytest.raises(MrtError, match="box_refine"):
        load_published(detector, state, classes=classes, checkpoint_classes=classes)


def test_unknown_layouts_and_columns_are_explained():
    with pytest.raises(MrtError, match="neither a published MRT"):
        load_published(small_detector(), {"a": torch.zeros(1)})
    state = published_small()
    with pytest.raises(MrtError, match="4 class columns of unknown meaning"):
        load_published(small_detector(num_levels=4), state, classes=("person", "car", "bus"))
    with pytest.raises(MrtError, match="4 class columns, the model 2"):
        load_published(small_detector(num_levels=4, num_classes=2), state)
    with pytest.raises(MrtError, match="2 class names for a detector of 3"):
        load_published(small_detector(num_levels=4), state, classes=("person", "car"))
    with pytest.raises(MrtError, match="have no column"):
        published_state(small_detector(), classes=("person", "car", "tram"))
    with pytest.raises(MrtError, match="grid"):
        published_state(small_detector(query_init="grid"))


def test_published_weights_fold_into_a_frozen_backbone():
    whole = small_detector(build_backbone("resnet18", weights="checkpoint"), num_levels=4).eval()
    for name, buffer in whole.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else buffer.normal_(std=0.1)
    folded = build_backbone("resnet18", weights="checkpoint", freeze="all")
    frozen = small_detector(folded, num_levels=4).eval()
    report = load_published(frozen, published_state(whole, classes=OUR_ORDER[:3]), classes=OUR_ORDER[:3])
    assert report.complete, str(report)
    images = torch.randn(1, 3, 96, 128)
    assert torch.allclose(whole(images).boxes, frozen(images).boxes, atol=1e-4)
    with pytest.raises(MrtError, match="folded"):
        published_state(frozen)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "none"},
        {"weights": "checkpoint", "freeze": "stem"},
        {"weights": "checkpoint", "freeze": "all", "levels": 2},
    ],
)
def test_own_file_rebuilds_the_detector(tmp_path, options):
    backbone, file = build_backbone("resnet18", **options), tmp_path / "new" / "student.safetensors"
    detector = small_detector(backbone, num_levels=3, two_stage=True, box_refine=True).eval()
    save_weights(file, detector, {"classes": ["car", "bus", "train"]})
    assert list((tmp_path / "new").iterdir()) == [file]
    loaded, metadata = load_weights(file)
    assert metadata == {"classes": ["car", "bus", "train"]} == read_metadata(file)
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(loaded(images).boxes, detector(images).boxes) and not loaded.training
    assert backbone_identity(loaded) == backbone_identity(detector)


def test_slim_file_leaves_the_pretrained_part_out(tmp_path):
    import torchvision

    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / f"imagenet{seed}.pth")
    for freeze in ("stem", "all"):
        backbone = build_backbone("resnet18", weights=str(tmp_path / "imagenet1.pth"), freeze=freeze)
        detector = small_detector(backbone, num_levels=3).eval()
        for parameter in detector.parameters():
            parameter.requires_grad_(False)  # as in a teacher
        path = tmp_path / f"{freeze}.safetensors"
        save_weights(path, detector, slim=True)
        kept = trainable_state_dict(detector)
        assert any("layer4" in key for key in kept) == (freeze == "stem")
        assert not any("layer1" in key for key in kept)
        loaded, _ = load_weights(path, backbone_weights=str(tmp_path / "imagenet1.pth"))
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(loaded(images).boxes, detector(images).boxes)
        with pytest.raises(MrtError, match="fingerprint"):
            load_weights(path, backbone_weights=str(tmp_path / "imagenet2.pth"))
    assert path.stat().st_size < 1_000_000


def test_a_half_file_has_every_weight_rounded_to_float16(tmp_path):
    detector = small_detector(small_backbone())
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_weights(whole, detector)
    save_weights(half, detector, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded, expected = load_weights(half)[0].state_dict(), detector.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value.half().to(value.dtype) if value.is_floating_point() else value)
    with torch.no_grad():
        next(detector.parameters())[0] = 7e4
    before = half.read_bytes()
    with pytest.raises(MrtError, match="beyond 65504"):
        save_weights(half, detector, half=True)
    assert half.read_bytes() == before, "nothing was half-written"


def test_own_files_that_do_not_fit_are_explained(tmp_path):
    with pytest.raises(MrtError, match="no such weights file"):
        load_weights(tmp_path / "absent.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(MrtError, match="not a weights file"):
        load_weights(tmp_path / "a.pth")
    unknown = small_detector(build_backbone("resnet18", weights="checkpoint"))
    with pytest.raises(MrtError, match="slim"):
        save_weights(tmp_path / "b.safetensors", unknown, slim=True)
    state, identity = trainable_state_dict(unknown), backbone_identity(unknown)
    other = DeformableDETR(build_backbone("resnet18", weights="checkpoint"), **{**SMALL, "num_queries": 13})
    with pytest.raises(MrtError, match="do not fit"):
        load_trainable(other, state, identity)
    with pytest.raises(MrtError, match="another backbone: its pretrained was True"):
        load_trainable(small_detector(small_backbone()), state, identity)


def test_a_slim_file_that_does_not_say_which_backbone_it_needs_is_refused(tmp_path, monkeypatch):
    """Before anything is downloaded; found by mutation. One whose backbone is not to be had is named."""
    asked = []

    def no_network(name: str, weights: str) -> None:
        asked.append((name, weights))
        raise MrtError("no network", "download it elsewhere")

    path, detector = (
        tmp_path / "a.safetensors",
        small_detector(build_backbone("resnet18", weights="checkpoint")),
    )
    detector.backbone.fingerprint = "0" * 64
    save_weights(path, detector, slim=True)
    monkeypatch.setattr("mrt.models.backbone.classifier_state", no_network)
    with pytest.raises(MrtError, match=r"a\.safetensors: its backbone cannot be made: no network") as told:
        load_weights(path)
    assert asked == [(detector.backbone.name, "imagenet")] and told.value.hint == "download it elsewhere"
    detector.backbone.fingerprint = None
    save_weights(path, detector)
    description, state = read_sealed(path)
    (tmp_path / "b.safetensors").write_bytes(pack({**description, "slim": True}, state))
    with pytest.raises(MrtError, match=r"b\.safetensors.*backbone\.fingerprint"):
        load_weights(tmp_path / "b.safetensors")
    assert len(asked) == 1
