"""What Hugging Face's Deformable DETR calls our tensors, and what both sides of reading and writing know of its backbones."""

from __future__ import annotations

from dataclasses import dataclass

import timm
from torch import nn

from mrt.models.backbone import RESNETS
from mrt.models.detector import DeformableDETR

MODEL_TYPE = "deformable_detr"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as mrt.data.transforms normalises
BILINEAR = 2  # Pillow's number
NORM_EPS = 1e-5  # of the frozen batch norm that transformers puts in place of each of a backbone's
GROUPS = 32  # of its group norms
STRIDES = (8, 16, 32)  # of the maps that a detector may use
RESNET_STRIDES = (2, 4, 8, 16, 32)  # of all maps of a ResNet in timm: before the stem's pooling, after each stage
LARGEST_PROPOSAL_LEVELS = 5  # a sixth level's proposals would be larger than the image: there they are left out, here they are cut
_BACKBONE = "model.backbone.conv_encoder.model."
_DECODER_ALIAS = "model.decoder."  # where the heads have second names
_AREAS = {"input_proj": "model.input_proj", "query_embed": "model.query_position_embeddings", "transformer": "model"}
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
    """A backbone as config.json describes it: our name, its number of maps, and whether its keys are those of transformers' own ResNet."""

    name: str
    levels: int
    own_resnet: bool = False


@dataclass(frozen=True)
class Place:
    """Where one of our tensors is in a Hugging Face file.

    Attributes:
        parts: its names there, joined along the first axis: one, or three for the query, key and value projections.
        copies: other names of a tensor of one part, which transformers knows, too.
        accepted: names that transformers does not read but a file may hold; never written.
        instead: what it is tied to in a file that has none of these names.
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
        ValueError: no such model, or one that transformers would compute otherwise: it puts a plain frozen batch norm of its own eps in
            place of each batch norm, also of those that hold an activation.
    """
    if name in RESNETS:
        return RESNET_STRIDES
    if not timm.is_model(name):
        raise ValueError("timm has no model of that name")
    try:
        model = timm.create_model(name, features_only=True)
        strides = tuple(entry["reduction"] for entry in model.feature_info.info)
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError, AssertionError):
        raise ValueError("that model gives no feature maps") from None
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not all(type(norm) is nn.BatchNorm2d and norm.eps == NORM_EPS for norm in norms):
        raise ValueError(f"transformers replaces its batch norms by plain ones with eps {NORM_EPS:g}, which makes another network of it")
    return strides


def canonical(key: str) -> str:
    """A key as files have it."""
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
                return Place(tuple(f"{theirs}{letter}_proj.{rest.removeprefix('in_proj_')}" for letter in "qkv"))
            return Place((theirs + rest,))
    return Place((f"{_AREAS[area]}.{rest}",))


def _head_place(head: str, rest: str, detector: DeformableDETR) -> Place:
    """A head's names: by layer, the proposals' after the last layer's, and all again under the decoder where that uses them itself."""
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
    instead = f"{theirs}.0.{rest.partition('.')[2]}" if detector.box_refine else None  # transformers 5 ties these unless files differ
    return Place((names[0],), copies=tuple(names[1:]), accepted=tuple(second), instead=instead)


def _own_resnet_name(name: str) -> str:
    """A tensor of torchvision's ResNet under the names of transformers' own."""
    parts = name.split(".")
    if len(parts) == 2:  # the stem
        return f"embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{parts[1]}"
    stage, block, module = int(parts[0].removeprefix("layer")) - 1, parts[1], parts[2]
    prefix = f"encoder.stages.{stage}.layers.{block}."
    if module == "downsample":
        return f"{prefix}shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
    kind = "convolution" if module.startswith("conv") else "normalization"
    return f"{prefix}layer.{int(module[-1]) - 1}.{kind}.{parts[3]}"
