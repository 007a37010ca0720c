"""Reading and writing checkpoints with the names of published MRT and of official Deformable DETR.

An explicit map of names assigns each tensor. Tensors without a place are listed in the report, never silently
dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.models.detector import DeformableDETR
from mrt.models.discriminators import Discriminators
from mrt.models.folding import fold_state
from mrt.models.mae import MaskedAutoencoder
from mrt.models.pretrained import State, read_state, require_finite

# Category ids 1..8 of the published checkpoints; their column 0 is unused.
PUBLISHED_CLASSES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
# The order of our models' classes.
CITYSCAPES_ORDER = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
COCO_COLUMNS = 91
MOST_ROWS = 100_000  # class columns, and queries, of a checkpoint
NO_CLASS = "N/A"  # what torchvision calls COCO's unused category ids

# (published prefix, our prefix): the first that matches is used, in both directions. Class and box heads are
# handled by code further below.
_COMMON = (
    ("transformer.mae_decoder.query_embed_list.0.", "mae.query_embed."),
    ("transformer.mae_decoder.output_proj.0.", "mae.output_proj."),
    ("transformer.mae_decoder.", "mae."),
    ("domain_pred_bac.", "discriminators.backbone."),
    ("domain_pred_enc.", "discriminators.encoder."),
    ("domain_pred_dec.", "discriminators.decoder."),
    ("input_proj.", "detector.input_proj."),
    ("query_embed.", "detector.query_embed."),
    ("transformer.", "detector.transformer."),
)
_LAYOUTS = {
    "mrt": (("backbone.intermediate_getter.", "detector.backbone.body."), *_COMMON),
    "deformable-detr": (("backbone.0.body.", "detector.backbone.body."), *_COMMON),
}
# Second names of the heads in official files.
_ALIASES = ("transformer.decoder.class_embed.", "transformer.decoder.bbox_embed.")


@dataclass
class LoadReport:
    """What happened to each key of a checkpoint.

    Attributes:
        layout: "mrt" or "deformable-detr".
        loaded: our names that received values. missing: our names that did not and keep their initial values.
        unexpected: the checkpoint's keys that have no place here.
        reshaped: checkpoint key -> how its class columns were rearranged.
        mismatched: checkpoint key -> the two shapes that differ; such a key is not loaded, and its name is in
            ``missing``.
        new_classes: the model's classes that the checkpoint does not have; their columns keep their initial
            values.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor of checkpoint and model was used."""
        return not (self.missing or self.unexpected or self.mismatched or self.new_classes)

    def __str__(self) -> str:
        lines = [f"{self.layout} checkpoint: {len(self.loaded)} tensors loaded"]
        for name in ("missing", "unexpected", "new_classes"):
            lines += [f"  {name}: {key}" for key in getattr(self, name)]
        for name in ("reshaped", "mismatched"):
            lines += [f"  {name}: {key} {how}" for key, how in getattr(self, name).items()]
        return "\n".join(lines)


def load_published(
    detector: DeformableDETR,
    source: Path | State,
    *,
    classes: Sequence[str] | None = None,
    checkpoint_classes: Sequence[str | None] | None = None,
    mae: MaskedAutoencoder | None = None,
    discriminators: Discriminators | None = None,
) -> LoadReport:
    """Load a published MRT checkpoint or an official Deformable DETR one, in place.

    Args:
        detector: receives the weights; build its backbone with ``weights="checkpoint"``.
        source: file, or its state dict.
        classes: the model's class names, by which class columns are assigned; ``None``: by position.
        checkpoint_classes: names of the checkpoint's columns 1, 2, ...; ``None``: the published list (9
            columns) or COCO's (91 columns). Column 0 is no class. It is dropped, except in the proposals of a
            two-stage detector, where it is the only column used.
        mae, discriminators: receive their part of a checkpoint from the teaching stage; without them, such
            keys are reported as unexpected.

    Raises:
        MrtError: the file is of neither kind, a weight is not finite, its class heads differ in size, or its
            layers have different heads where the detector's share one.
    """
    state = dict(source) if isinstance(source, dict) else read_state(source)
    what = "the checkpoint" if isinstance(source, dict) else str(source)
    require_finite(state, what)
    _check_heads(state, what)
    report = LoadReport(layout := _layout(state, what))
    modules = _modules(detector, mae, discriminators)
    target: State = {}
    for part, module in modules.items():
        target |= {f"{part}.{key}": value for key, value in module.state_dict().items()}
    placed = {key: our for key in state if (our := _place(key, detector, _LAYOUTS[layout])) is not None}
    values: dict[str, Tensor] = {}
    for key, our in placed.items():
        if our in values and not torch.equal(values[our], state[key]):
            raise MrtError(
                f"{what}: {key} differs from the other layers' head",
                "It was trained with box refinement: set box_refine = true.",
            )
        values.setdefault(our, state[key])
    if detector.backbone.folded:
        values = fold_state(values, detector.backbone.folded, "detector.backbone.body.")
    columns = _columns(detector, values, classes, checkpoint_classes, report, what)
    new_state = {}
    for our, value in values.items():
        key = next((key for key, name in placed.items() if name == our), our)
        if our not in target:
            continue
        if "class_embed" in our and value.dim() and value.shape[1:] == target[our].shape[1:]:
            before = tuple(value.shape)
            value = value[:1] if "proposal" in our else _pick_columns(value, target[our], columns)
            report.reshaped[key] = f"{before} -> {tuple(value.shape)}"
        if value.shape != target[our].shape:
            report.mismatched[key] = f"{tuple(value.shape)}, the model's is {tuple(target[our].shape)}"
        else:
            new_state[our] = value
    report.loaded = sorted(new_state)
    counter = "num_batches_tracked"  # only norms that are not frozen have one
    report.missing = [our for our in target if our not in new_state and not our.endswith(counter)]
    for key in state:
        used = placed.get(key) in target or _folded_away(placed.get(key), detector)
        if not used and not key.endswith(counter):
            report.unexpected.append(key)
    for part, module in modules.items():
        prefix = f"{part}."
        own = {our.removeprefix(prefix): value for our, value in new_state.items() if our.startswith(prefix)}
        module.load_state_dict(own, strict=False)
    return report


@dataclass(frozen=True)
class Published:
    """The detector that a checkpoint is for.

    Attributes:
        classes: the detector's class names: those of ``columns`` that name a class, and for the published
            eight classes Cityscapes' order.
        columns: names of the class columns 1, 2, ...: the published list (9 columns), COCO's (91 columns),
            else "class 1", ...
        arguments: ``num_queries``, ``box_refine`` and ``two_stage`` for :class:`DeformableDETR`.
    """

    classes: list[str]
    columns: list[str]
    arguments: dict[str, Any]


def describe_published(path: Path) -> Published:
    """Describe the detector of a published MRT or official Deformable DETR checkpoint.

    Raises:
        MrtError: the file is neither, or has no class heads.
    """
    state = read_state(path)
    _layout(state, str(path))
    _check_heads(state, str(path))
    head = state.get("class_embed.0.bias")
    if head is None or len(head) < 2:
        raise MrtError(
            f"{path} has no class heads (class_embed.0.bias)", "Give a whole detector's checkpoint."
        )
    queries = state.get("query_embed.weight")
    for name, value, dimensions in (("class_embed.0.bias", head, 1), ("query_embed.weight", queries, 2)):
        if value is not None and not (value.dim() == dimensions and 0 < len(value) <= MOST_ROWS):
            raise MrtError(
                f"{path}: {name} is of shape {tuple(value.shape)}, which no published detector has",
                "Get the file again.",
            )
    columns = list(_columns_of(len(head)) or (f"class {column}" for column in range(1, len(head))))
    ours = [name for name in columns if name != NO_CLASS]
    if set(columns) == set(CITYSCAPES_ORDER):
        ours = list(CITYSCAPES_ORDER)
    # Without box refinement the layers share their heads, and the file holds each under the name of every
    # layer.
    heads = ("bbox_embed.1.", "class_embed.1.")
    second = {key: value for key, value in state.items() if key.startswith(heads)}
    refine = any(
        not torch.equal(value, state.get(key.replace(".1.", ".0.", 1), value))
        for key, value in second.items()
    )
    arguments: dict[str, Any] = {"box_refine": refine, "two_stage": "transformer.enc_output.weight" in state}
    if "query_embed.weight" in state:
        arguments["num_queries"] = len(state["query_embed.weight"])
    return Published(ours, columns, arguments)


def _check_heads(state: State, what: str) -> None:
    """MrtError if the class heads of the layers have different numbers of columns."""
    heads = {
        key: value for key, value in state.items() if re.fullmatch(r"class_embed\.\d+\.(weight|bias)", key)
    }
    for key, value in heads.items():
        first = next(iter(heads))
        if not value.dim() or value.shape[0] != heads[first].shape[0]:
            raise MrtError(
                f"{what}: {key} is of shape {tuple(value.shape)}, {first} of {tuple(heads[first].shape)}: "
                "class heads of one detector have the same columns",
                "Get the file again.",
            )


def is_published(path: Path) -> bool:
    """Whether a file's tensors have the names of published MRT or official Deformable DETR.

    False for a file that cannot be read.
    """
    try:
        return _layout_of(read_state(path)) is not None
    except MrtError:
        return False


def _layout_of(state: State) -> str | None:
    for name, rules in _LAYOUTS.items():
        if any(key.startswith(rules[0][0]) for key in state):
            return name
    return None


def _layout(state: State, what: str) -> str:
    layout = _layout_of(state)
    if layout is None:
        if any(key.startswith("model.backbone.") for key in state):
            raise MrtError(
                f"{what} holds the weights of a Hugging Face model without its description",
                "Name the folder that holds both this file and its config.json.",
            )
        if "fc.weight" in state or "classifier.weight" in state:
            raise MrtError(
                f"{what} holds an image classifier, not a detector",
                f"To start a backbone from it: --set model.weights={what}",
            )
        raise MrtError(
            f"{what} is neither a published MRT nor a Deformable DETR checkpoint: its {len(state)} tensors "
            f"are named {', '.join(list(state)[:3])}, ...",
            "Known are: files of mrt (.safetensors), published MRT and official Deformable DETR checkpoints, "
            "and Hugging Face folders.",
        )
    return layout


def _columns_of(width: int) -> tuple[str, ...] | None:
    """Names of the columns 1, 2, ... of class heads of that width, None if no list is known."""
    coco = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {len(PUBLISHED_CLASSES) + 1: PUBLISHED_CLASSES, COCO_COLUMNS: tuple(coco[1:])}.get(width)


def published_state(
    detector: DeformableDETR,
    *,
    classes: Sequence[str] | None = None,
    checkpoint_classes: Sequence[str | None] = PUBLISHED_CLASSES,
    mae: MaskedAutoencoder | None = None,
    discriminators: Discriminators | None = None,
) -> State:
    """Our weights in the published MRT layout: the inverse of :func:`load_published`.

    Class column 0, and columns of classes that the model does not have, get zero weights and the prior's
    bias.

    Args:
        detector: its weights are written.
        classes: the model's class names; ``None``: written by position to columns 1, 2, ...
        checkpoint_classes: names of columns 1, 2, ... in the file.
        mae, discriminators: written, too, if given.

    Raises:
        MrtError: the model has something that the layout cannot express (a folded backbone, grid queries, a
            class without a column).
    """
    if detector.backbone.folded:
        raise MrtError(
            "the backbone's batch norm is folded, the published layout has it",
            'Build the backbone with freeze = "stem".',
        )
    if mae is not None and mae.statistics is not None:
        raise MrtError(
            "the published layout has no normalised autoencoder",
            "Leave the branch out: mae=None.",
        )
    if detector.arguments["query_init"] == "grid" and not detector.two_stage:
        raise MrtError(
            "the published layout cannot hold grid reference points", 'Use query_init = "learned".'
        )
    names = list(checkpoint_classes) if classes is None else list(classes)
    lost = [name for name in names[: detector.num_classes] if name not in checkpoint_classes]
    if lost or len(names) < detector.num_classes:
        raise MrtError(
            f"classes {lost or names} have no column of their own in the published layout",
            "Give checkpoint_classes that name them.",
        )
    columns = [1 + list(checkpoint_classes).index(name) for name in names[: detector.num_classes]]
    prior = math.log(detector.arguments["class_prior"] / (1 - detector.arguments["class_prior"]))
    state: State = {}
    layers = len(detector.transformer.decoder.layers)
    for part, module in _modules(detector, mae, discriminators).items():
        for name, value in module.state_dict().items():
            our = f"{part}.{name}"
            if our.endswith("num_batches_tracked"):
                continue
            if "class_embed" in name:
                fill = prior if name.endswith("bias") else 0.0
                wide = value.new_full((1 + len(checkpoint_classes), *value.shape[1:]), fill)
                wide[[0] if "proposal" in name else columns] = value
                value = wide
            for key in _published_names(our, detector, layers):
                state[key] = value.clone()
    return state


def _modules(
    detector: nn.Module, mae: nn.Module | None, discriminators: nn.Module | None
) -> dict[str, nn.Module]:
    modules = {"detector": detector, "mae": mae, "discriminators": discriminators}
    return {part: module for part, module in modules.items() if module is not None}


def _place(key: str, detector: DeformableDETR, rules: Sequence[tuple[str, str]]) -> str | None:
    """Our name for a checkpoint's key, None if the map does not have it."""
    for alias in _ALIASES:
        key = key.replace(alias, alias.removeprefix("transformer.decoder."))
    for head in ("class_embed.", "bbox_embed."):
        if key.startswith(head):
            layer, _, rest = key.removeprefix(head).partition(".")
            if not layer.isdigit():
                return None
            if int(layer) == len(detector.transformer.decoder.layers):
                return f"detector.proposal_{head}{rest}"
            return f"detector.{head}{layer}.{rest}" if detector.box_refine else f"detector.{head}{rest}"
    return next((ours + key.removeprefix(theirs) for theirs, ours in rules if key.startswith(theirs)), None)


