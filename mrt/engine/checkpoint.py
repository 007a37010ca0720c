"""Everything that is needed to go on where a run stopped, in one file, and files that are whole or not there
at all.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mrt.errors import MrtError
from mrt.files import replacing

if TYPE_CHECKING:
    from mrt.engine.data import Stream
    from mrt.engine.distributed import World
    from mrt.engine.learner import Learner

SCHEMA = 2  # of a checkpoint; those without a number are 1


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
    """``torch.save`` under a temporary name in the same folder, fsynced and renamed: never a half-written
    checkpoint.
    """
    with replacing(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours (it holds Python's and numpy's generator states, so only load files you
    trust).
    """
    if not path.is_file():
        raise MrtError(f"{path}: no checkpoint to resume from", "start the run without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a cut or foreign file fails in many ways inside the unpickler
        others = [other.name for other in sorted(path.parent.glob("*-*.pt"))]
        more = (
            f"continue from another one in the same folder: --checkpoint {others[-1]}"
            if others
            else "start the run anew"
        )
        raise MrtError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error})", more
        ) from error
    return upgrade(state, path)


def find(folder: Path, name: str | None = None) -> dict[str, Any] | None:
    """The checkpoint that a run goes on from: the last, or the one of that name; None where a run was killed
    before its first.

    Args:
        folder: "checkpoints" of the run. name: with or without ".pt".

    Raises:
        MrtError: none of that name, or one that cannot be read.
    """
    if name is None:
        return load(folder / "last.pt") if (folder / "last.pt").is_file() else None
    path = folder / (name if name.endswith(".pt") else f"{name}.pt")
    if path.parent != folder or not path.is_file():
        there = ", ".join(file.stem for file in sorted(folder.glob("*.pt"))) or "none"
        raise MrtError(
            f"--checkpoint {name}: no such checkpoint in {folder}",
            f"there are: {there} (engine.keep_checkpoints keeps more)",
        )
    return load(path)


def go_back(folder: Path, name: str, later: Sequence[str]) -> None:
    """Make a numbered checkpoint the last one; what was kept of the time after it goes.

    Args:
        folder: "checkpoints" of the run. name: as :func:`find` takes it. later: stages that follow its own.
    """
    chosen = folder / f"{name.removesuffix('.pt')}.pt"
    if chosen.name == "last.pt":
        return
    with replacing(folder / "last.pt") as file, chosen.open("rb") as original:
        shutil.copyfileobj(original, file)
    stage, _, number = chosen.stem.rpartition("-")
    for other in folder.glob("*-*.pt"):
        its_stage, _, its_number = other.stem.rpartition("-")
        if its_stage in later or (its_stage == stage and its_number > number):
            other.unlink()


def upgrade(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint in the schema of now.

    Raises:
        MrtError: a newer mrt has written it.
    """
    schema = state.pop("schema", 1)
    if schema > SCHEMA:
        raise MrtError(
            f"{path}: schema = {schema}: a checkpoint of a newer mrt, this one knows {SCHEMA}",
            "update mrt to continue the run",
        )
    if schema == 1 and "thresholds" in state:  # what is a part's own lay beside everything else
        labels = {"thresholds": state.pop("thresholds")}
        if "label_count" in state:
            labels["label_count"] = state.pop("label_count")
        state["parts"] = {"pseudo_labels": labels, "retrain": {"weights": state.pop("reinit", {})}}
    return state


def save_checkpoint(
    path: Path, stage: str, learner: Learner, streams: Mapping[str, Stream], rates: list[float]
) -> None:
    """Write everything needed to go on from here (every process' random state, too). Nothing that is trained
    changes.

    Args:
        stage: its name. rates: the base learning rate of each group; the schedule is a function of the step.
    """
    states = learner.world.gather(random_state())
    parts = {part.name: part.state_dict() for part in learner.method}
    networks = {name: _averaged(network, learner.world) for name, network in _networks(learner).items()}
    if not learner.world.main:
        return
    optimiser = learner.optimiser.state_dict()
    for group, rate in zip(optimiser["param_groups"], rates, strict=True):
        group["lr"] = rate
    save(
        path,
        {
            "schema": SCHEMA,
            "stage": stage,
            "step": learner.step,
            "student": networks["student"],
            "teacher": {**learner.teacher.state_dict(), "module": networks["teacher"]}
            if learner.teacher is not None
            else None,
            "fingerprint": learner.student.detector.backbone.fingerprint,
            "optimiser": optimiser,
            "scaler": learner.scaler.state_dict(),
            "parts": parts,
            "positions": {domain: stream.position for domain, stream in streams.items()},
            "random": states,
        },
    )


def restore_checkpoint(state: Mapping[str, Any], learner: Learner, streams: Mapping[str, Stream]) -> None:
    """Undo :func:`save_checkpoint`, with as many processes as then or another number.

    The streams count batches of all processes together, so the same images follow in the same order.
    Processes beyond those that saved draw their dropout and masks from a fresh seed.
    """
    learner.student.load_state_dict(state["student"])
    if learner.teacher is not None:
        learner.teacher.load_state_dict(state["teacher"])
    for detector in (learner.student.detector, *([learner.teacher.module] if learner.teacher else [])):
        detector.backbone.fingerprint = state.get("fingerprint", detector.backbone.fingerprint)
    learner.optimiser.load_state_dict(state["optimiser"])
    learner.scaler.load_state_dict(state["scaler"])
    for part in learner.method:
        if part.name in state["parts"]:
            part.load_state_dict(state["parts"][part.name])
    learner.step = state["step"]
    for domain, stream in streams.items():
        stream.position = state["positions"][domain]
    restore_process(state["random"], learner.world, learner.config.seed, learner.step)


def restore_process(states: Sequence[dict[str, Any]], world: World, seed: int, step: int) -> None:
    """This process' random state of those that were saved; one that there was not then gets a state of its
    own.
    """
    if world.rank < len(states):
        restore_random_state(states[world.rank])
    else:
        seed_everything(seed + 1_000_003 * world.rank + 7919 * step)


def synchronise_statistics(learner: Learner) -> None:
    """The same batch-norm statistics in every process (each has seen its own share of the images)."""
    if learner.world.size > 1:
        for network in _networks(learner).values():
            network.load_state_dict(_averaged(network, learner.world))


def keep_numbered(last: Path, stage: str, done: int, keep: int) -> None:
    """Keep a copy of the last checkpoint under the number of epochs that are over, and the ``keep`` latest of
    those.
    """
    with replacing(last.with_name(f"{stage}-{done:04d}.pt")) as file, last.open("rb") as original:
        shutil.copyfileobj(original, file)
    for old in sorted(last.parent.glob(f"{stage}-*.pt"))[:-keep]:
        old.unlink()


def _networks(learner: Learner) -> dict[str, nn.Module]:
    return {
        "student": learner.student,
        **({"teacher": learner.teacher.module} if learner.teacher is not None else {}),
    }


def _averaged(network: nn.Module, world: World) -> dict[str, Tensor]:
    """The state of a network, its floating-point buffers as the mean over all processes."""
    state = network.state_dict()
    if world.size > 1:
        for name, buffer in network.named_buffers():
            if name in state and buffer.is_floating_point():
                state[name] = world.mean(buffer.clone())
    return state
