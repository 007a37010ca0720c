"""Our own ``.safetensors`` files: a detector's weights and everything needed to build it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mrt.errors import MrtError
from mrt.files import replacing
from mrt.models.backbone import build_backbone
from mrt.models.interface import Detector, find_detector
from mrt.models.pretrained import State, read_state

FORMAT = 2  # version of the header; version 1 had only one kind of detector


def save_weights(
    path: Path, detector: Detector, metadata: dict[str, Any] | None = None, *, slim: bool = False
) -> None:
    """Write a detector to a ``.safetensors`` file from which :func:`load_weights` rebuilds it.

    Args:
        path: written under a temporary name in the same folder, then renamed.
        detector: to be written.
        metadata: anything that JSON can hold, e.g. {"classes": [...]}.
        slim: leave out the backbone's frozen pretrained weights and record which they are.

    Raises:
        MrtError: the file cannot be written, or it would be slim and the origin of the backbone is unknown.
    """
    if slim and detector.backbone.frozen_keys and detector.backbone.fingerprint is None:
        raise MrtError(
            "a slim file needs a backbone of known pretrained weights",
            'Save with slim = false, or start from "imagenet".',
        )
    state = trainable_state_dict(detector) if slim else detector.state_dict()
    header = {
        "format": FORMAT,
        "kind": detector.kind,
        "detector": detector.arguments,
        "backbone": backbone_identity(detector),
        "slim": slim,
        "metadata": metadata or {},
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    content = save(tensors, {"mrt": json.dumps(header)})
    with replacing(Path(path)) as file:
        file.write(content)


def load_weights(path: Path, *, backbone_weights: str = "imagenet") -> tuple[Detector, dict[str, Any]]:
    """Rebuild the detector that :func:`save_weights` wrote, in evaluation mode; returns its metadata, too.

    Args:
        path: of the file.
        backbone_weights: where the pretrained backbone of a slim file comes from, as in
            :func:`mrt.models.backbone.build_backbone`.

    Raises:
        MrtError: it is not such a file, or the backbone of a slim file is not the one it was trained with.
    """
    header = read_header(Path(path))
    state, identity = read_state(path), header["backbone"]
    weights = "none" if not identity["pretrained"] else backbone_weights if header["slim"] else "checkpoint"
    backbone = build_backbone(
        identity["name"], weights=weights, freeze=identity["freeze"], levels=identity["levels"]
    )
    detector = find_detector(header["kind"])(backbone, **header["detector"])
    if header["slim"]:
        load_trainable(detector, state, identity)
    else:
        _check_fit(detector.state_dict(), state)
        detector.load_state_dict(state)
        backbone.fingerprint = identity["fingerprint"]
    return detector.eval(), header["metadata"]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that was given to :func:`save_weights`, without reading the weights."""
    return read_header(Path(path))["metadata"]


def backbone_identity(detector: Detector) -> dict[str, Any]:
    """What identifies a backbone and its weights: name, freeze, levels, pretrained, fingerprint."""
    backbone = detector.backbone
    identity = {key: getattr(backbone, key) for key in ("name", "freeze", "pretrained", "fingerprint")}
    return {**identity, "levels": len(backbone.channels)}


def trainable_state_dict(detector: Detector) -> State:
    """The state dict without the backbone's frozen pretrained weights.

    These are its batch norms and the part that ``freeze`` names. What is frozen depends on how the backbone
    was built, not on gradients, so the trained layers of a teacher are included.
    """
    frozen = detector.backbone.frozen_keys
    state = detector.state_dict()
    return {key: value for key, value in state.items() if key.removeprefix("backbone.") not in frozen}


def load_trainable(detector: Detector, state: State, identity: dict[str, Any]) -> None:
    """Load what :func:`trainable_state_dict` returned, in place.

    Args:
        detector: receives the weights.
        state: from :func:`trainable_state_dict`.
        identity: :func:`backbone_identity` of the detector that the state came from.

    Raises:
        MrtError: this detector's backbone has another identity, or the state does not fit.
    """
    mine = backbone_identity(detector)
    differing = [key for key in mine if mine[key] != identity.get(key)]
    if differing:
        key = differing[0]
        raise MrtError(
            f"these weights were trained on another backbone: its {key} was {identity.get(key)}, "
            f"here it is {mine[key]}",
            f"Build the backbone as {identity['name']} with freeze {identity['freeze']} "
            "and the same pretrained weights.",
        )
    _check_fit(trainable_state_dict(detector), state)
    detector.load_state_dict(state, strict=False)


def _check_fit(wanted: State, state: State) -> None:
    wrong = sorted(set(wanted) ^ set(state))
    if not wrong:
        wrong = [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        raise MrtError(
            f"these weights do not fit the detector: {wrong[0]} and {len(wrong) - 1} more differ",
            "Build it with the same sizes.",
        )


def is_ours(path: Path) -> bool:
    """Whether :func:`save_weights` wrote a file, in any format version."""
    try:
        with safe_open(path, framework="pt") as file:
            return "mrt" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_header(path: Path) -> dict[str, Any]:
    """The header of a file: "kind" and "detector" (its arguments), "backbone" (identity), "slim", "metadata".

    Raises:
        MrtError: there is no such file, or it was not written by :func:`save_weights` of this version or an
            earlier one.
    """
    if not path.is_file():
        raise MrtError(f"{path}: no such weights file", "Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("mrt", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise MrtError(
            f"{path} is not a weights file of this project: {error}", "Get the file again."
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise MrtError(
            f"{path} has no description of its detector", "Name a weights file that mrt has written."
        )
    if header["format"] > FORMAT:
        raise MrtError(
            f"{path} is of format {header['format']}, which a newer mrt has written; this one knows {FORMAT}",
            "Update mrt.",
        )
    return {"kind": "deformable_detr", **header}
