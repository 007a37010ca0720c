"""The training step written for obviousness: eager, float32, one domain, layer, image and tensor at a time.

It works on the same :class:`mrt.engine.step.Learner` as the engine's step and gives the same numbers, so it is two things: an independent
check of the fast step (tests/engine/test_plain_step.py), and what that one is measured against (benchmarks.train_step). Of the program it
takes the networks only; losses, matching, pseudo labels, averaging, clipping and AdamW are written out here as in their papers. One
process, no gradient scaler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mrt.config import LossConfig
from mrt.data.loader import Batch
from mrt.engine.step import Learner
from mrt.models.detector import DetectorOutput
from mrt.models.mae import Reconstruction, random_masks

SOURCE, TARGET = "source", "target"
IGNORE_IOU = 0.5  # a query whose box overlaps an ignore box at least this much is not pushed towards background


def plain_step(
    learner: Learner, batches: Sequence[dict[str, Batch]], mae_weight: float, reversal: float, fused_update: bool = False
) -> dict[str, Tensor]:
    """One optimiser step; arguments and result as of :func:`mrt.engine.step.training_step`.

    Args:
        fused_update: clip, step and average with the many-tensor kernels the engine uses, instead of one tensor after the other.
    """
    if learner.world.size > 1:
        raise ValueError("the plain step is for one process")
    if learner.student.discriminators is not None:
        learner.student.discriminators.eta = reversal
    learner.optimiser.zero_grad(set_to_none=True)
    labels = [_pseudo_labels(learner, batch[TARGET]) if learner.parts.teach else None for batch in batches]
    # Boxes per micro-batch, at least one in the whole batch: what a detection loss is divided by.
    source_boxes = max(sum(len(target["labels"]) for batch in batches for target in batch[SOURCE].targets), 1) / len(batches)
    target_boxes = max(sum(len(image["labels"]) for images in labels if images is not None for image in images), 1) / len(batches)
    seen: dict[str, Tensor] = {}
    for batch, pseudo in zip(batches, labels, strict=True):
        losses, total = _source_losses(learner, batch[SOURCE], source_boxes, mae_weight)
        if learner.parts.target:
            more, weighted = _target_losses(learner, batch[TARGET], pseudo, target_boxes, mae_weight)
            losses, total = {**losses, **more}, total + learner.config.loss.target_weight * weighted
        (total / len(batches)).backward()
        for name, value in {**losses, "total": total}.items():
            seen[name] = seen.get(name, 0) + value.detach() / len(batches)
    parameters = [parameter for group in learner.optimiser.param_groups for parameter in group["params"] if parameter.grad is not None]
    if fused_update:
        seen["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, learner.config.engine.clip, foreach=True).detach()
        learner.optimiser.step()
        if learner.teacher is not None:
            learner.teacher.update(learner.student.detector, learner.step)
    else:
        seen["grad_norm"] = _clip(parameters, learner.config.engine.clip)
        _adamw(learner.optimiser)
        if learner.teacher is not None:
            _average(learner)
    learner.step += 1
    return seen


# One domain ------------------------------------------------------------------------------------------------------------------------------


def _source_losses(learner: Learner, batch: Batch, boxes: float, mae_weight: float) -> tuple[dict[str, Tensor], Tensor]:
    """Unweighted losses of the source batch, by name, and their weighted sum."""
    parts, config = learner.parts, learner.config
    strong = learner.stage.augment == "strong" and batch.strong_images is not None
    output, rebuilt = _see(learner, SOURCE, batch.strong_images if strong else batch.images, batch.padding_mask, mae_weight)
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=batch.images.device)
    if parts.supervise:
        found, matches = _detection_losses(output, batch.targets, boxes, config.loss, with_boxes=True)
        _record_confidences(learner, output, matches)
        losses.update(found)
        total = total + _weighted(found, config.loss)
    if parts.judge:
        found = _domain_losses(learner, output, domain=0)
        losses.update(found)
        total = total + found["domain"]
    if rebuilt is not None:
        losses["mae"] = _reconstruction_loss(learner, rebuilt)
        total = total + mae_weight * losses["mae"]
    return {f"{SOURCE}/{name}": value for name, value in losses.items()}, total


def _target_losses(
    learner: Learner, batch: Batch, labels: list[dict[str, Tensor]] | None, boxes: float, mae_weight: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The same of the target batch, whose labels are the teacher's."""
    parts, config = learner.parts, learner.config
    strong = parts.teach and batch.strong_images is not None
    output, rebuilt = _see(learner, TARGET, batch.strong_images if strong else batch.images, batch.padding_mask, mae_weight)
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=batch.images.device)
    if parts.teach:
        found, _ = _detection_losses(output, labels, boxes, config.loss, with_boxes=config.teacher.box_loss)
        losses.update(found)
        total = total + _weighted(found, config.loss)
    if parts.judge:
        found = _domain_losses(learner, output, domain=1)
        losses.update(found)
        total = total + found["domain"]
    if rebuilt is not None:
        losses["mae"] = _reconstruction_loss(learner, rebuilt)
        total = total + mae_weight * losses["mae"]
    named = {f"{TARGET}/{name}": value for name, value in losses.items()}
    if parts.teach:
        named["pseudo_labels"] = torch.tensor(sum(len(image["labels"]) for image in labels) / len(labels), device=batch.images.device)
    return named, total


