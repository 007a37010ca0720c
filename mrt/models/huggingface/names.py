"""The names of our tensors in Hugging Face's Deformable DETR, and its backbones, for reading and writing."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from torch import nn

from mrt.models.backbone import RESNETS
from mrt.models.detector import DeformableDETR

MODEL_TYPE = "deformable_detr"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
MULTIPLE = "mrt_size_multiple"  # in config.json, see :func:`mrt.models.huggingface.write_huggingface`
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in mrt.data.transforms
BILINEAR = 2  # Pillow's number
NORM_EPS = 1e-5  # of the frozen batch norms by which transformers replaces the batch norms of a backbone
GROUPS = 32  # of its group norms
MOST_WEIGHTS = 10**9  # of a backbone; the largest of timm's ResNets has 8 * 10^8
STRIDES = (8, 16, 32)  # of the maps that a detector may use
RESNET_STRIDES = (2, 4, 8, 16, 32)  # of a timm ResNet's maps: before the stem's pooling, after each stage
# Proposals of a sixth level would be larger than the image. Transformers leaves them out; here they are
# clipped.
LARGEST_PROPOSAL_LEVELS = 5
_BACKBONE = "model.backbone.conv_encoder.model."
_DECODER_ALIAS = "model.decoder."  # where the heads have second names
_AREAS = {
    "input_proj": "model.input_proj",
    "query_embed": "model.query_position_embeddings",
    "transformer": "model",
}
_ENCODER_LAYER = {
    "self_attn": "self_attn",
    "norm1": "self_attn_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm2": "final_layer_norm",
}
_DECODER_LAYER = {
    "self_attn": "self_attn",
    "norm2": "self_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "norm1": "encoder_attn_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm3": "final_layer_norm",
}
# What transformers 5 calls these in memory, for state dicts that were not written by save_pretrained.
_BACKBONE_IN_MEMORY = "model.backbone.model."
_LAYERS = ("model.encoder.layers.", "model.decoder.layers.")
_LAYER_IN_MEMORY = {".self_attn.o_proj.": ".self_attn.out_proj.", ".mlp.fc1.": ".fc1.", ".mlp.fc2.": ".fc2."}


@dataclass(frozen=True)
class Trunk:
    """A backbone as config.json describes it.

    Attributes:
        name: our name of it.
        levels: its number of maps.
        own_resnet: whether its keys are those of transformers' own ResNet.
    """

    name: str
    levels: int
    own_resnet: bool = False


@dataclass(frozen=True)
class Place:
    """Where one of our tensors is in a Hugging Face file.

    Attributes:
        parts: the names of its parts there, which are concatenated along the first axis: one, or three for
            the query, key and value projections.
        copies: other names that transformers has for a tensor of one part.
        accepted: names that transformers does not read but a file may contain; they are never written.
        instead: the tensor to which it is tied in a file that has none of these names.
    """

    parts: tuple[str, ...]
    copies: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    instead: str | None = None

    def names(self) -> tuple[str, ...]:
        return self.parts + self.copies + self.accepted


def timm_strides(name: str) -> tuple[int, ...]:
    """Strides of a timm model's maps.

    Raises:
        ValueError: there is no such model, or transformers would compute it differently, because it replaces
            each batch norm by a plain frozen one with an eps of its own, even if the batch norm includes an
            activation.
    """
    if name in RESNETS:
        return RESNET_STRIDES
    if not timm.is_model(name):
        raise ValueError("timm has no model of that name")
    if _is_too_large(name):
        raise ValueError("that model is too large to look for objects with")
    try:
        model = timm.create_model(name, features_only=True)
        strides = tuple(entry["reduction"] for entry in model.feature_info.info)
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError, AssertionError):
        raise ValueError("that model gives no feature maps") from None
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not all(type(norm) is nn.BatchNorm2d and norm.eps == NORM_EPS for norm in norms):
        raise ValueError(
            f"transformers replaces its batch norms by plain ones with eps {NORM_EPS:g}, "
            "which makes another network of it"
        )
    return strides


def _is_too_large(name: str) -> bool:
    """Whether a timm model has more weights than :data:`MOST_WEIGHTS`; it is made without memory for them."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm.create_model(name, features_only=True)
    except Exception:  # one that calculates with its numbers while it is made, or has no maps
        return False
    return sum(value.numel() for value in model.parameters()) > MOST_WEIGHTS


def canonical(key: str) -> str:
    """The name that a key has in files."""
    if key.startswith(_BACKBONE_IN_MEMORY):
        return _BACKBONE + key.removeprefix(_BACKBONE_IN_MEMORY)
    if key.startswith(_LAYERS):
        for memory, file in _LAYER_IN_MEMORY.items():
            key = key.replace(memory, file)
    return key


def place_of(our: str, detector: DeformableDETR, trunk: Trunk) -> Place:
    """Where our tensor is in a Hugging Face file."""
    area, _, rest = our.partition(".")
    if area == "backbone":
        name = rest.removeprefix("body.")
        return Place((_BACKBONE + (_own_resnet_name(name) if trunk.own_resnet else name),))
    if area.endswith(("class_embed", "bbox_embed")):
        return _head_place(area, rest, detector)
    for stack, layers in (("encoder.layers.", _ENCODER_LAYER), ("decoder.layers.", _DECODER_LAYER)):
        if rest.startswith(stack):
            number, module, rest = rest.removeprefix(stack).split(".", 2)
            theirs = f"model.{stack}{number}.{layers[module]}."
            if rest.startswith("in_proj_"):
                kind = rest.removeprefix("in_proj_")
                return Place(tuple(f"{theirs}{letter}_proj.{kind}" for letter in "qkv"))
            return Place((theirs + rest,))
    return Place((f"{_AREAS[area]}.{rest}",))


def _head_place(head: str, rest: str, detector: DeformableDETR) -> Place:
    """Where a tensor of a class or box head is.

    Heads are numbered by layer; those of the proposals come after the last layer's. Where the decoder itself
    uses them, each has a second name under the decoder.
    """
    layers = detector.arguments["num_decoder_layers"]
    theirs = head.removeprefix("proposal_")
    if head != theirs:
        names = [f"{theirs}.{layers}.{rest}"]
    elif detector.box_refine:
        names = [f"{theirs}.{rest}"]
    else:
        names = [f"{theirs}.{layer}.{rest}" for layer in range(layers)]
    second = [_DECODER_ALIAS + name for name in names]
    if detector.two_stage or (detector.box_refine and theirs == "bbox_embed"):
        return Place((names[0],), copies=(*names[1:], *second))
    # With refinement, transformers 5 ties the heads of the layers unless the file has different ones.
    instead = f"{theirs}.0.{rest.partition('.')[2]}" if detector.box_refine else None
    return Place((names[0],), copies=tuple(names[1:]), accepted=tuple(second), instead=instead)


def _own_resnet_name(name: str) -> str:
    """The name of a tensor of torchvision's ResNet in transformers' own ResNet."""
    parts = name.split(".")
    if len(parts) == 2:  # the stem
        return f"embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{parts[1]}"
    stage, block, module = int(parts[0].removeprefix("layer")) - 1, parts[1], parts[2]
    prefix = f"encoder.stages.{stage}.layers.{block}."
    if module == "downsample":
        return f"{prefix}shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
    kind = "convolution" if module.startswith("conv") else "normalization"
    return f"{prefix}layer.{int(module[-1]) - 1}.{kind}.{parts[3]}"
