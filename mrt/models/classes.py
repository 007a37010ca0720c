"""Class heads by the names of their classes: what a detector knows of another one's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def same_name(name: str) -> str:
    """A class name as it is compared: "Traffic_light" and "traffic light" are one class."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def column_of(name: str, classes: Sequence[str]) -> int | None:
    """The label of a class among others by its name: as it is written, else as :func:`same_name` compares; None where it is not."""
    if name in classes:
        return list(classes).index(name)
    plain = [same_name(other) for other in classes]
    return plain.index(same_name(name)) if same_name(name) in plain else None


def by_name(theirs: State, their_classes: Sequence[str], ours: State, our_classes: Sequence[str]) -> State:
    """A detector's state dict with the class columns of another list of classes.

    Args:
        theirs, their_classes: a trained detector's state dict and classes.
        ours, our_classes: the state dict and classes of the one that it shall start; columns of classes that the trained one does not
            have are taken from here.
    """
    columns = [column_of(name, their_classes) for name in our_classes]
    state = dict(theirs)
    for key, value in theirs.items():
        if key.startswith("class_embed.") and key in ours:
            state[key] = torch.stack([ours[key][row] if column is None else value[column] for row, column in enumerate(columns)])
    return state
