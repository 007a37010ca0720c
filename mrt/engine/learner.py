"""What learns in a stage, and its training step.

labels -> student -> losses of the parts -> backward -> clip -> optimiser -> average. The host never waits for
the whole GPU: pseudo labels and matching costs cross to it while later work is queued already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from mrt.adapt.teacher import Teacher
from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.domains import DOMAINS, SOURCE, TARGET
from mrt.engine.checks import checked_labels
from mrt.engine.compiling import Compiler
from mrt.engine.distributed import World
from mrt.engine.shares import shares
from mrt.engine.student import Student
from mrt.engine.trainee import Trainee, join, views
from mrt.models.interface import DetectorOutput
from mrt.parts.base import Labels, Moment, Needs, Part


def needs_of(parts: Sequence[Part], config: Config) -> Needs:
    """What the parts of a stage ask for together."""
    return reduce(Needs.__or__, (part.needs(config) for part in parts), Needs())


@dataclass
class Learner:
    """Everything that changes while a stage runs.

    Attributes:
        method: the parts of the stage, in their order.
        teacher: the average of the student, where one is kept.
        failed: on the device, the first step (from 1) whose loss or gradient was not finite; 0 while there is
            none, None before the first step. failures: how many steps there were of this kind. None of them
            changes a weight, and once there are more than ``allowed`` (``engine.on_nonfinite``), none does.
    """

    config: Config
    stage: StageConfig
    method: Sequence[Part]
    world: World
    student: Student
    optimiser: torch.optim.Optimizer
    teacher: Teacher | None = None
    step: int = 0
    compiler: Compiler = field(default_factory=Compiler)

    def __post_init__(self) -> None:
        self.needs = needs_of(self.method, self.config)
        criterion = self.student.detector.criterion(self.config.loss)
        self.trainee = Trainee(
            self.student, self.method, criterion, sorted(self.needs.detect), self.config.loss.target_weight
        )
        self.wrapped: nn.Module = self.world.wrap(self.trainee)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.engine.amp == "fp16")
        self.failed: Tensor | None = None
        self.failures: Tensor | None = None
        self.allowed = self.config.engine.skip_nonfinite
        self.kept_buffers: list[tuple[Tensor, Tensor]] = []
        self.shares_every = self.config.engine.shares_every
        if self.allowed:
            matcher = getattr(getattr(criterion, "queries", None), "matcher", None)
            if matcher is not None:
                matcher.skip_nonfinite = True

    @property
    def precision(self) -> torch.autocast:
        """The autocast context that the configuration asks for."""
        amp = self.config.engine.amp
        return torch.autocast(
            self.world.device.type,
            torch.float16 if amp == "fp16" else torch.bfloat16,
            enabled=amp in ("bf16", "fp16"),
        )

    def look(self, images: Tensor, mask: Tensor | None) -> DetectorOutput:
        """What the teacher finds in images; see :data:`mrt.parts.base.Look`."""
        context = self.compiler.stance({TARGET: (images, mask)}, "teacher")
        with record_function("step: teacher"), torch.no_grad(), self.precision, context:
            return self.teacher.module(images, mask)


def training_step(
    learner: Learner, batches: Sequence[dict[str, Batch]], moment: Moment
) -> dict[str, Tensor | float]:
    """One optimiser step over one or more micro-batches.

    Args:
        learner: what is trained; changed in place.
        batches: micro-batches, each by domain.
        moment: how far the stage is.

    Returns:
        Unweighted losses, their weighted sum "total" and "grad_norm" as tensors on the device, and numbers of
        the parts.
    """
    learner.optimiser.zero_grad(set_to_none=True)
    if learner.allowed:
        learner.kept_buffers = [(item, item.clone()) for item in learner.student.buffers()]
    for part in learner.method:
        part.before_step(batches, learner.look if learner.teacher is not None else None, moment)
    answers = StepAnswers(learner, batches)
    strong = {SOURCE: learner.stage.augment == "strong", TARGET: learner.needs.strong}
    seen: dict[str, Tensor | float] = {}
    every = learner.shares_every
    for number, batch in enumerate(batches):
        images = {name: views(item, strong[name]) for name, item in batch.items()}
        learner.trainee.in_terms = number == 0 and every > 0 and learner.step % every == 0
        with _synchronise(learner.wrapped, now=number == len(batches) - 1):
            with learner.precision, learner.compiler.stance(images), record_function("step: student"):
                losses = learner.wrapped(join(images), number, answers)
            if len(losses.terms) > 1:  # else one drives alone
                with record_function("step: shares"):
                    seen |= _look(learner, losses.terms)
                losses.terms.clear()
            with record_function("step: backward"):
                learner.scaler.scale(_spoilt(learner, losses.total) / len(batches)).backward()
        for name, value in {**losses.named, "total": losses.total}.items():
            plain = value.detach() if isinstance(value, Tensor) else value
            seen[name] = seen.get(name, 0) + plain / len(batches)
    with record_function("step: optimiser"):
        learner.scaler.unscale_(learner.optimiser)
        trained = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
        seen["grad_norm"] = clip_grad_norm_(trained, learner.config.engine.clip, foreach=True).detach()
        _optimise(learner, seen)
    if learner.teacher is not None and not any(part.holds_teacher(moment) for part in learner.method):
        with record_function("step: average"):
            learner.teacher.update(learner.student.detector, learner.step)
    learner.step += 1
    return seen


def _look(learner: Learner, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which part drives (:func:`mrt.engine.shares.shares`); nothing, now and later, where that cannot be
    found out.
    """
    scaled = {name: learner.scaler.scale(term) for name, term in terms.items()}
    try:
        return shares(scaled, learner.student.detector)
    except RuntimeError as error:  # no memory for it, or a plug-in's graph that is gone through once only
        learner.shares_every = 0
        reason = str(error).strip().split("\n")[0]
        learner.method[0].site.say(
            f"Warning: which part drives is not looked at (engine.shares_every), for that failed: {reason}"
        )
        return {}


