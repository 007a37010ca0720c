"""A training step with a learner and data of its own, made in memory, to be timed, profiled or counted.

Images are noise that is already on the device, and boxes are random. So a step includes neither the loader
nor the copy to the device; benchmarks.data measures those. The teacher's threshold is set so that about as
many of its queries pass as images have boxes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from benchmarks.counting import (
    Operation,
    Work,
    as_on_cuda,
    begin_moments,
    shapes_only,
)
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config
from mrt.data.loader import Batch
from mrt.engine import build, distributed
from mrt.engine.checkpoint import seed_everything
from mrt.engine.compiling import Compiler
from mrt.engine.live_bytes import LiveBytes, networks_of, state_tensors
from mrt.engine.load import load_detector
from mrt.engine.stages import TRAINED
from mrt.engine.step import Learner, Parts, training_step
from mrt.engine.student import SOURCE, TARGET, Student

KINDS = {
    "source": Parts(),
    "source+mae": Parts(rebuild=(TARGET,)),
    "teach": Parts(teach=True, judge=True, ema=True),
    "teach+mae": Parts(rebuild=(TARGET,), teach=True, judge=True, ema=True),
}
WARM_UP = 3  # steps
Step = Callable[..., dict[str, torch.Tensor | float]]


def image_size(config: Config) -> tuple[int, int]:
    """(H, W) of an image of Cityscapes' shape (1:2) after the preset's resizing.

    It is 666x1333 in the published runs and 128x256 in preset small.
    """
    short = min(max(config.data.sides), config.data.max_size // 2)
    return short, min(config.data.max_size, 2 * short + config.data.max_size % 2)


def make_batch(
    images: int,
    size: tuple[int, int],
    boxes: int,
    num_classes: int,
    seed: int,
    device: torch.device,
    pair: bool,
) -> Batch:
    """Noise images without padding, each with ``boxes`` random boxes; ``pair``: with a strong view."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for number in range(images):
        sides = 0.03 + 0.2 * torch.rand(boxes, 2, generator=generator)
        centres = sides / 2 + (1 - sides) * torch.rand(boxes, 2, generator=generator)
        labels = torch.randint(num_classes, (boxes,), generator=generator)
        targets.append({"image_id": number, "boxes": torch.cat((centres, sides), 1), "labels": labels})
    first, second = (torch.randn(images, 3, *size, generator=generator) for _ in range(2))
    mask = torch.zeros(images, *size, dtype=torch.bool)
    return Batch(first, mask, targets, second if pair else None, padded=False).to(device)


def make_learner(config: Config, kind: str, num_classes: int, world: distributed.World) -> Learner:
    """A learner at the beginning of its stage, with the preset's shipped weights, if any, else untrained."""
    seed_everything(config.seed)
    parts, settings = KINDS[kind], config.teacher
    detector = build.build_detector(config, [str(number) for number in range(num_classes)])
    if config.init:
        detector.load_state_dict(load_detector(config.init)[0].state_dict())
    mae = build.build_mae(config, detector) if parts.rebuild else None
    discriminators = build.build_discriminators(config, detector) if parts.judge else None
    student = Student(detector, mae, discriminators).to(world.device).train()
    stage = config.teach if parts.teach else config.mae_stage
    optimiser = build.build_optimiser(config, stage, student, world.device)
    teacher = None
    if parts.ema:
        teacher = Teacher(detector, settings.ema, warmup=settings.warmup, warmup_offset=TRAINED)
    thresholds = DynamicThresholds(num_classes, device=world.device)
    detector.set_checkpointing(config.engine.checkpointing)
    compiler = Compiler(config.engine.compile, world.device)
    compiler.compile(student, teacher.module if teacher is not None else None)
    return Learner(config, stage, parts, world, student, optimiser, thresholds, teacher, compiler=compiler)


@torch.no_grad()
def set_threshold(learner: Learner, target: Batch, boxes: int) -> None:
    """Let ``boxes`` queries per image pass, as many as a source image has labels; NMS then drops some."""
    with learner.precision:
        output = learner.teacher.module(target.images, target.padding_mask)
        scores = output.logits[-1].float().sigmoid().amax(-1)
    learner.thresholds.values.fill_(scores.flatten().topk(boxes * len(target) + 1).values[-1].item())


