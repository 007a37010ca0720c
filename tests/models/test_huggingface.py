"""Folders of transformers' Deformable DETR: both read what the other has written, and compute the same."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from model_cases import images_and_masks, small_backbone, small_detector
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import nn

from mrt.data import transforms
from mrt.errors import MrtError, RunFailed
from mrt.models.backbone import build_backbone
from mrt.models.folding import fold_state
from mrt.models.huggingface import (
    describe_huggingface,
    is_huggingface,
    load_huggingface,
    names,
    write_huggingface,
)
from mrt.models.pretrained import read_state

transformers = pytest.importorskip("transformers")

VARIANTS = {
    "plain": {},
    "refine": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
}
CLASSES = ["person", "rider", "car"]
LIMIT = 1e-4
FILES = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
OWN_RESNET18 = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "out_features": ["stage2", "stage3", "stage4"],
}


def small_config(variant: str, **changes) -> dict:
    """A config.json as transformers 4 wrote it, except for the sizes."""
    return {
        "model_type": "deformable_detr",
        "backbone": "resnet18",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "d_model": 256 if variant == "two-stage" else 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_n_points": 3,
        "decoder_n_points": 3,
        "num_queries": 12,
        "two_stage_num_proposals": 12,
        "id2label": {str(column): name for column, name in enumerate(CLASSES)},
        **VARIANTS[variant],
        **changes,
    }


def with_own_resnet(config: dict) -> dict:
    config = {key: value for key, value in config.items() if "backbone" not in key}
    return {**config, "backbone_config": dict(OWN_RESNET18)}


def their_model(config: dict, seed: int = 0) -> nn.Module:
    """Transformers' network with random values in every tensor."""
    torch.manual_seed(seed)
    about = transformers.DeformableDetrConfig.from_dict({**config, "use_pretrained_backbone": False})
    model = transformers.DeformableDetrForObjectDetection(about).eval()
    randomise(model)
    if about.two_stage:
        ignore_empty_cells(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "norm" in name or ".bn" in name or "downsample.1" in name:
            value.normal_(std=0.2).add_(1.0 if name.endswith("weight") else 0.0)
        elif value.dim() > 1:
            value.normal_(std=1.5 / value[0].numel() ** 0.5)
        else:
            value.normal_(std=0.5)


@torch.no_grad()
def ignore_empty_cells(model: nn.Module, score: float = -8.0) -> None:
    """Give that score to all proposals of padding and of the image's edge; they are cells of zeros."""
    head, transformer = model.class_embed[-1], model.model
    empty = transformer.enc_output_norm(transformer.enc_output.bias)
    head.weight[0] += empty * (score - head(empty)[0]) / empty.square().sum()


def distinct_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors with the names of transformers 4, each name with a tensor of its own.

    With refinement, the class heads of the layers differ: transformers 5 ties them, but files may have
    different ones.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if model.config.with_box_refine and not model.config.two_stage:
        for part in ("weight", "bias"):
            state[f"class_embed.1.{part}"] = torch.randn_like(state[f"class_embed.1.{part}"])
    renamed = {}
    for name, value in state.items():
        name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        name = name.replace(".mlp.fc", ".fc")
        renamed[name.replace(".self_attn.o_proj.", ".self_attn.out_proj.")] = value
    return renamed


def write_folder(folder, config: dict, state: dict[str, torch.Tensor] | None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if state is not None:
        plain = torch.contiguous_format
        tensors = {name: value.clone(memory_format=plain) for name, value in state.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def inputs() -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    torch.manual_seed(5)
    return [(torch.randn(1, 3, 96, 128), None), images_and_masks([(96, 100), (70, 128)])]


@torch.no_grad()
def expect_same(model: nn.Module, detector, columns=slice(None), batches=None, ordered=True) -> float:
    """The largest difference between their logits and boxes and ours; not ``ordered``: of queries that are
    most alike, one of theirs for each of ours.
    """
    largest = 0.0
    for images, mask in batches or inputs():
        theirs = model(pixel_values=images, pixel_mask=None if mask is None else (~mask).long())
        ours = detector(images, mask)
        assert theirs.logits.std() > 0.05 and theirs.pred_boxes.std() > 0.05  # something is compared
        a = torch.cat((theirs.logits[..., columns], theirs.pred_boxes), dim=-1)
        b = torch.cat((ours.logits[-1], ours.boxes[-1]), dim=-1)
        assert a.shape == b.shape
        if not ordered:
            pairs = [
                linear_sum_assignment(torch.cdist(*both).detach().numpy())[1]
                for both in zip(b, a, strict=True)
            ]
            assert all((order == range(len(order))).mean() > 0.9 for order in pairs), (
                "nearly all in one order"
            )
            a = torch.stack([image[order] for image, order in zip(a, pairs, strict=True)])
        largest = max(largest, float((a - b).abs().max()))
    print(f"largest difference {largest:.2e}")
    assert largest < LIMIT
    return largest


def load_theirs(folder) -> nn.Module:
    model, found = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not found[what]
    return model.eval()


@pytest.mark.parametrize("own_resnet", [False, True], ids=["timm", "resnet"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_libraries_compute_the_same(tmp_path, variant, own_resnet):
    config = small_config(variant)
    model = their_model(with_own_resnet(config) if own_resnet else config)
    model.save_pretrained(tmp_path / "theirs")
    assert is_huggingface(tmp_path / "theirs")
    detector, about = load_huggingface(tmp_path / "theirs")
    assert about == describe_huggingface(tmp_path / "theirs")
    assert (about.classes, about.backbone) == (CLASSES, "resnet18")
    assert (about.short_side, about.max_size) == (800, 1333)
    assert {**detector.arguments, **about.arguments} == detector.arguments and not detector.training
    expect_same(model, detector)

    write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=480, max_size=900, card="# A model\n")
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == sorted(FILES)
    again = load_theirs(tmp_path / "ours")
    expect_same(again, detector)
    assert again.config.id2label == dict(enumerate(CLASSES))
    with torch.no_grad():
        for images, mask in inputs():
            mask = None if mask is None else (~mask).long()
            first, second = model(images, pixel_mask=mask).logits, again(images, pixel_mask=mask).logits
            assert torch.equal(first, second) or own_resnet
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (480, 900)
    back, about = load_huggingface(tmp_path / "ours")
    assert (about.short_side, about.max_size, about.size_multiple) == (480, 900, 1)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["bin", "shards", "half of the names"])
def test_files_of_transformers_4(tmp_path, variant, kind):
    config = small_config(variant)
    model = their_model(config)
    state = distinct_state(model)
    means = [name for name in state if name.endswith("running_mean") and "bn" in name]
    counted = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in means}
    write_folder(tmp_path / "theirs", config, state)
    reference = load_theirs(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(state | counted, tmp_path / "theirs" / "pytorch_model.bin")
    elif kind == "shards":
        names = sorted(state)
        shards = {f"model-0000{shard + 1}-of-00002.safetensors": names[shard::2] for shard in (0, 1)}
        for file, part in shards.items():
            save_file({name: state[name] for name in part}, tmp_path / "theirs" / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (tmp_path / "theirs" / "model.safetensors.index.json").write_text(json.dumps(index))
    else:  # safetensors holds each tensor once, under one of its names
        seen = {}
        for name in sorted(state, reverse=True):
            if "_embed" not in name or not any(torch.equal(value, state[name]) for value in seen.values()):
                seen[name] = state[name]
        assert len(seen) < len(state)
        save_file(seen, tmp_path / "theirs" / "model.safetensors")
    detector, _ = load_huggingface(tmp_path / "theirs")
    expect_same(reference, detector)


def test_names_in_the_memory_of_transformers_5(tmp_path):
    config = small_config("plain")
    model = their_model(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    write_folder(tmp_path / "theirs", config, state)
    expect_same(model, load_huggingface(tmp_path / "theirs")[0])


def test_half_precision_becomes_float32(tmp_path):
    config = small_config("plain")
    state = {name: value.bfloat16() for name, value in distinct_state(their_model(config)).items()}
    detector, _ = load_huggingface(write_folder(tmp_path / "theirs", config, state))
    assert {value.dtype for value in detector.parameters()} == {torch.float32}
    assert torch.equal(detector.transformer.level_embed, state["model.level_embed"].float())


def test_sizes_of_the_published_two_stage_model(tmp_path):
    """SenseTime's: 91 columns of which 80 are classes, ResNet-50, 300 proposals."""
    names = ["N/A"] + [f"thing {column}" if column % 8 else "N/A" for column in range(1, 91)]
    config = {
        "model_type": "deformable_detr",
        "backbone": "resnet50",
        "two_stage": True,
        "with_box_refine": True,
        "id2label": {str(column): name for column, name in enumerate(names)},
    }
    model = their_model(config, seed=3)
    folder = write_folder(tmp_path / "theirs", config, distinct_state(model))
    detector, about = load_huggingface(folder)
    columns = [column for column, name in enumerate(names) if name != "N/A"]
    assert about.classes == [names[column] for column in columns] and len(about.classes) == 79
    assert about.backbone == "resnet50"
    assert about.arguments["num_queries"] == 300 and about.arguments["num_encoder_layers"] == 6
    assert torch.equal(detector.proposal_class_embed.bias, model.class_embed[6].bias[:1])
    torch.manual_seed(4)
    # Of a thousand proposals some have nearly the same score, and their order depends on the machine.
    expect_same(model, detector, columns, [images_and_masks([(192, 256), (160, 240)])], ordered=False)


def test_transformers_alone_reads_what_is_written(tmp_path):
    batches = inputs()
    expected = {}
    for variant in VARIANTS:
        detector = our_detector(variant)
        write_huggingface(tmp_path / variant, detector, CLASSES, short_side=600, max_size=1000, card="")
        with torch.no_grad():
            outputs = [detector(*batch) for batch in batches]
        expected[variant] = [(output.logits[-1], output.boxes[-1]) for output in outputs]
    torch.save({"batches": batches, "expected": expected}, tmp_path / "expected.pt")
    code = """
import sys, torch, transformers
kept = torch.load("expected.pt")
problems = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
for variant, outputs in kept["expected"].items():
    processor = transformers.AutoImageProcessor.from_pretrained(variant)
    auto = transformers.AutoModelForObjectDetection
    model, found = auto.from_pretrained(variant, output_loading_info=True)
    assert not any(found[problem] for problem in problems), found
    for (images, mask), (logits, boxes) in zip(kept["batches"], outputs):
        with torch.no_grad():
            theirs = model.eval()(pixel_values=images, pixel_mask=None if mask is None else (~mask).long())
        pairs = ((theirs.logits, logits), (theirs.pred_boxes, boxes))
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        print(variant, type(model).__name__, type(processor).__name__, difference)
        assert difference < 1e-4
assert not [name for name in sys.modules if name == "mrt" or name.startswith("mrt.")]
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@torch.no_grad()
def our_detector(variant: str, backbone=None, **options):
    """A small detector of ours with random values in every tensor."""
    torch.manual_seed(1)
    options = {
        "box_refine": variant != "plain",
        "two_stage": variant == "two-stage",
        "num_levels": 4,
        **options,
    }
    options = {"hidden_dim": 256 if options["two_stage"] else 64, **options}
    detector = small_detector(backbone, **options).eval()
    randomise(detector)
    if detector.two_stage:
        head, transformer = detector.proposal_class_embed, detector.transformer
        empty = transformer.enc_output_norm(transformer.enc_output.bias)
        head.weight[0] += empty * (-8.0 - head(empty)[0]) / empty.square().sum()
    return detector


@pytest.mark.parametrize("levels, num_levels", [(3, 3), (3, 2), (2, 2), (1, 1), (3, 1), (2, 4)])
def test_other_numbers_of_maps(tmp_path, levels, num_levels):
    detector = our_detector("plain", small_backbone(levels=levels), num_levels=num_levels)
    write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=600, max_size=1000, card="")
    model = load_theirs(tmp_path / "ours")
    expect_same(model, detector)
    expect_same(model, load_huggingface(tmp_path / "ours")[0])


def test_two_stage_columns_that_are_not_used(tmp_path):
    detector = our_detector("two-stage")
    write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=600, max_size=1000, card="")
    state = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(state["class_embed.2.weight"][:1], detector.proposal_class_embed.weight)
    assert not state["class_embed.2.weight"][1:].any() and (state["class_embed.2.bias"][1:] < -10).all()
    assert torch.equal(state["class_embed.2.weight"], state["model.decoder.class_embed.2.weight"])


def test_folded_batch_norms_come_back(tmp_path):
    whole = our_detector("refine", build_backbone("resnet18", weights="checkpoint"))
    write_huggingface(tmp_path / "whole", whole, CLASSES, short_side=600, max_size=1000, card="")
    folded = build_backbone("resnet18", weights="checkpoint", freeze="all")
    frozen = small_detector(folded, **whole.arguments).eval()
    frozen.load_state_dict(fold_state(whole.state_dict(), frozen.backbone.folded, "backbone.body."))
    write_huggingface(tmp_path / "folded", frozen, CLASSES, short_side=600, max_size=1000, card="")
    model = load_theirs(tmp_path / "folded")
    expect_same(model, frozen)
    expect_same(model, load_huggingface(tmp_path / "folded")[0])


@pytest.mark.parametrize(
    "name, described",
    [
        ("resnet10t", {}),
        ("convnext_atto", {"backbone_config": {"model_type": "timm_backbone", "out_indices": [1, 2, 3]}}),
    ],
)
def test_other_timm_backbones(tmp_path, name, described):
    config = small_config("plain", backbone=name)
    if described:
        config = {key: value for key, value in config.items() if "backbone" not in key}
        config["backbone_config"] = {**described["backbone_config"], "backbone": name}
    model = their_model(config)
    model.save_pretrained(tmp_path / "theirs")
    detector, about = load_huggingface(tmp_path / "theirs")
    assert about.backbone == name
    expect_same(model, detector)
    write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=600, max_size=1000, card="")
    expect_same(load_theirs(tmp_path / "ours"), detector)


def test_empty_proposals_are_chosen_there_and_not_here(tmp_path):
    """The only known difference: transformers and the official code rank candidates of padding, too."""
    config = small_config("two-stage")
    model = their_model(config)
    ignore_empty_cells(model, score=1.2)
    detector, _ = load_huggingface(write_folder(tmp_path / "theirs", config, distinct_state(model)))
    images, mask = inputs()[1]
    with torch.no_grad():
        theirs = model.model(pixel_values=images, pixel_mask=(~mask).long()).init_reference_points
        features = detector.extract(images, mask)
        memory = detector.encode(features)
        _, _, valid = detector.transformer.propose(
            memory, features.shapes, features.valid_ratios, features.token_mask()
        )
        ranking = detector.decode(features, memory).proposal_logits[..., 0]
    empty = (theirs == 1).all(-1)  # the sigmoid of infinity, which is the box of a cell of padding
    assert empty.any() and not empty.all()
    assert torch.allclose(ranking[~valid], torch.tensor(1.2), atol=1e-3)
    propose = detector.transformer.propose

    def propose_as_there(*arguments):
        candidates, boxes, valid = propose(*arguments)
        return candidates, boxes.masked_fill(~valid[..., None], torch.inf), torch.ones_like(valid)

    detector.transformer.propose = propose_as_there
    expect_same(model, detector)  # nothing else differs


def test_class_columns(tmp_path):
    labels = ["N/A", "car", "LABEL_2", "car", "car 2", "N/A", "car"]
    config = small_config("plain", id2label={str(column): name for column, name in enumerate(labels)})
    model = their_model(config)
    detector, about = load_huggingface(write_folder(tmp_path / "theirs", config, distinct_state(model)))
    assert about.classes == ["car", "LABEL_2", "car 3", "car 2", "car 4"]
    expect_same(model, detector, [1, 2, 3, 4, 6])
    config.pop("id2label")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    assert describe_huggingface(tmp_path / "theirs").classes == ["LABEL_0", "LABEL_1"]


PROCESSOR = {
    "image_processor_type": "DeformableDetrImageProcessor",
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "size": {"shortest_edge": 640, "longest_edge": 1024},
}
OLD_PROCESSOR = {
    "feature_extractor_type": "DeformableDetrFeatureExtractor",
    "size": 600,
    "max_size": 900,
    "do_resize": True,
}
SIZE_WITH_HEIGHT = {"shortest_edge": 600, "longest_edge": 900, "height": None}


@pytest.mark.parametrize(
    "processor, sides",
    [
        (PROCESSOR, (640, 1024)),
        (OLD_PROCESSOR, (600, 900)),
        ({"size": SIZE_WITH_HEIGHT, "rescale_factor": 0.00392156862745098}, (600, 900)),
        ({}, (800, 1333)),
    ],
)
def test_image_sizes(tmp_path, processor, sides):
    folder = write_folder(tmp_path / "theirs", small_config("plain"), None)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    about = describe_huggingface(folder)
    assert (about.short_side, about.max_size) == sides


def test_images_are_normalised_as_everywhere_here():
    assert names.IMAGE_MEAN == transforms.IMAGENET_MEAN and names.IMAGE_STD == transforms.IMAGENET_STD


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"position_embedding_type": "learned"}, 'position_embedding_type is "learned"; only "sine"'),
        ({"decoder_n_points": 2}, "decoder_n_points is 2; only 3, as encoder_n_points"),
        ({"decoder_attention_heads": 8}, "decoder_attention_heads is 8; only 4"),
        ({"decoder_ffn_dim": 32}, "decoder_ffn_dim is 32; only 96"),
        ({"activation_function": "gelu"}, 'activation_function is "gelu"'),
        ({"dilation": True}, "dilation is true"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is"),
        ({"d_model": 72}, "d_model is 72; it must be a multiple of 32"),
        ({"d_model": "64"}, 'd_model is "64"; it must be a whole number'),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"with_box_refine": "yes"}, "with_box_refine is"),
        ({"two_stage": True}, "two_stage is true; that needs with_box_refine"),
        ({"two_stage": True, "with_box_refine": True}, "d_model is 64; with two_stage only 256"),
        (
            {"two_stage": True, "with_box_refine": True, "d_model": 256, "num_feature_levels": 6},
            "num_feature_levels is 6; with two_stage",
        ),
        ({"num_feature_levels": 2}, "num_feature_levels is 2; the backbone gives 3 maps"),
        ({"backbone": "no_such_model"}, 'backbone is "no_such_model"; timm has no model'),
        ({"backbone": "tf_efficientnet_lite0"}, "replaces its batch norms"),
        ({"backbone": "mixer_s32_224"}, r"strides \[32, 32, 32\]"),
        (
            {"backbone": "microsoft/resnet-50", "use_timm_backbone": False},
            "describes the network in another repository",
        ),
        (
            {"backbone_kwargs": {"out_indices": [1, 2, 3]}},
            r"backbone_kwargs.out_indices is \[1, 2, 3\]; those are maps of strides \[4, 8, 16\]",
        ),
        ({"backbone_kwargs": {"output_stride": 16}}, "backbone_kwargs.output_stride is 16"),
        ({"backbone_kwargs": {"act_layer": "gelu"}}, 'backbone_kwargs.act_layer is "gelu"'),
        ({"backbone_config": {"model_type": "swin"}}, 'backbone_config.model_type is "swin"'),
        (
            {
                "backbone_config": {
                    "model_type": "timm_backbone",
                    "backbone": "resnet18",
                    "out_indices": [2, 4],
                }
            },
            "strides",
        ),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18", "output_stride": 8}},
            "output_stride is 8",
        ),
        ({"backbone_config": {**OWN_RESNET18, "depths": [1, 1, 1, 1]}}, r"depths \[1, 1, 1, 1\]"),
        (
            {"backbone_config": {**OWN_RESNET18, "downsample_in_first_stage": True}},
            "backbone_config.downsample_in_first_stage is true",
        ),
        ({"backbone_config": {**OWN_RESNET18, "hidden_act": "silu"}}, "hidden_act"),
        ({"backbone_config": {**OWN_RESNET18, "embedding_size": 32}}, "embedding_size is 32"),
        ({"backbone_config": {**OWN_RESNET18, "out_features": ["stage1", "stage4"]}}, "strides"),
        ({"id2label": {"0": "car", "2": "bus"}}, "id2label is .*; its keys must be 0 to 1"),
        ({"id2label": {"0": "N/A"}}, "it names no class"),
        ({"id2label": {"0": ""}}, "map numbers to names"),
        ({"model_type": "detr"}, 'model_type is "detr"; only "deformable_detr"'),
    ],
)
def test_options_without_counterpart_are_named(tmp_path, changes, says):
    config = small_config("plain")
    folder = write_folder(tmp_path / "theirs", {**config, **changes}, None)
    for read in (describe_huggingface, load_huggingface):
        with pytest.raises(MrtError, match=says) as raised:
            read(folder)
        assert str(folder / "config.json") in raised.value.message and raised.value.hint


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0.5, 0.5, 0.5\]; only \[0.485, 0.456, 0.406\]"),
        ({"image_std": [1, 1, 1]}, "image_std is"),
        ({"image_mean": "imagenet"}, "image_mean is"),
        ({"do_normalize": False}, "do_normalize is false; only true"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"resample": 3}, "resample is 3"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"image_processor_type": "YolosImageProcessor"}, "YolosImageProcessor"),
        ({"size": {"height": 640, "width": 640}}, "size is"),
        ({"size": {"shortest_edge": 640}}, "size is"),
        ({"size": {"shortest_edge": 0, "longest_edge": 10}}, "size.shortest_edge is 0"),
    ],
)
def test_what_is_done_to_images_must_be_what_is_done_here(tmp_path, changes, says):
    folder = write_folder(tmp_path / "theirs", small_config("plain"), None)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changes}))
    with pytest.raises(MrtError, match=says) as raised:
        describe_huggingface(folder)
    assert "preprocessor_config.json" in raised.value.message


@pytest.fixture(scope="module")
def whole():
    """A config.json and all its tensors."""
    config = small_config("refine")
    return config, distinct_state(their_model(config))


def test_weights_that_do_not_fit_are_named(tmp_path, whole):
    config, state = whole

    def expect(says, **changed):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        altered = {name: value for name, value in {**state, **changed}.items() if value is not None}
        with pytest.raises(MrtError, match=says) as raised:
            load_huggingface(write_folder(folder, config, altered))
        assert str(folder) in raised.value.message and raised.value.hint

    level = state["model.level_embed"]
    expect("they lack model.level_embed", **{"model.level_embed": None})
    name = "model.decoder.layers.0.self_attn.k_proj.weight"
    expect(f"they lack {name}", **{name: None})
    both = {"bbox_embed.1.layers.0.bias": None, "model.decoder.bbox_embed.1.layers.0.bias": None}
    expect("they lack bbox_embed.1.layers.0.bias", **both)
    expect("without a place, surprise.weight\n", **{"surprise.weight": level})
    renamed = {"model.level_embed": None, "model.levels": level, "model.z": level}
    expect("lack model.level_embed; they have, without a place, model.levels and 1 more", **renamed)
    says = r"model.level_embed is \(3, 64\), float32; config.json asks for \(4, 64\)"
    expect(says, **{"model.level_embed": level[:3]})
    name = "class_embed.0.weight"
    expect(rf"{name} is \(2, 64\)", **{name: state[name][:2]})
    name = "model.decoder.layers.1.self_attn.q_proj.weight"
    expect(rf"{name} is \(128, 64\)", **{name: torch.zeros(128, 64)})
    expect("model.level_embed is .* int8", **{"model.level_embed": level.to(torch.int8)})
    name = "model.decoder.bbox_embed.0.layers.0.bias"
    expect(f"bbox_embed.0.layers.0.bias and {name} differ", **{name: state[name] + 1})
    first, second = "model.encoder.layers.0.fc1.bias", "model.encoder.layers.0.mlp.fc1.bias"
    expect(f"{first} and {second} differ", **{second: state[first] + 1})


def test_heads_that_differ_where_one_is_shared(tmp_path, whole):
    config, state = whole
    config = {**config, "with_box_refine": False}
    with pytest.raises(MrtError, match=r"class_embed.0.weight and class_embed.1.weight differ"):
        load_huggingface(write_folder(tmp_path / "theirs", config, state))


def test_class_heads_that_only_transformers_5_ties(tmp_path, whole):
    config, state = whole
    state = {name: value for name, value in state.items() if not name.startswith("class_embed.1.")}
    detector, _ = load_huggingface(write_folder(tmp_path / "tied", config, state))
    assert torch.equal(detector.class_embed[1].weight, state["class_embed.0.weight"])
    with pytest.raises(MrtError, match=r"they lack class_embed.1.weight"):
        load_huggingface(write_folder(tmp_path / "untied", {**config, "tie_word_embeddings": False}, state))


def test_broken_folders_are_explained(tmp_path, whole):
    config, state = whole

    def expect(says, folder):
        with pytest.raises(MrtError, match=says) as raised:
            load_huggingface(folder)
        assert raised.value.hint
        return raised.value

    expect("no such file", tmp_path / "absent")
    folder = write_folder(tmp_path / "bad json", config, state)
    (folder / "config.json").write_text('{"model_type": ')
    assert not is_huggingface(folder)
    expect("config.json is no JSON file", folder)
    (folder / "config.json").write_text("[]")
    assert not is_huggingface(folder)
    expect("holds no JSON object", folder)
    expect("has no weights", write_folder(tmp_path / "no weights", config, None))
    folder = write_folder(tmp_path / "cut", config, state)
    whole_file = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole_file[: len(whole_file) // 2])
    expect("model.safetensors is not a readable weights file", folder)
    (folder / "model.safetensors").write_text("version https\noid sha256:0 git-lfs\n")
    expect("only points to the weights", folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    whole_file = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole_file[: len(whole_file) // 2])
    expect("pytorch_model.bin is not a readable weights file", folder)


def test_shards_that_do_not_fit_their_index(tmp_path, whole):
    config, state = whole
    folder = write_folder(tmp_path / "theirs", config, None)
    save_file(state, folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    for files, says in (
        ({**dict.fromkeys(state, "a.safetensors"), "b": "a.safetensors"}, "a.safetensors lacks b, which"),
        (
            {name: "a.safetensors" for name in state if name != "model.level_embed"},
            "a.safetensors has model.level_embed, which",
        ),
        (dict.fromkeys(state, "../a.safetensors"), "files of the folder"),
        ({**dict.fromkeys(state, "a.safetensors"), "b": "b.safetensors"}, "b.safetensors: no such"),
        (None, "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": files}))
        with pytest.raises(MrtError, match=says):
            load_huggingface(folder)


class Malicious:
    """Unpickling it leaves a file behind."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    folder = write_folder(tmp_path / "theirs", small_config("plain"), None)
    content = {"weight": torch.zeros(2), "more": Malicious(tmp_path / "ran")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    says = r"pytorch_model.bin holds Python code \(\w+.mkdir\), not only tensors; it was not opened"
    with pytest.raises(MrtError, match=says) as raised:
        load_huggingface(folder)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(raised.value) and ".safetensors" in raised.value.hint
    # No traceback shows torch's advice to load it anyway.
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_other_pickles_are_not_opened_either(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(MrtError, match=r"holds Python code \(torch.nn.modules.linear.Linear\)"):
        read_state(path)
    path.write_bytes(pickle.dumps({"a": Malicious(tmp_path / "ran")}, protocol=4))
    with warnings.catch_warnings(), pytest.raises(MrtError, match=r"a pickle of Python objects.*not opened"):
        warnings.simplefilter("error")  # torch's advice is for whoever wrote the file
        read_state(path)
    assert not (tmp_path / "ran").exists()


def test_run_folders_are_not_mistaken(tmp_path):
    (tmp_path / "config.json").write_text('{"preset": "own", "model": {"backbone": "resnet50"}}')
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "absent"):
        assert not is_huggingface(path)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"query_init": "grid"}, 'query_init is "grid"'),
        (
            {"two_stage": True, "box_refine": True, "proposal_content": "features", "hidden_dim": 256},
            'proposal_content is "features"',
        ),
        ({"two_stage": True, "hidden_dim": 256}, "box_refine is false"),
        ({"two_stage": True, "box_refine": True}, "hidden_dim is 32, not 256"),
        ({"two_stage": True, "box_refine": True, "hidden_dim": 256, "num_levels": 6}, "num_levels is 6"),
        ({"hidden_dim": 48}, "hidden_dim is 48, no multiple of 32"),
    ],
)
def test_detectors_that_cannot_be_said_there(tmp_path, options, says):
    detector = small_detector(**options)
    with pytest.raises(MrtError, match=f"cannot be written for transformers: .*{says}"):
        write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=600, max_size=1000, card="")
    assert not list(tmp_path.iterdir())


def test_backbones_that_cannot_be_said_there(tmp_path):
    for name, freeze, says in (
        ("tf_efficientnet_lite0", "stem", "replaces its batch norms"),
        ("resnet10t", "all", "folded"),
    ):
        detector = small_detector(build_backbone(name, weights="checkpoint", freeze=freeze))
        with pytest.raises(MrtError, match=says):
            write_huggingface(tmp_path / "ours", detector, CLASSES, short_side=600, max_size=1000, card="")
    assert not list(tmp_path.iterdir())


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    detector = small_detector(num_levels=4)

    def write(folder, classes=CLASSES, short_side=600, max_size=1000):
        sizes = {"short_side": short_side, "max_size": max_size}
        write_huggingface(folder, detector, classes, **sizes, card="# Ours\n")

    for classes in (["car"], ["car", "car", "bus"], ["car", "bus", "N/A"], ["car", "bus", ""]):
        with pytest.raises(MrtError, match="class name"):
            write(tmp_path / "ours", classes)
    with pytest.raises(MrtError, match="image size"):
        write(tmp_path / "ours", short_side=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RunFailed, match=r"ours/config\.json: could not be written: No space left"):
            write(tmp_path / "ours")
    assert not list(tmp_path.iterdir())
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours")  # an empty folder is no obstacle
    assert (tmp_path / "ours" / "README.md").read_text() == "# Ours\n"
    with pytest.raises(MrtError, match="holds files already"):
        write(tmp_path / "ours")
    write(tmp_path / "deep" / "er")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "ours"]
    assert describe_huggingface(tmp_path / "deep" / "er").classes == CLASSES