def _see(
    learner: Learner, domain: str, images: Tensor, padding_mask: Tensor, mae_weight: float
) -> tuple[DetectorOutput | None, Reconstruction | None]:
    """The student's passes over one domain: through the whole detector, and masked through the encoder a second time."""
    student, parts = learner.student, learner.parts
    features = student.detector.extract(images, padding_mask)
    looked_at = parts.judge or (parts.supervise if domain == SOURCE else parts.teach)
    output = student.detector.detect(features) if looked_at else None
    if domain not in parts.rebuild or not mae_weight:
        return output, None
    masks = random_masks(features.shapes, len(images), learner.config.mae.mask_ratio, device=images.device)
    return output, student.mae(student.detector, features, masks)


# Detection loss --------------------------------------------------------------------------------------------------------------------------


def _detection_losses(
    output: DetectorOutput, targets: Sequence[dict[str, Tensor]], divisor: float, config: LossConfig, with_boxes: bool
) -> tuple[dict[str, Tensor], list[tuple[list[int], list[int]]]]:
    """Losses averaged over the decoder layers (and the proposals' own, as one more layer of one class), and the last layer's matches."""
    losses: dict[str, Tensor] = {}
    layers, matches = len(output.logits), []
    for layer in range(layers):
        found, matches = _layer_losses(output.logits[layer], output.boxes[layer], targets, config, with_boxes)
        for name, value in found.items():
            losses[name] = losses.get(name, 0) + value / divisor / layers
    if output.proposal_logits is not None:
        objects = [
            {name: torch.zeros_like(value) if name in ("labels", "ignore_labels") else value for name, value in target.items()}
            for target in targets
        ]
        found, _ = _layer_losses(output.proposal_logits, output.proposal_boxes, objects, config, with_boxes)
        losses.update({f"proposal_{name}": value / divisor for name, value in found.items()})
    return losses, matches


def _layer_losses(
    logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]], config: LossConfig, with_boxes: bool
) -> tuple[dict[str, Tensor], list[tuple[list[int], list[int]]]]:
    """Sums over the images of one layer, logits (B, Q, C) and boxes (B, Q, 4); per image the matched queries and the boxes they match."""
    sums = {name: torch.zeros((), device=logits.device) for name in (("class", "box", "giou") if with_boxes else ("class",))}
    matches = []
    for image, target in enumerate(targets):
        queries, objects = _match(logits[image].detach(), boxes[image].detach(), target, config)
        matches.append((queries, objects))
        wanted = torch.zeros_like(logits[image])
        for query, number in zip(queries, objects, strict=True):
            wanted[query, target["labels"][number].item()] = 1.0
        counted = _counted(boxes[image].detach(), target, queries, wanted)
        sums["class"] = sums["class"] + (_focal_loss(logits[image], wanted, config.focal_alpha, config.focal_gamma) * counted).sum()
        if with_boxes:
            predicted, truth = boxes[image][queries], target["boxes"][objects]
            sums["box"] = sums["box"] + (predicted - truth).abs().sum()
            sums["giou"] = sums["giou"] + sum(1 - _giou(one, two) for one, two in zip(predicted, truth, strict=True))
    return sums, matches


