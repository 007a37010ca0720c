"""A trained detector from wherever it is kept, recognised by content: our own files, published checkpoints,
Hugging Face models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrt.config import ModelConfig, load_config
from mrt.engine import build
from mrt.engine.facts import is_run
from mrt.engine.report import read_log
from mrt.engine.whereabouts import EXPORT_CARD, SHIPPED, WEIGHTS, networks, not_there, of_run
from mrt.errors import MrtError
from mrt.models.hub import fetch, hub_name
from mrt.models.huggingface import describe_huggingface, is_huggingface, load_huggingface
from mrt.models.interface import Detector
from mrt.models.published import describe_published, is_published, load_published
from mrt.models.weights import is_ours, load_weights, read_header
from mrt.parts.source_record import BOXES, CONFIDENCES, HEADER

PROGRAMS = ("onnx", "torch-export")  # its formats that hold a program, not weights
LARGEST = 1e6  # of the confidences and boxes per image that weights have on record
REPORT_LINES = 12  # of what did not fit, as much as one reads


def find_weights(where: str | Path, which: str = "auto") -> Path:
    """Where a detector's weights are: a file, or a folder in Hugging Face's layout.

    Args:
        where: a run folder (its teacher's file first), a weights file, a folder of mrt export or of a Hugging
            Face model, a name that ships with mrt, or a model on the Hugging Face hub (``hf:OWNER/NAME``, or
            ``coco``), which is downloaded.
        which: "auto", "teacher" or "student"; only matters to a run folder.

    Raises:
        MrtError: nothing of that kind there.
    """
    path = Path(where)
    if path.is_dir():
        return _in_folder(path, which)
    if path.is_file():  # a Hugging Face model's weights say little without the description beside them
        return (
            path.parent
            if path.suffix in (".safetensors", ".bin") and is_huggingface(path.parent) and not is_ours(path)
            else path
        )
    shipped = SHIPPED / f"{where}.safetensors"
    if shipped.is_file():
        return shipped
    if hub_name(str(where)) is not None:
        return fetch(str(where))
    raise not_there(where)


def _in_folder(folder: Path, which: str) -> Path:
    if is_huggingface(folder):
        return folder
    if (folder / EXPORT_CARD).is_file():
        return _exported(folder)
    if is_run(folder):
        return of_run(folder, which)
    for name in networks(which):
        if (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
    files = [file.name for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    raise MrtError(
        f"{folder}: neither a run folder (it has no run.json) nor a Hugging Face Deformable DETR (its "
        "config.json would say so)",
        f"it holds weights files; name one: {folder / files[0]}"
        if files
        else "name a run, a weights file, or the folder of a model",
    )


def export_card(folder: Path) -> dict[str, Any]:
    """What ``mrt export`` says of the folder it has written, with "format" and "file" at least.

    Raises:
        MrtError: it cannot be read, or says something else.
    """
    file = folder / EXPORT_CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MrtError(f"{file}: not readable ({error})", "export the detector again") from None
    if not isinstance(card, dict) or not all(isinstance(card.get(key), str) for key in ("format", "file")):
        raise MrtError(f"{file}: does not say which format and file it is about", "export the detector again")
    if Path(card["file"]).name != card["file"]:
        raise MrtError(
            f"{file}: file is {card['file'][:80]!r}, which is not the name of a file beside it",
            "export the detector again",
        )
    return card


def _exported(folder: Path) -> Path:
    """The weights in a folder of ``mrt export``."""
    card = export_card(folder)
    if card["format"] in PROGRAMS:
        raise MrtError(
            f"{folder}: holds a program ({card['format']}), which predicts but cannot be trained, "
            "evaluated or exported again",
            "name the run or the weights that it was exported from",
        )
    return folder / card["file"]


def load_detector(
    where: str | Path, *, which: str = "auto", device: str | torch.device = "cpu"
) -> tuple[Detector, dict[str, Any]]:
    """Rebuild a detector from its weights.

    Args:
        where, which: see :func:`find_weights`.

    Returns:
        The detector in eval mode on ``device``, and facts: "classes", "network" ("teacher" or "student"),
            "config" (plain values), "file",
        and of a run that dynamic thresholds "thresholds" by class name.

    Raises:
        MrtError: no such weights; a file of an unknown kind, cut short, changed since it was written, or
            holding code; weights that are not finite or do not fit.
    """
    path = find_weights(where, which)
    if path.is_dir():
        detector, facts = _load_huggingface(path)
    elif is_ours(path):
        detector, facts = load_weights(path)
        _require_classes(facts, path)
    else:
        detector, facts = _load_published(path)
    return detector.to(device).eval(), {"network": "student", **facts, "file": str(path)}


def _require_classes(metadata: Mapping[str, Any], path: Path) -> None:
    if "classes" not in metadata:
        raise MrtError(
            f"{path}: metadata.classes is missing: nothing says what the detector detects",
            "save it with the names of its classes, as mrt does",
        )


@dataclass(frozen=True)
class Description:
    """A trained detector in words.

    Attributes:
        classes: by label. backbone: its name. arguments: those of the detector that are known.
        pretrained: whether the backbone has the structure of a pretrained one (frozen norms). folded: whether
            those are folded away.
        kind: of detector, as ``model.detector`` calls it.
    """

    classes: list[str]
    backbone: str
    arguments: dict[str, Any]
    pretrained: bool = True
    folded: bool = False
    kind: str = "deformable_detr"


def describe(where: str | Path, which: str = "auto") -> Description:
    """Look at a detector's weights as cheaply as their kind allows; MrtError as :func:`load_detector`."""
    path = find_weights(where, which)
    if path.is_dir():
        about = describe_huggingface(path)
        return Description(about.classes, about.backbone, about.arguments)
    if is_ours(path):
        header = read_header(path)
        _require_classes(header["metadata"], path)
        identity = header["backbone"]
        folded = identity["pretrained"] and identity["freeze"] == "all"
        classes, pretrained = list(header["metadata"]["classes"]), identity["pretrained"]
        return Description(classes, identity["name"], header["detector"], pretrained, folded, header["kind"])
    published = describe_published(path)
    return Description(published.classes, "resnet50", published.arguments)


def require_fit(model: ModelConfig, about: Description, where: str | Path) -> None:
    """MrtError if weights are of a network of another shape than ``[model]`` describes; it says which
    settings fit.
    """
    settings = model.model_dump()
    theirs = _settings_that_fit(model, about)
    different = {key: value for key, value in theirs.items() if settings[key] != value}
    if different:
        mine = ", ".join(f"{key} {settings[key]!r}" for key in different)
        found = ", ".join(f"{key} {value!r}" for key, value in different.items())
        words = " ".join(
            f"model.{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in different.items()
        )
        raise MrtError(
            f"{where}: is of another network ({found}) than this run's ({mine})",
            f"take its settings: --set {words}",
        )


def settings_of(where: str | Path) -> dict[str, Any]:
    """The settings of a run that goes on with weights: those of ``[model]`` that fit them and, of weights
    that mrt has trained, the image sizes.

    Returns:
        Dotted key -> value.
    """
    about, path = describe(where), find_weights(where)
    fitting = _settings_that_fit(ModelConfig(), about)
    changes = {f"model.{key}": value for key, value in fitting.items()}
    changes["model.weights"] = "imagenet" if about.pretrained else "none"
    if path.is_file() and is_ours(path):
        data = read_header(path)["metadata"].get("config", {}).get("data", {})
        changes |= {f"data.{key}": data[key] for key in ("sides", "max_size", "size_multiple") if key in data}
    return changes


def trained_on(where: str | Path) -> str | None:
    """The name of the labelled set that weights of mrt learned from, by the settings in them; None where they
    do not say.
    """
    path = find_weights(where)
    config = read_header(path)["metadata"].get("config", {}) if path.is_file() and is_ours(path) else {}
    data = config.get("data") if isinstance(config, dict) else None
    name = data.get("source") if isinstance(data, dict) else None
    return name if isinstance(name, str) and name else None


def _settings_that_fit(model: ModelConfig, about: Description) -> dict[str, Any]:
    """Settings of ``[model]`` that fit weights; of what is the run's choice only where ``model`` chose
    otherwise than is possible.
    """
    theirs = {"detector": about.kind, "backbone": about.backbone, **about.arguments}
    if about.folded or model.freeze == "all":  # else what learns is the run's choice
        theirs["freeze"] = "all" if about.folded else "stem"
    if not holds_detector(model.weights) and about.pretrained == (model.weights == "none"):
        theirs["weights"] = "imagenet" if about.pretrained else "none"
    if about.arguments.get("two_stage"):
        theirs.pop("query_init", None)  # says nothing then
    else:
        theirs.pop("proposal_content", None)
    free = ("dropout", "class_prior", "num_classes")
    return {
        key: value for key, value in theirs.items() if key in ModelConfig.model_fields and key not in free
    }


def holds_detector(weights: str) -> bool:
    """Whether ``model.weights`` names a whole detector and not a backbone's classifier weights ("imagenet",
    "none", a file).
    """
    path = Path(weights)
    if weights in ("imagenet", "none"):
        return False
    if path.is_file():
        return is_ours(path) or is_published(path)
    return path.is_dir() or hub_name(weights) is not None or (SHIPPED / f"{weights}.safetensors").is_file()


def frozen_norms(detector: str) -> bool:
    """Whether the backbone of a detector that :func:`holds_detector` found has the frozen norms of a
    pretrained one; only mrt's may not.
    """
    return (hub_name(detector) is not None and not Path(detector).exists()) or describe(detector).pretrained


def dynamic_thresholds(facts: dict[str, Any]) -> dict[str, float] | None:
    """The last dynamic thresholds by class of the run that a detector comes from; None where it had none.

    They are in the weights file; of runs from before they were written there, in the run's log.
    """
    if facts.get("thresholds"):
        return dict(facts["thresholds"])
    folder = Path(facts["file"]).parent
    log = read_log(folder / "metrics.jsonl") if (folder / "run.json").is_file() else []
    lines = [line["thresholds"] for line in log if line.get("kind") == "epoch" and line.get("thresholds")]
    last = lines[-1] if lines and isinstance(lines[-1], dict) else {}
    scores = all(_is_amount(value) and value <= 1 for value in last.values())
    return dict(last) if last and scores and set(last) == set(facts["classes"]) else None


def source_record(where: str | None) -> dict[str, Any]:
    """What weights have on record of the source that they were trained on (:mod:`mrt.parts.source_record`).

    Nothing where there are no weights, or weights that mrt has not trained, or trained before it kept one.
    """
    if where is None:
        return {}
    path = find_weights(where)
    told = read_header(path)["metadata"].get(HEADER) if path.is_file() and is_ours(path) else None
    if told is None:
        return {}
    tables = [told.get(name) for name in (CONFIDENCES, BOXES)] if isinstance(told, dict) else [None]
    for table in tables:
        fine = isinstance(table, dict) and all(_is_amount(value) for value in table.values())
        if not fine or any(value > 1 for value in tables[0].values()):
            raise MrtError(
                f"{path}: {HEADER} = {str(told)[:80]}: not a record of a source in the weights' header",
                "take the weights as mrt wrote them",
            )
    return dict(told)


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _load_huggingface(folder: Path) -> tuple[Detector, dict[str, Any]]:
    detector, about = load_huggingface(folder)
    changes = {
        f"model.{name}": value for name, value in about.arguments.items() if name in ModelConfig.model_fields
    }
    changes |= {
        "model.weights": "checkpoint",
        "model.backbone": about.backbone,
        "data.sides": [about.short_side],
        "data.max_size": about.max_size,
        "data.size_multiple": about.size_multiple,
    }
    config = load_config("own", changes=changes)
    return detector, {"classes": about.classes, "network": "student", "config": config.plain()}


def _load_published(path: Path) -> tuple[Detector, dict[str, Any]]:
    """A foreign checkpoint's detector, in the configuration of the published Cityscapes run, and its facts.

    Raises:
        MrtError: neither kind of checkpoint, or one with weights that have no place in that detector.
    """
    about = describe_published(path)
    settings = {"backbone": "resnet50", "weights": "checkpoint", **about.arguments}
    config = load_config("city2foggy", changes={f"model.{name}": value for name, value in settings.items()})
    detector = build.build_detector(config, about.classes)
    report = load_published(detector, path, classes=about.classes, checkpoint_classes=about.columns)
    if not report.complete:
        lines = str(report).splitlines()
        rest = [f"  and {len(lines) - REPORT_LINES} more"] if len(lines) > REPORT_LINES else []
        raise MrtError(
            "\n".join(
                [f"{path}: its weights do not fit the published detector", *lines[:REPORT_LINES], *rest]
            ),
            "Only checkpoints of a ResNet-50 at the published sizes can be read: 4 levels, 256 channels, "
            "6 + 6 layers.",
        )
    return detector, {"classes": about.classes, "network": "student", "config": config.plain()}
