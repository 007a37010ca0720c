"""The trainee: one call gives every loss of a micro-batch.

``L_sup + L_domain(source) + coef (L_unsup + L_domain(target) + lambda L_mask(target))``, by whichever parts
the stage has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mrt.data.loader import Batch
from mrt.domains import DOMAINS, SOURCE, TARGET
from mrt.engine.checks import checked_losses, checked_numbers, require_once
from mrt.engine.student import Student
from mrt.losses import Judging, Loss, Piece, SetCriterion, Share
from mrt.models.interface import EncoderInput
from mrt.parts.base import Labels, Part, Pass, Seen


@dataclass
class Group:
    """Images of one size: they share every pass, for no network mixes anything between images.

    Attributes:
        images: (B, 3, H, W). mask: (B, H, W), True = padding; None where no image is padded.
        rows: by domain, which of them are its own.
    """

    images: Tensor
    mask: Tensor | None
    rows: dict[str, slice]


class Answers(Protocol):
    """What has to be found in the micro-batches of a step."""

    def labels(self, number: int) -> Mapping[str, Labels]:
        """By domain; waits for the teacher's."""

    def num_boxes(self) -> Mapping[str, float]:
        """By domain, what the detection losses are divided by."""


@dataclass
class Losses:
    """What a micro-batch gave: the weighted sum, and each loss unweighted by "domain/name"; numbers may be
    among them.

    Attributes:
        terms: the summands of the sum, where they are asked for (:attr:`Trainee.in_terms`): the detection
            losses by domain, the others by the name of their part.
    """

    total: Tensor
    named: dict[str, Tensor | float] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


class Trainee(nn.Module):
    """Student, detection criterion and parts under one roof, so that one wrapped call sees every parameter.

    Args:
        student: what learns. parts: of the stage, in their order. criterion: the detection losses.
        detect: domains whose images go through the whole detector.
        target_weight: coef, the weight of everything computed on target images.

    Attributes:
        in_terms: whether to give the summands of the sum, too.
    """

    def __init__(
        self,
        student: Student,
        parts: Sequence[Part],
        criterion: SetCriterion,
        detect: Sequence[str],
        target_weight: float,
    ) -> None:
        super().__init__()
        self.student, self.criterion = student, criterion
        self.parts, self.detect = tuple(parts), frozenset(detect)
        self.scales = {SOURCE: 1.0, TARGET: target_weight}
        self.in_terms = False

    def forward(self, groups: Sequence[Group], number: int, answers: Answers) -> Losses:
        """One pass over both domains.

        Args:
            groups: the images of the micro-batch. number: its own, within the step. answers: what is to be
                found.

        Raises:
            RunFailed: the detector's output is not finite.
        """
        passes: list[Pass] = []
        extra: dict[tuple[str, str], tuple[EncoderInput, Tensor]] = {}
        early = answers.labels(number) if self.student.detector.decodes_with_targets else {}
        for group in groups:
            seen, more = self._see(group, early)
            passes += seen
            extra |= more
        # The teacher's labels are waited for here, while what was queued above is computed.
        labels = answers.labels(number)
        judging = self.criterion.start(_pieces(passes, labels, answers.num_boxes()))
        with record_function("step: losses"):
            return self._sum(Seen(number, passes, extra, labels), judging)

    def _sum(self, seen: Seen, judging: Judging) -> Losses:
        """The losses of the parts, and of detections that are being matched."""
        by_part = [(part.name, checked_losses(part, part.losses(seen))) for part in self.parts]
        found = [loss for _, losses in by_part for loss in losses]
        detections, judged = judging.finish()  # the matching is waited for here
        terms = [loss for domain in DOMAINS for loss in found if loss.domain == domain] + detections
        require_once([f"{loss.domain}/{loss.name}" for loss in terms], "losses")
        scales = [self.scales[loss.domain] * loss.weight for loss in terms if loss.weight is not None]
        values = [loss.value for loss in terms if loss.weight is not None]
        total = torch.stack([scale * value for scale, value in zip(scales, values, strict=True)]).sum()
        losses = Losses(total, {f"{loss.domain}/{loss.name}": loss.value.detach() for loss in terms})
        if self.in_terms:
            losses.terms = self._terms(by_part, detections)
        for part in self.parts:
            numbers = checked_numbers(part, part.judged(judged))
            require_once([*losses.named, *numbers], "numbers")
            losses.named |= numbers
        return losses

    def _terms(
        self, by_part: Sequence[tuple[str, Sequence[Loss]]], detections: Sequence[Loss]
    ) -> dict[str, Tensor]:
        """The summands of the sum by what they come from."""
        values: dict[str, list[Tensor]] = {}
        for name, losses in [*((loss.domain, [loss]) for loss in detections), *by_part]:
            for loss in losses:
                if loss.weight is not None:
                    values.setdefault(name, []).append(self.scales[loss.domain] * loss.weight * loss.value)
        return {name: torch.stack(found).sum() for name, found in values.items()}

    def _see(
        self, group: Group, labels: Mapping[str, Labels]
    ) -> tuple[list[Pass], dict[tuple[str, str], tuple[EncoderInput, Tensor]]]:
        """The passes over images of one size: the backbone once, the encoder once for whole images and all
        that parts ask for, the decoder once.
        """
        detector = self.student.detector
        features = detector.extract(group.images, group.mask)
        asked = {}
        for domain, rows in group.rows.items():
            for part in self.parts:
                item = part.encode(domain, features.rows(rows))
                if item is not None:
                    asked[part.name, domain] = item
        wanted = {domain: rows for domain, rows in group.rows.items() if domain in self.detect}
        if not wanted:
            memories = detector.encode_many(list(asked.values())) if asked else []
            return [], {key: (asked[key], memory) for key, memory in zip(asked, memories, strict=True)}
        first, last = min(rows.start for rows in wanted.values()), max(rows.stop for rows in wanted.values())
        whole = EncoderInput.of(features.rows(slice(first, last)))
        memory, *memories = detector.encode_many([whole, *asked.values()])
        output = detector.decode(whole.features, memory, _targets(wanted, labels) if labels else None)
        mine = {domain: slice(rows.start - first, rows.stop - first) for domain, rows in wanted.items()}
        return [Pass(mine, output)], {
            key: (asked[key], found) for key, found in zip(asked, memories, strict=True)
        }


