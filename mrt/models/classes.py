"""Copy class heads between detectors by the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
NAMED = 12  # of a long list of classes


def same_name(name: str) -> str:
    """Normalise a class name for comparison: "Traffic_light" and "traffic light" are one class."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def column_of(name: str, classes: Sequence[str]) -> int | None:
    """The index of the class ``name``: an exact match, else one by :func:`same_name`, else None."""
    if name in classes:
        return list(classes).index(name)
    plain = [same_name(other) for other in classes]
    return plain.index(same_name(name)) if same_name(name) in plain else None


def by_name(
    theirs: State,
    their_classes: Sequence[str],
    ours: State,
    our_classes: Sequence[str],
    heads: Sequence[str] = ("class_embed.",),
) -> State:
    """A trained detector's state dict, with its class columns rearranged for another list of classes. Every
    other weight is the trained one's.

    Args:
        theirs, their_classes: state dict and classes of the trained detector.
        ours, our_classes: state dict and classes of the detector that is initialised from it. Columns of
            classes that the trained detector does not have are taken from here.
        heads: what the names of tensors with a row for each class begin with.
    """
    columns = [column_of(name, their_classes) for name in our_classes]
    state = dict(theirs)
    for key, value in theirs.items():
        if key.startswith(tuple(heads)) and key in ours:
            rows = [ours[key][row] if column is None else value[column] for row, column in enumerate(columns)]
            state[key] = torch.stack(rows)
    return state


def told_by_name(their_classes: Sequence[str], our_classes: Sequence[str]) -> str:
    """What :func:`by_name` does, in words: which classes are known, which are new, which are not wanted."""
    found = {name: column_of(name, their_classes) for name in our_classes}
    new = [name for name, column in found.items() if column is None]
    unused = [name for number, name in enumerate(their_classes) if number not in found.values()]
    told = f"{len(our_classes) - len(new)} of {len(our_classes)} classes are known to it by name"
    told += f"; new, to be learned from the beginning: {_some(new)}" if new else ""
    told += f"; not wanted here: {_some(unused)}" if unused else ""
    return f"{told}. All other weights are kept"


def _some(names: Sequence[str]) -> str:
    """The names, of a long list the first ones."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