def _spoilt(learner: Learner, total: Tensor) -> Tensor:
    """The loss; not finite once too many steps have failed and a gradient scaler is there: it skips such
    steps.
    """
    if not learner.scaler.is_enabled() or learner.failures is None:
        return total
    return total * torch.where(learner.failures > learner.allowed, torch.nan, 1.0)


@torch.no_grad()
def _optimise(learner: Learner, seen: Mapping[str, Tensor | float]) -> None:
    """The optimiser's step, unless a loss or gradient was not finite, in this step or before.

    The host does not wait to know. A gradient scaler (fp16) expects infinite gradients and skips such steps
    itself, so with one only the loss is looked at.
    """
    fine = seen["total"].isfinite()
    if not learner.scaler.is_enabled():
        fine = fine & seen["grad_norm"].isfinite().to(fine.device)
    broken = learner.world.sum((~fine).float()) > 0
    none = torch.zeros_like(broken, dtype=torch.int64)
    before = none if learner.failed is None else learner.failed
    learner.failed = torch.where((before == 0) & broken, learner.step + 1, before)
    learner.failures = broken.long() + (none if learner.failures is None else learner.failures)
    skip = learner.failures > learner.allowed
    if learner.allowed:
        skip = skip | broken
        for buffer, kept in learner.kept_buffers:  # running statistics have seen what was not finite
            buffer.copy_(torch.where(broken, kept, buffer))
    learner.optimiser.found_inf = skip.float()  # the fused kernels then change nothing
    learner.scaler.step(learner.optimiser)
    learner.scaler.update()


class StepAnswers:
    """What the student has to find in a step's micro-batches, as its parts say."""

    def __init__(self, learner: Learner, batches: Sequence[dict[str, Batch]]) -> None:
        self.learner, self.batches = learner, batches
        self._labels: dict[int, Mapping[str, Labels]] = {}
        self._num_boxes: dict[str, float] | None = None

    def labels(self, number: int) -> Mapping[str, Labels]:
        """The labels of a micro-batch by domain. The first call waits for the teacher's."""
        if number not in self._labels:
            labels: Mapping[str, Labels] = {}
            for part in self.learner.method:
                given = part.label(number, self.batches[number], labels)
                labels = checked_labels(part, self.batches[number], labels, given)
            self._labels[number] = labels
        return self._labels[number]

    def num_boxes(self) -> Mapping[str, float]:
        """By domain, boxes per micro-batch and process: what the detection losses are divided by. At least 1
        in the whole batch and, of the target, ``teacher.least_labels`` an image.
        """
        if self._num_boxes is None:
            count, processes = len(self.batches), self.learner.world.size
            labels = [self.labels(number) for number in range(count)]
            # Of both domains, whatever is labelled: every process has to reduce the same numbers.
            boxes = [sum(item[name].count for item in labels if name in item) / count for name in DOMAINS]
            means = self.learner.world.mean_of_numbers(boxes)
            parts, config = count * processes, self.learner.config
            least = dict.fromkeys(DOMAINS, 1 / parts)
            least[TARGET] = max(1.0, config.teacher.least_labels * config.engine.batch_size) / parts
            self._num_boxes = {
                name: max(mean, least[name]) for name, mean in zip(DOMAINS, means, strict=True)
            }
        return self._num_boxes


def _synchronise(module: nn.Module, now: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last micro-batch only."""
    return module.no_sync() if not now and hasattr(module, "no_sync") else nullcontext()
