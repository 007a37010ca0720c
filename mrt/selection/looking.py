"""The images that candidates are looked at on, and the looks of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mrt.config import Config, validate, without_plugins
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset
from mrt.data.headers import read_header
from mrt.data.images import read_picture
from mrt.data.registry import find_dataset
from mrt.engine.labels import class_map_for
from mrt.engine.load import load_detector, source_record
from mrt.engine.report import Watcher
from mrt.engine.snapshots import spread_evenly
from mrt.errors import MrtError
from mrt.evaluate.unlabelled import SIGNALS, Estimate, Looks, Truth, look, shaken
from mrt.models.weights import is_ours, read_metadata
from mrt.parts.source_record import BOXES
from mrt.predict.inputs import Frame, find
from mrt.predict.network import Preprocessing
from mrt.selection.candidates import Candidate

LIMIT = 200  # images


@dataclass(frozen=True)
class Images:
    """Images without labels, and where they are from."""

    frames: list[Frame]
    origin: str

    @property
    def names(self) -> list[str]:
        return [frame.name for frame in self.frames]

    @property
    def read(self) -> list[Callable[[], Image.Image]]:
        return [frame.read for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Measured:
    """A candidate's signals by name, what that took, and what it looked at, if that was kept."""

    candidate: Candidate
    looks: Looks | None
    estimates: dict[str, Estimate]
    seconds: float


def find_images(
    inputs: Sequence[str | Path], origin: str, limit: int = LIMIT, *, of_set: bool = False
) -> Images:
    """At most ``limit`` images of folders, files or archives, spread evenly over them by name.

    Images that cannot be read are passed over, which ``Images.origin`` tells.

    Args:
        of_set: the inputs are the folders of a prepared set: what its conversion left out, broken images and
            videos, is passed over without a word.

    Raises:
        MrtError: there are none, or an input is no such thing.
    """
    sources, broken = find(inputs)
    if broken and not of_set:
        raise broken[0]
    (images, *others) = [source for source in sources if source.kind == "images"] or [None]
    if images is None or others:
        raise MrtError(
            f"{origin}: no images", "name images or folders of them; a video's frames do not count"
        )
    frames = list(images.frames())
    left_out: dict[str, str] = {}
    while True:
        chosen = [frames[index] for index in spread_evenly(len(frames), limit)]
        unusable = {frame.name: why for frame in chosen if (why := _unusable(frame))}
        if not unusable:
            break
        left_out |= unusable
        frames = [frame for frame in frames if frame.name not in unusable]
        if not frames:
            hint = "mrt prepare-data --check tells more" if of_set else next(iter(left_out.values()))
            raise MrtError(f"{origin}: none of its images can be read", hint)
    if left_out and not of_set:
        name, why = next(iter(left_out.items()))
        origin += f" (without {len(left_out)} that cannot be read, such as {name}: {why})"
    return Images(chosen, origin)


def _unusable(frame: Frame) -> str:
    """Why an image is none that a conversion takes and that can be read here; "" if it is one."""
    if frame.path is None:
        return ""
    try:
        read_header(frame.path)
    except MrtError as error:
        return error.message
    return ""


def target_images(card: DatasetCard, split: str, limit: int = LIMIT) -> Images:
    """Images of a prepared set's split, found in its folder: its annotation file stays shut. No more than the
    split's card counts.

    Raises:
        MrtError: the folder holds images of other splits, too, and only the annotations tell them apart.
    """
    root = card.images_root(split).resolve()
    for other in card.splits:
        place = card.images_root(other).resolve()
        if other != split and (place == root or root in place.parents or place in root.parents):
            raise MrtError(
                f"{card.name}: its splits {split} and {other} have their images in one folder, {root}, and "
                "only their annotations tell them apart, which are not opened here",
                "name the images: --images FOLDER",
            )
    most = min(limit, card.splits[split].num_images)
    return find_images([root], f"{card.name} {split}", most, of_set=True)


def images_for(
    candidate: Candidate,
    *,
    images: Sequence[str | Path] | None = None,
    target: str | None = None,
    split: str | None = None,
    limit: int = LIMIT,
    data_root: Path,
) -> Images:
    """The images that were asked for, else those of the target that a candidate was made for.

    Args:
        images: files or folders. target: a prepared set. split: of it; None: the one that the candidate
            adapted to.

    Raises:
        MrtError: there are none.
    """
    if images:
        return find_images(images, " ".join(map(str, images)), limit)
    settings = _settings(candidate.file)
    target = target or settings.get("target")
    if target is None:
        raise MrtError(
            f"{candidate.file}: does not say which target it is for",
            "name images (--images FOLDER) or a prepared set (--target NAME)",
        )
    card = find_dataset(target, data_root)
    return target_images(card, split or settings.get("target_split", "train"), limit)