def _targets(rows: Mapping[str, slice], labels: Mapping[str, Labels]) -> list[dict[str, Any]]:
    """The targets of consecutive images by domain; a domain without labels has empty ones."""
    found: list[dict[str, Any]] = []
    for domain, mine in rows.items():
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        found += labels[domain].targets if domain in labels else [empty] * (mine.stop - mine.start)
    return found


def join(images: Mapping[str, tuple[Tensor, Tensor | None]]) -> list[Group]:
    """Images and padding masks by domain, in groups of one size. Others would be padded, and depend on the
    other domain's images.
    """
    sizes: dict[tuple[int, ...], list[str]] = {}
    for domain, (pixels, _) in images.items():
        sizes.setdefault(tuple(pixels.shape[1:]), []).append(domain)
    groups = []
    for domains in sizes.values():
        rows, first = {}, 0
        for domain in domains:
            rows[domain] = slice(first, first + len(images[domain][0]))
            first = rows[domain].stop
        pixels = [images[domain][0] for domain in domains]
        groups.append(Group(torch.cat(pixels), _join_masks([images[domain] for domain in domains]), rows))
    return groups


def views(batch: Batch, strong: bool) -> tuple[Tensor, Tensor | None]:
    """The batch's images (the strongly augmented ones if asked for and there) and its padding mask, None
    where nothing is padded.
    """
    return (batch.strong_images if strong and batch.strong_images is not None else batch.images), batch.mask


def _join_masks(images: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """One padding mask for several batches of the same size; None where none has padding."""
    if all(mask is None for _, mask in images):
        return None
    none = [
        torch.zeros((len(pixels), *pixels.shape[2:]), dtype=torch.bool, device=pixels.device)
        for pixels, _ in images
    ]
    return torch.cat([zeros if mask is None else mask for (_, mask), zeros in zip(images, none, strict=True)])


def _pieces(
    passes: Sequence[Pass], labels: Mapping[str, Labels], num_boxes: Mapping[str, float]
) -> list[Piece]:
    """The images that have labels, as the criterion takes them: source before target, whatever the passes'
    order.
    """
    pieces = []
    for item in passes:
        domains = [domain for domain in DOMAINS if domain in item.rows and domain in labels]
        if not domains:
            continue
        rows = slice(item.rows[domains[0]].start, item.rows[domains[-1]].stop)
        shares = {
            domain: Share(len(labels[domain].targets), num_boxes[domain], labels[domain].with_boxes)
            for domain in domains
        }
        targets = [target for domain in domains for target in labels[domain].targets]
        pieces.append((DOMAINS.index(domains[0]), Piece(item.output.rows(rows), targets, shares)))
    return [piece for _, piece in sorted(pieces, key=lambda entry: entry[0])]
