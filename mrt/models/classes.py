"""Copy class heads between detectors by the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def same_name(name: str) -> str:
    """Normalise a class name for comparison: "Traffic_light" and "traffic light" are one class."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def column_of(name: str, classes: Sequence[str]) -> int | None:
    """The index of the class ``name``: an exact match, else one by :func:`same_name`, else None."""
    if name in classes:
        return list(classes).index(name)
    plain = [same_name(other) for other in classes]
    return plain.index(same_name(name)) if same_name(name) in plain else None


def by_name(theirs: State, their_classes: Sequence[str], ours: State, our_classes: Sequence[str]) -> State:
    """A trained detector's state dict, with its class columns rearranged for another list of classes.

    Args:
        theirs, their_classes: state dict and classes of the trained detector.
        ours, our_classes: state dict and classes of the detector that is initialised from it. Columns of
            classes that the trained detector does not have are taken from here.
    """
    columns = [column_of(name, their_classes) for name in our_classes]
    state = dict(theirs)
    for key, value in theirs.items():
        if key.startswith("class_embed.") and key in ours:
            rows = [ours[key][row] if column is None else value[column] for row, column in enumerate(columns)]
            state[key] = torch.stack(rows)
    return state
