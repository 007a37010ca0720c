"""Selective retraining: from time to time, parts of the student are reset.

They get back the weights that they had at the start of teaching.

The published rule works on parameter names: everything is reset except names that contain a *kept* word. With
``transformer.encoder...``, ``transformer.decoder...`` and ``backbone...`` as names, the paper's table of
"retrained parts" is

========  ==================  ===============================================================
parts     kept word           reset
========  ==================  ===============================================================
``none``  (no retraining)     nothing
``all``   none                the whole detector
``E+D``   ``backbone``        encoder, decoder and the rest
``B+D``   ``encoder``         backbone, decoder and the rest
``B+E``   ``decoder``         backbone, encoder and the rest: the paper's choice and the default
========  ==================  ===============================================================

"The rest" are input projections, level and query embeddings, reference points and heads. They belong to none
of the three parts and are always reset. ``B``, ``E`` and ``D`` alone work the same way. The masked
autoencoder and the discriminators are never reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mrt.errors import MrtError

_WORDS = {"B": "backbone", "E": "encoder", "D": "decoder"}
_AUXILIARY = ("mae", "domain")  # never part of what is saved


def kept_words(parts: str) -> tuple[str, ...] | None:
    """The words whose names are kept when ``parts`` are retrained; ``None``: nothing is retrained.

    Args:
        parts: ``"none"``, ``"all"``, or the letters B, E, D (or their words) joined by ``+`` in any order,
            e.g. ``"B+E"``.

    Raises:
        MrtError: anything else.
    """
    if parts.lower() == "none":
        return None
    if parts.lower() == "all":
        return ()
    letters = [part.strip()[:1].upper() for part in parts.split("+")]
    words = [part.strip().lower() for part in parts.split("+")]
    known = all(
        letter in _WORDS and word in (letter.lower(), _WORDS[letter])
        for letter, word in zip(letters, words, strict=True)
    )
    if not known or len(set(letters)) != len(letters):
        raise MrtError(
            f'retraining parts "{parts}" are not known',
            'Use "none", "all", or B (backbone), E (encoder), D (decoder) joined by +, e.g. "B+E".',
        )
    return tuple(word for letter, word in _WORDS.items() if letter not in letters)


def retrained_names(names: Iterable[str], keep: Sequence[str] = ("decoder",)) -> list[str]:
    """The names that are reset: those that are not auxiliary and contain no kept word."""
    return [name for name in names if not any(word in name for word in (*_AUXILIARY, *keep))]


def reinit_state(detector: nn.Module, parts: str = "B+E") -> dict[str, Tensor]:
    """A copy of the weights and buffers that retraining of ``parts`` resets; empty for ``"none"``.

    Make it from the student when teaching starts (paper), or from a detector with other weights for the
    ablation "retraining from random / source / source + MAE".
    """
    keep = kept_words(parts)
    if keep is None:
        return {}
    state = detector.state_dict()
    return {name: state[name].detach().clone() for name in retrained_names(state, keep)}


@torch.no_grad()
def restore(student: nn.Module, saved_state: Mapping[str, Tensor], keep: Sequence[str] = ()) -> list[str]:
    """Copy saved weights back into the student.

    This is done in place, so that the optimiser keeps its references and moments.

    Args:
        student: the detector.
        saved_state: what goes back, e.g. from :func:`reinit_state`; it is not changed.
        keep: words whose names are kept, as are the auxiliary parts then; needed if ``saved_state`` is a
            whole state dict. Without it all of ``saved_state`` goes back, whatever its names.

    Returns:
        The names overwritten.

    Raises:
        MrtError: the state is that of another detector.
    """
    state = student.state_dict()
    names = retrained_names(saved_state, keep) if keep else list(saved_state)
    for name in names:
        if name not in state or state[name].shape != saved_state[name].shape:
            found = tuple(state[name].shape) if name in state else "nothing of that name"
            shape = tuple(saved_state[name].shape)
            raise MrtError(
                f"the saved weights do not fit the student: {name} is {shape} there, the student has {found}",
                "Resume with the configuration the run was started with.",
            )
    for name in names:
        state[name].copy_(saved_state[name])
    return names
