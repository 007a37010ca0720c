"""All losses of one micro-batch: ``L_sup + L_domain(source) + coef (L_unsup + L_domain(target) + lambda L_mask)``.

Both domains are matched and judged in one computation. Matching begins while the forward pass still runs (:meth:`Objective.begin`) and is
waited for when everything else is queued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config
from mrt.engine.student import SOURCE, TARGET, Passes
from mrt.losses import (
    DetectionLoss,
    HungarianMatcher,
    Matching,
    Share,
    class_agnostic,
    count_boxes,
    domain_loss,
    matched_confidences,
    reconstruction_loss,
)
from mrt.models.detector import DetectorOutput
from mrt.models.mae import Reconstruction

DOMAINS = (SOURCE, TARGET)  # in this order they stand in a joint batch
Labels = Sequence[dict[str, Tensor]]


class Criteria:
    """The detection losses of the detector's queries and, with two stages, of its proposals.

    Args:
        config: its ``[loss]``. num_classes: C.
    """

    def __init__(self, config: Config, num_classes: int) -> None:
        loss = config.loss
        matcher = HungarianMatcher(loss.class_weight, loss.box_weight, loss.giou_weight, loss.focal_alpha, loss.focal_gamma)
        self.queries = DetectionLoss(matcher, num_classes, loss.focal_alpha, loss.focal_gamma)
        self.proposals = DetectionLoss(matcher, 1, loss.focal_alpha, loss.focal_gamma)
        self.weights = {"class": loss.class_weight, "box": loss.box_weight, "giou": loss.giou_weight}


@dataclass
class _Judged:
    """One joint computation: predictions of all layers, what they shall be, and whose images they are."""

    loss: DetectionLoss
    prefix: str
    logits: Tensor
    boxes: Tensor
    targets: Labels
    matching: Matching
    shares: dict[str, Share]


class Objective:
    """The losses of one micro-batch.

    Args:
        config, criteria, thresholds: the learner's; the thresholds record the source's matched confidences.
        targets: by domain the boxes and labels that the detector shall find, for the domains whose detections count; called when the
            detections are there (pseudo labels are ready later than the forward pass begins).
        num_boxes: by domain, what the detection losses are divided by; called after ``targets``.
    """

    def __init__(
        self,
        config: Config,
        criteria: Criteria,
        thresholds: DynamicThresholds,
        targets: Callable[[], dict[str, Labels]],
        num_boxes: Callable[[], dict[str, Tensor | float]],
    ) -> None:
        self.config, self.criteria, self.thresholds = config, criteria, thresholds
        self.targets, self.num_boxes = targets, num_boxes
        self.judged: list[_Judged] = []

    def begin(self, outputs: dict[str, DetectorOutput]) -> None:
        """Begin to match the detections by domain."""
        targets, counts = self.targets(), self.num_boxes()
        names = [name for name in DOMAINS if name in targets and name in outputs]
        box_loss = {SOURCE: True, TARGET: self.config.teacher.box_loss}
        shares = {name: Share(len(targets[name]), counts[name], box_loss[name]) for name in names}
        predictions = {name: (outputs[name].logits, outputs[name].boxes) for name in names}
        self._match(self.criteria.queries, "", predictions, targets, shares)
        if any(outputs[name].proposal_logits is not None for name in names):
            anything = {name: class_agnostic(targets[name]) for name in names}
            proposals = {name: (outputs[name].proposal_logits[None, ..., :1], outputs[name].proposal_boxes[None]) for name in names}
            alike = len({logits.shape[2] for logits, _ in proposals.values()}) == 1  # else the domains' images differ in size
            for group in [names] if alike else [[name] for name in names]:
                mine = {name: proposals[name] for name in group}
                self._match(self.criteria.proposals, "proposal_", mine, anything, {name: shares[name] for name in group})

    def _match(
        self,
        loss: DetectionLoss,
        prefix: str,
        predictions: dict[str, tuple[Tensor, Tensor]],
        targets: dict[str, Labels],
        shares: dict[str, Share],
    ) -> None:
        if not predictions:
            return
        logits, boxes = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*predictions.values(), strict=True))
        wanted = [target for name in predictions for target in targets[name]]
        self.judged.append(_Judged(loss, prefix, logits, boxes, wanted, loss.start(logits, boxes, wanted), shares))

    def finish(self, passes: Passes, mae_weight: float) -> tuple[dict[str, Tensor | float], Tensor]:
        """The losses of what one forward pass produced, after :meth:`begin`.

        Returns:
            Unweighted losses by ``domain/name`` (and "pseudo_labels", how many an image has), and their weighted sum.

        Raises:
            RunFailed: the detector's output is not finite.
        """
        scales = {SOURCE: 1.0, TARGET: self.config.loss.target_weight}
        losses: dict[str, Tensor | float] = {}
        terms: list[Tensor] = []
        for name in DOMAINS:
            if name in passes.domains:
                terms.append(scales[name] * self._domain(passes.domains[name], name, losses))
            if name in passes.reconstructions:
                losses[f"{name}/mae"] = self._reconstruction(passes.reconstructions[name])
                terms.append(scales[name] * mae_weight * losses[f"{name}/mae"])
        for judged in self.judged:
            matches = judged.matching.result()
            found = judged.loss.of_shares(judged.logits, judged.boxes, judged.targets, matches, list(judged.shares.values()))
            for name, of_share in zip(judged.shares, found, strict=True):
                losses |= {f"{name}/{judged.prefix}{key}": value for key, value in of_share.items()}
                terms += [scales[name] * self.criteria.weights[key] * value for key, value in of_share.items()]
            if SOURCE in judged.shares and not judged.prefix:
                of_source = matches.first(judged.shares[SOURCE].images)
                self.thresholds.record(*matched_confidences(judged.logits[-1], of_source))
            if TARGET in judged.shares and not judged.prefix:
                labels = judged.targets[-judged.shares[TARGET].images :]
                losses["pseudo_labels"] = count_boxes(labels) / len(labels)
        if not terms:
            raise ValueError("this stage computes no loss: none of its parts is switched on")
        return losses, torch.stack(terms).sum()

    def _domain(self, predictions: dict[str, Tensor], name: str, losses: dict[str, Tensor | float]) -> Tensor:
        settings = self.config.domain
        weights = {"backbone": settings.backbone_weight, "encoder": settings.encoder_weight, "decoder": settings.decoder_weight}
        found = domain_loss(predictions, DOMAINS.index(name), weights)
        losses |= {f"{name}/{key}": value for key, value in found.items()}
        return found["domain"]

    def _reconstruction(self, rebuilt: Reconstruction) -> Tensor:
        over = self.config.mae.mse_over
        padding = rebuilt.padding if over == "masked" else None  # the whole map includes its padding, as published
        return reconstruction_loss(rebuilt.prediction, rebuilt.target, rebuilt.mask, padding, over)
