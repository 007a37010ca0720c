"""Read folders of Hugging Face's ``DeformableDetrForObjectDetection``: the description, then the tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrt.errors import MrtError
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.huggingface.names import (
    BILINEAR,
    CONFIG,
    GROUPS,
    IMAGE_MEAN,
    IMAGE_STD,
    LARGEST_PROPOSAL_LEVELS,
    MODEL_TYPE,
    MULTIPLE,
    PROCESSOR,
    STRIDES,
    WEIGHTS,
    Trunk,
    canonical,
    place_of,
    timm_strides,
)
from mrt.models.pretrained import State, read_state
from mrt.models.published import NO_CLASS
from mrt.models.sealed import is_name, shown
from mrt.models.transformer import PROPOSAL_CHANNELS
from mrt.models.weights_header import MOST_PIXELS

PROCESSORS = ("DeformableDetr", "ConditionalDetr", "Detr")  # prefixes of image processors that do the same
SHORT_SIDE, MAX_SIZE = 800, 1333  # where the folder does not give any
MOST, MOST_LAYERS = 2**17, 200  # no size in config.json is larger, and no stack of layers has more
OWN_RESNET_STRIDES = (4, 4, 8, 16, 32)  # of transformers' own ResNet, whose stem includes the pooling
_OTHER_NETWORK = "The detector here has no counterpart for that; use the model with transformers."
_AGAIN = "Download the folder again, or save the model again with transformers' save_pretrained."
# Fields of config.json that change the network, and the only value (their default) that is supported here.
_ONLY = {
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "dilation": False,
    "num_channels": 3,
    "quantization_config": None,
}
# Hugging Face's own ResNets by what describes them: layer type, depths, hidden sizes.
_OWN_RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    "resnet101": ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
}


@dataclass(frozen=True)
class HuggingFaceModel:
    """A folder's description of its detector.

    Attributes:
        classes: names in the order of our labels: the columns that name a class.
        backbone: name for :func:`mrt.models.backbone.build_backbone`.
        arguments: all arguments of :class:`DeformableDETR` except the backbone.
        short_side, max_size: the size that images are scaled to.
        size_multiple: to a multiple of which both sides are rounded then; 1 unless mrt wrote the folder.
    """

    classes: list[str]
    backbone: str
    arguments: dict[str, Any]
    short_side: int
    max_size: int
    size_multiple: int = 1


@dataclass(frozen=True)
class _Description:
    """Everything that is read from a folder before its weights.

    Attributes:
        about: the part that callers get.
        trunk: the backbone.
        labels: names of all class columns.
        tied: whether transformers ties tensors that the file lacks to others.
    """

    about: HuggingFaceModel
    trunk: Trunk
    labels: list[str]
    tied: bool


def is_huggingface(path: Path) -> bool:
    """Whether a path is a folder with a Hugging Face Deformable DETR. Checks no weights and never raises."""
    try:
        config = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def describe_huggingface(folder: Path) -> HuggingFaceModel:
    """A folder's description of its detector, without reading the weights.

    Raises:
        MrtError: see :func:`load_huggingface`.
    """
    return _describe(Path(folder)).about


def load_huggingface(folder: Path) -> tuple[DeformableDETR, HuggingFaceModel]:
    """Rebuild the detector of a folder, in evaluation mode.

    Class columns named "N/A" (COCO's unused ids) are dropped. If columns share a name, the later ones become
    "name 2", "name 3". Of the proposal head of a two-stage model only column 0 is kept; transformers and the
    official code use no other. Weights become float32. Stem and layer1 of the backbone are frozen, as in
    transformers. Dropout is the config's ``dropout``, here also inside attention and feed-forward network, as
    in the official code; it has no effect in evaluation.

    Two-stage candidates that are padding or reach beyond the image are never chosen here. Transformers, like
    the official code, gives them the score of an empty cell. Where that score is among the ``num_queries``
    best, the two choose different queries.

    Raises:
        MrtError: there is no such folder; one of its files is truncated, is no JSON or holds code; the config
            has an option that does not exist here; or weights are missing, unknown, not finite, of another
            shape, or different where they must be equal.
    """
    folder = Path(folder)
    described = _describe(folder)
    state = _read_weights(folder)
    values = None
    if (empty := _without_memory(described)) is not None:  # what the file cannot fill is never made
        values = _our_state(empty, described, state, folder)
    backbone = build_backbone(described.trunk.name, weights="checkpoint", levels=described.trunk.levels)
    detector = DeformableDETR(backbone, **described.about.arguments)
    detector.load_state_dict(values or _our_state(detector, described, state, folder))
    return detector.eval(), described.about


def _without_memory(described: _Description) -> DeformableDETR | None:
    """The described detector with shapes but no numbers; None if its backbone cannot be made so.

    The norms of its backbone are not frozen, which makes no difference to the shapes.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            trunk = described.trunk
            backbone = build_backbone(trunk.name, weights="none", levels=trunk.levels)
            return DeformableDETR(backbone, **described.about.arguments)
        except MrtError:
            raise
        except Exception:  # a timm model that calculates with its numbers while it is made
            return None


class _Fields:
    """A JSON object that is read field by field; errors name the file, the field and its value."""

    def __init__(self, values: dict[str, Any], path: Path, inside: str = "") -> None:
        self.values, self.path, self.inside = values, path, inside

    def error(self, name: str, why: str, hint: str = _OTHER_NETWORK) -> MrtError:
        value = shown(self.values[name]) if self.values.get(name) is not None else "not there"
        if name in self.values and self.values[name] is None:
            value = "null"
        return MrtError(f"{self.path}: {self.inside}{name} is {value}; {why}", hint)

    def get(self, name: str, default: Any) -> Any:
        """The field's value; the default where it is missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    def only(self, name: str, wanted: Any) -> None:
        if self.get(name, wanted) != wanted:
            raise self.error(name, f"only {json.dumps(wanted)} can be read")

    def count(self, name: str, default: int, least: int = 1, most: int = MOST) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(name, f"it must be a whole number, at least {least}", _AGAIN)
        if value > most:
            raise self.error(name, f"it must be {most} or less", _AGAIN)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "it must be true or false", _AGAIN)
        return value


def _describe(folder: Path) -> _Description:
    path = folder / CONFIG
    config = _Fields(_read_json(path), path)
    if config.get("model_type", None) != MODEL_TYPE:
        raise config.error("model_type", f'only "{MODEL_TYPE}" can be read')
    for name, wanted in _ONLY.items():
        config.only(name, wanted)
    heads = config.count("encoder_attention_heads", 8)
    points = config.count("encoder_n_points", 4)
    feedforward = config.count("encoder_ffn_dim", 1024)
    for name, default, wanted in (
        ("attention_heads", 8, heads),
        ("n_points", 4, points),
        ("ffn_dim", 1024, feedforward),
    ):
        if config.count(f"decoder_{name}", default) != wanted:
            raise config.error(f"decoder_{name}", f"only {wanted}, as encoder_{name}, can be read")
    width, levels = config.count("d_model", 256), config.count("num_feature_levels", 4, most=16)
    refine, two_stage = config.flag("with_box_refine", False), config.flag("two_stage", False)
    if width % GROUPS or width % heads:
        raise config.error("d_model", f"it must be a multiple of {GROUPS} and of the {heads} heads", _AGAIN)
    if two_stage:
        if not refine:
            raise config.error("two_stage", "that needs with_box_refine, which is false", _AGAIN)
        if width != 2 * PROPOSAL_CHANNELS:
            raise config.error("d_model", f"with two_stage only {2 * PROPOSAL_CHANNELS} can be read")
        if levels > LARGEST_PROPOSAL_LEVELS:
            limit = f"with two_stage only {LARGEST_PROPOSAL_LEVELS} or fewer can be read"
            raise config.error("num_feature_levels", limit)
    dropout = config.get("dropout", 0.1)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise config.error("dropout", "it must be a number from 0 to below 1", _AGAIN)
    trunk = _trunk_of(config, levels)
    labels = _labels(config)
    classes = _class_names(labels)
    if not classes:
        raise config.error("id2label", "it names no class", _AGAIN)
    arguments = {
        "num_classes": len(classes),
        "hidden_dim": width,
        "num_heads": heads,
        "num_encoder_layers": config.count("encoder_layers", 6, least=0, most=MOST_LAYERS),
        "num_decoder_layers": config.count("decoder_layers", 6, most=MOST_LAYERS),
        "feedforward_dim": feedforward,
        "num_levels": levels,
        "num_points": points,
        "num_queries": config.count("two_stage_num_proposals" if two_stage else "num_queries", 300),
        "dropout": float(dropout),
        "box_refine": refine,
        "two_stage": two_stage,
        "proposal_content": "position",
        "query_init": "learned",
    }
    short_side, max_size = _read_processor(folder / PROCESSOR)
    multiple = config.count(MULTIPLE, 1, most=MOST_PIXELS)
    about = HuggingFaceModel(classes, trunk.name, arguments, short_side, max_size, multiple)
    return _Description(about, trunk, labels, tied=config.flag("tie_word_embeddings", True))


def _trunk_of(config: _Fields, num_levels: int) -> Trunk:
    """The backbone.

    It is described by ``backbone_config`` (transformers 5, and 4 with its own ResNet) or ``backbone`` (4 with
    timm).
    """
    described = config.values.get("backbone_config")
    if described is None:
        if not config.flag("use_timm_backbone", True):
            raise config.error(
                "backbone",
                "that describes the network in another repository",
                "Save the model again with transformers 5, which writes the description into config.json "
                "(backbone_config).",
            )
        options = config.get("backbone_kwargs", {})
        if not isinstance(options, dict):
            raise config.error("backbone_kwargs", "it must be an object", _AGAIN)
        inside = _Fields(options, config.path, "backbone_kwargs.")
        for name in options:
            if name not in ("in_chans", "out_indices", "output_stride"):
                raise inside.error(name, "only in_chans, out_indices and output_stride can be read")
        inside.only("in_chans", 3)
        inside.only("output_stride", 32)
        indices = inside.get("out_indices", [2, 3, 4] if num_levels > 1 else [4])
        trunk = _timm_trunk(config.get("backbone", "resnet50"), indices, config, inside)
    elif not isinstance(described, dict):
        raise config.error("backbone_config", "it must be an object", _AGAIN)
    else:
        inside = _Fields(described, config.path, "backbone_config.")
        inside.only("num_channels", 3)
        kind = described.get("model_type")
        if kind == "resnet":
            trunk = _own_resnet(inside)
        elif kind == "timm_backbone":
            inside.only("features_only", True)
            inside.only("output_stride", 32)
            trunk = _timm_trunk(described.get("backbone"), inside.get("out_indices", [-1]), inside, inside)
        else:
            raise inside.error("model_type", 'only "timm_backbone" and "resnet" can be read')
    if trunk.levels > num_levels:
        raise config.error("num_feature_levels", f"the backbone gives {trunk.levels} maps", _AGAIN)
    return trunk


def _timm_trunk(name: Any, indices: Any, named: _Fields, indexed: _Fields) -> Trunk:
    """A timm model; ``named`` and ``indexed`` hold the fields of its name and of the indices of its maps."""
    if not isinstance(name, str):
        raise named.error("backbone", "it must be the name of a timm model", _AGAIN)
    arch = name.partition(".")[0]  # the part after the point names one of its pretrained weights
    try:
        strides = timm_strides(arch)
    except ValueError as error:
        raise named.error("backbone", str(error)) from None
    return Trunk(arch, _levels(indices, strides, indexed))


def _own_resnet(config: _Fields) -> Trunk:
    """One of transformers' own ResNets that is a torchvision ResNet with other names."""
    config.only("hidden_act", "relu")
    config.only("downsample_in_first_stage", False)
    config.only("downsample_in_bottleneck", False)
    config.only("embedding_size", 64)
    fields = zip(("layer_type", "depths", "hidden_sizes"), _OWN_RESNETS["resnet50"], strict=True)
    found = tuple(config.get(name, default) for name, default in fields)
    arch = next((name for name, sizes in _OWN_RESNETS.items() if sizes == found), None)
    if arch is None:
        raise MrtError(
            f"{config.path}: backbone_config has layer_type {found[0]}, depths {found[1]}, "
            f"hidden_sizes {found[2]}; only those of {', '.join(_OWN_RESNETS)} can be read",
            _OTHER_NETWORK,
        )
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    features = config.get("out_features", None)
    if features is None:
        indices = config.get("out_indices", [4])
    elif isinstance(features, list) and all(feature in stages for feature in features):
        indices = [stages.index(feature) for feature in features]
    else:
        raise config.error("out_features", f"it must name some of {', '.join(stages)}", _AGAIN)
    return Trunk(arch, _levels(indices, OWN_RESNET_STRIDES, config), own_resnet=True)


def _levels(indices: Any, strides: Sequence[int], config: _Fields) -> int:
    """How many maps of strides 8, 16, 32 the indices choose. They must be the last ones."""
    if not isinstance(indices, list) or not all(
        isinstance(index, int) and -len(strides) <= index < len(strides) for index in indices
    ):
        raise config.error("out_indices", f"it must be a list of numbers below {len(strides)}", _AGAIN)
    chosen = [strides[index] for index in indices]
    if not chosen or chosen != list(STRIDES[-len(chosen) :]):
        raise config.error(
            "out_indices",
            f"those are maps of strides {chosen}; only the last ones of strides 8, 16, 32 can be read",
        )
    return len(chosen)


def _labels(config: _Fields) -> list[str]:
    """The name of each class column."""
    labels = config.values.get("id2label")
    if labels is None:
        return [f"LABEL_{column}" for column in range(config.count("num_labels", 2))]
    if not isinstance(labels, dict) or not all(map(is_name, labels.values())):
        raise config.error("id2label", "it must map numbers to names", _AGAIN)
    columns = [str(column) for column in range(len(labels))]
    if set(columns) != set(labels):
        raise config.error("id2label", f"its keys must be 0 to {len(labels) - 1}", _AGAIN)
    return [labels[column] for column in columns]


def _class_names(labels: Sequence[str]) -> list[str]:
    """The labels that name a class, made unique."""
    names: dict[str, None] = {}
    last: dict[str, int] = {}  # the highest number that a label has got
    taken = set(labels)
    for label in labels:
        if label == NO_CLASS:
            continue
        name, number = label, last.get(label, 1)
        while name in names or (number > 1 and name in taken):
            number += 1
            name = f"{label} {number}"
        names[name], last[label] = None, number
    return list(names)


def _read_processor(path: Path) -> tuple[int, int]:
    """Short side and longest side to which images are scaled; other preprocessing must be as it is here."""
    if not path.exists():
        return SHORT_SIDE, MAX_SIZE
    values = _Fields(_read_json(path), path)
    for field in ("image_processor_type", "feature_extractor_type"):
        kind = values.get(field, None)
        if kind is not None and not str(kind).startswith(PROCESSORS):
            raise values.error(field, "what that does to images is not known here")
    for field in ("do_resize", "do_rescale", "do_normalize"):
        values.only(field, True)
    values.only("do_center_crop", False)
    values.only("resample", BILINEAR)
    for field, wanted in (
        ("rescale_factor", (1 / 255,)),
        ("image_mean", IMAGE_MEAN),
        ("image_std", IMAGE_STD),
    ):
        found = values.get(field, list(wanted))
        numbers = found if isinstance(found, list) else [found]
        if len(numbers) != len(wanted) or not all(
            isinstance(number, (int, float)) and abs(number) < 1 and math.isclose(number, right, rel_tol=1e-6)
            for number, right in zip(numbers, wanted, strict=True)
        ):
            raise values.error(field, f"only {wanted[0] if len(wanted) == 1 else list(wanted)} can be read")
    size = values.get("size", {"shortest_edge": SHORT_SIDE, "longest_edge": MAX_SIZE})
    if isinstance(size, int) and not isinstance(size, bool):  # as transformers wrote it before 4.26
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", MAX_SIZE)}
    edges = {"shortest_edge", "longest_edge"}
    if not isinstance(size, dict) or {key for key, side in size.items() if side is not None} != edges:
        raise values.error("size", "only a shortest_edge with a longest_edge can be read")
    sides = _Fields(size, path, "size.")
    return tuple(sides.count(name, 0, most=MOST_PIXELS) for name in ("shortest_edge", "longest_edge"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MrtError(
            f"{path}: no such file",
            "Name the folder of a Hugging Face Deformable DETR: config.json and weights.",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise MrtError(f"{path} is no JSON file: {reason}", _AGAIN) from error
    if not isinstance(content, dict):
        raise MrtError(f"{path} holds no JSON object", _AGAIN)
    return content


def _read_weights(folder: Path) -> State:
    """All tensors of a folder, from the first kind of file in it that transformers looks for."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, f"{name}.index.json")
    raise MrtError(
        f"{folder} has no weights",
        f"It needs {' or '.join(WEIGHTS)}, whole or in shards. Download the folder again.",
    )


def _read_shards(folder: Path, index: str) -> State:
    files = _read_json(folder / index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise MrtError(f"{folder / index}: weight_map must map names to files of the folder", _AGAIN)
    state: State = {}
    for name in sorted(set(files.values())):
        shard = _read_file(folder / name)
        for key in [key for key, file in files.items() if file == name]:
            if key not in shard:
                raise MrtError(f"{folder / name} lacks {key}, which {index} says it has", _AGAIN)
        for key in shard:
            if files.get(key) != name:
                raise MrtError(f"{folder / name} has {key}, which {index} does not say", _AGAIN)
        state.update(shard)
    return state


def _read_file(path: Path) -> State:
    if path.is_file() and path.stat().st_size < 1000 and b"git-lfs" in path.read_bytes():
        raise MrtError(
            f"{path} only points to the weights (Git LFS)",
            "Run git lfs pull in the folder, or download the file.",
        )
    return read_state(path)


def _our_state(detector: DeformableDETR, described: _Description, state: State, folder: Path) -> State:
    """The detector's state dict, made of a file's tensors, each of which must have a place in it."""
    named: dict[str, str] = {}  # canonical name -> the file's
    for key in state:
        if (name := canonical(key)) in named:
            _expect_equal(state, named[name], key, folder)
        named.setdefault(name, key)
    columns = [column for column, label in enumerate(described.labels) if label != NO_CLASS]
    values: State = {}
    known: set[str] = set()
    missing: list[str] = []
    for our, wanted in detector.state_dict().items():
        if our.endswith("num_batches_tracked"):  # only norms that are not frozen have one
            continue
        place = place_of(our, detector, described.trunk)
        known.update(place.names())
        found = [named[name] for name in place.names() if name in named]
        if not found and described.tied and place.instead in named:
            found = [named[place.instead]]
        if len(found) < len(place.parts):
            missing += [name for name in place.parts if name not in named]
            continue
        rows = len(described.labels) if "class_embed" in our else len(wanted) // len(place.parts)
        for key in found:
            _expect_shape(state, key, (rows, *wanted.shape[1:]), folder)
        if len(place.parts) > 1:
            value = torch.cat([state[key] for key in found])
        else:
            value = state[found[0]]
            for key in found[1:]:
                _expect_equal(state, found[0], key, folder)
        if "class_embed" in our:
            value = value[:1] if our.startswith("proposal") else value[columns]
        values[our] = value.to(wanted.dtype)
    # Older files have the number of batches that a norm has seen; frozen norms do not need it.
    means = [name for name in known if name.endswith("running_mean")]
    known |= {name.replace("running_mean", "num_batches_tracked") for name in means}
    unknown = [key for name, key in named.items() if name not in known]
    if missing or unknown:
        kinds = (("they lack", missing), ("they have, without a place,", unknown))
        lists = [f"{kind} {_first(keys)}" for kind, keys in kinds if keys]
        raise MrtError(
            f"{folder}: the weights are not those that {CONFIG} describes: {'; '.join(lists)}", _AGAIN
        )
    return values


def _first(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _expect_shape(state: State, key: str, wanted: tuple[int, ...], folder: Path) -> None:
    found = state[key]
    if tuple(found.shape) != wanted or not found.is_floating_point():
        kind = f"{tuple(found.shape)}, {str(found.dtype).removeprefix('torch.')}"
        raise MrtError(f"{folder}: {key} is {kind}; {CONFIG} asks for {wanted}, float", _AGAIN)


def _expect_equal(state: State, first: str, second: str, folder: Path) -> None:
    a, b = state[first], state[second]
    if a.dtype != b.dtype or not torch.equal(a, b):
        raise MrtError(
            f"{folder}: {first} and {second} differ, where {CONFIG} makes them one tensor",
            "Without with_box_refine all layers share one head here; "
            "with it a head and its second name must be equal.",
        )
