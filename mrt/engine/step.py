"""One training step of any stage, as data sees it.

source batch -> student -> detection + domain loss; target batch -> teacher(weak) -> pseudo labels -> student(strong, masked)
-> pseudo-label + domain + reconstruction loss; sum -> backward -> clip -> optimiser -> EMA. A stage without a part skips it.

The host never waits for the whole GPU: pseudo labels and matching costs cross to it while later work is queued already.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from mrt.adapt.pseudo_labels import LabelCount, PendingLabels
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.engine.compiling import Compiler
from mrt.engine.distributed import World
from mrt.engine.objective import Criteria, Labels, Objective
from mrt.engine.student import SOURCE, TARGET, Passes, Student, views
from mrt.losses import count_boxes


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
    compiler: Compiler = field(default_factory=Compiler)

    def __post_init__(self) -> None:
        self.criteria = Criteria(self.config, self.student.detector.num_classes)
        self.label_count = LabelCount(self.student.detector.num_classes, self.world.device)
        self.wrapped: nn.Module = self.world.wrap(self.student)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.engine.amp == "fp16")

    @property
    def precision(self) -> torch.autocast:
        """The autocast context that the configuration asks for."""
        amp = self.config.engine.amp
        return torch.autocast(self.world.device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp in ("bf16", "fp16"))


def training_step(learner: Learner, batches: Sequence[dict[str, Batch]], mae_weight: float, reversal: float) -> dict[str, Tensor | float]:
    """One optimiser step over one or more micro-batches.

    Args:
        learner: what is trained; changed in place.
        batches: micro-batches, each by domain.
        mae_weight: lambda_mask at this step.
        reversal: eta of the gradient reversal layer at this step.

    Returns:
        Unweighted losses, their weighted sum "total" and "grad_norm" as tensors on the device, and "pseudo_labels" (per image), a number.
    """
    parts, config = learner.parts, learner.config
    if learner.student.discriminators is not None:
        learner.student.discriminators.eta = reversal
    learner.optimiser.zero_grad(set_to_none=True)
    answers = Answers(learner, batches)
    detect = [name for name, wanted in ((SOURCE, parts.supervise), (TARGET, parts.teach)) if wanted or parts.judge]
    seen: dict[str, Tensor | float] = {}
    for number, batch in enumerate(batches):
        strong = {SOURCE: learner.stage.augment == "strong", TARGET: parts.teach}
        images = {name: views(item, strong[name]) for name, item in batch.items()}
        objective = Objective(config, learner.criteria, learner.thresholds, lambda: answers.of(number), lambda: answers.num_boxes)  # noqa: B023
        with _synchronise(learner.wrapped, now=number == len(batches) - 1):
            with learner.precision, learner.compiler.stance(images), record_function("step: student"):
                passes: Passes = learner.wrapped(
                    images,
                    detect=detect,
                    judge=parts.judge,
                    rebuild=parts.rebuild if mae_weight else (),
                    mask_ratio=config.mae.mask_ratio,
                    on_detections=objective.begin,
                )
            with learner.precision, record_function("step: losses"):
                losses, total = objective.finish(passes, mae_weight)
            with record_function("step: backward"):
                learner.scaler.scale(total / len(batches)).backward()
        for name, value in {**losses, "total": total.detach()}.items():
            seen[name] = seen.get(name, 0) + (value.detach() if isinstance(value, Tensor) else value) / len(batches)
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


class Answers:
    """What the student shall find in a step's micro-batches: source labels, and the teacher's pseudo labels of target images.

    The teacher looks at every target image at once; its labels are only waited for when they are first asked for.
    """

    def __init__(self, learner: Learner, batches: Sequence[dict[str, Batch]]) -> None:
        self.learner, self.batches = learner, batches
        self.pending = [teach(learner, batch[TARGET]) for batch in batches] if learner.parts.teach else []

    @cached_property
    def labels(self) -> list[list[dict[str, Tensor]]]:
        """Pseudo labels by micro-batch, none where nothing is taught."""
        labels = [pending.result() for pending in self.pending]
        for images in labels:
            self.learner.label_count.add(images)
        return labels

    def of(self, number: int) -> dict[str, Labels]:
        """What counts in a micro-batch, by domain."""
        found: dict[str, Labels] = {SOURCE: self.batches[number][SOURCE].targets} if self.learner.parts.supervise else {}
        return found | ({TARGET: self.labels[number]} if self.pending else {})

    @cached_property
    def num_boxes(self) -> dict[str, float]:
        """Boxes per micro-batch and process, at least 1 in the whole batch: what the detection losses are divided by."""
        count, processes = len(self.batches), self.learner.world.size
        boxes = {name: sum(count_boxes(self.of(number)[name]) for number in range(count)) / count for name in self.of(0)}
        means = self.learner.world.mean_of_numbers(list(boxes.values()))
        return {name: max(mean, 1 / (count * processes)) for name, mean in zip(boxes, means, strict=True)}


def teach(learner: Learner, target: Batch) -> PendingLabels:
    """The teacher's pseudo labels of the weakly augmented target images, on their way."""
    settings = learner.config.teacher
    images = {TARGET: views(target, strong=False)}
    with record_function("step: teacher"), torch.inference_mode(), learner.precision, learner.compiler.stance(images, "teacher"):
        output = learner.teacher.module(*images[TARGET])
        return PendingLabels(output.logits[-1], output.boxes[-1], learner.thresholds.values, settings.nms_iou, settings.ignore_above)


def _synchronise(module: nn.Module, now: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last micro-batch only."""
    return module.no_sync() if not now and hasattr(module, "no_sync") else nullcontext()
