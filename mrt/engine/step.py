"""One training step of any stage, as data sees it.

source batch -> student -> detection + domain loss; target batch -> teacher(weak) -> pseudo labels -> student(strong, masked)
-> pseudo-label + domain + reconstruction loss; sum -> backward -> clip -> optimiser -> EMA. A stage without a part skips it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from mrt.adapt.pseudo_labels import LabelCount, pseudo_labels
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.engine.distributed import World
from mrt.engine.student import SOURCE, TARGET, Passes, Student, views
from mrt.losses import DetectionLoss, HungarianMatcher, class_agnostic, count_boxes, domain_loss, matched_confidences, reconstruction_loss
from mrt.models.detector import DetectorOutput


@dataclass(frozen=True)
class Parts:
    """Which parts of the method a stage uses.

    Attributes:
        supervise: detection loss on the source's labels.
        rebuild: domains whose features are masked and rebuilt.
        teach: detection loss on the teacher's pseudo labels of target images.
        judge: domain discriminators.
        ema: keep a teacher, whether or not it teaches.
    """

    supervise: bool = True
    rebuild: tuple[str, ...] = ()
    teach: bool = False
    judge: bool = False
    ema: bool = False

    @property
    def target(self) -> bool:
        """Whether the stage needs target images at all."""
        return self.teach or self.judge or TARGET in self.rebuild


@dataclass
class Learner:
    """Everything that changes while a stage runs."""

    config: Config
    stage: StageConfig
    parts: Parts
    world: World
    student: Student
    optimiser: torch.optim.Optimizer
    thresholds: DynamicThresholds
    teacher: Teacher | None = None
    reinit: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        loss, self.num_classes = self.config.loss, self.student.detector.num_classes
        matcher = HungarianMatcher(loss.class_weight, loss.box_weight, loss.giou_weight, loss.focal_alpha, loss.focal_gamma)
        self.label_count = LabelCount(self.num_classes, self.world.device)
        self.detection_loss = DetectionLoss(matcher, self.num_classes, loss.focal_alpha, loss.focal_gamma)
        self.proposal_loss = DetectionLoss(matcher, 1, loss.focal_alpha, loss.focal_gamma)
        self.wrapped: nn.Module = self.world.wrap(self.student)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.engine.amp == "fp16")

    @property
    def precision(self) -> torch.autocast:
        """The autocast context that the configuration asks for."""
        amp = self.config.engine.amp
        return torch.autocast(self.world.device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off")


def training_step(learner: Learner, batches: Sequence[dict[str, Batch]], mae_weight: float, reversal: float) -> dict[str, Tensor]:
    """One optimiser step over one or more micro-batches.

    Args:
        learner: what is trained; changed in place.
        batches: micro-batches, each by domain.
        mae_weight: lambda_mask at this step.
        reversal: eta of the gradient reversal layer at this step.

    Returns:
        Unweighted losses, their weighted sum "total", "grad_norm" and "pseudo_labels" (per image), as tensors on the device.
    """
    parts, config = learner.parts, learner.config
    if learner.student.discriminators is not None:
        learner.student.discriminators.eta = reversal
    learner.optimiser.zero_grad(set_to_none=True)
    with learner.precision:
        labels = [teach(learner, batch[TARGET]) if parts.teach else None for batch in batches]
    boxes = {
        SOURCE: _mean_boxes(learner, [batch[SOURCE].targets for batch in batches]),
        TARGET: _mean_boxes(learner, labels) if parts.teach else None,
    }
    detect = [name for name, wanted in ((SOURCE, parts.supervise), (TARGET, parts.teach)) if wanted or parts.judge]
    seen: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        strong = {SOURCE: learner.stage.augment == "strong", TARGET: parts.teach}
        images = {name: views(item, strong[name]) for name, item in batch.items()}
        with _synchronise(learner.wrapped, now=number == len(batches) - 1):
            with learner.precision, record_function("step: student"):
                passes: Passes = learner.wrapped(
                    images, detect=detect, judge=parts.judge, rebuild=parts.rebuild if mae_weight else (), mask_ratio=config.mae.mask_ratio
                )
            with record_function("step: losses"):
                losses, total = objective(learner, passes, batch, labels[number], boxes, mae_weight)
            with record_function("step: backward"):
                learner.scaler.scale(total / len(batches)).backward()
        for name, value in {**losses, "total": total}.items():
            seen[name] = seen.get(name, 0) + value.detach() / len(batches)
    with record_function("step: optimiser"):
        learner.scaler.unscale_(learner.optimiser)
        trained = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
        seen["grad_norm"] = clip_grad_norm_(trained, config.engine.clip, foreach=True).detach()
        learner.scaler.step(learner.optimiser)
        learner.scaler.update()
    if learner.teacher is not None:
        with record_function("step: average"):
            learner.teacher.update(learner.student.detector, learner.step)
    learner.step += 1
    return seen


def teach(learner: Learner, target: Batch) -> list[dict[str, Tensor]]:
    """The teacher's pseudo labels of the weakly augmented target images."""
    settings = learner.config.teacher
    with record_function("step: teacher"), torch.no_grad():
        output = learner.teacher.module(target.images, target.padding_mask)
        labels = pseudo_labels(output.logits[-1], output.boxes[-1], learner.thresholds.values, settings.nms_iou, settings.ignore_above)
        learner.label_count.add(labels)
        return labels


