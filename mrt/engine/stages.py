"""The method, as in section 3 of the paper: each stage is a list of parts.

1. :func:`source_training`: the detector learns from the labelled source.
2. :func:`refining`: the same, while the masked autoencoder learns to rebuild target features.
3. :func:`teaching`: an EMA teacher labels the target; the student learns from source labels, pseudo labels,
discriminators and the
   autoencoder; selective retraining puts parts of the student back now and then.

Without source images there is :func:`source_free` instead of stages 2 and 3.

The baselines are stages 2 and 3 without what adapts (:func:`without_adapting`): the same steps, rates,
augmentation and averaging.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrt.config import Config
from mrt.domains import SOURCE
from mrt.engine.data import classes_of, find_cards
from mrt.engine.plan import Average, Plan
from mrt.engine.run import carry_out
from mrt.engine.start import absolute, starting_point, stored
from mrt.errors import MrtError
from mrt.parts.align import Align
from mrt.parts.distill import Distill
from mrt.parts.outside_labels import OutsideLabels
from mrt.parts.pseudo_labels import PseudoLabels
from mrt.parts.rebuild import Rebuild
from mrt.parts.retrain import Retrain
from mrt.parts.source_record import SourceRecord
from mrt.parts.supervise import Supervise

Oracle = Literal["target", "source+target"]
TRAINED = 1000  # updates by which the teacher's warm-up is ahead when it starts from a trained detector


def source_training(config: Config, labels: str = SOURCE) -> Plan:
    """Stage 1 (section 3.1). Whose ``labels``: the source's, or an oracle's."""
    teacher = Average() if config.pretrain.ema else None
    return Plan(
        "pretrain",
        0,
        config.pretrain,
        [Supervise(), SourceRecord()],
        labels,
        teacher,
        images="varied",
        pass_over="labelled",
    )


def refining(config: Config) -> Plan:
    """Stage 2 (section 3.3): supervision on the source, reconstruction of the target."""
    return Plan("mae", 1, config.mae_stage, [Supervise(), SourceRecord(), Rebuild(kept=True)], leads=True)


def teaching(config: Config) -> Plan:
    """Stage 3 (sections 3.2 to 3.4): everything."""
    rebuild = Rebuild(used=("branch",), decays=True)
    labels = [PseudoLabels(), OutsideLabels(), Distill()]
    parts = [Supervise(), SourceRecord(), *labels, Align(), rebuild, Retrain()]
    return Plan("teach", 2, config.teach, parts, teacher=Average(TRAINED), follows="mae")


def source_free(config: Config) -> Plan:
    """Teaching without any source image, from weights alone."""
    labels = [PseudoLabels(), OutsideLabels(), Distill()]
    parts = [SourceRecord(), *labels, Rebuild(used=("branch",), decays=True), Retrain()]
    return Plan("teach", 2, config.teach, parts, labels="", teacher=Average(TRAINED))


def without_adapting(config: Config, labels: str = SOURCE) -> list[Plan]:
    """The fair source-only baseline, or an oracle with the ``labels`` of the target: stages 2 and 3 with
    supervision alone.
    """
    return [
        Plan("mae", 1, config.mae_stage, [Supervise(), SourceRecord()], labels, leads=True, plugs=False),
        Plan(
            "teach",
            2,
            config.teach,
            [Supervise(), SourceRecord()],
            labels,
            Average(TRAINED),
            follows="mae",
            plugs=False,
        ),
    ]


STAGES = {"mae": refining, "teach": teaching}  # of adaptation


def require_readable(config: Config, data_root: Path, init: str | None) -> None:
    """MrtError if the parts of teaching could not read what they will read.

    Args:
        init: where the weights start; None: at weights that are still to be trained.
    """
    plan = (source_free if config.method.source_free else teaching)(config).active(config)
    if not plan.labelled and init is None:
        return
    cards = find_cards([plan], config, data_root)
    classes = classes_of(config, cards, init)
    for part in plan.parts:
        part.check(config, cards, classes, data_root)


def pretrain_source(
    config: Config,
    folder: Path,
    *,
    init: str | None = None,
    match_compute: bool = False,
    oracle: Oracle | None = None,
    **how: Any,
) -> Path:
    """Stage 1: train a detector on labelled images.

    Args:
        config: see :mod:`mrt.config`; ``[pretrain]`` is this stage.
        folder: where the run is written; must not exist unless ``resume``.
        init: weights to start from (a run, a weights file or a shipped name); none starts from the backbone's
            weights alone.
        match_compute: the fair source-only baseline: the steps, rates, augmentation, averaging and starting
            point of :func:`adapt`.
        oracle: train on the target's labels instead of, or together with, the source's.
        how: ``data_root``, ``resume``, ``watcher``, ``profile``: see :func:`mrt.engine.run.carry_out`.

    Returns:
        ``folder``, with ``student.safetensors`` and, where an average was kept, ``teacher.safetensors``.

    Raises:
        MrtError: bad input. RunFailed: a loss that is not finite. Interrupted: stopped; ``resume`` continues.
    """
    config = stored(config, folder, how)
    if match_compute:
        plans = without_adapting(config, oracle or SOURCE)
        init = starting_point(config, init, how)
    else:
        plans = [source_training(config, oracle or SOURCE)]
    command = {
        "command": "pretrain-source",
        "init": absolute(init),
        "match_compute": match_compute,
        "oracle": oracle,
    }
    return carry_out(plans, config, folder, command, **how)


def adapt(
    config: Config,
    folder: Path,
    *,
    stages: tuple[str, ...] = ("mae", "teach"),
    init: str | None = None,
    **how: Any,
) -> Path:
    """Stages 2 and 3: adapt a source-trained detector to unlabelled target images. Arguments as in
    :func:`pretrain_source`.

    Args:
        stages: "mae", "teach" or both; without source images (``method.source_free``) there is only "teach".
        init: where adaptation starts; none takes ``config.init``.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown or not stages:
        raise MrtError(
            f"stages {stages}: unknown {unknown}" if unknown else "no stage was asked for",
            "stages are mae and teach",
        )
    config = stored(config, folder, how)
    if config.method.source_free:
        stages, plans = ("teach",), [source_free(config)]
    else:
        plans = [plan(config) for name, plan in STAGES.items() if name in stages]
    command = {"command": "adapt", "init": starting_point(config, init, how), "stages": list(stages)}
    return carry_out(plans, config, folder, command, **how)
