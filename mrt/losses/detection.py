"""The detector's set loss: focal loss, L1 and generalised IoU, averaged over the decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy, giou, iou
from mrt.host import to_device
from mrt.losses.matcher import HungarianMatcher, Matches, Matching, Targets, stated

# A query whose box overlaps an ignore box at least this much is not trained towards background.
IGNORE_IOU = 0.5


@dataclass(frozen=True)
class Share:
    """Consecutive images of a batch whose losses are summed, such as those of one domain.

    Attributes:
        images: how many.
        num_boxes: the number by which their losses are divided, at least 1; usually the mean of
            :func:`count_boxes` over ranks. None: the number of their own boxes.
        with_boxes: False leaves out the two box losses, because pseudo labels train only the classes;
            matching still uses the boxes.
    """

    images: int
    num_boxes: Tensor | float | None = None
    with_boxes: bool = True


class DetectionLoss:
    """Detection loss of all layers, images and domains in one batched computation.

    Args:
        matcher: pairs queries with boxes.
        num_classes: C, columns of the logits.
        alpha, gamma: of the focal loss (Lin et al., ICCV 2017, equation 5).
    """

    def __init__(
        self, matcher: HungarianMatcher, num_classes: int, alpha: float = 0.25, gamma: float = 2.0
    ) -> None:
        self.matcher, self.num_classes, self.alpha, self.gamma = matcher, num_classes, alpha, gamma

    def __call__(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        num_boxes: Tensor | float | None = None,
        with_boxes: bool = True,
    ) -> tuple[dict[str, Tensor], Matches]:
        """The losses of one domain, and the matches: :meth:`start` and :meth:`of_shares` in one call."""
        matches = self.start(logits, boxes, targets).result()
        share = Share(len(targets), num_boxes, with_boxes)
        return self.of_shares(logits, boxes, targets, matches, [share])[0], matches

    def start(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matching:
        """Begin the matching; its ``result()`` returns the matches.

        Args:
            logits: (L, B, Q, C). The proposals of a two-stage detector are one layer with one class: (1, B,
                S, 1).
            boxes: (L, B, Q, 4) cxcywh.
            targets: B dicts with ``boxes`` (n, 4) and ``labels`` (n,).

                Optional ``ignore_boxes`` (m, 4): an unmatched query whose predicted box has IoU >= 0.5 with
                one of them gets no background loss; with ``ignore_labels`` (m,), only in that class's column.

                Optional ``confidences`` (n,) in [0, 1] of the labels. With confidence c, the classification
                loss of the matched query is c times that of an object plus 1 - c times that of background.

                Optional ``probabilities`` (n, C) in [0, 1]: soft labels. The classification loss of the
                matched query is then, in every column, |p - s|^gamma times the cross entropy of its score s
                with p (Li et al., Generalized Focal Loss, NeurIPS 2020, equation 5), weighted by alpha for
                the object's part and 1 - alpha for background's: the focal loss where p is 0 or 1, and 0
                where s equals p.

                Optional ``weights`` (n,), at least 0: what a label counts for in matching and box losses.
        """
        columns = logits.shape[-1]
        if columns != self.num_classes:
            raise ValueError(f"logits have {columns} class columns, the loss was made for {self.num_classes}")
        return self.matcher.start(logits, boxes, targets)

    def of_shares(
        self, logits: Tensor, boxes: Tensor, targets: Targets, matches: Matches, shares: Sequence[Share]
    ) -> list[dict[str, Tensor]]:
        """Unweighted losses of each share.

        They are summed, divided by the share's number of boxes and averaged over the L layers. MRT uses this
        mean over layers where Deformable DETR uses the sum (method.md).

        Args:
            logits, boxes, targets: as for :meth:`start`.
            matches: its result.
            shares: of the batch's images, in their order.

        Returns:
            Per share ``{"class", "box", "giou"}`` (or ``{"class"}``), float32 scalars.
        """
        of_image = self._classification(logits, boxes, targets, matches)
        of_pair: dict[str, Tensor] = {}
        if any(share.with_boxes for share in shares):
            predicted = boxes[_layers(matches), matches.image, matches.query].float()
            truth = matches.boxes[matches.target].float()
            distance = (predicted - truth).abs()
            apart = 1 - giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
            weights = stated(targets, "weights")
            if weights is not None:
                of_label = weights[matches.target]
                distance, apart = distance * of_label[..., None], apart * of_label
            of_pair["box"], of_pair["giou"] = distance.sum((0, 2)), apart.sum(0)
        found, first = [], 0
        for share in shares:
            last = first + share.images
            count = max(sum(matches.counts[first:last]), 1) if share.num_boxes is None else share.num_boxes
            losses = {"class": of_image[first:last].sum()}
            if share.with_boxes:
                pairs = slice(matches.num_pairs(first), matches.num_pairs(last))
                losses |= {name: values[pairs].sum() for name, values in of_pair.items()}
            found.append({name: value / (count * len(logits)) for name, value in losses.items()})
            first = last
        return found

    def _classification(self, logits: Tensor, boxes: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """(B,) sum of the focal loss over all layers, queries and classes of each image.

        With y = 1 for a background entry and -1 for a matched one, the focal loss of both is
        w sigmoid(yx)^gamma softplus(yx), where w is 1 - alpha for background and alpha for a matched entry.
        """
        sign = torch.ones_like(logits, dtype=torch.float32)
        sign[_layers(matches), matches.image, matches.query, matches.labels[matches.target]] = -1.0
        weight = 0.5 + (0.5 - self.alpha) * sign
        if any(len(target.get("ignore_boxes", ())) for target in targets):
            weight = weight * _counted(boxes.detach(), targets, sign)
        x = logits.float() * sign
        of_entry = weight * x.sigmoid() ** self.gamma * F.softplus(x)
        confidences = stated(targets, "confidences")
        if confidences is not None:
            of_entry = self._doubted(of_entry, logits, matches, confidences)
        if any("probabilities" in target for target in targets):
            of_entry = self._softened(of_entry, logits, targets, matches)
        return of_entry.sum((0, 2, 3))

    def _softened(self, of_entry: Tensor, logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """The loss of every entry (L, B, Q, C), where some labels are soft."""
        rows, soft = [], []
        for target in targets:
            given = target.get("probabilities")
            rows.append(F.one_hot(target["labels"], logits.shape[-1]) if given is None else given)
            soft.append(torch.full_like(target["labels"], given is not None, dtype=torch.bool))
        queries = (_layers(matches), matches.image, matches.query)
        p, x = torch.cat(rows).float()[matches.target], logits[queries].float()
        object_part, background = F.softplus(-x) * p, F.softplus(x) * (1 - p)
        entropy = self.alpha * object_part + (1 - self.alpha) * background
        loss = (p - x.sigmoid()).abs() ** self.gamma * entropy
        is_soft = torch.cat(soft)[matches.target][..., None]
        return of_entry.index_put(queries, torch.where(is_soft, loss, of_entry[queries]))

    def _doubted(self, of_entry: Tensor, logits: Tensor, matches: Matches, confidences: Tensor) -> Tensor:
        """The loss of every entry (L, B, Q, C), where labels have (T,) confidences."""
        matched = (_layers(matches), matches.image, matches.query, matches.labels[matches.target])
        confidence = confidences[matches.target]
        x = logits[matched].float()
        background = (1 - self.alpha) * x.sigmoid() ** self.gamma * F.softplus(x)
        return of_entry.index_put(matched, confidence * of_entry[matched] + (1 - confidence) * background)


def _layers(matches: Matches) -> Tensor:
    """(L, 1) layer indices, for indexing together with ``matches.image`` and ``matches.query``."""
    return torch.arange(len(matches.query), device=matches.query.device)[:, None]


def _counted(boxes: Tensor, targets: Targets, sign: Tensor) -> Tensor:
    """(L, B, Q, C): 0 where an unmatched query overlaps an ignore box, else 1."""
    ignored = [(image, target) for image, target in enumerate(targets) if len(target.get("ignore_boxes", ()))]
    owners = [torch.full((len(target["ignore_boxes"]),), image) for image, target in ignored]
    owner = to_device(torch.cat(owners), sign.device)
    region = cxcywh_to_xyxy(torch.cat([target["ignore_boxes"] for _, target in ignored]).float())
    columns = torch.cat([_ignored_columns(target, sign.shape[-1]) for _, target in ignored])
    # For I ignore boxes: (L, I, Q) which queries overlap each, (I, B, C) which image and classes each
    # concerns.
    on_region = iou(cxcywh_to_xyxy(boxes[:, owner].float()), region[:, None]) >= IGNORE_IOU
    in_image = owner[:, None] == torch.arange(sign.shape[1], device=sign.device)
    image_columns = columns[:, None] * in_image[..., None]
    hits = on_region.float().transpose(1, 2) @ image_columns.flatten(1)
    hits = hits.unflatten(-1, image_columns.shape[1:]).transpose(1, 2)
    matched = (sign < 0).any(-1, keepdim=True)
    return ((hits == 0) | matched).float()


def _ignored_columns(target: dict, num_classes: int) -> Tensor:
    """(m, C): 1 in the class columns that each ignore box concerns."""
    if "ignore_labels" not in target:
        boxes = target["ignore_boxes"]
        return boxes.new_ones((len(boxes), num_classes), dtype=torch.float32)
    labels = target["ignore_labels"]
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def count_boxes(targets: Targets) -> int:
    """Number of boxes in the batch. For ``num_boxes`` the caller averages it over ranks, to at least 1."""
    return sum(len(target["labels"]) for target in targets)


def class_agnostic(targets: Targets) -> list[dict]:
    """The same targets with every label 0: those of a two-stage detector's proposals (object or not).

    Of soft labels the highest probability stays.
    """
    changes = dict.fromkeys(("labels", "ignore_labels"), torch.zeros_like)
    changes["probabilities"] = lambda value: value.amax(-1, keepdim=True)
    return [
        {key: changes[key](value) if key in changes else value for key, value in target.items()}
        for target in targets
    ]
