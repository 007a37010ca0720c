"""Bipartite matching of queries to boxes, for all decoder layers at once.

The costs of all layers and images are computed together on the device and are copied to the host at once,
while other work can run (:meth:`HungarianMatcher.start`). Scipy solves the assignment problem.

Every layer has the same number of pairs, ``M = sum_i min(Q, n_i)``, so the result is rectangular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy, giou
from mrt.errors import Unstable
from mrt.host import HostCopy, to_device

Targets = Sequence[dict[str, Any]]
FIRST_CHOICE = -1e9  # lower than any finite cost: see HungarianMatcher.skip_nonfinite


@dataclass(frozen=True)
class Matches:
    """The (query, box) pairs: M pairs in each of L layers. The batch has T boxes, image after image.

    Attributes:
        image: (M,) image of each pair, the same in every layer.
        query: (L, M) query of each pair.
        target: (L, M) box of each pair, as an index into all T boxes.
        labels: (T,) classes of the batch's boxes.
        boxes: (T, 4) the batch's boxes, cxcywh.
        counts: boxes per image; they sum to T.
        num_queries: Q.
    """

    image: Tensor
    query: Tensor
    target: Tensor
    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]
    num_queries: int

    def pairs(self, layer: int, image: int) -> tuple[Tensor, Tensor]:
        """(n,) queries in ascending order and (n,) indices into that image's boxes, for inspection."""
        sizes = [min(count, self.num_queries) for count in self.counts]
        here = slice(sum(sizes[:image]), sum(sizes[: image + 1]))
        query, order = self.query[layer, here].sort()
        return query, self.target[layer, here][order] - sum(self.counts[:image])

    def rows(self, first: int, last: int) -> Matches:
        """The matches of the images ``first`` to ``last - 1``, whose indices start at 0 again."""
        pairs = slice(self.num_pairs(first), self.num_pairs(last))
        before = sum(self.counts[:first])
        boxes = slice(before, sum(self.counts[:last]))
        image, query, target = self.image[pairs], self.query[:, pairs], self.target[:, pairs]
        if first:
            image, target = image - first, target - before
        labels, counts = self.labels[boxes], self.counts[first:last]
        return Matches(image, query, target, labels, self.boxes[boxes], counts, self.num_queries)

    def num_pairs(self, images: int) -> int:
        """Pairs per layer in the first ``images`` images of the batch."""
        return sum(min(count, self.num_queries) for count in self.counts[:images])


