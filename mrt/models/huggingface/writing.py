"""Write detectors as folders that Hugging Face's transformers loads without any code of ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mrt.errors import MrtError
from mrt.files import replacing, whole_folder, write_text
from mrt.models.backbone import RESNETS, Backbone
from mrt.models.detector import DeformableDETR
from mrt.models.digest import SHA256, content_digest
from mrt.models.huggingface.names import (
    BILINEAR,
    CONFIG,
    GROUPS,
    IMAGE_MEAN,
    IMAGE_STD,
    LARGEST_PROPOSAL_LEVELS,
    MODEL_TYPE,
    MULTIPLE,
    NORM_EPS,
    PROCESSOR,
    STRIDES,
    WEIGHTS,
    Trunk,
    place_of,
    timm_strides,
)
from mrt.models.pretrained import State
from mrt.models.published import NO_CLASS
from mrt.models.sealed import ordered
from mrt.models.transformer import PROPOSAL_CHANNELS

UNUSED_BIAS = -20.0  # of the unused columns of the proposal head


def write_huggingface(
    folder: Path,
    detector: DeformableDETR,
    classes: Sequence[str],
    *,
    short_side: int,
    max_size: int,
    size_multiple: int = 1,
    card: str,
) -> None:
    """Write a folder for ``transformers.AutoModelForObjectDetection`` and ``AutoImageProcessor``.

    It holds config.json, model.safetensors, preprocessor_config.json and README.md, and appears either
    complete or not at all. The convolutions of a folded ResNet are given batch norms again, which only add
    their bias.

    Args:
        folder: must not exist yet, or be empty.
        detector: to be written.
        classes: one name per class, all different.
        short_side, max_size: the size that images are scaled to.
        size_multiple: to a multiple of which both sides are rounded then. transformers cannot say so: it is
            kept for mrt, in config.json.
        card: text of README.md.

    Raises:
        MrtError: the folder is not empty or cannot be written, the names do not fit, or the detector has
            something that such a folder cannot express: grid queries, proposals with content, two stages
            without refinement or with other than 256 channels, a width that is no multiple of 32, or a
            backbone that transformers would compute differently.
    """
    _check_classes(classes, detector.num_classes)
    if short_side < 1 or max_size < 1:
        raise MrtError(
            f"image size: short_side {short_side}, max_size {max_size}", "Give pixels, at least 1."
        )
    config, state = _their_config(detector, list(classes)), _their_state(detector)
    if size_multiple != 1:
        config[MULTIPLE] = size_multiple
    weights = ordered(save(state, {"format": "pt", SHA256: content_digest("", state)}))
    with whole_folder(Path(folder)) as work:
        write_text(work / CONFIG, _json(config))
        write_text(work / PROCESSOR, _json(_their_processor(short_side, max_size)))
        write_text(work / "README.md", card)
        with replacing(work / WEIGHTS[0]) as file:
            file.write(weights)


def _their_config(detector: DeformableDETR, classes: list[str]) -> dict[str, Any]:
    arguments = detector.arguments
    width, levels = arguments["hidden_dim"], arguments["num_levels"]
    if detector.two_stage:
        wrong = {
            "box_refine is false": not detector.box_refine,
            'proposal_content is "features"': detector.proposal_content != "position",
            f"hidden_dim is {width}, not {2 * PROPOSAL_CHANNELS}": width != 2 * PROPOSAL_CHANNELS,
            f"num_levels is {levels}, more than {LARGEST_PROPOSAL_LEVELS}": levels > LARGEST_PROPOSAL_LEVELS,
        }
    else:
        wrong = {'query_init is "grid"': arguments["query_init"] == "grid"}
    wrong[f"hidden_dim is {width}, no multiple of {GROUPS}"] = width % GROUPS != 0
    reasons = [reason for reason, holds in wrong.items() if holds]
    if reasons:
        stages = "two-stage " if detector.two_stage else ""
        raise MrtError(
            f"this {stages}detector cannot be written for transformers: {', '.join(reasons)}",
            "Its Deformable DETR has no such option. "
            "Export to another format, or train a detector without it.",
        )
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": MODEL_TYPE,
        **_their_backbone(detector.backbone, levels),
        "activation_function": "relu",
        "activation_dropout": arguments["dropout"],
        "attention_dropout": arguments["dropout"],
        "dropout": arguments["dropout"],
        "d_model": width,
        "encoder_layers": arguments["num_encoder_layers"],
        "encoder_ffn_dim": arguments["feedforward_dim"],
        "encoder_attention_heads": arguments["num_heads"],
        "encoder_n_points": arguments["num_points"],
        "decoder_layers": arguments["num_decoder_layers"],
        "decoder_ffn_dim": arguments["feedforward_dim"],
        "decoder_attention_heads": arguments["num_heads"],
        "decoder_n_points": arguments["num_points"],
        "num_feature_levels": levels,
        "num_queries": arguments["num_queries"],
        "position_embedding_type": "sine",
        "two_stage": detector.two_stage,
        "two_stage_num_proposals": arguments["num_queries"],
        "with_box_refine": detector.box_refine,
        "is_encoder_decoder": True,
        "num_channels": 3,
        "id2label": {str(column): name for column, name in enumerate(classes)},
        "label2id": {name: column for column, name in enumerate(classes)},
    }


def _their_backbone(backbone: Backbone, num_levels: int) -> dict[str, Any]:
    """The fields that describe a backbone by its timm name, so that transformers downloads no weights for it.

    The usual three maps are described in the older form, which transformers 4 and 5 read; others in the form
    of 5.
    """
    if backbone.folded and backbone.name not in RESNETS:
        raise MrtError(
            f'backbone "{backbone.name}" has its batch norms folded, the layout of transformers has them',
            'Use freeze = "stem" or "none".',
        )
    try:
        strides = timm_strides(backbone.name)
    except ValueError as error:
        raise MrtError(
            f'backbone "{backbone.name}" cannot be written for transformers: {error}', "Use a ResNet."
        ) from None
    levels = min(num_levels, len(backbone.channels))
    indices = [strides.index(stride) for stride in STRIDES[-levels:]]
    if indices == ([2, 3, 4] if num_levels > 1 else [4]):
        return {
            "use_timm_backbone": True,
            "use_pretrained_backbone": False,
            "backbone": backbone.name,
            "backbone_config": None,
        }
    described = {
        "model_type": "timm_backbone",
        "backbone": backbone.name,
        "num_channels": 3,
        "features_only": True,
        "out_indices": indices,
    }
    return {"backbone_config": {**described, "use_pretrained_backbone": False}}


def _their_state(detector: DeformableDETR) -> State:
    """The detector's tensors under the names of transformers; tied tensors are under each of their names."""
    trunk = Trunk(detector.backbone.name, len(detector.backbone.channels))
    state: State = {}
    for our, value in _with_norms(detector).items():
        value = value.detach().cpu().float()
        if "proposal_class_embed" in our:
            fill = UNUSED_BIAS if our.endswith("bias") else 0.0
            wide = value.new_full((detector.num_classes, *value.shape[1:]), fill)
            wide[:1] = value
            value = wide
        place = place_of(our, detector, trunk)
        for part, name in zip(value.chunk(len(place.parts)), place.parts, strict=True):
            state[name] = part.clone(memory_format=torch.contiguous_format)
        for name in place.copies:
            state[name] = value.clone(memory_format=torch.contiguous_format)
    return state


