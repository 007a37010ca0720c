"""The detection losses of a joint batch: of the detector's queries and, with two stages, of its proposals.

:meth:`SetCriterion.start` begins the matching and :meth:`Judging.finish` waits for it, so that other work can
run in the meantime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mrt.losses.detection import DetectionLoss, Share, class_agnostic
from mrt.losses.matcher import HungarianMatcher, Matches, Matching, Targets


class Output(Protocol):
    """The detector's output for B images; see :class:`mrt.models.interface.DetectorOutput`."""

    logits: Tensor
    boxes: Tensor
    proposal_logits: Tensor | None
    proposal_boxes: Tensor | None


@dataclass(frozen=True)
class Piece:
    """Images that went through the detector together.

    Attributes:
        output: the detector's output for them.
        targets: their boxes and labels, see :meth:`DetectionLoss.start`.
        shares: for each domain a number of consecutive images; together these are all images.
    """

    output: Output
    targets: Targets
    shares: Mapping[str, Share]


class Loss(NamedTuple):
    """One loss, logged as "domain/name". The sum includes ``weight`` times ``value`` if there is a weight."""

    domain: str
    name: str
    value: Tensor
    weight: float | None = None


@dataclass(frozen=True)
class Judged:
    """The matches between queries and objects in one domain.

    Attributes:
        logits: (n, Q, C) of the last layer.
        matches: of the domain's n images.
    """

    logits: Tensor
    matches: Matches


@dataclass(frozen=True)
class _Group:
    """One joint computation: predictions of all layers, their targets, and the domain of each image."""

    loss: DetectionLoss
    prefix: str
    logits: Tensor
    boxes: Tensor
    targets: Targets
    matching: Matching
    shares: Mapping[str, Share]


class SetCriterion:
    """Set prediction losses (Deformable DETR), with MRT's mean over the decoder layers.

    Args:
        loss: an object with ``class_weight``, ``box_weight`` and ``giou_weight``, which weight both the
            losses and the terms of the matching cost, and ``focal_alpha`` and ``focal_gamma`` of the focal
            loss.
        num_classes: C.
    """

    def __init__(self, loss: Any, num_classes: int) -> None:
        matcher = HungarianMatcher(
            loss.class_weight, loss.box_weight, loss.giou_weight, loss.focal_alpha, loss.focal_gamma
        )
        self.queries = DetectionLoss(matcher, num_classes, loss.focal_alpha, loss.focal_gamma)
        self.proposals = DetectionLoss(matcher, 1, loss.focal_alpha, loss.focal_gamma)
        self.weights = {"class": loss.class_weight, "box": loss.box_weight, "giou": loss.giou_weight}

    def start(self, pieces: Sequence[Piece]) -> Judging:
        """Begin the matching. The losses of all pieces are computed together."""
        if not pieces:
            return Judging(self, ())
        predictions = [(piece.output.logits, piece.output.boxes) for piece in pieces]
        groups = [
            _begin(self.queries, "", predictions[some], pieces[some])
            for some in _alike([logits.shape[2] for logits, _ in predictions])
        ]
        if pieces[0].output.proposal_logits is not None:
            objects = [Piece(piece.output, class_agnostic(piece.targets), piece.shares) for piece in pieces]
            proposals = [
                (item.output.proposal_logits[None, ..., :1], item.output.proposal_boxes[None])
                for item in objects
            ]
            for some in _alike([logits.shape[2] for logits, _ in proposals]):
                groups.append(_begin(self.proposals, "proposal_", proposals[some], objects[some]))
        return Judging(self, tuple(groups))


def _alike(counts: Sequence[int]) -> list[slice]:
    """All pieces together where they have the same number of queries or proposals, else each by itself: the
    number of proposals depends on the images' size, and small ones have fewer than there are queries.
    """
    return [slice(None)] if len(set(counts)) == 1 else [slice(i, i + 1) for i in range(len(counts))]


def _begin(
    loss: DetectionLoss, prefix: str, predictions: Sequence[tuple[Tensor, Tensor]], pieces: Sequence[Piece]
) -> _Group:
    logits, boxes = (
        torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*predictions, strict=True)
    )
    targets = [target for piece in pieces for target in piece.targets]
    shares = {domain: share for piece in pieces for domain, share in piece.shares.items()}
    return _Group(loss, prefix, logits, boxes, targets, loss.start(logits, boxes, targets), shares)


@dataclass(frozen=True)
class Judging:
    """Losses whose matching has been started."""

    criterion: SetCriterion
    groups: tuple[_Group, ...]

    def finish(self) -> tuple[list[Loss], dict[str, Judged]]:
        """Wait for the matching and compute the losses.

        Returns:
            The losses of the queries and then of the proposals, and the queries' matches by domain.

        Raises:
            RunFailed: the detector's output is not finite.
        """
        losses: list[Loss] = []
        judged: dict[str, Judged] = {}
        for group in self.groups:
            matches, first = group.matching.result(), 0
            shares = list(group.shares.values())
            found = group.loss.of_shares(group.logits, group.boxes, group.targets, matches, shares)
            for (domain, share), values in zip(group.shares.items(), found, strict=True):
                last = first + share.images
                for name, value in values.items():
                    losses.append(Loss(domain, group.prefix + name, value, self.criterion.weights[name]))
                if not group.prefix:
                    judged[domain] = Judged(group.logits[-1][first:last], matches.rows(first, last))
                first = last
        return losses, judged
