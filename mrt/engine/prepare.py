"""What a stage needs before its first step: data, networks, averages, and the weights they start from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrt.adapt.retrain import reinit_state
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, StageConfig
from mrt.data.card import DatasetCard
from mrt.data.registry import find_dataset
from mrt.engine import build, checkpoint, labels
from mrt.engine.compiling import Compiler
from mrt.engine.distributed import World
from mrt.engine.folder import load_autoencoder, read_facts
from mrt.engine.inference import measure
from mrt.engine.load import Description, frozen_norms, holds_detector, load_detector, require_fit
from mrt.engine.loop import Stream
from mrt.engine.report import Watcher
from mrt.engine.snapshots import LabelSnapshots
from mrt.engine.step import Learner, Parts
from mrt.engine.student import SOURCE, TARGET, Student
from mrt.errors import MrtError
from mrt.evaluate.labels import as_pseudo_labels, label_quality
from mrt.models.classes import by_name, column_of
from mrt.models.detector import DeformableDETR
from mrt.models.mae import MaskedAutoencoder

RANDOM = "mae-random.pt"  # in the folder of a run of stage 2 alone
STAGES = ("pretrain", "mae", "teach")
NO_COCO = "Or begin with other weights: --set model.weights=FILE (a detector's, or a backbone's), or --init RUN_OR_WEIGHTS."
TRAINED = 1000  # updates by which the average's warm-up is ahead when it starts from a trained detector


@dataclass(frozen=True)
class Plan:
    """One stage of a run: its name, settings and parts, and whose labels supervise it ("source", "target", "source+target")."""

    name: str
    settings: StageConfig
    parts: Parts
    labels: str = SOURCE


@dataclass
class Workshop:
    """What all stages of a run share.

    Attributes:
        cards: data sets by domain. classes: what is detected.
        start: the run, file or shipped name that the detector's weights came from.
        mae: the branch that the stage before has trained (in this run or in the one that it starts from).
        continued: whether a checkpoint will fill in every weight.
        source_weights, random_weights: what selective retraining may go back to, where the configuration asks for them.
        told: what was said of the data, which every stage would say again.
    """

    config: Config
    world: World
    cards: dict[str, DatasetCard]
    classes: list[str]
    detector: DeformableDETR
    start: str | None = None
    continued: bool = False
    mae: MaskedAutoencoder | None = None
    source_weights: dict[str, Tensor] | None = None
    random_weights: dict[str, Tensor] | None = None
    told: set[str] = field(default_factory=set)

    def tell(self, watcher: Watcher, lines: Iterable[str]) -> None:
        """Say each line once in a run."""
        for line in lines:
            if line not in self.told:
                watcher.say(line)
            self.told.add(line)


@dataclass
class Stage:
    """A stage that is ready to run: its learner, its streams by domain, its length, and how many boxes a labelled image has."""

    learner: Learner
    streams: dict[str, Stream]
    steps_per_epoch: int
    boxes_per_image: float


def find_cards(plans: list[Plan], config: Config, data_root: Path) -> dict[str, DatasetCard]:
    """The cards of the sets that the plans use; the source is always needed, for its class names."""
    cards = {SOURCE: find_dataset(config.data.source, data_root)}
    if any(plan.name != "pretrain" or plan.labels != SOURCE for plan in plans):
        cards[TARGET] = find_dataset(config.data.target, data_root)
    return cards


def open_workshop(
    config: Config, world: World, cards: dict[str, DatasetCard], start: str | None, continued: bool, watcher: Watcher | None = None
) -> Workshop:
    """Build the detector and give it its first weights (unless a checkpoint will).

    Those are the trained ones of ``start``, else the initial ones of ``[model]``: pretrained weights that others would overwrite are not
    asked for.
    """
    watcher = watcher or Watcher()
    classes = labels.class_names(config, cards[SOURCE])
    whole = config.model.weights if holds_detector(config.model.weights) else None
    initial = not continued and (start is None or config.retrain.source == "random")
    plain = not frozen_norms(whole) if whole else config.model.weights == "none"
    structure = "none" if plain else "checkpoint"
    detector = build.build_detector(config, classes, filled=structure if whole or not initial else None)
    shop = Workshop(config, world, cards, classes, detector, start, continued)
    if whole is not None and initial:
        detector.load_state_dict(_trained_weights(detector, whole, classes, config, watcher, NO_COCO))
    if config.retrain.source == "random":
        shop.random_weights = copy.deepcopy(detector.state_dict())
    if start and not continued:
        detector.load_state_dict(_trained_weights(detector, start, classes, config, watcher))
    if start and config.retrain.source == "source":
        source = _source_of(start)
        again = continued or source != start
        loaded = _trained_weights(detector, source, classes, config, Watcher()) if again else copy.deepcopy(detector.state_dict())
        shop.source_weights = loaded
    return shop


def _trained_weights(
    detector: DeformableDETR, where: str, classes: list[str], config: Config, watcher: Watcher, hint: str | None = None
) -> dict[str, Tensor]:
    """Trained weights that fit the detector; its class columns are the trained one's by name, and its own where that has none.

    Args:
        watcher: is told of classes that begin anew. hint: what else to do where the weights cannot be had.
    """
    try:
        trained, facts = load_detector(where, which="auto", device="cpu")
    except MrtError as error:
        raise MrtError(error.message, "\n".join(text for text in (error.hint, hint) if text)) from None
    backbone = trained.backbone
    about = Description(list(facts["classes"]), backbone.name, trained.arguments, backbone.pretrained, bool(backbone.folded))
    require_fit(config.model, about, where)
    theirs, ours = trained.state_dict(), detector.state_dict()
    if list(about.classes) != list(classes):
        theirs = by_name(theirs, about.classes, ours, classes)
        new = [name for name in classes if column_of(name, about.classes) is None]
        known = len(classes) - len(new)
        watcher.say(
            f"{where}: {known} of {len(classes)} classes are known to it by name"
            + (f"; new, to be learned from the beginning: {', '.join(new)}" if new else "")
        )
    different = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape]
    different += [key for key in theirs if key not in ours]
    if different:
        found = f"{where}: {len(different)} weights do not fit this model, first {different[0]!r}"
        raise MrtError(found, "use the [model] settings it was trained with")
    detector.backbone.fingerprint = trained.backbone.fingerprint
    return theirs


def _refined_by(start: str | None) -> dict[str, Any] | None:
    """What ``run.json`` says where teaching starts from a run of stage 2 alone; else None."""
    if start is None or not (Path(start) / "run.json").is_file():
        return None
    facts = read_facts(Path(start))
    return facts if (facts["command"], facts.get("stages")) == ("adapt", ["mae"]) else None


def _source_of(start: str) -> str:
    """The source-trained weights that a starting point comes from: itself, or what the run of stage 2 that it is started from."""
    refined = _refined_by(start)
    return (refined or {}).get("init") or start


def take_over(plan: Plan, shop: Workshop, watcher: Watcher) -> None:
    """What teaching alone takes over from the run of stage 2 that it starts from, so that both ways give the same detector.

    That is the masked autoencoder and, if both have one seed, the state of the random generators.
    """
    if plan.name != "teach" or shop.start is None:
        return
    folder = Path(shop.start)
    if plan.parts.rebuild and shop.config.mae.carry_over:
        mae = build.build_mae(shop.config, shop.detector)
        if load_autoencoder(folder, mae):
            shop.mae = mae
        else:
            watcher.say(f"No masked autoencoder to carry over in {shop.start}: teaching begins with a new one.")
    if _refined_by(shop.start) and (folder / RANDOM).is_file():
        saved = checkpoint.load(folder / RANDOM)
        if saved["seed"] == shop.config.seed:
            checkpoint.restore_random_state(saved["state"])


def prepare(plan: Plan, shop: Workshop, watcher: Watcher) -> Stage:
    """Data, networks, optimiser, thresholds and teacher of a stage."""
    config, world, detector = shop.config, shop.world, shop.detector
    streams, boxes_per_image = _streams(plan, shop, watcher)
    with torch.random.fork_rng(devices=[]):  # a stage's new networks start alike, whatever was drawn before it and by how many processes
        torch.manual_seed(7919 * config.seed + STAGES.index(plan.name))
        mae = _autoencoder(shop) if plan.parts.rebuild else None
        discriminators = build.build_discriminators(config, detector) if plan.parts.judge else None
    student = Student(detector, mae, discriminators).to(world.device).train()
    settings = config.teacher
    thresholds = DynamicThresholds(
        len(shop.classes),
        settings.threshold_alpha,
        settings.threshold_gamma,
        settings.threshold_start,
        settings.threshold_min,
        settings.threshold_max,
        enabled=settings.dynamic,
        device=world.device,
    )
    ahead = 0 if plan.name == "pretrain" else TRAINED
    teacher = Teacher(detector, settings.ema, warmup=settings.warmup, warmup_offset=ahead) if plan.parts.ema else None
    optimiser = build.build_optimiser(config, plan.settings, student, world.device)
    compiler = Compiler(config.engine.compile, world.device, watcher)
    student.detector.set_checkpointing(config.engine.checkpointing)
    compiler.compile(student, teacher.module if teacher is not None else None)
    learner = Learner(config, plan.settings, plan.parts, world, student, optimiser, thresholds, teacher, compiler=compiler)
    learner.reinit = _retraining_state(plan, shop)
    return Stage(learner, streams, _steps_per_epoch(plan, shop), boxes_per_image)


def _streams(plan: Plan, shop: Workshop, watcher: Watcher) -> tuple[dict[str, Stream], float]:
    config, cards, first = shop.config, shop.cards, plan.name == "pretrain"
    splits = {SOURCE: config.data.source_split, TARGET: config.data.target_split}
    domains = plan.labels.split("+")
    parts = []
    for domain in domains:
        card, kind, use = cards[domain], plan.settings.augment, labels.LEARN[domain]
        part = build.training_set(config, card, splits[domain], shop.classes, kind, first_stage=first, labelled=True)
        labels.require_boxes_read(part, labels.class_map_for(config, card), use)
        shop.tell(watcher, [*part.left_out(), *labels.missing_classes(part, use)])
        parts.append(part)
    datasets: dict[str, Any] = {SOURCE: parts[0] if len(parts) == 1 else build.Joined(parts)}
    if plan.parts.target:
        view = "pair" if plan.parts.teach else "weak"
        datasets[TARGET] = build.training_set(config, cards[TARGET], splits[TARGET], shop.classes, view, first_stage=False, labelled=False)
    streams = {
        domain: Stream(build.training_loader(config, dataset, shop.world, config.seed + 7919 * number), device=shop.world.device)
        for number, (domain, dataset) in enumerate(datasets.items())
    }
    counted = [cards[domain].split(splits[domain]) for domain in domains]
    return streams, sum(split.num_boxes for split in counted) / max(1, sum(split.num_images for split in counted))


def _steps_per_epoch(plan: Plan, shop: Workshop) -> int:
    """Optimiser steps: the configuration's, or one pass over the smaller domain.

    Stages 2 and 3 count both domains whether or not they use them, so that baselines, oracles and ablations take the steps that
    adaptation takes.
    """
    data, batch = shop.config.data, shop.config.engine.batch_size
    if plan.settings.steps_per_epoch:
        return plan.settings.steps_per_epoch
    splits = {SOURCE: data.source_split, TARGET: data.target_split}
    images = {domain: card.split(splits[domain]).num_images for domain, card in shop.cards.items()}
    if plan.name == "pretrain":
        return max(1, sum(images[domain] for domain in plan.labels.split("+")) // batch)
    return max(1, min(images.values()) // batch)


def _autoencoder(shop: Workshop) -> MaskedAutoencoder:
    """The branch of the stage before, or a new one."""
    return shop.mae if shop.mae is not None and shop.config.mae.carry_over else build.build_mae(shop.config, shop.detector)


def _retraining_state(plan: Plan, shop: Workshop) -> dict[str, Tensor]:
    """What selective retraining goes back to: the weights teaching begins with, the source's, or random ones (paper, table 6)."""
    settings = shop.config.retrain
    if plan.name != "teach" or not plan.parts.target or not settings.every:
        return {}
    state = reinit_state(shop.detector, settings.parts)
    other = {"mae": None, "source": shop.source_weights, "random": shop.random_weights}[settings.source]
    return state if other is None else {key: other[key].to(value.device) for key, value in state.items()}


