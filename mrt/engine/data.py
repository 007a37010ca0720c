"""The data of a plan: sets, loaders, streams of batches, and how long an epoch is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mrt.config import AUTO, DETECTOR, Config
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset, SampleKey, UnreadableImage
from mrt.data.loader import Batch, UnreadableImages, build_loader, on_device
from mrt.data.registry import find_dataset
from mrt.data.transforms import Sample, Transform
from mrt.domains import DOMAINS, SOURCE, TARGET
from mrt.engine import labels
from mrt.engine.distributed import World
from mrt.engine.labels import class_map_for
from mrt.engine.load import describe
from mrt.engine.plan import Plan
from mrt.errors import MrtError, RunFailed

MOST_OFF = 0.1  # of a side, by which the coarsest map may be off before a run says so
MOST_NAMED = 5  # files in the message of a run that met too many bad ones


def training_set(
    config: Config,
    card: DatasetCard,
    split: str,
    classes: list[str],
    kind: str,
    *,
    varied: bool,
    labelled: bool,
) -> DetectionDataset:
    """A data set with the training augmentation of a stage.

    Args:
        kind: "weak", "strong" or "pair" (both views of the same geometry).
        varied: sizes and crops of stage 1 rather than of adaptation.
        labelled: False for target images: their labels are not even read.
    """
    data = config.data
    sides, crop = (data.source_sides, data.source_crop) if varied else (data.sides, False)
    transform = Transform(kind, sides, data.max_size, crop=crop, multiple=data.size_multiple)
    return DetectionDataset(
        card,
        split,
        classes=classes,
        transform=transform,
        class_map=class_map_for(config, card),
        labelled=labelled,
        cache=_cache(config),
    )


def evaluation_transform(config: Config) -> Transform:
    """How images are scaled for evaluation."""
    data = config.data
    return Transform("eval", data.sides, data.max_size, multiple=data.size_multiple)


def evaluation_set(config: Config, card: DatasetCard, split: str, classes: list[str]) -> DetectionDataset:
    """A data set as it is evaluated: resized only."""
    return DetectionDataset(
        card,
        split,
        classes=classes,
        transform=evaluation_transform(config),
        class_map=class_map_for(config, card),
        labelled=True,
        cache=_cache(config),
    )


class Joined(Dataset):
    """Several data sets of the same classes, one after the other (the oracle that trains on source and
    target).
    """

    def __init__(self, parts: Sequence[DetectionDataset]) -> None:
        self.parts = parts
        self.places = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: SampleKey) -> Sample:
        part, index = self.places[key.index]
        return part[SampleKey(index, key.seed)]

    def preload(self) -> None:
        """Decode what the parts keep in memory, before worker processes start."""
        for part in self.parts:
            part.preload()


def _cache(config: Config) -> str | None:
    return None if config.data.cache == "none" else config.data.cache


def batch_share(config: Config, processes: int) -> int:
    """Images per domain, process and backward pass. MrtError if the total batch does not divide."""
    engine = config.engine
    accumulate = 1 if engine.accumulate == AUTO else engine.accumulate  # which is settled later
    share, rest = divmod(engine.batch_size, processes * accumulate)
    if rest or not share:
        raise MrtError(
            f"engine.batch_size = {engine.batch_size} cannot be shared by {processes} processes x "
            f"{accumulate} accumulated batches",
            f"take a multiple of {processes * accumulate}",
        )
    return share


def training_loader(
    config: Config, dataset: DetectionDataset | Joined, world: World, seed: int
) -> DataLoader:
    """Batches of one process: the total batch divided by processes and accumulation."""
    engine = config.engine
    return build_loader(
        dataset,
        batch_size=batch_share(config, world.size),
        seed=seed,
        shuffle=True,
        num_workers=engine.workers,
        rank=world.rank,
        world_size=world.size,
        drop_last=True,
        pin_memory=world.device.type == "cuda",
        tries=config.data.max_bad + 1,
        timeout=engine.timeout,
    )


class Stream:
    """Batches without end from a loader, shuffled anew for each pass, that can go on from any position.

    Args:
        loader: from :func:`mrt.data.loader.build_loader`.
        position: batches already taken from the beginning of the stage (not those that are only on their way
            to the device).
        device: where they are wanted.
        max_bad: how many images that cannot be read are replaced before it is an error.

    Attributes:
        bad: by file, why an image could not be read. Streams of a run share one dict, so that they count
            together and say each once.
        say: is told of each.
    """

    def __init__(
        self,
        loader: DataLoader,
        position: int = 0,
        device: torch.device | None = None,
        max_bad: int = 0,
    ) -> None:
        loader.sampler.set_epoch(0)
        self.loader, self.position, self.length = loader, position, len(loader)
        self.device = device or torch.device("cpu")
        self.max_bad = max_bad
        self.bad: dict[str, str] = {}
        self.say: Callable[[str], None] = _nobody
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        for _ in range(2):
            if self._batches is None:
                epoch, done = divmod(self.position, self.length)
                self.loader.sampler.set_epoch(epoch, done * self.loader.batch_size)
                self._batches = on_device(self.loader, self.device)
            try:
                batch = next(self._batches, None)
            except UnreadableImage as error:
                found = error.bad if isinstance(error, UnreadableImages) else [(error.file, error.message)]
                note_bad(self.bad, dict(found), self.max_bad, self.say)
                raise
            if batch is not None:
                if batch.bad:
                    note_bad(self.bad, dict(batch.bad), self.max_bad, self.say)
                self.position += 1
                return batch
            self._batches = None
        raise RunFailed("the data loader gave no batch: there are fewer images than the batch size")


def _nobody(_text: str) -> None:
    """Tell nobody."""


def note_bad(bad: dict[str, str], found: Mapping[str, str], most: int, say: Callable[[str], None]) -> None:
    """Add to ``bad`` the files that could not be read, and say which are new.

    Raises:
        MrtError: they are more than ``most`` now.
    """
    for file, reason in found.items():
        if file in bad:
            continue
        bad[file] = reason
        if len(bad) <= most:
            say(
                f"{reason}: another image takes its place in training "
                f"({len(bad)} such files, at most {most} may be)"
            )
    if len(bad) > most:
        shown = "\n".join(f"- {reason}" for reason in list(bad.values())[:MOST_NAMED])
        more = f"\n- and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        files = "image of the training sets" if len(bad) == 1 else "images of the training sets"
        raise MrtError(
            f"{len(bad)} {files} cannot be read, more than data.max_bad = {most}:\n{shown}{more}",
            "mend or replace the files and go on with --resume (mrt prepare-data SET --check looks at every "
            f"image of a set), or allow {len(bad)} or more: --set data.max_bad=N (with --resume add "
            "--allow-change)",
        )


def share_bad(streams: Mapping[str, Stream], world: World) -> None:
    """Let every process know the files that any process could not read; the main one says what is new to it.

    Raises:
        MrtError: in all processes alike, where they are too many together.
    """
    for stream in list(streams.values())[:1]:
        found = {file: reason for one in world.gather(dict(stream.bad)) for file, reason in one.items()}
        note_bad(stream.bad, found, stream.max_bad, stream.say)


def find_cards(plans: Sequence[Plan], config: Config, data_root: Path) -> dict[str, DatasetCard]:
    """The cards of the sets that the plans use. The source is needed for its class names, unless no plan
    learns from labelled images.
    """
    cards = {}
    if any(plan.labelled for plan in plans):
        cards[SOURCE] = find_dataset(config.data.source, data_root)
    wanted = (
        plan.pass_over == "smaller" or TARGET in plan.labelled or plan.needs(config).target for plan in plans
    )
    if any(wanted):
        cards[TARGET] = find_dataset(config.data.target, data_root)
    return cards


def classes_of(config: Config, cards: Mapping[str, DatasetCard], start: str | None) -> list[str]:
    """What is detected: the source's classes (or some of them); without a source those of the weights that
    the run starts from.

    Raises:
        MrtError: ``data.classes`` names others.
    """
    if SOURCE in cards:
        return labels.class_names(config, cards[SOURCE])
    known = describe(start).classes
    wanted = config.data.classes
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise MrtError(
            f"data.classes = {list(wanted)}: {', '.join(missing)} not known to {start}",
            f"without source images a run has the classes of its weights: {', '.join(known)}",
        )
    return list(wanted) if wanted is not None else list(known)


def splits_of(config: Config) -> dict[str, str]:
    """The split that is trained on, by domain."""
    return {SOURCE: config.data.source_split, TARGET: config.data.target_split}


def labelled_sets(
    plan: Plan, config: Config, cards: Mapping[str, DatasetCard], classes: list[str]
) -> list[DetectionDataset]:
    """The sets whose labels supervise a plan.

    Raises:
        MrtError: one of them has no box that counts.
    """
    splits, sets = splits_of(config), []
    for domain in plan.labelled:
        card, varied = cards[domain], plan.images == "varied"
        found = training_set(
            config, card, splits[domain], classes, plan.settings.augment, varied=varied, labelled=True
        )
        labels.require_boxes_read(found, class_map_for(config, card), labels.LEARN[domain])
        sets.append(found)
    return sets


def build_streams(
    plan: Plan,
    config: Config,
    cards: Mapping[str, DatasetCard],
    classes: list[str],
    labelled: Sequence[DetectionDataset],
    world: World,
    tell: Callable[[list[str]], None],
) -> dict[str, Stream]:
    """Batches of a plan by domain; "source" are the labelled images, whoever's they are.

    Args:
        tell: is told of image sizes that do not fit the network (:func:`unfit_sizes`).
    """
    sets: dict[str, Any] = {}
    if labelled:
        sets[SOURCE] = labelled[0] if len(labelled) == 1 else Joined(labelled)
    needs = plan.needs(config)
    if needs.target:
        kind = "pair" if needs.strong else "weak"
        split = splits_of(config)[TARGET]
        images = training_set(config, cards[TARGET], split, classes, kind, varied=False, labelled=False)
        for part in plan.parts:
            images = part.annotate(TARGET, images)
        sets[TARGET] = images
    for dataset in [*labelled, *([sets[TARGET]] if needs.target else [])]:
        tell(unfit_sizes(config, dataset))
    streams = {
        domain: Stream(
            training_loader(config, dataset, world, config.seed + 7919 * DOMAINS.index(domain)),
            device=world.device,
            max_bad=config.data.max_bad,
        )
        for domain, dataset in sets.items()
    }
    watch_bad(streams, {}, _nobody)
    return streams


def unfit_sizes(config: Config, dataset: DetectionDataset) -> list[str]:
    """That most images of a set come out at sizes whose coarsest map lies elsewhere than the detector takes
    it to lie (:func:`mrt.data.transforms.resized_size`), one line; none below ``MOST_OFF``, or where they
    are cropped.
    """
    transform = dataset.transform
    own = config.model.detector == DETECTOR
    if not own or not isinstance(transform, Transform) or transform.crop or not dataset.records:
        return []
    stride = config.model.coarsest_stride
    sizes: Counter[tuple[int, int]] = Counter()
    for size, images in Counter(record.size for record in dataset.records).items():
        sizes[transform.largest([size])] += images
    off = {size: max(-(-side // stride) * stride / side - 1 for side in size) for size in sizes}
    unfit = {size: sizes[size] for size in sizes if off[size] > MOST_OFF}
    if 2 * sum(unfit.values()) <= len(dataset.records) or stride > config.data.max_size:
        return []
    height, width = max(unfit, key=lambda size: unfit[size])
    return [
        f"Warning: {dataset.card.name}: images come out at {height}x{width} pixels (height x width), "
        f"where the map of stride {stride} is {100 * off[height, width]:.0f} % off, which costs accuracy. "
        f"Round sizes with --set data.size_multiple={stride} (docs/method.md, image sizes and strides), in "
        "every stage from the first on if you can"
    ]


def watch_bad(streams: Mapping[str, Stream], bad: dict[str, str], say: Callable[[str], None]) -> None:
    """Let the streams count into one dict the files that cannot be read, and tell somebody of them."""
    for stream in streams.values():
        stream.bad, stream.say = bad, say


def boxes_per_image(plan: Plan, config: Config, cards: Mapping[str, DatasetCard]) -> float:
    """Labelled boxes per labelled image, by the cards."""
    counted = [cards[domain].split(splits_of(config)[domain]) for domain in plan.labelled]
    return sum(split.num_boxes for split in counted) / max(1, sum(split.num_images for split in counted))


def boxes_by_class(
    plan: Plan, config: Config, cards: Mapping[str, DatasetCard], classes: Sequence[str]
) -> dict[str, float]:
    """Labelled boxes of each of the detector's classes per labelled image, by the cards."""
    counts, images = dict.fromkeys(classes, 0), 0
    for domain in plan.labelled:
        card = cards[domain]
        split = card.split(splits_of(config)[domain])
        images += split.num_images
        renamed = class_map_for(config, card)
        for name, number in split.boxes_per_class.items():
            if (ours := renamed.get(name, name)) in counts:
                counts[ours] += number
    return {name: number / max(1, images) for name, number in counts.items()}


def steps_per_epoch(plan: Plan, config: Config, cards: Mapping[str, DatasetCard]) -> int:
    """Optimiser steps: the configuration's, or one pass over what the plan says."""
    if plan.settings.steps_per_epoch:
        return plan.settings.steps_per_epoch
    splits, batch = splits_of(config), config.engine.batch_size
    images = {domain: card.split(splits[domain]).num_images for domain, card in cards.items()}
    if plan.pass_over == "labelled":
        return max(1, sum(images[domain] for domain in plan.labelled) // batch)
    return max(1, min(images.values()) // batch)