class Bench:
    """A kind of step with a learner and data of its own.

    Args:
        step: the engine's, or one with the same arguments.
        micro: micro-batches per step.
        size: (H, W) of the images; by default the preset's.
        values: False for steps that are only counted (:meth:`counted_gb`), without computing anything.

    Attributes:
        wall, cpu: milliseconds of each call.
        labels: pseudo labels per image, of each call.
    """

    def __init__(
        self,
        config: Config,
        kind: str,
        boxes: int,
        num_classes: int,
        world: distributed.World,
        step: Step = training_step,
        micro: int = 1,
        size: tuple[int, int] | None = None,
        values: bool = True,
    ) -> None:
        self.learner, self.step, self.micro = make_learner(config, kind, num_classes, world), step, micro
        self.config, self.cuda, self.boxes, self.values = config, world.device.type == "cuda", boxes, values
        self.domains = (SOURCE, TARGET) if self.learner.parts.target else (SOURCE,)
        self.images = config.engine.batch_size
        size = size or image_size(config)
        self.batches = []
        for seed in range(max(2, micro)):
            batch = {}
            for place, domain in enumerate(self.domains):
                own_seed, pair = 2 * seed + place, domain == TARGET
                batch[domain] = make_batch(
                    self.images, size, boxes, num_classes, own_seed, world.device, pair
                )
            self.batches.append(batch)
        if self.learner.teacher is not None and values:
            set_threshold(self.learner, self.batches[0][TARGET], boxes)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.labels: list[float | torch.Tensor] = []

    def __call__(self) -> None:
        """One timed step."""
        build.use_machine(self.config, self.learner.world.device)  # other benches may use another precision
        begin, begin_cpu = time.perf_counter(), time.process_time()
        first = self.learner.step % 2 if self.micro == 1 else 0
        seen = self._step(self.batches[first : first + self.micro])
        if self.cuda:
            torch.cuda.synchronize()
        self.wall.append((time.perf_counter() - begin) * 1e3)
        self.cpu.append((time.process_time() - begin_cpu) * 1e3)
        self.labels.append(seen.get("pseudo_labels", 0.0))

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self()
        self.forget()

    def forget(self) -> None:
        self.wall.clear(), self.cpu.clear(), self.labels.clear()

    def times(self) -> dict[str, Any]:
        """Statistics of the steps since :meth:`forget`."""
        low, median, high = quartiles(self.wall)
        return {
            "ms": median,
            "quartiles_ms": [low, high],
            "cpu_ms": statistics.median(self.cpu),
            "images_per_s": self.images * self.micro * len(self.domains) / median * 1e3,
            "pseudo_labels": sum(float(count) for count in self.labels) / len(self.labels),
        }

    def counted_gb(self) -> dict[str, float]:
        """Gigabytes (10^9) of tensors that one more step takes on a GPU: the peak, and between steps."""
        with self._as_counted() as data, LiveBytes(state_tensors(self.learner, data)) as count:
            state = count.live
            self._step(data)
        return {"counted_gb": count.peak / 1e9, "state_gb": state / 1e9}

    def counted_work(self) -> list[Operation]:
        """The operations of a step as a GPU would run them.

        It is the second step, because the first makes what is kept from step to step.
        """
        with self._as_counted() as data:
            self._step(data)
            with Work() as work:
                self._step(data)
        return work.operations

    def _step(self, data: Sequence[dict[str, Batch]]) -> dict[str, torch.Tensor | float]:
        return self.step(self.learner, data, self.config.mae.weight, self.config.domain.reversal)

    @contextmanager
    def _as_counted(self) -> Iterator[Sequence[dict[str, Batch]]]:
        with nullcontext() if self.values else shapes_only(self.learner, self.boxes):
            if not self.learner.optimiser.state:
                begin_moments(self.learner)
            with as_on_cuda(networks_of(self.learner), self.values):
                yield self.batches[: self.micro]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return low, median, high
