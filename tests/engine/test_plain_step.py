"""The engine's training step against the plain one of benchmarks/plain_step.py: same losses, gradients, teacher and threshold record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_world import CLASSES, tiny_config
from torch import Tensor

from benchmarks.plain_step import plain_step
from mrt.adapt.teacher import Teacher
from mrt.adapt.thresholds import DynamicThresholds
from mrt.config import Config
from mrt.data.loader import Batch, pad
from mrt.engine import build
from mrt.engine.distributed import World
from mrt.engine.step import Learner, Parts, training_step
from mrt.engine.student import SOURCE, TARGET, Student

STAGES = {
    "source": Parts(),
    "source+mae": Parts(rebuild=(TARGET,)),
    "teach": Parts(teach=True, judge=True, ema=True),
    "teach+mae": Parts(rebuild=(TARGET,), teach=True, judge=True, ema=True),
    "teach+mae, both domains": Parts(rebuild=(SOURCE, TARGET), teach=True, judge=True, ema=True),
}
MODELS = {
    "demo's kind": {"model.two_stage": True, "model.box_refine": True, "teacher.box_loss": True, "mae.variant": "published"},
    "paper's kind": {"model.two_stage": False, "model.box_refine": False, "model.query_init": "learned", "mae.variant": "paper"},
}
SIZES = {  # by domain, the (height, width) of its images
    "one size": {SOURCE: [(48, 64)] * 3, TARGET: [(48, 64)] * 3},
    "two sizes": {SOURCE: [(48, 64)] * 3, TARGET: [(64, 64)] * 2},
    "padded alike": {SOURCE: [(48, 64), (40, 64), (48, 50)], TARGET: [(36, 64), (48, 40), (48, 64)]},
    "padded target": {SOURCE: [(48, 64)] * 3, TARGET: [(36, 64), (48, 40), (48, 64)]},
}
Step = Callable[..., dict[str, Tensor]]


def config(model: str, **changes: object) -> Config:
    """A tiny detector with frozen batch norm, which does not depend on what shares a pass, and without dropout."""
    fixed = {"model.weights": "checkpoint", "model.freeze": "stem", "model.dropout": 0.0, "model.num_queries": 12, "teacher.nms_iou": 0.3}
    return tiny_config(**{**fixed, **MODELS[model], **changes})


def batch(sizes: Sequence[tuple[int, int]], seed: int, boxes: Sequence[int] = (3, 0, 2), pair: bool = True) -> Batch:
    """Smooth noise with random boxes; the second image has none."""
    generator = torch.Generator().manual_seed(seed)
    targets, views = [], ([], [])
    for number, (height, width) in enumerate(sizes):
        for view in views:
            coarse = torch.randn(1, 3, height // 4, width // 4, generator=generator)
            view.append(2 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0])
        side = 0.1 + 0.4 * torch.rand(boxes[number], 2, generator=generator)
        centre = side / 2 + (1 - side) * torch.rand(boxes[number], 2, generator=generator)
        labels = torch.randint(len(CLASSES), (boxes[number],), generator=generator)
        targets.append({"image_id": number, "boxes": torch.cat((centre, side), 1), "labels": labels})
    (images, mask), (strong, _) = pad(views[0]), pad(views[1])
    return Batch(images, mask, targets, strong if pair else None)


def make_learner(config: Config, parts: Parts, seed: int = 0, smooth: bool = True) -> Learner:
    """A learner in the middle of its work: no layer is at its special start (zeros, sampling points exactly on cell borders, where the
    op's gradient jumps), and the teacher is not the student.

    Args:
        smooth: AdamW divides by the gradient's root mean square plus 1 instead of 1e-8, at a thousand times the rate. As it is, its first
            step is the gradient's sign, which is noise where the gradient is zero but for noise; so it is proportional to the gradient.
    """
    torch.manual_seed(seed)
    detector = build.build_detector(config, CLASSES)
    mae = build.build_mae(config, detector) if parts.rebuild else None
    student = Student(detector, mae, build.build_discriminators(config, detector) if parts.judge else None).train()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.requires_grad and "backbone.body" not in name:
                strongly = "sampling_offsets.bias" in name or "_embed" in name
                parameter.add_(torch.randn_like(parameter), alpha=0.3 if strongly else 0.05)
                if "bbox_embed" in name and name.endswith("layers.2.bias"):
                    parameter[2:] += 1.0  # boxes large enough to overlap
        teacher = Teacher(detector, 0.9) if parts.ema else None
        for parameter in teacher.module.parameters() if teacher else ():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    stage = config.teach if parts.teach else config.mae_stage
    world = World(0, 1, torch.device("cpu"))
    optimiser = build.build_optimiser(config, stage, student, world.device)
    if smooth:
        for group in optimiser.param_groups:
            group.update(eps=1.0, lr=1000 * group["lr"])
    return Learner(config, stage, parts, world, student, optimiser, DynamicThresholds(len(CLASSES)), teacher)


@torch.no_grad()
def set_thresholds(learner: Learner, target: Batch, share: float = 0.4) -> None:
    """A threshold for each class that about this share of the teacher's queries passes, half-way between two scores."""
    scores, classes = learner.teacher.module(target.images, target.padding_mask).logits[-1].sigmoid().max(-1)
    for label in range(len(CLASSES)):
        mine = scores[classes == label].sort(descending=True).values
        if len(mine) > 1:
            place = min(int(share * len(mine)), len(mine) - 2)
            learner.thresholds.values[label] = mine[place : place + 2].double().mean()


def take_steps(step: Step, config: Config, stage: str, batches: Sequence, **options) -> tuple[Learner, list[dict[str, Tensor]]]:
    """A new learner after a step for each of ``batches``, a list of micro-batches each, and what the steps gave."""
    learner = make_learner(config, STAGES[stage])
    if learner.parts.teach:
        set_thresholds(learner, batches[0][0][TARGET])
    torch.manual_seed(1)  # the autoencoder's masks
    return learner, [step(learner, micro, 0.8, 0.7, **options) for micro in batches]


def assert_same(engine: tuple[Learner, list], plain: tuple[Learner, list]) -> None:
    """Float noise apart, the same.

    Largest differences seen over all cases below, after two steps: losses 1e-6 of themselves; gradients, which are clipped to a common
    norm of 0.5, 6e-7 where they are zero but for noise; weights of student and teacher 1e-6, confidences 2e-7. Each bound is about ten
    times that; elsewhere gradients may differ by 1e-4 of their own norm. What the bounds notice: test_the_comparison_notices.
    """
    (one, seen), (two, expected) = engine, plain
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=1e-5), name
    for (name, ours), theirs in zip(one.student.named_parameters(), two.student.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 5e-6, f"gradient of {name}"
    torch.testing.assert_close(one.student.state_dict(), two.student.state_dict(), rtol=1e-5, atol=1e-5)
    if two.teacher is not None:
        torch.testing.assert_close(one.teacher.state_dict(), two.teacher.state_dict(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.thresholds.state_dict(), two.thresholds.state_dict(), rtol=1e-6, atol=1e-6)
    assert one.step == two.step


def batches_of(sizes: str, steps: int = 2, micro: int = 1) -> list[list[dict[str, Batch]]]:
    """For each step its micro-batches."""
    domains = SIZES[sizes]
    return [
        [{domain: batch(domains[domain], 10 * step + 2 * part + place) for place, domain in enumerate(domains)} for part in range(micro)]
        for step in range(steps)
    ]


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        *(("source", sizes) for sizes in ("one size", "padded alike")),
        *(("source+mae", sizes) for sizes in ("two sizes", "padded target")),
        *(("teach", sizes) for sizes in ("one size", "two sizes", "padded alike")),
        *(("teach+mae", sizes) for sizes in SIZES),
        *(("teach+mae, both domains", sizes) for sizes in ("one size", "two sizes")),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_the_engines_step_is_the_plain_step(stage, model, sizes):
    settings, batches = config(model), batches_of(sizes)
    assert_same(take_steps(training_step, settings, stage, batches), take_steps(plain_step, settings, stage, batches))


@pytest.mark.parametrize(
    "changes",
    [
        {"mae.variant": "paper", "teacher.ignore_above": 0.0, "loss.target_weight": 0.5},
        {"mae.variant": "published", "mae.valid_ratios": "padding", "teacher.box_loss": False, "domain.backbone_weight": 0.7},
        {"loss.class_weight": 1.0, "loss.box_weight": 2.0, "loss.giou_weight": 3.0, "loss.focal_gamma": 1.5, "loss.focal_alpha": 0.4},
    ],
    ids=["paper's autoencoder, ignored teacher boxes", "published autoencoder, classes only", "other weights"],
)
def test_settings(changes):
    settings, batches = config("demo's kind", **changes), batches_of("padded alike")
    assert_same(take_steps(training_step, settings, "teach+mae", batches), take_steps(plain_step, settings, "teach+mae", batches))


@pytest.mark.parametrize("model", MODELS)
def test_accumulated_batches(model):
    settings, batches = config(model, **{"engine.accumulate": 2}), batches_of("padded target", steps=1, micro=2)
    assert_same(take_steps(training_step, settings, "teach+mae", batches), take_steps(plain_step, settings, "teach+mae", batches))


@pytest.mark.parametrize("stage", ["source", "teach"])
def test_a_batch_without_a_single_box(stage):
    settings, nothing = config("demo's kind"), [[{domain: batch(SIZES["one size"][domain], 0, (0, 0, 0)) for domain in (SOURCE, TARGET)}]]
    assert_same(take_steps(training_step, settings, stage, nothing), take_steps(plain_step, settings, stage, nothing))


def test_the_update_written_out_is_torchs():
    """Clipping, AdamW and averaging: one tensor after the other, or all at once."""
    settings, batches = config("demo's kind"), batches_of("one size", steps=1) * 3
    learners = [make_learner(settings, STAGES["teach+mae"], smooth=False) for _ in range(2)]
    for learner, fused in zip(learners, (False, True), strict=True):
        for group in learner.optimiser.param_groups:
            group["eps"] = 1e-4  # well above gradients that are noise, well below the others
        torch.manual_seed(1)
        for micro in batches:
            plain_step(learner, micro, 1.0, 1.0, fused_update=fused)
    one, two = learners
    torch.testing.assert_close(one.student.state_dict(), two.student.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.teacher.state_dict(), two.teacher.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"loss.giou_weight": 2.002}, {"domain.encoder_weight": 1.001}, {"teacher.nms_iou": 0.7}, {"mae.mask_ratio": 0.79}], ids=str
)
def test_the_comparison_notices(wrong):
    """A weight that is off by a thousandth, a label too few, a cell masked that should not be."""
    batches = batches_of("one size")
    right = take_steps(plain_step, config("demo's kind"), "teach+mae", batches)
    with pytest.raises(AssertionError):
        assert_same(take_steps(training_step, config("demo's kind", **wrong), "teach+mae", batches), right)


