"""Published checkpoints through `load_detector`, which loads all trained detectors."""

from __future__ import annotations

import pytest
import torch
from model_cases import official, random_state

from mrt.config import validate
from mrt.engine.load import load_detector
from mrt.errors import MrtError
from mrt.models.published import CITYSCAPES_ORDER, PUBLISHED_CLASSES


@pytest.fixture(scope="module")
def published():
    return random_state("state_dict_keys_r50.txt")


def test_a_published_checkpoint_is_a_detector(published, tmp_path):
    torch.save(published, tmp_path / "model_best.pth")
    detector, facts = load_detector(tmp_path / "model_best.pth")
    assert facts["classes"] == list(CITYSCAPES_ORDER) and facts["network"] == "student"
    assert facts["file"].endswith("model_best.pth")
    assert validate(facts["config"]).data.target == "foggy"
    rider = 1 + PUBLISHED_CLASSES.index("rider")
    assert torch.equal(detector.class_embed.bias[1], published["class_embed.0.bias"][rider])
    assert not detector.training


def test_an_official_checkpoint_brings_its_classes(published, tmp_path):
    torch.save({"model": official(published), "epoch": 49}, tmp_path / "r50_deformable_detr.pth")
    detector, facts = load_detector(tmp_path / "r50_deformable_detr.pth")
    assert len(facts["classes"]) == detector.num_classes == 80
    assert facts["classes"][:3] == ["person", "bicycle", "car"]
    torch.save({"model": official(published, columns=4)}, tmp_path / "own.pth")
    assert load_detector(tmp_path / "own.pth")[1]["classes"] == ["class 1", "class 2", "class 3"]


def test_box_refinement_and_two_stages_are_seen(published, tmp_path):
    state = official(published)
    for key in [key for key in state if key.startswith("bbox_embed")]:
        state[key] = torch.rand_like(state[key])
        state[f"transformer.decoder.{key}"] = state[key]
    torch.save({"model": state}, tmp_path / "refine.pth")
    detector, _ = load_detector(tmp_path / "refine.pth")
    assert detector.box_refine and not detector.two_stage
    for key in (
        "query_embed.weight",
        "transformer.reference_points.weight",
        "transformer.reference_points.bias",
    ):
        del state[key]
    for layer, sizes in {
        "enc_output": (256, 256),
        "enc_output_norm": (256,),
        "pos_trans": (512, 512),
        "pos_trans_norm": (512,),
    }.items():
        state |= {
            f"transformer.{layer}.weight": torch.rand(sizes),
            f"transformer.{layer}.bias": torch.rand(sizes[0]),
        }
    for key in [key for key in state if "_embed.5." in key]:
        state[key.replace(".5.", ".6.")] = state[key]
    torch.save({"model": state}, tmp_path / "two_stage.pth")
    detector, facts = load_detector(tmp_path / "two_stage.pth")
    assert detector.box_refine and detector.two_stage and len(facts["classes"]) == 80


def test_weights_without_a_place_are_listed(published, tmp_path):
    wrong = {key: value for key, value in published.items() if "layer4" not in key} | {
        "transformer.extra.weight": torch.zeros(1)
    }
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(
        MrtError, match=r"wrong\.pth(.|\n)*missing: detector.backbone.body.layer4(.|\n)*and \d+ more"
    ):
        load_detector(tmp_path / "wrong.pth")
    torch.save(published | {"transformer.extra.weight": torch.zeros(1)}, tmp_path / "extra.pth")
    with pytest.raises(MrtError, match=r"unexpected: transformer\.extra\.weight"):
        load_detector(tmp_path / "extra.pth")


@pytest.mark.parametrize(
    "state", [{"a": torch.zeros(1)}, {"backbone.intermediate_getter.conv1.weight": torch.zeros(1)}]
)
def test_other_files_are_refused_by_name(state, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(MrtError, match=r"other\.pth"):
        load_detector(tmp_path / "other.pth")