def _settings(file: Path) -> dict[str, Any]:
    """The section [data] that a weights file of mrt was trained with."""
    if not (file.is_file() and is_ours(file)):
        return {}
    return dict(read_metadata(file).get("config", {}).get("data", {}))


def measure(
    candidate: Candidate,
    images: Images,
    *,
    data_root: Path,
    signals: Sequence[str] = tuple(SIGNALS),
    limit: int = LIMIT,
    seed: int = 0,
    device: str | torch.device = "cpu",
    watcher: Watcher | None = None,
    keep_looks: bool = False,
) -> Measured:
    """Look at the images with a candidate, and compute signals from that.

    Args:
        data_root: where its source's labelled images are; without them their signals are left out.
        limit: of labelled source images.
        seed: of the noise on the weights.
        keep_looks: keep what was seen, some 300 MB for 200 images of 300 queries.

    Raises:
        MrtError: the candidate or an image cannot be read, or its output is not finite.
    """
    watcher, started = watcher or Watcher(), time.monotonic()
    needs = {need for name in signals for need in SIGNALS[name].needs}
    detector, facts = load_detector(candidate.file, device=device)
    config = validate(without_plugins(facts.get("config") or {}), facts["file"])
    size = Preprocessing.of(config.data).size
    batch = config.engine.eval_batch_size
    own = _settings(candidate.file)
    labelled = None
    if needs & {"source", "truth"} and "source" in own:
        labelled = _source(config, facts["classes"], data_root, limit)
    partner = "partner" in needs and candidate.partner is not None
    passes = 1 + ("view" in needs) + ("shaken" in needs) + partner
    watcher.begin(candidate.name, passes * len(images) + (len(labelled[0]) if labelled else 0))

    def see(network: Any, read: Sequence[Callable[[], Image.Image]], **how: Any) -> Any:
        return look(network, read, size, batch=batch, done=watcher.advance, **how)

    try:
        found: dict[str, Any] = {"plain": see(detector, images.read)}
        if "view" in needs:
            found["view"] = see(detector, images.read, view=True)
        if "shaken" in needs:
            with shaken(detector, seed) as other:
                found["shaken"] = see(other, images.read)
        if partner:
            found["partner"] = see(load_detector(candidate.partner, device=device)[0], images.read)
        if labelled:
            found |= {"source": see(detector, labelled[0]), "truth": labelled[1]}
    except MrtError as error:
        raise MrtError(f"{candidate.file}: {error.message}", error.hint) from None
    watcher.end()
    expected = source_record(str(candidate.file)).get(BOXES, {})
    counts = np.array([expected.get(name, 0.0) for name in facts["classes"]])
    if counts.sum() > 0:
        found["boxes_per_image"] = counts
    looks = Looks(**found)
    estimates = {name: SIGNALS[name].of(looks) for name in signals}
    known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    return Measured(candidate, looks if keep_looks else None, known, time.monotonic() - started)


def measure_all(candidates: Sequence[Candidate], images: Images, **how: Any) -> list[Measured]:
    """:func:`measure` of each candidate, which has its arguments."""
    return [measure(candidate, images, **how) for candidate in candidates]


def _source(
    config: Config, classes: list[str], data_root: Path, limit: int
) -> tuple[list[Callable[[], Image.Image]], list[Truth]] | None:
    """Labelled validation images of the source or, where it has none or they are the target's, those it was
    trained on; None if it is not here.
    """
    settings = config.data
    try:
        card = find_dataset(settings.source, data_root)
        val = "val" in card.splits and settings.source != settings.target
        split = "val" if val else settings.source_split
        data = DetectionDataset(card, split, classes=classes, class_map=class_map_for(config, card))
    except MrtError:
        return None
    if not card.labelled or not sum(data.boxes_per_class().values()):
        return None
    records = [data.records[index] for index in spread_evenly(len(data), limit)]

    def reader(path: Path, size: tuple[int, int]) -> Callable[[], Image.Image]:
        return lambda: read_picture(path, size)

    read, truth = [], []
    for record in records:
        height, width = record.size
        read.append(reader(record.path, record.size))
        shares = record.boxes.numpy() / np.array([width, height, width, height])
        truth.append(Truth(shares.astype(np.float32), record.labels.numpy()))
    return read, truth
