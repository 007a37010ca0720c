"""Everything that is needed to go on where a run stopped, as tensors and plain values. What becomes of it on
disk: :mod:`mrt.engine.store`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mrt.engine import store
from mrt.errors import MrtError

if TYPE_CHECKING:
    from mrt.engine.data import Stream
    from mrt.engine.distributed import World
    from mrt.engine.learner import Learner


def random_state() -> dict[str, Any]:
    """The state of every random generator that training draws from: tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), *(float(value) for value in rest)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Undo :func:`random_state`; a CUDA state is ignored where there is no GPU.

    Earlier versions kept Python's and NumPy's own objects, which are understood, too.
    """
    version, words, gauss = state["python"]
    random.setstate((int(version), tuple(int(word) for word in words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = np.asarray(keys).astype(np.uint32)
    np.random.set_state((str(kind), keys, int(position), int(has_gauss), float(cached)))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def seed_everything(seed: int) -> None:
    """One seed for python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in the schema of now."""
    schema = state.pop("schema", 1)
    if schema == 1 and "thresholds" in state:  # what is a part's own lay beside everything else
        labels = {"thresholds": state.pop("thresholds")}
        if "label_count" in state:
            labels["label_count"] = state.pop("label_count")
        state["parts"] = {"pseudo_labels": labels, "retrain": {"weights": state.pop("reinit", {})}}
    return state


def state_of(
    stage: str,
    learner: Learner,
    streams: Mapping[str, Stream],
    rates: Sequence[float],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Everything needed to go on from here (every process' random state, too), in the first process; None in
    the others, which have to call it as well. Nothing that is trained changes.

    Args:
        stage: its name. rates: the base learning rate of each group; the schedule is a function of the step.
        more: what else each process has to keep, gathered by rank.
    """
    bad = {domain: dict(stream.bad) for domain, stream in streams.items()}
    everyone = learner.world.gather({"random": random_state(), "own": dict(more or {}), "bad": bad})
    parts = {part.name: part.state_dict() for part in learner.method}
    networks = {name: _averaged(network, learner.world) for name, network in _networks(learner).items()}
    if not learner.world.main:
        return None
    optimiser = learner.optimiser.state_dict()
    for group, rate in zip(optimiser["param_groups"], rates, strict=True):
        group["lr"] = rate
    return {
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
        "accumulate": learner.config.engine.accumulate,
        "bad_images": {
            domain: {file: why for one in everyone for file, why in one["bad"][domain].items()}
            for domain in streams
        },
        "random": [one["random"] for one in everyone],
        "own": [one["own"] for one in everyone],
    }


def require_plain_parts(learner: Learner) -> None:
    """MrtError if a part of the method keeps something that a checkpoint cannot hold."""
    for part in learner.method:
        store.require_plain(part.state_dict(), f"part {part.name!r}, state_dict()")


def restore_checkpoint(
    state: Mapping[str, Any], learner: Learner, streams: Mapping[str, Stream], strict: bool = False
) -> None:
    """Undo :func:`state_of`, with as many processes as then or another number.

    The streams count batches of all processes together, so the same images follow in the same order.
    Processes beyond those that saved draw their dropout and masks from a fresh seed.

    Args:
        strict: refuse a part of the method that the checkpoint knows nothing of, and that keeps something.

    Raises:
        MrtError: it is of another network or method than the run has now.
    """
    for part in learner.method if strict else ():
        if part.state_dict() and part.name not in state["parts"]:
            raise MrtError(
                f"{part.name}: the run had it switched off, and it cannot be switched on in the middle",
                "leave its settings as they were, or start another run from the weights with --init",
            )
    try:
        _restore(state, learner, streams)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MrtError(
            f"the checkpoint does not fit this run ({type(error).__name__}: {reason[:200]})",
            "go on with the settings and plug-ins that it was written with, or start another run from its "
            "weights with --init",
        ) from error
    restore_process(state["random"], learner.world, learner.config.seed, learner.step)


def _restore(state: Mapping[str, Any], learner: Learner, streams: Mapping[str, Stream]) -> None:
    learner.student.load_state_dict(state["student"])
    if learner.teacher is not None:
        learner.teacher.load_state_dict(state["teacher"])
    for detector in (learner.student.detector, *([learner.teacher.module] if learner.teacher else [])):
        detector.backbone.fingerprint = state.get("fingerprint", detector.backbone.fingerprint)
    # Rates and decays are the settings', which may have been changed; what was gathered of gradients is kept.
    own = [{key: group[key] for key in group if key != "params"} for group in learner.optimiser.param_groups]
    learner.optimiser.load_state_dict(state["optimiser"])
    for group, settings in zip(learner.optimiser.param_groups, own, strict=True):
        group.update(settings)
    if state["scaler"]:  # empty without fp16
        learner.scaler.load_state_dict(state["scaler"])
    for part in learner.method:
        if part.name in state["parts"]:
            part.load_state_dict(state["parts"][part.name])
    learner.step = state["step"]
    for domain, stream in streams.items():
        now = learner.config.engine.accumulate
        stream.position = state["positions"][domain] * now // state.get("accumulate", now)
        stream.bad.update(state.get("bad_images", {}).get(domain, {}))


def restore_process(states: Sequence[Mapping[str, Any]], world: World, seed: int, step: int) -> None:
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
