"""What a part of a method is. A new idea is a subclass of :class:`Part` in one file (docs/extending.md).

The engine asks the parts of a stage in their order, at these moments:

    is_on, needs      when the stage is planned
    check             before anything is built: what cannot work
    annotate          once: labels of others for the target's images
    networks          before it begins: what learns beside the detector
    begin             once, when everything is there
    load_state_dict   then, where a run goes on; elsewhere start
    before_step       before each optimiser step: schedules, and what the teacher is to look at
    label             once for each micro-batch: what the detector has to find in it
    encode            a further pass of a domain's images through the encoder
    losses            once the detector has answered
    judged            once its detections are matched with the labels
    after_epoch       what went by in the epoch, for the log
    facts             how it stands, for whoever watches
    finish            once, when the stage is over
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from mrt.data.loader import Batch
from mrt.domains import DOMAINS, TARGET
from mrt.errors import MrtError
from mrt.losses import Judged, Loss, count_boxes
from mrt.models.interface import Detector, DetectorOutput, EncoderInput, Features
from mrt.section import Section

if TYPE_CHECKING:
    from mrt.config import Config, StageConfig
    from mrt.data.card import DatasetCard
    from mrt.data.dataset import DetectionDataset
    from mrt.evaluate.coco import Metrics

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Needs:
    """What a part asks of the stage that it is in.

    Attributes:
        detect: domains ("source", "target") whose images go through the whole detector.
        target: whether it needs target images at all.
        strong: whether the student sees target images strongly augmented, while the teacher sees the weak
            view of the same geometry.
        kept: detector weights that are kept for it: "random" (as they were initialised), "source" (as the
            source left them).
    """

    detect: Set[str] = frozenset()
    target: bool = False
    strong: bool = False
    kept: Set[str] = frozenset()

    def __post_init__(self) -> None:
        for name, known in (("detect", DOMAINS), ("kept", ("random", "source"))):
            wrong = [item for item in getattr(self, name) if item not in known]
            if wrong:
                raise MrtError(
                    f"Needs({name}={set(wrong)}): not known", f"{name} may hold {' and '.join(known)}"
                )
        if TARGET in self.detect:
            object.__setattr__(self, "target", True)

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.detect | other.detect,
            self.target or other.target,
            self.strong or other.strong,
            self.kept | other.kept,
        )


class Processes(Protocol):
    """The processes of a run, as :class:`mrt.engine.distributed.World` is."""

    main: bool

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""


class Snapshots(Protocol):
    """Writes down what is found in a few target images."""

    def take(
        self,
        epoch: int,
        facts: Mapping[str, Any],
        find: Callable[[DetectorOutput], Sequence[dict[str, Tensor]]],
    ) -> Mapping[str, float]:
        """Append a line; ``find`` gets a detector's output and gives labels per image. Returns what is seen
        of the teacher without labels, by name.
        """


@dataclass(frozen=True)
class Site:
    """Where a part is at work.

    Attributes:
        config, stage: all settings, and those of the stage (epochs, learning rate).
        classes: names by label. detector: the student's.
        world: the processes. say: tells the user a line worth reading.
        source_boxes: labelled boxes per labelled image (without source images: as the weights have it on
            record); 0 where that is not known. source_objects: those of each class, by name; empty or 0
            likewise. target: whether the stage sees target images.
        source: what the starting weights have on record of the source they were trained on
            (:mod:`mrt.parts.source_record`); empty where they have nothing.
        kept: detector weights that some part needs (:attr:`Needs.kept`).
        before: the part of the same name in the stage before, if this run has trained it.
        start: the folder of the run that this one starts from, if this stage goes on where that run's ended.
        snapshots: writes down what is found in a few target images, where that is wanted
            (:mod:`mrt.engine.snapshots`).
    """

    config: Config
    stage: StageConfig
    classes: list[str]
    detector: Detector
    world: Processes
    say: Callable[[str], None]
    source_boxes: float = 0.0
    source_objects: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    target: bool = True
    kept: Mapping[str, State] = field(default_factory=dict)
    before: Part | None = None
    start: Path | None = None
    snapshots: Snapshots | None = None


@dataclass(frozen=True)
class Moment:
    """How far a stage is: ``step`` optimiser steps of ``total`` are made, ``epoch`` epochs are over."""

    step: int
    total: int
    epoch: int


Look = Callable[[Tensor, Tensor | None], DetectorOutput]
"""What the teacher finds in (B, 3, H, W) images with their padding mask (B, H, W) or None; no gradient. Only
queued on a GPU.
"""


@dataclass(frozen=True)
class Labels:
    """What the detector has to find in the images of one domain.

    Attributes:
        targets: per image ``boxes`` (n, 4) cxcywh and ``labels`` (n,); optional ``ignore_boxes`` (m, 4),
            ``ignore_labels`` (m,), ``confidences`` (n,), how sure a label is, ``probabilities`` (n, C), soft
            labels, and ``weights`` (n,), what a label counts for in matching and box losses
            (:meth:`mrt.losses.DetectionLoss.start`).
        with_boxes: whether the box losses count, too.
        num_boxes: as how many objects they count where the losses are divided by the number of objects; None:
            as many as there are labels.
        on_host: the same targets on the host, where somebody has them there: reading them from a GPU would
            mean waiting for all that is queued.
    """

    targets: Sequence[dict[str, Any]]
    with_boxes: bool = True
    num_boxes: float | None = None
    on_host: Sequence[dict[str, Any]] | None = None

    @property
    def count(self) -> float:
        """As how many objects they count."""
        return count_boxes(self.targets) if self.num_boxes is None else self.num_boxes


@dataclass(frozen=True)
class Pass:
    """Images of one size that went through the student together.

    Attributes:
        rows: by domain, which of the output's images are its own.
        output: what the detector says of them.
    """

    rows: Mapping[str, slice]
    output: DetectorOutput


@dataclass(frozen=True)
class Seen:
    """What the student computed in one micro-batch.

    Attributes:
        number: of the micro-batch within the step.
        passes: of the domains that some part wanted detections of.
        extra: by (part's name, domain): what :meth:`Part.encode` gave, and the encoder's memory (B, S, d) of
            it.
        labels: by domain.
    """

    number: int
    passes: Sequence[Pass]
    extra: Mapping[tuple[str, str], tuple[EncoderInput, Tensor]]
    labels: Mapping[str, Labels]

    def output(self, domain: str) -> DetectorOutput:
        """The detector's output for the images of a domain.

        Raises:
            MrtError: no part of the stage asked for it.
        """
        for item in self.passes:
            if domain in item.rows:
                return item.output.rows(item.rows[domain])
        raise MrtError(
            f"seen.output({domain!r}): the detector saw no such images in this step",
            f"a part's needs() asks for them: Needs(detect={{{domain!r}}})",
        )


class Part:
    """One idea of a method.

    Attributes:
        name: of the part; its state in checkpoints and, for a plug-in, its section of the settings are called
            so.
        settings: class of that section, for a plug-in.
        stages: of a plug-in: names of the stages ("pretrain", "mae", "teach") that it takes part in.
    """

    name: ClassVar[str] = ""
    settings: ClassVar[type[Section] | None] = None
    stages: ClassVar[tuple[str, ...]] = ()
    site: Site

    def is_on(self, config: Config) -> bool:
        """Whether the settings want it."""
        return True

    def needs(self, config: Config) -> Needs:
        """What it asks of its stage."""
        return Needs()

    def check(
        self, config: Config, cards: Mapping[str, DatasetCard], classes: Sequence[str], data_root: Path
    ) -> None:
        """A run with this part is about to be built: look whether what the part will read is there.

        Args:
            cards: of the run's data sets, by domain. classes: that are detected.

        Raises:
            MrtError: it cannot work.
        """

    def annotate(self, domain: str, dataset: DetectionDataset) -> DetectionDataset:
        """The images of a domain as the stage will see them. The target's have no labels; a part may give
        them somebody's (:meth:`mrt.data.dataset.DetectionDataset.with_labels`) and finds them in the
        batches' targets.
        """
        return dataset

    def networks(self, site: Site) -> dict[str, nn.Module]:
        """New networks that learn beside the detector, by name; they are moved to the device afterwards."""
        return {}

    def begin(self, site: Site) -> None:
        """The stage is about to begin; ``self.site`` is set already."""

    def start(self) -> None:
        """The first step of the stage is next; not called where a run goes on in the middle of it."""

    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look | None, moment: Moment) -> None:
        """An optimiser step is about to be made from some micro-batches; ``look`` is the teacher, where there
        is one.
        """

    def label(
        self, number: int, batch: Mapping[str, Batch], labels: Mapping[str, Labels]
    ) -> Mapping[str, Labels]:
        """All labels of a micro-batch by domain: those of the parts before, changed or added to.

        Asked once for each micro-batch, in any order. Labels that were given are not changed in place.
        """
        return labels

    def encode(self, domain: str, features: Features) -> EncoderInput | None:
        """A further pass of a domain's images through the encoder; its memory is in :attr:`Seen.extra`."""
        return None

    def losses(self, seen: Seen) -> Sequence[Loss]:
        """What it adds to the sum."""
        return ()

    def judged(self, judged: Mapping[str, Judged]) -> Mapping[str, float]:
        """The detection losses and matches by domain; numbers to log."""
        return {}

    def holds_teacher(self, moment: Moment) -> bool:
        """Whether the teacher stays as it is after the step that has just been made."""
        return False

    def after_epoch(self, done: int, numbers: Mapping[str, float]) -> dict[str, Any]:
        """What goes on record of an epoch: plain values by name (numbers, or numbers by name), for the log.

        Args:
            done: epochs that are over.
            numbers: means of the losses since they were last logged, as in the log ("target/class", "total").
        """
        return {}

    def facts(self, done: int) -> dict[str, Any]:
        """How it stands when ``done`` epochs are over, for whoever watches: by title, numbers by name or a
        list of texts.
        """
        return {}

    def measured(self, network: str, metrics: Metrics, dataset: DetectionDataset) -> dict[str, Any]:
        """The "student" or "teacher" was measured on validation images; further figures to log, never to
        train on.
        """
        return {}

    def recall(self, header: Mapping[str, Any]) -> None:
        """Take back what :meth:`header` told of a teacher that the run goes back to."""

    def header(self) -> dict[str, Any]:
        """What the weights file of a detector trained with it ought to say."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the weights of its networks.

        Every process calls this, in the middle of an epoch too, and the first one's answer is kept. What each
        process counts for itself is summed here (``self.site.world.sum(tensor)``, in place), and the other
        processes begin to count anew in :meth:`load_state_dict` (``self.site.world.main`` is False there).
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def finish(self, folder: Path) -> None:
        """The stage is over; the first process may write to the run's folder."""
