"""The paper's three stages, top to bottom.

1. :func:`pretrain_source`: the detector learns from the labelled source.
2. :func:`adapt`, stage "mae": source supervision, while the masked autoencoder learns to rebuild target features.
3. :func:`adapt`, stage "teach": an EMA teacher labels the target, the student learns from source labels, pseudo labels, discriminators
   and the masked autoencoder; selective retraining puts parts of the student back now and then.

Each is the same step (:mod:`mrt.engine.step`) with parts absent. The fair source-only baseline and the oracle run stages 2 and 3 with
every adaptive part absent, so they get the same steps, rates, augmentation and averaging.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mrt.adapt.retrain import reinit_state
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, StageConfig
from mrt.data.card import DatasetCard
from mrt.engine import build, checkpoint, distributed
from mrt.engine.folder import begin_run, finish_stage, open_run, save_networks
from mrt.engine.inference import load_detector, measure
from mrt.engine.loop import Run, Stream, restore_checkpoint, run_stage
from mrt.engine.report import RunLog, Watcher
from mrt.engine.step import Learner, Parts
from mrt.engine.student import SOURCE, TARGET, Student
from mrt.errors import MrtError
from mrt.models.detector import DeformableDETR

TRAINED = 1000  # updates by which the average's warm-up is ahead when it starts from a trained detector
Oracle = Literal["target", "source+target"]


@dataclass(frozen=True)
class Plan:
    """One stage of a run: its name, settings and parts, and whose labels supervise it ("source", "target", "source+target")."""

    name: str
    settings: StageConfig
    parts: Parts
    labels: str = SOURCE


def pretrain_source(
    config: Config,
    folder: Path,
    *,
    init: str | None = None,
    resume: bool = False,
    match_adapt: bool = False,
    oracle: Oracle | None = None,
    data_root: Path,
    watcher: Watcher | None = None,
) -> Path:
    """Stage 1: train a detector on labelled images.

    Args:
        config: see :mod:`mrt.config`; ``[pretrain]`` is this stage.
        folder: where the run is written; must not exist unless ``resume``.
        init: weights to start from (a run, a weights file or a shipped name); none starts from the backbone's weights alone.
        resume: continue the run in ``folder`` with its own configuration.
        match_adapt: the fair source-only baseline: the steps, rates, augmentation and averaging of :func:`adapt`, and its starting
            point, with every adaptive part absent.
        oracle: train on the target's labels instead of, or together with, the source's.

    Returns:
        ``folder``, with ``student.safetensors`` and, where an average was kept, ``teacher.safetensors``.

    Raises:
        MrtError: bad input. RunFailed: a loss that is not finite. Interrupted: stopped; ``resume`` continues.
    """
    labels = oracle or SOURCE
    if match_adapt:
        plans = [Plan("mae", config.mae_stage, Parts(), labels), Plan("teach", config.teach, Parts(ema=True), labels)]
        init = _starting_point(config, folder, init) if not resume else init
    else:
        plans = [Plan("pretrain", config.pretrain, Parts(ema=config.pretrain.ema), labels)]
    command = {"command": "pretrain-source", "init": init, "match_adapt": match_adapt, "oracle": oracle}
    return _run(plans, config, Path(folder), command, resume, Path(data_root), watcher or Watcher())


def adapt(
    config: Config,
    folder: Path,
    *,
    stages: tuple[str, ...] = ("mae", "teach"),
    init: str | None = None,
    resume: bool = False,
    data_root: Path,
    watcher: Watcher | None = None,
) -> Path:
    """Stages 2 and 3: adapt a source-trained detector to unlabelled target images. Arguments as in :func:`pretrain_source`.

    Args:
        stages: "mae", "teach" or both.
        init: where adaptation starts; none takes ``config.init``, else the run ``<preset>-source`` beside ``folder``.
    """
    unknown = [name for name in stages if name not in ("mae", "teach")]
    if unknown or not stages:
        raise MrtError(f"stages {stages}: unknown {unknown}" if unknown else "no stage was asked for", "stages are mae and teach")
    mae, teacher = config.mae, config.teacher
    domains = {"target": (TARGET,), "source": (SOURCE,), "both": (SOURCE, TARGET)}[mae.data]
    plans = []
    if "mae" in stages:
        plans.append(Plan("mae", config.mae_stage, Parts(rebuild=domains if mae.use != "none" else ())))
    if "teach" in stages:
        rebuild = domains if mae.use == "branch" else ()
        plans.append(
            Plan("teach", config.teach, Parts(rebuild=rebuild, teach=teacher.pseudo_labels, judge=config.domain.enabled, ema=True))
        )
    init = _starting_point(config, folder, init) if not resume else init
    return _run(
        plans,
        config,
        Path(folder),
        {"command": "adapt", "init": init, "stages": list(stages)},
        resume,
        Path(data_root),
        watcher or Watcher(),
    )


def _starting_point(config: Config, folder: Path, init: str | None) -> str:
    beside = Path(folder).parent / f"{config.preset}-source"
    if init or config.init:
        return init or config.init
    if (beside / "student.safetensors").is_file():
        return str(beside)
    raise MrtError(
        "adaptation needs a detector that was trained on the source, and none was given",
        f"train one with: mrt pretrain-source --preset {config.preset}\nor name one with --init RUN_OR_WEIGHTS",
    )


def _run(plans: list[Plan], config: Config, folder: Path, command: dict[str, Any], resume: bool, data_root: Path, watcher: Watcher) -> Path:
    """Run the plans one after the other, each from what the one before left."""
    state: dict[str, Any] | None = None
    if resume:
        config, command = open_run(folder, command)
        last = folder / "checkpoints" / "last.pt"
        state = checkpoint.load(last) if last.is_file() else None  # killed before its first checkpoint: from the beginning
    world = distributed.join(config.engine.device)
    build.use_threads(config)
    cards = _cards(plans, config, data_root)
    classes = build.class_names(config, cards[SOURCE])
    checkpoint.seed_everything(config.seed)  # the same weights in every process
    detector = build.build_detector(config, classes)
    random_weights = copy.deepcopy(detector.state_dict()) if config.retrain.source == "random" else None
    if command["init"]:
        _take_weights(detector, command["init"], classes)
    if world.main and not resume:
        begin_run(folder, config, command, cards, classes)
    world.wait()
    with RunLog(folder, active=world.main) as log:
        run = Run(folder, config, log, watcher if world.main else Watcher(), facts={"classes": classes})
        run.evaluate = _validation(config, cards, classes, world, run.watcher)
        started_from = {key: value.clone() for key, value in detector.state_dict().items()}
        begin = next((i for i, plan in enumerate(plans) if state and plan.name == state["stage"]), 0)
        mae = None
        for number, plan in enumerate(plans):
            if number < begin:
                continue
            learner, streams, steps, boxes = _prepare(plan, config, cards, classes, detector, mae, world)
            learner.reinit = _retraining_state(plan, config, detector, started_from, random_weights)
            if state is not None:
                restore_checkpoint(state, learner, streams)
                state = None
            elif world.rank:
                checkpoint.seed_everything(config.seed + 1_000_003 * world.rank + number)  # masks and dropout differ between processes
            run_stage(plan.name, learner, streams, run, steps, boxes)
            mae = learner.student.mae
            if world.main:
                save_networks(folder, config, classes, learner)
                finish_stage(folder, plan.name)
            for network, numbers in (run.evaluate(learner) if run.evaluate else {}).items():
                log.write(plan.name, "eval", learner.step, {"epoch": plan.settings.epochs, "network": network, **numbers})
            world.wait()
    return folder


def _cards(plans: list[Plan], config: Config, data_root: Path) -> dict[str, DatasetCard]:
    """The cards of the sets that the plans use; the source is always needed, for its class names."""
    cards = {SOURCE: build.card_of(config.data.source, data_root)}
    if any(plan.parts.target or plan.labels != SOURCE or plan.name != "pretrain" for plan in plans):
        cards[TARGET] = build.card_of(config.data.target, data_root)
    return cards


def _take_weights(detector: DeformableDETR, init: str, classes: list[str]) -> None:
    """Copy trained weights into the detector; the class heads must be of the same classes."""
    trained, facts = load_detector(init, which="auto", device="cpu")
    if list(facts["classes"]) != list(classes):
        raise MrtError(
            f"{init}: its classes are {', '.join(facts['classes'])}; this run's are {', '.join(classes)}", "use --set data.classes=[...]"
        )
    theirs, ours = trained.state_dict(), detector.state_dict()
    different = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape] + [
        key for key in theirs if key not in ours
    ]
    if different:
        raise MrtError(
            f"{init}: {len(different)} weights do not fit this model, first {different[0]!r}",
            "use the [model] settings it was trained with",
        )
    detector.load_state_dict(theirs)


def _prepare(
    plan: Plan,
    config: Config,
    cards: dict[str, DatasetCard],
    classes: list[str],
    detector: DeformableDETR,
    mae: Any,
    world: distributed.World,
) -> tuple[Learner, dict[str, Stream], int, float]:
    """The learner of a stage, its streams, its steps per epoch, and the labelled boxes per image of its labelled set."""
    first = plan.name == "pretrain"
    kind = plan.settings.augment
    labelled = {
        SOURCE: [(cards[SOURCE], config.data.source_split)],
        TARGET: [(cards.get(TARGET), config.data.target_split)],
        "source+target": [(cards[SOURCE], config.data.source_split), (cards.get(TARGET), config.data.target_split)],
    }[plan.labels]
    parts = [build.training_set(config, card, split, classes, kind, first_stage=first, labelled=True) for card, split in labelled]
    if any(not part.labelled for part in parts):
        raise MrtError(f"data set {labelled[-1][0].name!r} has no labels to train on", "the oracle needs a labelled target")
    datasets: dict[str, Any] = {SOURCE: parts[0] if len(parts) == 1 else build.Joined(parts)}
    if plan.parts.target:
        view = "pair" if plan.parts.teach else "weak"
        datasets[TARGET] = build.training_set(
            config, cards[TARGET], config.data.target_split, classes, view, first_stage=False, labelled=False
        )
    streams = {
        domain: Stream(build.training_loader(config, dataset, world, config.seed + 7919 * number))
        for number, (domain, dataset) in enumerate(datasets.items())
    }
    accumulate = config.engine.accumulate
    steps = plan.settings.steps_per_epoch or max(1, min(stream.length for stream in streams.values()) // accumulate)
    detector.set_dropout(config.model.dropout)
    student = Student(
        detector,
        (mae if mae is not None and config.mae.carry_over else build.build_mae(config, detector)) if plan.parts.rebuild else None,
        build.build_discriminators(config, detector) if plan.parts.judge else None,
    ).to(world.device)
    student.train()
    settings = config.teacher
    thresholds = DynamicThresholds(
        len(classes),
        settings.threshold_alpha,
        settings.threshold_gamma,
        settings.threshold_start,
        settings.threshold_min,
        settings.threshold_max,
        enabled=settings.dynamic,
        device=world.device,
    )
    teacher = Teacher(detector, settings.ema, warmup=settings.warmup, warmup_offset=0 if first else TRAINED) if plan.parts.ema else None
    optimiser = build.build_optimiser(config, plan.settings, student, world.device)
    learner = Learner(config, plan.settings, plan.parts, world, student, optimiser, thresholds, teacher)
    boxes = sum(card.split(split).num_boxes for card, split in labelled) / max(
        1, sum(card.split(split).num_images for card, split in labelled)
    )
    return learner, streams, steps, boxes


def _retraining_state(
    plan: Plan, config: Config, detector: DeformableDETR, started_from: dict[str, Tensor], random_weights: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """What selective retraining goes back to: the weights teaching begins with, the source's, or random ones (paper, table 6)."""
    if not (plan.parts.teach and config.retrain.every):
        return {}
    state = reinit_state(detector, config.retrain.parts)
    other = {"mae": None, "source": started_from, "random": random_weights}[config.retrain.source]
    return state if other is None else {key: other[key].to(value.device) for key, value in state.items()}


def _validation(config: Config, cards: dict[str, DatasetCard], classes: list[str], world: distributed.World, watcher: Watcher) -> Any:
    """A function that measures student and teacher on the validation split of the domain that matters; none where it has no labels."""
    card = cards.get(TARGET, cards[SOURCE])
    if not world.main or config.engine.eval_every == 0 or not card.labelled or config.data.validation_split not in card.splits:
        return None
    dataset = build.evaluation_set(config, card, config.data.validation_split, classes)

    def evaluate(learner: Learner) -> dict[str, Any]:
        networks = {"student": learner.student.detector}
        if learner.teacher is not None:
            networks["teacher"] = learner.teacher.module
        found = {}
        for name, network in networks.items():
            training = network.training
            metrics = measure(network, dataset, config.engine.eval_batch_size, world.device, learner.precision, watcher)
            network.train(training)
            found[name] = metrics.to_dict()
            watcher.say(f"{name} on {card.name} {config.data.validation_split}: AP50 {metrics.AP50:.1f}")
        return found

    return evaluate