def _with_norms(detector: DeformableDETR) -> State:
    """The detector's state dict with its folded batch norms, which now only add their convolution's bias."""
    counter = "num_batches_tracked"
    state = {key: value for key, value in detector.state_dict().items() if not key.endswith(counter)}
    for entry in detector.backbone.folded:
        norm, bias = f"backbone.body.{entry.norm}.", state.pop(f"backbone.body.{entry.conv}.bias")
        state[f"{norm}weight"], state[f"{norm}bias"] = torch.ones_like(bias), bias
        state[f"{norm}running_mean"] = torch.zeros_like(bias)
        state[f"{norm}running_var"] = torch.full_like(bias, 1 - NORM_EPS)
    return state


def _their_processor(short_side: int, max_size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "DeformableDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": short_side, "longest_edge": max_size},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "do_convert_annotations": True,
        "do_pad": True,
    }


def _check_classes(classes: Sequence[str], count: int) -> None:
    if len(classes) != count:
        raise MrtError(
            f"{len(classes)} class names for a detector of {count} classes", "Give one name per class."
        )
    counts = Counter(classes).items()
    wrong = [name for name, times in counts if times > 1 or name == NO_CLASS or not name.strip()]
    if wrong:
        raise MrtError(
            f'class name "{wrong[0]}" cannot be written',
            f'Names must differ, and be neither empty nor "{NO_CLASS}".',
        )


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