def label_snapshots(shop: Workshop, folder: Path) -> LabelSnapshots | None:
    """What records pseudo labels of a few target training images; none in processes but the first, or where none are wanted."""
    config = shop.config
    if not shop.world.main or not config.engine.snapshots:
        return None
    split = config.data.target_split
    dataset = build.training_set(config, shop.cards[TARGET], split, shop.classes, "eval", first_stage=False, labelled=False)
    return LabelSnapshots(folder, dataset, shop.classes, config.engine.snapshots, config.engine.eval_batch_size)


def validation(shop: Workshop, watcher: Watcher) -> Callable[[Learner], dict[str, Any]] | None:
    """A function that measures student and teacher on the validation split of the domain that matters; none where it has no labels."""
    config, split = shop.config, shop.config.data.validation_split
    card = shop.cards.get(TARGET, shop.cards[SOURCE])
    nothing = f"{card.name} has no box of the detector's classes in split {split!r}"
    if config.engine.eval_every == 0:
        wanted = TARGET in shop.cards and card.labelled and split in card.splits  # somebody may measure on it afterwards
        if wanted and not labels.has_boxes(card, split, shop.classes, labels.class_map_for(config, card)):
            watcher.say(f"{nothing}: mrt eval will find nothing to measure with")
        return None
    if not card.labelled or split not in card.splits:
        why = "no labels" if not card.labelled else f"no split {split!r}"
        watcher.say(f"{card.name} has {why}: nothing is measured during training")
        return None
    dataset = build.evaluation_set(config, card, split, shop.classes)
    shop.tell(watcher, dataset.left_out())
    if not any(dataset.boxes_per_class().values()):
        watcher.say(f"{nothing}: nothing is measured during training")
        return None
    shop.tell(watcher, labels.missing_classes(dataset, labels.MEASURE))

    def evaluate(learner: Learner) -> dict[str, Any]:
        networks = {"student": learner.student.detector, **({"teacher": learner.teacher.module} if learner.teacher is not None else {})}
        found = {}
        for name, network in networks.items():
            training = network.training
            metrics = measure(
                network, dataset, config.engine.eval_batch_size, shop.world, learner.precision, watcher, config.engine.workers
            )
            network.train(training)
            found[name] = metrics.to_dict()
            watcher.measured(name, found[name])
            if name == "teacher" and learner.parts.teach:  # what its labels would be there: to look at, never to train on
                guesses = as_pseudo_labels(metrics.detections, learner.thresholds.values.tolist(), config.teacher.nms_iou)
                found[name]["pseudo_labels"] = label_quality(guesses, dataset).to_dict()
            watcher.say(f"{name} on {card.name} {split}: AP50 {metrics.AP50:.1f}")
        return found

    return evaluate
