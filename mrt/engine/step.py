"""The step by flags: how benchmarks.plain_step, which judges the engine, asks for one. Stages are planned in
:mod:`mrt.engine.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrt.adapt.pseudo_labels import LabelCount
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config, StageConfig
from mrt.data.loader import Batch
from mrt.domains import TARGET
from mrt.engine import learner as engine
from mrt.engine.compiling import Compiler
from mrt.engine.distributed import World
from mrt.engine.student import Student
from mrt.parts import NETWORKS
from mrt.parts.align import Align
from mrt.parts.base import Labels, Moment, Needs, Part, Site
from mrt.parts.pseudo_labels import PseudoLabels
from mrt.parts.rebuild import EXPLAINED, Rebuild
from mrt.parts.supervise import Supervise


def without_looks(config: Config) -> Config:
    """Settings with which a step is nothing but the step."""
    engine = config.engine.model_copy(update={"shares_every": 0})
    return config.model_copy(update={"engine": engine})


@dataclass(frozen=True)
class Parts:
    """Which parts of the method a step has.

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
        """Whether the step needs target images at all."""
        return self.teach or self.judge or TARGET in self.rebuild


class Learner(engine.Learner):
    """A learner whose networks and thresholds are made already.

    Args:
        parts: what the step has. student: with the networks of those parts.

    Attributes:
        strengths: lambda_mask and the gradient reversal's eta at this step.
    """

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        parts: Parts,
        world: World,
        student: Student,
        optimiser: torch.optim.Optimizer,
        thresholds: DynamicThresholds,
        teacher: Teacher | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        self.parts, self.thresholds, self.strengths = parts, thresholds, (1.0, 1.0)
        self.label_count = LabelCount(student.detector.num_classes, world.device)
        method: list[Part] = [
            *([Supervise()] if parts.supervise else []),
            (_PseudoLabels if parts.teach else _Watch)(self),
        ]
        autoencoder, discriminators = (getattr(student, name) for name in NETWORKS)
        method += [_Align(self, discriminators)] if parts.judge else []
        method += [_Rebuild(self, autoencoder)] if parts.rebuild else []
        for part in method:
            part.site = Site(config, stage, [], student.detector, world, say=print)
        config = without_looks(config)
        super().__init__(
            config, stage, method, world, student, optimiser, teacher, compiler=compiler or Compiler()
        )


def training_step(
    learner: Learner, batches: Sequence[dict[str, Batch]], lambda_mask: float, eta: float
) -> dict[str, Tensor | float]:
    """One optimiser step; see :func:`mrt.engine.learner.training_step`.

    Args:
        lambda_mask: weight of the reconstruction. eta: of the gradient reversal layer.

    Returns:
        Losses and "grad_norm", without what the engine logs beside them.
    """
    learner.strengths = lambda_mask, eta
    seen = engine.training_step(learner, batches, Moment(learner.step, 0, 0))
    return {name: value for name, value in seen.items() if not name.endswith(EXPLAINED)}


class _PseudoLabels(PseudoLabels):
    def __init__(self, learner: Learner) -> None:
        self.thresholds, self.count = learner.thresholds, learner.label_count


class _Watch(_PseudoLabels):
    """Only records the source's confidences."""

    def needs(self, config: Config) -> Needs:
        return Needs()

    def before_step(self, *_: object) -> None:
        pass

    def label(self, number: int, batch: object, labels: Mapping[str, Labels]) -> Mapping[str, Labels]:
        return labels


class _Align(Align):
    def __init__(self, learner: Learner, discriminators: nn.Module) -> None:
        self.learner, self.discriminators = learner, discriminators

    def before_step(self, *_: object) -> None:
        self.discriminators.eta = self.learner.strengths[1]


class _Rebuild(Rebuild):
    def __init__(self, learner: Learner, autoencoder: nn.Module) -> None:
        self.learner, self.autoencoder, self.domains = learner, autoencoder, learner.parts.rebuild

    def before_step(self, *_: object) -> None:
        self.weight = self.learner.strengths[0]