def _match(logits: Tensor, boxes: Tensor, target: dict[str, Tensor], config: LossConfig) -> tuple[list[int], list[int]]:
    """The cheapest pairs of one image's queries, (Q, C) and (Q, 4), and its objects."""
    labels, truth = target["labels"], target["boxes"]
    if not len(labels):
        return [], []
    chosen = logits[:, labels]  # (Q, n)
    as_object = _focal_loss(chosen, torch.ones_like(chosen), config.focal_alpha, config.focal_gamma)
    as_background = _focal_loss(chosen, torch.zeros_like(chosen), config.focal_alpha, config.focal_gamma)
    distance = (boxes[:, None] - truth[None]).abs().sum(-1)
    cost = config.class_weight * (as_object - as_background) + config.box_weight * distance
    cost = cost - config.giou_weight * _giou(boxes[:, None], truth[None])
    queries, objects = linear_sum_assignment(cost.cpu().numpy())
    return queries.tolist(), objects.tolist()


def _focal_loss(logits: Tensor, wanted: Tensor, alpha: float, gamma: float) -> Tensor:
    """Lin et al., ICCV 2017, equation 5, for each entry; ``wanted`` is 1 for an object and 0 for background."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    score = logits.sigmoid()
    likelihood = score * wanted + (1 - score) * (1 - wanted)
    weight = alpha * wanted + (1 - alpha) * (1 - wanted)
    return weight * (1 - likelihood) ** gamma * entropy


def _giou(one: Tensor, two: Tensor) -> Tensor:
    """Rezatofighi et al., CVPR 2019, algorithm 1, of boxes (..., 4) cx, cy, w, h."""
    iou, union = _iou(one, two)
    low = torch.minimum(one[..., :2] - one[..., 2:] / 2, two[..., :2] - two[..., 2:] / 2)
    high = torch.maximum(one[..., :2] + one[..., 2:] / 2, two[..., :2] + two[..., 2:] / 2)
    hull = (high - low).prod(-1)
    return iou - (hull - union) / hull


def _iou(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union's area."""
    low = torch.maximum(one[..., :2] - one[..., 2:] / 2, two[..., :2] - two[..., 2:] / 2)
    high = torch.minimum(one[..., :2] + one[..., 2:] / 2, two[..., :2] + two[..., 2:] / 2)
    intersection = (high - low).clamp(min=0).prod(-1)
    union = one[..., 2:].prod(-1) + two[..., 2:].prod(-1) - intersection
    return intersection / union, union


def _counted(boxes: Tensor, target: dict[str, Tensor], matched: list[int], like: Tensor) -> Tensor:
    """(Q, C) 1 where the class loss counts, 0 where an unmatched query lies on an ignore box (in that box's class, if it has one)."""
    counted = torch.ones_like(like)
    for number, region in enumerate(target.get("ignore_boxes", ())):
        for query in range(len(boxes)):
            if query not in matched and _iou(boxes[query], region)[0].item() >= IGNORE_IOU:
                if "ignore_labels" in target:
                    counted[query, target["ignore_labels"][number].item()] = 0.0
                else:
                    counted[query] = 0.0
    return counted


