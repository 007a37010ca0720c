"""Everything that is needed to go on where a run stopped, in one file, and files that are whole or not there at all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrt.errors import MrtError
from mrt.files import replacing


def random_state() -> dict[str, Any]:
    """The state of every random generator that training draws from."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo :func:`random_state`; a CUDA state is ignored where there is no GPU."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """One seed for python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save(path: Path, state: dict[str, Any]) -> None:
    """``torch.save`` under a temporary name in the same folder, fsynced and renamed: never a half-written checkpoint."""
    with replacing(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours (it holds Python's and numpy's generator states, so only load files you trust)."""
    if not path.is_file():
        raise MrtError(f"{path}: no checkpoint to resume from", "start the run without --resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a cut or foreign file fails in many ways inside the unpickler
        raise MrtError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error})", "resume from another one in the same folder"
        ) from error
