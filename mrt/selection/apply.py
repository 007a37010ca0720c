"""The chosen weights as a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrt.engine.load import load_detector
from mrt.models.weights import save_weights


def apply(file: Path, place: Path, record: dict[str, Any]) -> Path:
    """Write a candidate's weights to ``place``, in place of what is there, with how they were chosen
    (``selected`` in the header).

    Raises:
        MrtError: the weights cannot be read, or the file cannot be written.
    """
    detector, facts = load_detector(file)
    facts = {key: value for key, value in facts.items() if key != "file"}
    save_weights(place, detector, {**facts, "selected": record})
    return place