def _published_names(our: str, detector: DeformableDETR, layers: int) -> list[str]:
    """All names that one of our tensors has in the published MRT layout."""
    for head in ("class_embed.", "bbox_embed."):
        if our.startswith(f"detector.proposal_{head}"):
            return [f"{head}{layers}.{our.removeprefix(f'detector.proposal_{head}')}"]
        if our.startswith(f"detector.{head}"):
            rest = our.removeprefix("detector.")
            if detector.box_refine:
                return [rest]
            return [f"{head}{layer}.{rest.removeprefix(head)}" for layer in range(layers)]
    return [next(theirs + our.removeprefix(ours) for theirs, ours in _LAYOUTS["mrt"] if our.startswith(ours))]


def _columns(
    detector: DeformableDETR,
    values: State,
    classes: Sequence[str] | None,
    checkpoint_classes: Sequence[str | None] | None,
    report: LoadReport,
    what: str,
) -> list[int | None]:
    """The checkpoint's column for each of the model's classes, None where it has none."""
    prefix = "detector.class_embed"
    heads = [value for our, value in values.items() if our.startswith(prefix) and our.endswith("bias")]
    width = heads[0].shape[0] if heads else 0
    if classes is None:
        if width != detector.num_classes + 1:
            raise MrtError(
                f"{what} has {width} class columns, the model {detector.num_classes} classes",
                "Give the model's class names.",
            )
        return list(range(1, width))
    if len(classes) != detector.num_classes:
        raise MrtError(
            f"{len(classes)} class names for a detector of {detector.num_classes} classes",
            "Give one name per class.",
        )
    if checkpoint_classes is None:
        checkpoint_classes = _columns_of(width)
        if checkpoint_classes is None:
            raise MrtError(
                f"{what} has {width} class columns of unknown meaning", "Give the names of its classes."
            )
    columns = {name: index for index, name in enumerate(checkpoint_classes, start=1) if index < width}
    report.new_classes = [name for name in classes if name not in columns]
    return [columns.get(name) for name in classes]


def _pick_columns(value: Tensor, initial: Tensor, columns: Sequence[int | None]) -> Tensor:
    return torch.stack(
        [initial[row] if column is None else value[column].to(initial) for row, column in enumerate(columns)]
    )


def _folded_away(our: str | None, detector: DeformableDETR) -> bool:
    norm = (our or "").removeprefix("detector.backbone.body.").rpartition(".")[0]
    return any(norm == entry.norm for entry in detector.backbone.folded)
