"""Our own ``.safetensors`` files: a detector's weights and everything needed to build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrt.errors import MrtError
from mrt.files import replacing
from mrt.models.backbone import build_backbone
from mrt.models.interface import Detector
from mrt.models.pretrained import State
from mrt.models.sealed import (
    AS_WRITTEN,
    FORMAT,
    is_sealed,
    pack,
    read_description,
    read_sealed,
)
from mrt.models.weights_header import check_header, check_sizes


def save_weights(
    path: Path,
    detector: Detector,
    metadata: dict[str, Any] | None = None,
    *,
    slim: bool = False,
    half: bool = False,
) -> None:
    """Write a detector to a ``.safetensors`` file from which :func:`load_weights` rebuilds it.

    Args:
        path: written under a temporary name in the same folder, then renamed.
        detector: to be written.
        metadata: anything that JSON can hold, e.g. {"classes": [...]}.
        slim: leave out the backbone's frozen pretrained weights and record which they are.
        half: store float16, half of the size; loaded as float32, within 0.05 % of each weight (or 3e-8).

    Raises:
        MrtError: the file cannot be written, a number of the metadata is not finite, a weight is too large
            for float16, or it would be slim and the origin of the backbone is unknown.
    """
    if slim and detector.backbone.frozen_keys and detector.backbone.fingerprint is None:
        raise MrtError(
            "a slim file needs a backbone of known pretrained weights",
            'Save with slim = false, or start from "imagenet".',
        )
    state = trainable_state_dict(detector) if slim else detector.state_dict()
    if half:
        state = {key: _halved(key, value) for key, value in state.items()}
    header = {
        "format": FORMAT,
        "kind": detector.kind,
        "detector": detector.arguments,
        "backbone": backbone_identity(detector),
        "slim": slim,
        "metadata": metadata or {},
    }
    content = pack(header, state)
    with replacing(Path(path)) as file:
        file.write(content)


def _halved(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    short = value.half()
    if not torch.equal(short.isfinite(), value.isfinite()):
        raise MrtError(
            f"{name}: has values beyond 65504, which float16 cannot hold", "Save it in full (half = false)."
        )
    return short


def load_weights(path: Path, *, backbone_weights: str = "imagenet") -> tuple[Detector, dict[str, Any]]:
    """Rebuild the detector that :func:`save_weights` wrote, in evaluation mode; returns its metadata, too.

    Args:
        path: of the file.
        backbone_weights: where the pretrained backbone of a slim file comes from, as in
            :func:`mrt.models.backbone.build_backbone`.

    Raises:
        MrtError: it is not such a file, it has changed since it was written, a weight is not finite, its
            description does not fit its tensors, or the backbone of a slim file is not the one it was trained
            with.
    """
    path = Path(path)
    header = read_header(path)
    state, identity = read_sealed(path)[1], header["backbone"]
    kind = check_sizes(header, {name: tuple(value.shape) for name, value in state.items()}, path)
    weights = "none" if not identity["pretrained"] else backbone_weights if header["slim"] else "checkpoint"
    try:
        backbone = build_backbone(
            identity["name"], weights=weights, freeze=identity["freeze"], levels=identity["levels"]
        )
    except MrtError as error:
        raise MrtError(f"{path}: its backbone cannot be made: {error.message}", error.hint) from None
    try:
        detector = kind(backbone, **header["detector"])
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise MrtError(
            f"{path}: no detector of kind {header['kind']!r} can be made as it says: {error}", AS_WRITTEN
        ) from error
    if header["slim"]:
        load_trainable(detector, state, identity)
    else:
        _check_fit(detector.state_dict(), state, str(path))
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


def _check_fit(wanted: State, state: State, where: str = "these weights") -> None:
    wrong = sorted(set(wanted) ^ set(state))
    if not wrong:
        wrong = [
            key
            for key, value in wanted.items()
            if value.shape != state[key].shape or value.is_floating_point() != state[key].is_floating_point()
        ]
    if wrong:
        raise MrtError(
            f"{where}: do not fit the detector that they are described to be of: {wrong[0]} and "
            f"{len(wrong) - 1} more differ",
            "Take the file as it was written.",
        )


def is_ours(path: Path) -> bool:
    """Whether :func:`save_weights` wrote a file, in any format version."""
    return is_sealed(path)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a file: "kind" and "detector" (its arguments), "backbone" (identity), "slim", "metadata".

    It is checked against its own sha256, not against the tensors.

    Raises:
        MrtError: there is no such file, it was not written by :func:`save_weights` of this version or an
            earlier one, or a field is missing or of another type.
    """
    header = read_description(path)
    if header is None:
        raise MrtError(
            f"{path} has no description of its detector", "Name a weights file that mrt has written."
        )
    return check_header(header, path)
