"""Does an exported detector detect the same? Its boxes, scores and classes on real images, against those of eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mrt.errors import RunFailed
from mrt.predict.detections import Detections
from mrt.predict.detector import TOP_K, Detector, Options
from mrt.predict.network import CANDIDATES, TorchNetwork, pixels_to_input

SAME_PLACE = 0.5  # intersection over union from which on two boxes of a class are one object that is boxed differently
FAR = 1e3  # times the tolerance: what no pair is farther apart than, so that pairs that are far apart do not decide who is whose
TIED = 1e-4  # of the scores' standard deviation: proposals closer than this may be ranked either way by rounding


class Tolerance(NamedTuple):
    """What two detections that count as one and the same may differ by: in score, and in any of a box's sides by pixels of the image."""

    score: float = 2e-4
    box: float = 0.1


@dataclass(frozen=True)
class Check:
    """One comparison of the two detectors.

    Attributes:
        name: what was compared, in words.
        images: number of images; ``undecided`` of them were left out, because the eager detector's own choice of proposals hangs on
            rounding there.
        compared: detections that had to have a partner: the :data:`TOP_K` best of either side in each image.
        objects: those of the eager detector that reach its thresholds.
        different: whose partner is there, but differs by more than the tolerance. missing: those without a partner.
        score, box: largest difference of partners in score, and in pixels.
    """

    name: str
    images: int
    undecided: int
    compared: int
    objects: int
    different: int
    missing: int
    score: float
    box: float

    @property
    def ok(self) -> bool:
        """Whether there were detections and all are the same, on at least half of the images."""
        return bool(self.compared) and not (self.different or self.missing) and 2 * self.undecided <= self.images


COLUMNS = ("", "images", "objects", "compared", "missing", "different", "largest score difference", "largest box difference, px", "same")


def table_row(check: Check) -> list[str]:
    """A check as a row under :data:`COLUMNS`."""
    images = str(check.images) + (f" ({check.undecided} undecided)" if check.undecided else "")
    counts = (str(number) for number in (check.objects, check.compared, check.missing, check.different))
    return [check.name, images, *counts, f"{check.score:.1e}", f"{check.box:.4f}", "yes" if check.ok else "NO"]


class Tensors(NamedTuple):
    """What became of the weights: how many of the detector's tensors are in the file bit by bit, and the names of those that differ.

    Those that a format holds in another form (joined, transposed) are in neither.
    """

    equal: int
    different: list[str]


def compare_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensors:
    """Compare tensors of one name and shape."""
    common = [name for name, value in ours.items() if name in theirs and theirs[name].shape == value.shape]
    different = [name for name in common if not torch.equal(ours[name].cpu(), theirs[name].cpu().to(ours[name].dtype))]
    return Tensors(len(common) - len(different), different)


class ParityFailed(RunFailed):
    """An exported detector does not detect the same, or has other weights; ``checks`` and ``tensors`` are the figures."""

    def __init__(self, what: str, checks: Sequence[Check], tensors: Tensors, tolerance: Tolerance, note: str = "") -> None:
        self.checks, self.tensors = list(checks), tensors
        lines = [f"{what}: does not do what the detector itself does; nothing was written"]
        if tensors.different:
            names = ", ".join(tensors.different[:3]) + (", ..." if len(tensors.different) > 3 else "")
            lines.append(f"{len(tensors.different)} of {tensors.equal + len(tensors.different)} tensors have other values: {names}")
        table = [COLUMNS, *(table_row(check) for check in checks)]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        lines += [f"allowed: {tolerance.score:g} in score, {tolerance.box:g} px in a box's sides", *([note] if note else [])]
        super().__init__("\n".join(lines))


def as_dict(checks: Sequence[Check], tensors: Tensors, tolerance: Tolerance, images: str) -> dict[str, Any]:
    """The checks as plain values for ``export.json``; ``images`` says which they were made on."""
    return {
        "images": images,
        "tolerance": tolerance._asdict(),
        "checks": [{**asdict(check), "same": check.ok} for check in checks],
        "tensors_equal": tensors.equal,
    }


