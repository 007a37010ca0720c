"""Whether an exported detector detects the same: its results on images against those of eager PyTorch."""

from __future__ import annotations

import math
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
from mrt.predict.detector import TOP_K, Detector, Options, OutputNotFinite
from mrt.predict.network import CANDIDATES, TorchNetwork, pixels_to_input

# Intersection over union: two boxes of a class that overlap so much are the same object with different boxes.
SAME_PLACE = 0.5
# Distances are limited to so many tolerances, so that distant pairs do not influence the assignment of
# others.
FAR = 1e3
# Rounding may swap the ranks of proposals whose scores differ by less, in standard deviations of the scores.
TIED = 1e-4


class Tolerance(NamedTuple):
    """How much two detections that count as the same may differ: in score, and in pixels of a box's side."""

    score: float = 2e-4
    box: float = 0.1


@dataclass(frozen=True)
class Check:
    """One comparison of the two detectors.

    Attributes:
        name: what was compared, in words.
        images: number of images.
        undecided: images that were left out, because rounding decides the eager detector's choice of
            proposals there.
        compared: detections that must have a partner: the :data:`TOP_K` best of both sides in each image.
        objects: detections of the eager detector that reach its thresholds.
        different: detections with a partner that differs by more than the tolerance.
        missing: detections without a partner.
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
        decided = 2 * self.undecided <= self.images
        finite = bool(np.isfinite([self.score, self.box]).all())
        return bool(self.compared) and not (self.different or self.missing) and decided and finite


COLUMNS = (
    "",
    "images",
    "objects",
    "compared",
    "missing",
    "different",
    "largest score difference",
    "largest box difference, px",
    "same",
)


def table_row(check: Check) -> list[str]:
    """A check as a row under :data:`COLUMNS`."""
    images = str(check.images) + (f" ({check.undecided} undecided)" if check.undecided else "")
    counts = (str(number) for number in (check.objects, check.compared, check.missing, check.different))
    largest = f"{check.score:.1e}", f"{check.box:.4f}"
    return [check.name, images, *counts, *largest, "yes" if check.ok else "NO"]


class Tensors(NamedTuple):
    """Comparison of weights: how many tensors are bit for bit equal in the file, and the names of the others.

    Tensors that a format stores in another form (joined, transposed) are in neither.
    """

    equal: int
    different: list[str]


def compare_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensors:
    """Compare tensors of the same name and shape."""
    common = [name for name, value in ours.items() if name in theirs and theirs[name].shape == value.shape]

    def equal(name: str) -> bool:
        return torch.equal(ours[name].cpu(), theirs[name].cpu().to(ours[name].dtype))

    different = [name for name in common if not equal(name)]
    return Tensors(len(common) - len(different), different)


class ParityFailed(RunFailed):
    """An exported detector does not detect the same, or has other weights: see ``checks`` and ``tensors``."""

    def __init__(
        self, what: str, checks: Sequence[Check], tensors: Tensors, tolerance: Tolerance, note: str = ""
    ) -> None:
        self.checks, self.tensors = list(checks), tensors
        lines = [f"{what}: does not do what the detector itself does; nothing was written"]
        if tensors.different:
            number = len(tensors.different)
            names = ", ".join(tensors.different[:3]) + (", ..." if number > 3 else "")
            lines.append(f"{number} of {tensors.equal + number} tensors have other values: {names}")
        table = [COLUMNS, *(table_row(check) for check in checks)]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        lines.append(f"allowed: {tolerance.score:g} in score, {tolerance.box:g} px in a box's sides")
        lines += [note] if note else []
        super().__init__("\n".join(lines))


def as_dict(checks: Sequence[Check], tensors: Tensors, tolerance: Tolerance, images: str) -> dict[str, Any]:
    """The checks as plain values for ``export.json``; ``images`` describes the images that were used."""
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
    """Run both detectors on the same images, and pair their detections by class, place and score.

    Each of the best detections of one side must be among all candidates of the other, which include lower
    scores. So the order of detections with almost equal scores and the exact end of a list do not matter.
    Where the output of one side is not finite, nothing is compared and the check is not passed.

    Args:
        eager: with a :class:`TorchNetwork`.
        exported: with any network.
        size: (height, width) that both stretch images to; None: as their preprocessing does.
        same_order: classes are matched by label, not by name.
    """
    tolerance = tolerance or Tolerance()
    if size is not None:
        eager, exported = (_resized(detector, size) for detector in (eager, exported))
    try:
        sides = [
            detector.predict(list(pictures), threshold=0.0, top_k=CANDIDATES, batch=batch)
            for detector in (eager, exported)
        ]
    except OutputNotFinite:  # nothing to compare: not the same
        return Check(name, len(pictures), 0, 0, 0, 0, 0, math.nan, math.nan)
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
    # The other list may lack detections whose scores are not above its end, and very thin boxes, which may
    # have been empty there.
    thinnest = (best.boxes[:, 2:] - best.boxes[:, :2]).min(1, initial=np.inf)
    best = best[(best.scores > end + tolerance.score) & (thinnest > tolerance.box)]
    scores = np.abs(best.scores[:, None] - theirs.scores[None])
    boxes = np.abs(best.boxes[:, None] - theirs.boxes[None]).max(2, initial=0)
    other = best.labels[:, None] != theirs.labels[None]
    distance = np.maximum(scores / tolerance.score, boxes / tolerance.box).clip(max=FAR)
    distance[np.isnan(distance)] = 2 * FAR  # what is not finite is no partner
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
    """The score at which a list of candidates ends."""
    return float(found.scores[-1]) if len(found) else -1.0


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of boxes (n, 4), pair by pair."""
    starts, ends = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    sides = np.clip(ends - starts, 0, None)
    areas = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second))
    common = np.prod(sides, axis=1)
    return common / np.maximum(sum(areas) - common, 1e-9)


def _labels(theirs: Sequence[str], ours: Sequence[str], same_order: bool) -> np.ndarray:
    """Our label for each of their labels; -1 for classes that we do not have."""
    if same_order:
        return np.arange(len(theirs))
    return np.array([list(ours).index(name) if name in ours else -1 for name in theirs])


def _resized(detector: Detector, size: tuple[int, int]) -> Detector:
    preprocessing = replace(detector.preprocessing, fixed=size)
    return Detector(detector.network, detector.classes, preprocessing, detector.thresholds, detector.facts)


def _proposals_tied(eager: Detector, picture: Image.Image) -> bool:
    """Whether rounding decides which proposals of a two-stage detector become queries.

    If another proposal is chosen, all detections change.
    """
    network = eager.network
    if not isinstance(network, TorchNetwork) or not network.detector.two_stage:
        return False
    detector = network.detector
    with torch.inference_mode():
        features = detector.extract(pixels_to_input(eager.preprocessing(picture)[None].to(network.device)))
        memory = detector.encode(features)
        candidates, _, valid = detector.transformer.propose(
            memory, features.shapes, features.valid_ratios, None
        )
        scores = detector.proposal_class_embed(candidates)[0, :, 0].masked_fill(~valid[0], -torch.inf)
    if bool(scores.isnan().any()):
        return False  # every comparison below would be false, as if they were tied
    ranked = scores.sort(descending=True).values
    if len(ranked) <= detector.num_queries:
        return False
    last, next_one = ranked[detector.num_queries - 1 : detector.num_queries + 1]
    # The comparison is also False where both are -inf, that is where there are too few valid proposals.
    return not bool(last - next_one > TIED * ranked[torch.isfinite(ranked)].std())


def pick(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of ``count`` items, or of all, spread evenly."""
    wanted = min(count, wanted)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]