def _weighted(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    weights = {"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight}
    return sum(weights[name.removeprefix("proposal_")] * value for name, value in losses.items())


def _record_confidences(learner: Learner, output: DetectorOutput, matches: list[tuple[list[int], list[int]]]) -> None:
    """For the dynamic thresholds: the best class of each matched query of the last layer, and its score."""
    for image, (queries, _) in enumerate(matches):
        for query in queries:
            score, label = output.logits[-1, image, query].detach().sigmoid().max(0)
            learner.thresholds.record(score[None], label[None])


# The other losses ------------------------------------------------------------------------------------------------------------------------


def _domain_losses(learner: Learner, output: DetectorOutput, domain: int) -> dict[str, Tensor]:
    """Each discriminator's cross entropy, and "domain", their weighted sum; ``domain`` is 0 for the source and 1 for the target."""
    settings, losses = learner.config.domain, {}
    for name, logits in learner.student.discriminators(output).items():
        logits = logits.flatten(0, -2)
        losses[f"domain_{name}"] = F.cross_entropy(logits, torch.full((len(logits),), domain, device=logits.device))
    weights = {"backbone": settings.backbone_weight, "encoder": settings.encoder_weight, "decoder": settings.decoder_weight}
    return {"domain": sum(weight * losses[f"domain_{name}"] for name, weight in weights.items()), **losses}


def _reconstruction_loss(learner: Learner, rebuilt: Reconstruction) -> Tensor:
    """Mean squared error over the whole map, or over the masked cells that are not padding."""
    if learner.config.mae.mse_over == "all":
        return F.mse_loss(rebuilt.prediction, rebuilt.target)
    cells = rebuilt.mask & ~rebuilt.padding  # (B, h, w)
    if not cells.any():
        return 0 * rebuilt.prediction.sum()
    return F.mse_loss(rebuilt.prediction.movedim(1, -1)[cells], rebuilt.target.movedim(1, -1)[cells])


# Pseudo labels ---------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _pseudo_labels(learner: Learner, target: Batch) -> list[dict[str, Tensor]]:
    """What the teacher is sure enough of in each weakly augmented image: score above its class's threshold, and no better box on it."""
    settings = learner.config.teacher
    output = learner.teacher.module(target.images, target.padding_mask)
    thresholds = learner.thresholds.values.tolist()
    found = []
    for logits, boxes in zip(output.logits[-1], output.boxes[-1], strict=True):
        scores, classes = (values.tolist() for values in logits.sigmoid().max(-1))
        order = sorted(range(len(scores)), key=lambda query: -scores[query])
        sure = [query for query in order if scores[query] > thresholds[classes[query]]]
        kept = _suppress(sure, boxes, settings.nms_iou, [0] * len(scores))
        labels = {"boxes": boxes[kept], "labels": torch.tensor([classes[query] for query in kept], dtype=torch.long, device=boxes.device)}
        if settings.ignore_above is not None:
            unsure = [query for query in order if query not in sure and scores[query] > settings.ignore_above]
            kept = _suppress(unsure, boxes, settings.nms_iou, classes)
            columns = torch.tensor([classes[query] for query in kept], dtype=torch.long, device=boxes.device)
            labels.update(ignore_boxes=boxes[kept], ignore_labels=columns)
        found.append(labels)
    return found


def _suppress(order: Sequence[int], boxes: Tensor, limit: float, groups: Sequence[int]) -> list[int]:
    """Greedy non-maximum suppression: each query in turn, unless it overlaps one already taken of the same group by more than ``limit``."""
    taken: list[int] = []
    for query in order:
        rivals = [other for other in taken if groups[other] == groups[query]]
        if not any(_iou(boxes[query], boxes[other])[0].item() > limit for other in rivals):
            taken.append(query)
    return taken


# The update ------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit``; the norm before."""
    norm = torch.stack([parameter.grad.square().sum() for parameter in parameters]).sum().sqrt()
    if norm.item() > limit:
        for parameter in parameters:
            parameter.grad.mul_(limit / norm)
    return norm


@torch.no_grad()
def _adamw(optimiser: torch.optim.Optimizer) -> None:
    """Loshchilov and Hutter, ICLR 2019, algorithm 2, on the optimiser's own state and settings."""
    for group in optimiser.param_groups:
        rate, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimiser.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            step = state["step"].item()
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.copy_(beta1 * mean + (1 - beta1) * parameter.grad)
            square.copy_(beta2 * square + (1 - beta2) * parameter.grad**2)
            direction = mean / (1 - beta1**step) / (square.sqrt() / math.sqrt(1 - beta2**step) + group["eps"])
            parameter.copy_(parameter - rate * decay * parameter - rate * direction)


@torch.no_grad()
def _average(learner: Learner) -> None:
    """The teacher's weights and buffers follow the student's, one after the other."""
    teacher, student = learner.teacher.module, learner.student.detector
    decay = learner.teacher.decay_at(learner.step)
    for ours, theirs in (
        *zip(teacher.parameters(), student.parameters(), strict=True),
        *zip(teacher.buffers(), student.buffers(), strict=True),
    ):
        ours.copy_(decay * ours + (1 - decay) * theirs if ours.is_floating_point() else theirs)
    learner.teacher.updates += 1