def compare(
    eager: Detector,
    exported: Detector,
    pictures: Sequence[Image.Image],
    name: str,
    *,
    tolerance: Tolerance | None = None,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    same_order: bool = False,
) -> Check:
    """Show both detectors the same images, and pair what they find by class, place and score.

    Each of the best detections of one side must be among all candidates of the other, which reach further down: so it does not matter in
    which order detections of nearly one score come, and where exactly a list ends.

    Args:
        eager: with a :class:`TorchNetwork`. exported: anything.
        size: (height, width) that both stretch images to; None: as they are made to.
        same_order: classes are the same by label, whatever they are called.
    """
    tolerance = tolerance or Tolerance()
    if size is not None:
        eager, exported = (_resized(detector, size) for detector in (eager, exported))
    sides = [detector.predict(list(pictures), threshold=0.0, top_k=CANDIDATES, batch=batch) for detector in (eager, exported)]
    labels = _labels(exported.classes, eager.classes, same_order)
    lowest = eager.threshold_of(Options())
    undecided = compared = objects = different = missing = 0
    score = box = 0.0
    for picture, mine, theirs in zip(pictures, *sides, strict=True):
        ends = [_end(found) for found in (mine, theirs)]
        known = labels[theirs.labels] >= 0
        theirs = replace(theirs[known], labels=labels[theirs.labels[known]], classes=mine.classes)
        pairs = [_partners(mine, theirs, ends[1], tolerance), _partners(theirs, mine, ends[0], tolerance)]
        if any(pair.different or pair.missing for pair in pairs) and _proposals_tied(eager, picture):
            undecided += 1
            continue
        compared += sum(pair.compared for pair in pairs)
        objects += int((mine.scores >= lowest[mine.labels]).sum())
        different += sum(pair.different for pair in pairs)
        missing += sum(pair.missing for pair in pairs)
        score, box = max(score, *(pair.score for pair in pairs)), max(box, *(pair.box for pair in pairs))
    return Check(name, len(pictures), undecided, compared, objects, different, missing, score, box)


class _Partners(NamedTuple):
    compared: int
    different: int
    missing: int
    score: float
    box: float


def _partners(ours: Detections, theirs: Detections, end: float, tolerance: Tolerance) -> _Partners:
    """Partners for the best of ``ours`` among all of ``theirs``, whose list ends at the score ``end``."""
    best = ours[:TOP_K]
    # What scores no more than where the other list ends may have been left out of it, and a sliver may have been no box there.
    owed = (best.scores > end + tolerance.score) & ((best.boxes[:, 2:] - best.boxes[:, :2]).min(1, initial=np.inf) > tolerance.box)
    best = best[owed]
    scores = np.abs(best.scores[:, None] - theirs.scores[None])
    boxes = np.abs(best.boxes[:, None] - theirs.boxes[None]).max(2, initial=0)
    other = best.labels[:, None] != theirs.labels[None]
    distance = np.maximum(scores / tolerance.score, boxes / tolerance.box).clip(max=FAR)
    distance[other] = 2 * FAR
    rows, columns = linear_sum_assignment(distance)
    apart = distance[rows, columns]
    equal = apart <= 1
    alike = ~equal & (apart <= FAR) & (_overlap(best.boxes[rows], theirs.boxes[columns]) >= SAME_PLACE)
    partners = equal | alike
    return _Partners(
        len(best),
        int(alike.sum()),
        len(best) - int(partners.sum()),
        float(scores[rows, columns][partners].max(initial=0)),
        float(boxes[rows, columns][partners].max(initial=0)),
    )


def _end(found: Detections) -> float:
    """Below which score a list of candidates says nothing."""
    return float(found.scores[-1]) if len(found) else -1.0


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of boxes (n, 4), pair by pair."""
    sides = np.clip(np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]), 0, None)
    areas = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second))
    common = np.prod(sides, axis=1)
    return common / np.maximum(sum(areas) - common, 1e-9)


def _labels(theirs: Sequence[str], ours: Sequence[str], same_order: bool) -> np.ndarray:
    """Our label for each of their labels, -1 for classes that we do not have."""
    if same_order:
        return np.arange(len(theirs))
    return np.array([list(ours).index(name) if name in ours else -1 for name in theirs])


def _resized(detector: Detector, size: tuple[int, int]) -> Detector:
    preprocessing = replace(detector.preprocessing, fixed=size)
    return Detector(detector.network, detector.classes, preprocessing, detector.thresholds, detector.facts)


def _proposals_tied(eager: Detector, picture: Image.Image) -> bool:
    """Whether it is a matter of rounding which proposals of a two-stage detector become queries: another one changes all detections."""
    network = eager.network
    if not isinstance(network, TorchNetwork) or not network.detector.two_stage:
        return False
    detector = network.detector
    with torch.inference_mode():
        features = detector.extract(pixels_to_input(eager.preprocessing(picture)[None].to(network.device)))
        memory = detector.encode(features)
        candidates, _, valid = detector.transformer.propose(memory, features.shapes, features.valid_ratios, None)
        scores = detector.proposal_class_embed(candidates)[0, :, 0].masked_fill(~valid[0], -torch.inf)
    ranked = scores.sort(descending=True).values
    if len(ranked) <= detector.num_queries:
        return False
    last, next_one = ranked[detector.num_queries - 1 : detector.num_queries + 1]
    return not bool(last - next_one > TIED * ranked[torch.isfinite(ranked)].std())  # also where both are -inf: too few may be chosen


def pick(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` things, or all, spread evenly."""
    wanted = min(count, wanted)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]
