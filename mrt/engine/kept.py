"""Teachers that are kept: weights after epochs of a stage, in a run's folder ``teachers``
(``engine.keep_teachers``), to look at and to choose among later.

Each is a weights file like ``teacher.safetensors``, and says of which epoch it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mrt.config import Config
from mrt.engine.facts import read_facts
from mrt.engine.folder import weights_facts
from mrt.engine.learner import Learner
from mrt.errors import MrtError, RunFailed
from mrt.models.weights import load_weights, save_weights

FOLDER = "teachers"
_NAME = re.compile(r"([a-z]+)-(\d{4,})\.safetensors")


def kept_teachers(folder: Path) -> dict[tuple[str, int], Path]:
    """The teachers of a run, by stage and number of epochs that were over."""
    found = {}
    for path in sorted((Path(folder) / FOLDER).glob("*.safetensors")):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            found[name[1], int(name[2])] = path
    return dict(sorted(found.items()))


def keep_teacher(
    folder: Path, config: Config, classes: list[str], learner: Learner, stage: str, epoch: int, best: int = 0
) -> None:
    """Write the teacher of an epoch; of each stage the last ``engine.keep_teachers`` stay, and the ``best``
    one so far (an epoch; 0: none is known), which the stage may have to go back to.
    """
    keep = config.engine.keep_teachers
    if not keep or learner.teacher is None:
        return
    place = Path(folder) / FOLDER
    place.mkdir(exist_ok=True)
    facts = {**weights_facts(config, classes, learner), "network": "teacher", "stage": stage, "epoch": epoch}
    save_weights(place / f"{stage}-{epoch:04d}.safetensors", learner.teacher.module, facts)
    of_stage = [(number, path) for (name, number), path in kept_teachers(folder).items() if name == stage]
    for number, path in of_stage[:-keep]:
        if not best or number != best:
            path.unlink(missing_ok=True)


def forget_later_teachers(folder: Path, stage: str, epochs: int, later: Collection[str]) -> None:
    """Remove the teachers of after ``epochs`` epochs of a stage; ``later``: stages that follow it."""
    for (name, epoch), path in kept_teachers(folder).items():
        if name in later or (name == stage and epoch > epochs):
            path.unlink(missing_ok=True)


def standing(folder: Path) -> dict[str, Any]:
    """What a look at a run's detectors is of, as plain values: it is of other ones when this has changed."""
    facts = read_facts(folder)
    known = {name: facts.get(name) for name in ("started", "finished", "left")}
    return {**known, "teachers": [path.name for path in kept_teachers(folder).values()]}


def restore_teacher(folder: Path, learner: Learner, stage: str, epoch: int) -> int:
    """Give the teacher the weights that it had after an epoch, or after the nearest kept one before; 0: those
    that the stage began with. Parts take back what they had on record then, such as thresholds.

    Returns:
        The epoch whose teacher it is.

    Raises:
        RunFailed: none was kept, or it is not what was written; in every process alike.
    """
    kept = {number: path for (name, number), path in kept_teachers(folder).items() if name == stage}
    found: tuple[int, dict, dict] | str = f"{Path(folder) / FOLDER}: has no teacher of up to epoch {epoch}"
    if learner.world.main and (there := [number for number in kept if number <= epoch]):
        try:
            detector, facts = load_weights(kept[max(there)], backbone_weights="checkpoint")
            found = max(there), detector.state_dict(), facts
        except MrtError as error:
            found = error.message
    found = learner.world.share(found)
    if isinstance(found, str):
        raise RunFailed(
            f"{found}, to go back to. Go on with --resume --set engine.on_collapse=warn --allow-change, or "
            "train again with a larger engine.keep_teachers"
        )
    number, state, facts = found
    learner.teacher.module.load_state_dict(state)
    for part in learner.method:
        part.recall(facts)
    return number