class HungarianMatcher:
    """One-to-one pairs of lowest total cost: ``cost_class`` focal + ``cost_box`` L1 + ``cost_giou`` (-GIoU).

    The class term is the focal loss of a positive minus that of a negative (Deformable DETR, section 4).

    Args:
        cost_class, cost_box, cost_giou: weights of the three terms.
        alpha, gamma: of the focal class term.

    Attributes:
        skip_nonfinite: costs that are not finite raise no error. Their pairs are chosen before all others, so
            that the loss is not finite either, which is what leaves out the step.
    """

    skip_nonfinite: bool = False

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_box: float = 5.0,
        cost_giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.cost_class, self.cost_box, self.cost_giou = cost_class, cost_box, cost_giou
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Match (L, B, Q, C) logits and (L, B, Q, 4) cxcywh boxes to the targets of B images.

        Raises:
            Unstable: a cost is not finite, that is, the network's output is not; unless ``skip_nonfinite``.
        """
        return self.start(logits, boxes, targets).result()

    @torch.no_grad()
    def start(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matching:
        """Compute the costs and start their copy to the host without waiting; arguments as for a call."""
        counts = tuple(len(target["labels"]) for target in targets)
        labels = torch.cat([target["labels"] for target in targets])
        truth = torch.cat([target["boxes"] for target in targets])
        costs = None
        if sum(counts):
            owner = to_device(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), logits.device)
            costs = self.costs(logits, boxes, owner, labels, truth)
            weights = stated(targets, "weights")
            costs = HostCopy(costs if weights is None else costs * weights[:, None])
        queries = logits.shape[2]
        return Matching(costs, len(logits), queries, counts, labels, truth, self.skip_nonfinite)

    def costs(self, logits: Tensor, boxes: Tensor, owner: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
        """(L, T, Q) float32 cost of giving box t (of image ``owner[t]``) to each query of that image."""
        x = logits[:, owner, :, labels].transpose(0, 1).float()  # the indexed axes come first: (T, L, Q)
        p = x.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * F.softplus(-x)
        negative = (1 - self.alpha) * p**self.gamma * F.softplus(x)
        # One plane per coordinate, (8, L, T, Q): elementwise operations are several times slower where the
        # four coordinates are the last axis.
        boxes, truth = boxes.float(), truth.float()
        coordinates = torch.cat((boxes, cxcywh_to_xyxy(boxes)), -1).movedim(-1, 0)
        planes = coordinates.contiguous().index_select(2, owner)
        distance = (planes[:4] - truth.T[:, None, :, None]).abs_().sum(0)
        overlap = giou(planes[4:].movedim(0, -1), cxcywh_to_xyxy(truth)[:, None])
        return self.cost_class * (positive - negative) + self.cost_box * distance - self.cost_giou * overlap


@dataclass(frozen=True)
class Matching:
    """A matching whose costs are being copied to the host; ``costs`` is None if no image has a box.

    ``skip_nonfinite`` is that of its :class:`HungarianMatcher`.
    """

    costs: HostCopy | None
    num_layers: int
    num_queries: int
    counts: tuple[int, ...]
    labels: Tensor
    boxes: Tensor
    skip_nonfinite: bool = False

    def result(self) -> Matches:
        """Wait for the costs and solve the assignment.

        Raises:
            Unstable: a cost is not finite; unless ``skip_nonfinite``.
        """
        count = sum(min(boxes, self.num_queries) for boxes in self.counts)
        pairs = np.empty((1 + 2 * self.num_layers, count), dtype=np.int64)
        if self.costs is not None:
            costs = self.costs.result().numpy()
            _assign(costs, self.counts, self.num_queries, pairs, self.skip_nonfinite)
        on_device = to_device(torch.from_numpy(pairs), self.labels.device)
        image, *rows = on_device.split((1, self.num_layers, self.num_layers))
        return Matches(image[0], *rows, self.labels, self.boxes, self.counts, self.num_queries)


def _assign(
    costs: np.ndarray,
    counts: Sequence[int],
    num_queries: int,
    pairs: np.ndarray,
    skip_nonfinite: bool = False,
) -> None:
    """Fill ``pairs`` (rows: image, L rows of queries, L rows of targets) from the (L, T, Q) costs."""
    finite = np.isfinite(costs)
    if skip_nonfinite and not finite.all():
        costs = np.where(finite, costs, FIRST_CHOICE)
    elif not finite.all():
        layer, target, _ = np.argwhere(~finite)[0]
        image = int(np.searchsorted(np.cumsum(counts), target, side="right"))
        raise Unstable(
            f"the detector's output is not finite (first at decoder layer {layer}, "
            f"image {image} of the batch): training has diverged."
        )
    num_layers, first, filled = len(costs), 0, 0
    for image, count in enumerate(counts):
        size = min(count, num_queries)
        here = slice(filled, filled + size)
        pairs[0, here] = image
        for layer in range(num_layers if size else 0):
            target, query = linear_sum_assignment(costs[layer, first : first + count])
            pairs[1 + layer, here] = query
            pairs[1 + num_layers + layer, here] = target + first
        first, filled = first + count, filled + size


def stated(targets: Targets, key: str) -> Tensor | None:
    """(T,) float32 values that targets state of their labels, 1 where one states none; None if none does."""
    if not any(key in target for target in targets):
        return None
    ones = [torch.ones_like(target["labels"], dtype=torch.float32) for target in targets]
    return torch.cat([target.get(key, one) for target, one in zip(targets, ones, strict=True)]).float()


def matched_confidences(logits: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    """The best score and its class of each matched query in the last layer, which dynamic thresholds record.

    Args:
        logits: (B, Q, C) of the last decoder layer.
        matches: of a source batch.

    Returns:
        (M,) sigmoid scores and (M,) predicted (not true) classes, without gradient.
    """
    return logits.detach()[matches.image, matches.query[-1]].float().sigmoid().max(-1)