def _mean_boxes(learner: Learner, targets: Sequence[Sequence[dict]]) -> Tensor:
    """Boxes per micro-batch and process, at least 1 in the whole batch: what the detection losses are divided by."""
    boxes = torch.tensor(sum(count_boxes(batch) for batch in targets) / len(targets), device=learner.world.device)
    return learner.world.mean(boxes).clamp(min=1 / (len(targets) * learner.world.size))


def objective(
    learner: Learner,
    passes: Passes,
    batch: dict[str, Batch],
    labels: list[dict[str, Tensor]] | None,
    boxes: dict[str, Tensor | None],
    mae_weight: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """All losses of one micro-batch: ``L_sup + L_domain(source) + coef (L_unsup + L_domain(target) + lambda L_mask)``.

    Args:
        labels: pseudo labels of the target images. boxes: by domain, what the detection losses are divided by.

    Returns:
        Unweighted losses by ``domain/name`` (and "pseudo_labels", how many an image has), and their weighted sum.
    """
    parts, config = learner.parts, learner.config
    losses: dict[str, Tensor] = {}
    terms: list[Tensor] = []
    for domain, scale in ((SOURCE, 1.0), (TARGET, config.loss.target_weight)):
        output = passes.detections.get(domain)
        if output is not None and domain == SOURCE and parts.supervise:
            terms.append(_detection(learner, output, batch[SOURCE].targets, boxes[SOURCE], True, domain, losses))
        if output is not None and domain == TARGET and labels is not None:
            terms.append(scale * _detection(learner, output, labels, boxes[TARGET], config.teacher.box_loss, domain, losses))
            losses["pseudo_labels"] = torch.as_tensor(count_boxes(labels) / max(len(labels), 1), device=learner.world.device)
        if domain in passes.domains:
            settings = config.domain
            weights = {"backbone": settings.backbone_weight, "encoder": settings.encoder_weight, "decoder": settings.decoder_weight}
            found = domain_loss(passes.domains[domain], 0 if domain == SOURCE else 1, weights)
            losses.update({f"{domain}/{name}": value for name, value in found.items()})
            terms.append(scale * found["domain"])
        if domain in passes.reconstructions:
            rebuilt = passes.reconstructions[domain]
            over = config.mae.mse_over
            padding = rebuilt.padding if over == "masked" else None  # the whole map includes its padding, as published
            loss = reconstruction_loss(rebuilt.prediction, rebuilt.target, rebuilt.mask, padding, over)
            losses[f"{domain}/mae"] = loss
            terms.append(scale * mae_weight * loss)
    if not terms:
        raise ValueError("this stage computes no loss: none of its parts is switched on")
    return losses, torch.stack(terms).sum()


def _detection(
    learner: Learner,
    output: DetectorOutput,
    targets: Sequence[dict],
    count: Tensor,
    with_boxes: bool,
    domain: str,
    losses: dict[str, Tensor],
) -> Tensor:
    """The weighted detection loss of one domain (with the proposals' where the detector has two stages)."""
    config = learner.config.loss
    found, matches = learner.detection_loss(output.logits, output.boxes, targets, count, with_boxes)
    if domain == SOURCE:
        learner.thresholds.record(*matched_confidences(output.logits[-1], matches))
    if output.proposal_logits is not None:
        logits, proposals = output.proposal_logits[None, ..., :1], output.proposal_boxes[None]
        extra, _ = learner.proposal_loss(logits, proposals, class_agnostic(targets), count, with_boxes)
        found.update({f"proposal_{name}": value for name, value in extra.items()})
    losses.update({f"{domain}/{name}": value for name, value in found.items()})
    weights = {"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight}
    return torch.stack([weights[name.removeprefix("proposal_")] * value for name, value in found.items()]).sum()


def _synchronise(module: nn.Module, now: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last micro-batch only."""
    return module.no_sync() if not now and hasattr(module, "no_sync") else nullcontext()
