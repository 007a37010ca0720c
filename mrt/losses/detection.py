"""The set loss of the detector: focal classification, L1 and generalised IoU, averaged over the decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt.boxes import cxcywh_to_xyxy, giou, iou
from mrt.host import to_device
from mrt.losses.matcher import HungarianMatcher, Matches, Matching, Targets

IGNORE_IOU = 0.5  # a query whose box overlaps an ignore box at least this much is not pushed towards background


@dataclass(frozen=True)
class Share:
    """Consecutive images of a batch that are judged together, such as one domain's.

    Attributes:
        images: how many.
        num_boxes: what their losses are divided by, at least 1, usually the mean over ranks of :func:`count_boxes`; None: their own count.
        with_boxes: False leaves out the two box losses (pseudo labels train the class only); matching still uses the boxes.
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

    def __init__(self, matcher: HungarianMatcher, num_classes: int, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.matcher, self.num_classes, self.alpha, self.gamma = matcher, num_classes, alpha, gamma

    def __call__(
        self, logits: Tensor, boxes: Tensor, targets: Targets, num_boxes: Tensor | float | None = None, with_boxes: bool = True
    ) -> tuple[dict[str, Tensor], Matches]:
        """The losses of one domain, and the matches: :meth:`start` and :meth:`of_shares` at once, with their arguments."""
        matches = self.start(logits, boxes, targets).result()
        return self.of_shares(logits, boxes, targets, matches, [Share(len(targets), num_boxes, with_boxes)])[0], matches

    def start(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matching:
        """Begin to match; its ``result()`` gives the matches.

        Args:
            logits: (L, B, Q, C). The proposals of a two-stage detector are one layer with one class: (1, B, S, 1).
            boxes: (L, B, Q, 4) cxcywh.
            targets: B dicts with ``boxes`` (n, 4) and ``labels`` (n,). Optional ``ignore_boxes`` (m, 4): an unmatched query whose
                predicted box has IoU >= 0.5 with one gets no background loss; with ``ignore_labels`` (m,), only in that class's column.
        """
        if logits.shape[-1] != self.num_classes:
            raise ValueError(f"logits have {logits.shape[-1]} class columns, the loss was made for {self.num_classes}")
        return self.matcher.start(logits, boxes, targets)

    def of_shares(
        self, logits: Tensor, boxes: Tensor, targets: Targets, matches: Matches, shares: Sequence[Share]
    ) -> list[dict[str, Tensor]]:
        """Unweighted losses of each share, summed, divided by its number of boxes and averaged over the L layers (method.md: MRT takes
        the mean where classic Deformable DETR takes the sum).

        Args:
            logits, boxes, targets: as for :meth:`start`. matches: what it gave.
            shares: of the batch's images, in their order.

        Returns:
            Per share ``{"class", "box", "giou"}`` (or ``{"class"}``), float32 scalars.
        """
        of_image = self._classification(logits, boxes, targets, matches)
        of_pair: dict[str, Tensor] = {}
        if any(share.with_boxes for share in shares):
            predicted = boxes[_layers(matches), matches.image, matches.query].float()
            truth = matches.boxes[matches.target].float()
            of_pair["box"] = (predicted - truth).abs().sum((0, 2))
            of_pair["giou"] = (1 - giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))).sum(0)
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

        With y = 1 for a background entry and -1 for a matched one, the focal loss of both is w sigmoid(yx)^gamma softplus(yx),
        w = 1 - alpha or alpha.
        """
        sign = torch.ones_like(logits, dtype=torch.float32)
        sign[_layers(matches), matches.image, matches.query, matches.labels[matches.target]] = -1.0
        weight = 0.5 + (0.5 - self.alpha) * sign
        if any(len(target.get("ignore_boxes", ())) for target in targets):
            weight = weight * _counted(boxes.detach(), targets, sign)
        x = logits.float() * sign
        return (weight * x.sigmoid() ** self.gamma * F.softplus(x)).sum((0, 2, 3))


def _layers(matches: Matches) -> Tensor:
    """(L, 1) layer indices, to go with ``matches.image`` and ``matches.query``."""
    return torch.arange(len(matches.query), device=matches.query.device)[:, None]


def _counted(boxes: Tensor, targets: Targets, sign: Tensor) -> Tensor:
    """(L, B, Q, C) 1 where the classification loss counts, 0 where an unmatched query lies on an ignore box."""
    ignored = [(image, target) for image, target in enumerate(targets) if len(target.get("ignore_boxes", ()))]
    owner = to_device(torch.cat([torch.full((len(target["ignore_boxes"]),), image) for image, target in ignored]), sign.device)
    region = cxcywh_to_xyxy(torch.cat([target["ignore_boxes"] for _, target in ignored]).float())
    columns = torch.cat([_ignored_columns(target, sign.shape[-1]) for _, target in ignored])
    on_region = iou(cxcywh_to_xyxy(boxes[:, owner].float()), region[:, None]) >= IGNORE_IOU  # (L, I, Q) for I ignore boxes
    image_columns = columns[:, None] * (owner[:, None] == torch.arange(sign.shape[1], device=sign.device))[..., None]  # (I, B, C)
    hits = (on_region.float().transpose(1, 2) @ image_columns.flatten(1)).unflatten(-1, image_columns.shape[1:]).transpose(1, 2)
    matched = (sign < 0).any(-1, keepdim=True)
    return ((hits == 0) | matched).float()


def _ignored_columns(target: dict, num_classes: int) -> Tensor:
    """(m, C) 1 in the class columns that each ignore box concerns."""
    if "ignore_labels" not in target:
        return target["ignore_boxes"].new_ones((len(target["ignore_boxes"]), num_classes), dtype=torch.float32)
    labels = target["ignore_labels"]
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def count_boxes(targets: Targets) -> int:
    """Boxes in the batch; the caller averages it over ranks and takes at least 1 as ``num_boxes``."""
    return sum(len(target["labels"]) for target in targets)


def class_agnostic(targets: Targets) -> list[dict]:
    """The same targets with every label 0: what the proposals of a two-stage detector learn (object or not)."""
    changed = {"labels", "ignore_labels"}
    return [{key: torch.zeros_like(value) if key in changed else value for key, value in target.items()} for target in targets]