def mean_losses(step: Step, settings: Config, seed: int, steps: int = 50) -> dict[str, float]:
    """Means over the steps of a learner that sees two batches by turns."""
    learner = make_learner(settings, STAGES["teach+mae"], seed, smooth=False)
    sizes = [(48, 64)] * 2
    batches = [{SOURCE: batch(sizes, 4 * seed + turn), TARGET: batch(sizes, 4 * seed + turn + 1)} for turn in (0, 2)]
    set_thresholds(learner, batches[0][TARGET])
    torch.manual_seed(seed)
    seen = [step(learner, [batches[number % 2]], 0.8, 0.7) for number in range(steps)]
    return {name: sum(float(values[name]) for values in seen) / steps for name in seen[0]}


# Largest deviation of a loss' mean over 50 steps that is accepted in bf16 | seen over seeds 0 to 7 | seen over the same seeds in a bf16
# step that divides the detection losses by one box too many:
#   source detection  2 % | 0.0 to 1.2 % | 22 to 30 %      domain  1 % | 0.1 % | 0.6 %
#   target detection  5 % | 0.0 to 1.0 % |  8 to 11 %      mae     1 % | 0.5 % | 0.5 %
#   total             1 % | 0.0 to 0.4 % | 14 to 16 %
# (The demo's kind of model chooses other proposals when scores differ by a rounding, so its band is wide: source 6.4 %, total 1.5 %.)
# A sign of the gradient reversal that is wrong does not show in 50 steps: that is for the gradients above.
BANDS = {"source": 0.02, "target": 0.05, "domain": 0.01, "mae": 0.01, "total": 0.01}


def test_bf16_stays_near_float32():
    plain = mean_losses(plain_step, config("paper's kind"), seed=0)
    mixed = mean_losses(training_step, config("paper's kind", **{"engine.amp": "bf16"}), seed=0)
    assert plain.keys() == mixed.keys()
    for name, value in plain.items():
        if name not in ("grad_norm", "pseudo_labels"):
            group = next((part for part in ("domain", "mae", "total") if part in name), name.partition("/")[0])
            assert mixed[name] == pytest.approx(value, rel=BANDS[group]), name
    assert mixed["total"] != plain["total"], "nothing was computed in bf16"
