"""Our own ``.safetensors`` files: a detector's weights with all that is needed to build it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mrt.errors import MrtError
from mrt.files import replacing
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.pretrained import State, read_state

FORMAT = 1


def save_weights(path: Path, detector: DeformableDETR, metadata: dict[str, Any] | None = None, *, slim: bool = False) -> None:
    """Write a detector to a ``.safetensors`` file from which :func:`load_weights` rebuilds it.

    Args:
        path: written under a temporary name in the same folder, then renamed.
        metadata: anything JSON can hold, e.g. {"classes": [...]}.
        slim: leave out the backbone's frozen pretrained weights; their identity is recorded.

    Raises:
        MrtError: the file cannot be written, or a slim file of a backbone whose origin is unknown.
    """
    if slim and detector.backbone.frozen_keys and detector.backbone.fingerprint is None:
        raise MrtError("a slim file needs a backbone of known pretrained weights", 'Save with slim = false, or start from "imagenet".')
    state = trainable_state_dict(detector) if slim else detector.state_dict()
    header = {
        "format": FORMAT,
        "detector": detector.arguments,
        "backbone": backbone_identity(detector),
        "slim": slim,
        "metadata": metadata or {},
    }
    content = save({key: value.detach().cpu().contiguous() for key, value in state.items()}, {"mrt": json.dumps(header)})
    with replacing(Path(path)) as file:
        file.write(content)


def load_weights(path: Path, *, backbone_weights: str = "imagenet") -> tuple[DeformableDETR, dict[str, Any]]:
    """Rebuild the detector that :func:`save_weights` wrote, in evaluation mode, and give the metadata with it.

    Args:
        backbone_weights: where a slim file's pretrained backbone comes from, as in :func:`mrt.models.backbone.build_backbone`.

    Raises:
        MrtError: not such a file, or a slim file's backbone is not the one it was trained with.
    """
    header = read_header(Path(path))
    state, identity = read_state(path), header["backbone"]
    weights = "none" if not identity["pretrained"] else backbone_weights if header["slim"] else "checkpoint"
    backbone = build_backbone(identity["name"], weights=weights, freeze=identity["freeze"], levels=identity["levels"])
    detector = DeformableDETR(backbone, **header["detector"])
    if header["slim"]:
        load_trainable(detector, state, identity)
    else:
        _check_fit(detector.state_dict(), state)
        detector.load_state_dict(state)
        backbone.fingerprint = identity["fingerprint"]
    return detector.eval(), header["metadata"]


def read_metadata(path: Path) -> dict[str, Any]:
    """What :func:`save_weights` was given as metadata, without reading the weights."""
    return read_header(Path(path))["metadata"]


def backbone_identity(detector: DeformableDETR) -> dict[str, Any]:
    """By what a backbone and its pretrained weights are known: name, freeze, levels, pretrained, fingerprint."""
    backbone = detector.backbone
    identity = {key: getattr(backbone, key) for key in ("name", "freeze", "pretrained", "fingerprint")}
    return {**identity, "levels": len(backbone.channels)}


def trainable_state_dict(detector: DeformableDETR) -> State:
    """The state dict without the backbone's frozen pretrained weights (its batch norms, and what ``freeze`` names).

    What is frozen is a property of how the backbone was built, so a teacher without gradients keeps its trained layers.
    """
    return {
        key: value for key, value in detector.state_dict().items() if key.removeprefix("backbone.") not in detector.backbone.frozen_keys
    }


def load_trainable(detector: DeformableDETR, state: State, identity: dict[str, Any]) -> None:
    """The counterpart of :func:`trainable_state_dict`, in place.

    Args:
        identity: :func:`backbone_identity` of the detector that the state came from.

    Raises:
        MrtError: this detector's backbone has another identity, or the state does not fit.
    """
    mine = backbone_identity(detector)
    differing = [key for key in mine if mine[key] != identity.get(key)]
    if differing:
        key = differing[0]
        raise MrtError(
            f"these weights were trained on another backbone: its {key} was {identity.get(key)}, here it is {mine[key]}",
            f"Build the backbone as {identity['name']} with freeze {identity['freeze']} and the same pretrained weights.",
        )
    _check_fit(trainable_state_dict(detector), state)
    detector.load_state_dict(state, strict=False)


def _check_fit(wanted: State, state: State) -> None:
    wrong = sorted(set(wanted) ^ set(state)) or [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        raise MrtError(
            f"these weights do not fit the detector: {wrong[0]} and {len(wrong) - 1} more differ", "Build it with the same sizes."
        )


def is_ours(path: Path) -> bool:
    """Whether a file is one that :func:`save_weights` wrote, of whatever format version."""
    try:
        with safe_open(path, framework="pt") as file:
            return "mrt" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_header(path: Path) -> dict[str, Any]:
    """What a file of ours says of itself: "detector" (arguments), "backbone" (identity), "slim", "metadata".

    Raises:
        MrtError: no such file, or not one that :func:`save_weights` of this version wrote.
    """
    if not path.is_file():
        raise MrtError(f"{path}: no such weights file", "Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("mrt", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise MrtError(f"{path} is not a weights file of this project: {error}", "Get the file again.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise MrtError(f"{path} has no description of its detector in format {FORMAT}", "Write it with save_weights of this version.")
    return header
