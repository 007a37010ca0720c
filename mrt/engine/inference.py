"""A trained detector's figures on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mrt.config import Config, validate, without_plugins
from mrt.data.card import DatasetCard, read_json
from mrt.data.dataset import DetectionDataset
from mrt.data.loader import Batch, build_loader, on_device
from mrt.data.registry import find_dataset
from mrt.domains import SOURCE, TARGET
from mrt.engine import data as sets
from mrt.engine import distributed
from mrt.engine.compiling import uncompiled
from mrt.engine.facts import is_run
from mrt.engine.folder import read_facts
from mrt.engine.labels import (
    MEASURE,
    class_map_for,
    require_boxes_read,
    require_labelled,
    set_to_measure,
    split_to_measure,
)
from mrt.engine.load import load_detector
from mrt.engine.report import Watcher, read_log
from mrt.errors import MrtError
from mrt.evaluate.coco import ImageDetections, Metrics, NotFinite, collect, score
from mrt.models.interface import Detector
from mrt.models.postprocess import top_detections
from mrt.models.weights import save_weights
from mrt.parts.source_record import HEADER

MOST = 1e9  # of a figure in a run's log


@dataclass
class Result:
    """A detector's figures on one split.

    Attributes:
        where: what was evaluated, as the caller named it. network: "teacher" or "student".
        card, split: on what. metrics, detections: see :mod:`mrt.evaluate.coco`; only the first process has
            the detections.
        facts: what the weights file says of itself (classes, configuration).
        last: whether these are known to be the run's last weights, and not some that were picked.
        averaged: whether they are the average of a detector that nobody was taught by: of training on labels.
    """

    where: str
    network: str
    card: DatasetCard
    split: str
    dataset: DetectionDataset
    metrics: Metrics
    detections: list[ImageDetections]
    facts: dict[str, Any]
    last: bool
    averaged: bool = False


@dataclass(frozen=True)
class Validation:
    """What a run measured while it trained: ``last`` and ``best`` by network ("teacher", "student").

    Each holds "stage", "epoch" and the figures of :meth:`mrt.evaluate.coco.Metrics.to_dict`. The best is the
    one of the highest AP50 on ``split`` of ``data``: picked with those labels, which an adapted detector may
    not have. ``domain`` is theirs, "target" or "source".
    """

    data: str
    split: str
    domain: str
    last: dict[str, dict[str, Any]]
    best: dict[str, dict[str, Any]]


def write_slim(folder: Path, path: Path) -> None:
    """Write a run's last average (else its student) without the frozen pretrained backbone, in float16; data,
    environment and what the source told go on record.
    """
    detector, facts = load_detector(folder)
    started = read_facts(folder)
    record = {name: started[name] for name in ("command", "data", "environment")}
    save_weights(
        path,
        detector,
        {
            **{name: facts[name] for name in ("classes", "network", "config", HEADER) if name in facts},
            "run": record,
        },
        slim=True,
        half=True,
    )


def predictor(detector: Detector, device: torch.device) -> Callable[[Batch], list[dict]]:
    """A function from a batch to detections in pixels of the original images: scores, labels, boxes (xyxy),
    best first.
    """

    def predict(batch: Batch) -> list[dict]:
        moved = batch.to(device)
        with torch.inference_mode(), uncompiled():
            output = detector(moved.images, moved.mask)
            return top_detections(
                output.logits[-1], output.boxes[-1], [target["original_size"] for target in batch.targets]
            )

    return predict


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """While inside, float32 products are computed in float32: figures do not depend on the precision of
    training.

    PyTorch's own default takes TF32 for convolutions on a GPU.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def measure(
    detectors: Mapping[str, Detector],
    dataset: DetectionDataset,
    batch_size: int,
    world: distributed.World,
    watcher: Watcher | None = None,
    workers: int = 0,
    timeout: float = 600,
) -> dict[str, Metrics]:
    """COCO figures in per cent of one or more detectors by name, in one pass over the images, which the
    processes share.

    In float32, whatever training computes in. The detectors are left in eval mode. The first process scores,
    and hands the others the figures without the detections.

    Raises:
        NotFinite: a detector's output is NaN or infinite in some image.
    """
    for detector in detectors.values():
        detector.eval()
    watcher = watcher or Watcher()
    loader = build_loader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        num_workers=workers,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
        timeout=timeout,
    )
    watcher.begin(f"evaluate on {dataset.card.name} {dataset.split}", -(-len(dataset) // world.size))
    predictors = {name: predictor(detector, world.device) for name, detector in detectors.items()}
    mine: dict[str, list[ImageDetections]] = {name: [] for name in detectors}
    with exact(world.device):
        for batch in on_device(loader, world.device):
            for name, predict in predictors.items():
                mine[name] += collect(predict, [batch])
            watcher.advance(len(batch.targets))
    watcher.end()
    shares = world.gather(mine)
    metrics, refused = {}, None
    for name in detectors if world.main else ():
        try:
            metrics[name] = score([found for share in shares for found in share[name]], dataset)
        except NotFinite as error:
            refused = f"{name}: {error.message}" if len(detectors) > 1 else error.message, error.hint
            break
    figures, refused = world.share(
        ({name: replace(found, detections=[]) for name, found in metrics.items()}, refused)
    )
    if refused is not None:  # in every process, or the others would wait for the first
        raise NotFinite(*refused)
    return metrics or figures


def evaluate_detector(
    where: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    which: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    data_root: Path,
    watcher: Watcher | None = None,
    overrides: dict[str, Any] | None = None,
) -> Result:
    """Evaluate a run or a weights file on a prepared data set.

    Args:
        where, which: see :func:`mrt.engine.load.find_weights`.
        data: the data set's name; none takes the target of the run's configuration.
        split: one of the set's splits; none takes the validation split, else test, else the first that has
            boxes, and the watcher is told.
        overrides: settings to change for the evaluation, by dotted key, e.g. ``{"data.sides": [600]}``.

    Raises:
        MrtError: no such detector, set or split, no labels in it to measure with, or an output that is not
            finite.
    """
    world = distributed.join(device)
    detector, facts = load_detector(where, which=which, device=world.device)
    config = _config(facts, overrides or {})
    trained_by = _trained_by(facts)
    card = find_dataset(data, data_root) if data else set_to_measure(config, trained_by, data_root)
    require_labelled(card, str(where), data_root)
    if split is None:
        classes, usual = list(facts["classes"]), config.data.validation_split
        found = split_to_measure(card, classes, class_map_for(config, card), usual)
        split = found or next(name for name in dict.fromkeys([usual, *card.splits]) if name in card.splits)
        said = f"split {split} of {card.name}" if data else f"data set {card.name}, split {split}"
        if watcher:
            watcher.say(f"Not said, so taken: {said}.")
    dataset = sets.evaluation_set(config, card, split, list(facts["classes"]))
    require_boxes_read(dataset, class_map_for(config, card), MEASURE)
    for line in dataset.left_out() if watcher else ():
        watcher.say(line)
    size = batch_size or config.engine.eval_batch_size
    try:
        engine = config.engine
        measured = measure(
            {"detector": detector}, dataset, size, world, watcher, engine.workers, engine.timeout
        )
    except NotFinite as error:
        raise NotFinite(f"{facts['file']}: {error.message}", error.hint) from None
    metrics = measured["detector"]
    last = (
        Path(facts["file"]).suffix == ".safetensors"
    )  # mrt writes no others; other people's checkpoints may be their best
    averaged = facts["network"] == "teacher" and trained_by == "pretrain-source"
    return Result(
        str(where), facts["network"], card, split, dataset, metrics, metrics.detections, facts, last, averaged
    )


def _trained_by(facts: Mapping[str, Any]) -> str | None:
    """The command of mrt that weights come from, by the run's folder that they lie in or by what they say."""
    folder = Path(facts["file"]).parent
    told = read_facts(folder) if is_run(folder) else facts.get("run")
    return told.get("command") if isinstance(told, Mapping) else None


def read_validation(folder: str | Path) -> Validation:
    """The last and the best figures that a run measured while it trained.

    Raises:
        MrtError: not a run folder, or the run measured nothing.
    """
    folder = Path(folder)
    data, config = (
        read_facts(folder)["data"],
        validate(without_plugins(read_json(folder / "config.json")), str(folder)),
    )
    measured = [
        line
        for line in read_log(folder / "metrics.jsonl")
        if line.get("kind") == "eval" and "network" in line and _is_figure(line.get("AP50"))
    ]
    if not measured:
        raise MrtError(
            f"{folder}: this run measured nothing while it trained, so there is no best epoch to show",
            "train with --set engine.eval_every=1, on a target with a labelled validation split",
        )
    last = {line["network"]: line for line in measured}
    best = {
        name: max((line for line in measured if line["network"] == name), key=lambda line: line["AP50"])
        for name in last
    }
    domain = TARGET if TARGET in data else SOURCE
    return Validation(data[domain]["name"], config.data.validation_split, domain, last, best)


def _is_figure(value: Any) -> bool:
    """Whether a value of a log is a finite number: NaN would win or lose every comparison by its place."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def _config(facts: dict[str, Any], overrides: dict[str, Any]) -> Config:
    values = without_plugins(facts.get("config") or {})
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        values[section] = {**values.get(section, {}), name: value}
    return validate(values, facts["file"])
