"""The networks of a plan: detector, what parts add to it, averages, and the weights they start from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrt.adapt.teacher import Teacher
from mrt.config import Config
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset
from mrt.domains import SOURCE, TARGET
from mrt.engine import build, checkpoint, data, labels, store
from mrt.engine.checks import checked_networks
from mrt.engine.compiling import Compiler
from mrt.engine.data import Stream
from mrt.engine.distributed import World
from mrt.engine.learner import Learner
from mrt.engine.load import Description, frozen_norms, holds_detector, load_detector, require_fit
from mrt.engine.plan import Plan
from mrt.engine.report import Watcher
from mrt.engine.snapshots import LabelSnapshots
from mrt.engine.start import run_of, source_of
from mrt.engine.student import Student
from mrt.engine.watch import Watch
from mrt.errors import MrtError
from mrt.models.classes import by_name, told_by_name
from mrt.models.interface import Detector
from mrt.parts.base import Part, Site
from mrt.parts.source_record import BOXES

RANDOM = "{}-random.pt"  # in the folder of a run of one stage alone, for the stage that follows it
NO_COCO = (
    "Or begin with other weights: --set model.weights=FILE (a detector's, or a backbone's), or "
    "--init RUN_OR_WEIGHTS."
)


@dataclass
class Workshop:
    """What all stages of a run share.

    Attributes:
        cards: data sets by domain. classes: what is detected.
        start: the run, file or shipped name that the detector's weights came from.
        folder: of the run.
        kept: detector weights that parts of some stage need.
        source: what the starting weights have on record of their source.
        before: the parts of the stage that this run has trained before, by name.
        told: what was said of the data, which every stage would say again. bad: images that could not be
            read, with the reason, by file.
    """

    config: Config
    world: World
    cards: dict[str, DatasetCard]
    classes: list[str]
    detector: Detector
    folder: Path
    watcher: Watcher
    start: str | None = None
    kept: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    before: Mapping[str, Part] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def tell(self, lines: Iterable[str]) -> None:
        """Say each line once in a run."""
        for line in lines:
            if line not in self.told:
                self.watcher.say(line)
            self.told.add(line)


@dataclass
class Stage:
    """A stage that is ready to run: its plan and learner, its streams by domain, and its length."""

    plan: Plan
    learner: Learner
    streams: dict[str, Stream]
    steps_per_epoch: int
    watch: Watch = field(default_factory=Watch)


def open_workshop(
    config: Config,
    world: World,
    cards: dict[str, DatasetCard],
    classes: list[str],
    plans: Sequence[Plan],
    start: str | None,
    continued: bool,
    folder: Path,
    watcher: Watcher | None = None,
) -> Workshop:
    """Build the detector and give it its first weights (unless a checkpoint will).

    Those are the trained ones of ``start``, else the initial ones of ``[model]``: pretrained weights that
    others would overwrite are not asked for.

    Args:
        continued: whether a checkpoint will fill in every weight.
    """
    watcher = watcher or Watcher()
    kept = frozenset().union(*(plan.needs(config).kept for plan in plans))
    whole = config.model.weights if holds_detector(config.model.weights) else None
    initial = not continued and (start is None or "random" in kept)
    plain = not frozen_norms(whole) if whole else config.model.weights == "none"
    structure = "none" if plain else "checkpoint"
    detector = build.build_detector(config, classes, filled=structure if whole or not initial else None)
    shop = Workshop(config, world, cards, classes, detector, folder, watcher, start)
    if whole is not None and initial:
        detector.load_state_dict(_trained_weights(detector, whole, classes, config, watcher, NO_COCO))
    if "random" in kept:
        shop.kept["random"] = copy.deepcopy(detector.state_dict())
    if start and not continued:
        detector.load_state_dict(_trained_weights(detector, start, classes, config, watcher))
    if start and "source" in kept:
        source = source_of(start, next((plan.follows for plan in plans if plan.follows), None))
        again = continued or source != start
        loaded = (
            _trained_weights(detector, source, classes, config, Watcher())
            if again
            else copy.deepcopy(detector.state_dict())
        )
        shop.kept["source"] = loaded
    return shop


def _trained_weights(
    detector: Detector,
    where: str,
    classes: list[str],
    config: Config,
    watcher: Watcher,
    hint: str | None = None,
) -> dict[str, Tensor]:
    """Trained weights that fit the detector; its class columns are the trained one's by name, and its own
    where that has none.

    Args:
        watcher: is told of classes that begin anew. hint: what else to do where the weights cannot be had.
    """
    try:
        trained, facts = load_detector(where, which="auto", device="cpu")
    except MrtError as error:
        raise MrtError(error.message, "\n".join(text for text in (error.hint, hint) if text)) from None
    backbone = trained.backbone
    classes_there, folded = list(facts["classes"]), bool(backbone.folded)
    about = Description(
        classes_there, backbone.name, trained.arguments, backbone.pretrained, folded, trained.kind
    )
    require_fit(config.model, about, where)
    theirs, ours = trained.state_dict(), detector.state_dict()
    if list(about.classes) != list(classes):
        theirs = by_name(theirs, about.classes, ours, classes, detector.class_heads)
        watcher.say(f"{where}: {told_by_name(about.classes, classes)}")
    different = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape]
    different += [key for key in theirs if key not in ours]
    if different:
        found = f"{where}: {len(different)} weights do not fit this model, first {different[0]!r}"
        raise MrtError(found, "use the [model] settings it was trained with")
    detector.backbone.fingerprint = trained.backbone.fingerprint
    return theirs


def take_over(plan: Plan, shop: Workshop) -> None:
    """The state of the random generators where a stage alone follows a run of the stage before, if both have
    one seed.

    So both ways give the same detector; parts take over what is theirs themselves
    (:attr:`mrt.parts.base.Site.start`).
    """
    file = Path(shop.start or "") / RANDOM.format(plan.follows)
    if run_of(plan.follows, shop.start) is None or not file.is_file():
        return
    saved, _ = store.read(file)
    if saved.get("seed") == shop.config.seed:
        checkpoint.restore_random_state(saved["state"])


def leave_behind(plan: Plan, shop: Workshop) -> None:
    """The counterpart of :func:`take_over`."""
    if plan.leads:
        state = {"seed": shop.config.seed, "state": checkpoint.random_state()}
        store.write(shop.folder / RANDOM.format(plan.name), state, {"stage": plan.name})


def prepare(plan: Plan, shop: Workshop, first: bool = True) -> Stage:
    """Data, networks, optimiser, teacher and parts of a stage.

    Args:
        first: whether it is the run's first stage, which goes on from where the run started.
    """
    config, world, detector, watcher = shop.config, shop.world, shop.detector, shop.watcher
    shop.tell(config.warnings(plan.kind))
    sets = data.labelled_sets(plan, config, shop.cards, shop.classes)
    for domain, dataset in zip(plan.labelled, sets, strict=True):
        shop.tell([*dataset.left_out(), *labels.missing_classes(dataset, labels.LEARN[domain])])
    streams = data.build_streams(plan, config, shop.cards, shop.classes, sets, world, shop.tell)
    data.watch_bad(streams, shop.bad, watcher.say)
    site = Site(config, plan.settings, shop.classes, detector, world, watcher.say)
    on_record = {name: shop.source.get(BOXES, {}).get(name, 0.0) for name in shop.classes}
    expected = data.boxes_by_class(plan, config, shop.cards, shop.classes) if plan.labelled else on_record
    site = replace(
        site,
        source_boxes=data.boxes_per_image(plan, config, shop.cards)
        if plan.labelled
        else sum(on_record.values()),
        source_objects=expected,
        source=shop.source,
        target=TARGET in streams,
        kept=shop.kept,
    )
    start = Path(shop.start) if first and plan.follows and shop.start else None
    sites = {part.name: replace(site, before=shop.before.get(part.name), start=start) for part in plan.parts}
    networks: dict[str, torch.nn.Module] = {}
    # A stage's new networks start alike, whatever was drawn before it and by how many processes; those of
    # plug-ins are drawn last and change nothing of the others.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7919 * config.seed + plan.number)
        own = [part for part in plan.parts if not part.stages]
        for part in [*reversed(own), *(part for part in plan.parts if part.stages)]:
            networks |= checked_networks(part, part.networks(sites[part.name]), networks)
    student = Student(detector, more=networks).to(world.device).train()
    settings = config.teacher
    ahead = plan.teacher.ahead if plan.teacher else 0
    how = {"every": settings.every, "fast": settings.fast_ema, "fast_share": settings.fast_share}
    teacher = (
        Teacher(detector, settings.ema, warmup=settings.warmup, warmup_offset=ahead, **how)
        if plan.teacher
        else None
    )
    optimiser = build.build_optimiser(config, plan.settings, student, world.device)
    compiler = Compiler(config.engine.compile, world.device, watcher)
    detector.set_checkpointing(config.engine.checkpointing)
    compiler.compile(student, teacher.module if teacher is not None else None)
    learner = Learner(
        config, plan.settings, plan.parts, world, student, optimiser, teacher, compiler=compiler
    )
    snapshots = _snapshots(plan, shop, learner, SOURCE in streams) if TARGET in streams else None
    for part in plan.parts:
        part.site = replace(sites[part.name], snapshots=snapshots)
        part.begin(part.site)
    steps = data.steps_per_epoch(plan, config, shop.cards)
    return Stage(plan, learner, streams, steps, Watch(expected, discriminators=config.domain.enabled))


def _snapshots(plan: Plan, shop: Workshop, learner: Learner, source: bool) -> LabelSnapshots | None:
    """What records pseudo labels of a few target training images; none in processes but the first, or where
    none are wanted. ``source``: look at as many images of the source.
    """
    config = shop.config
    if not shop.world.main or not config.engine.snapshots or learner.teacher is None:
        return None

    def images(domain: str, split: str) -> DetectionDataset:
        card = shop.cards[domain]
        return data.training_set(config, card, split, shop.classes, "eval", varied=False, labelled=False)

    return LabelSnapshots(
        shop.folder,
        images(TARGET, config.data.target_split),
        images(SOURCE, config.data.source_split) if source else None,
        shop.classes,
        plan.name,
        learner,
        config.engine.snapshots,
        config.engine.eval_batch_size,
    )
