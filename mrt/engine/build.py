"""From a configuration to networks and their optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mrt.config import Config, StageConfig
from mrt.models.backbone import build_backbone
from mrt.models.interface import Detector, find_detector
from mrt.models.pretrained import skip_classifier
from mrt.parts.builders import *  # noqa: F403 - what builds a learner by hand finds all builders here


def use_machine(config: Config, device: torch.device) -> None:
    """Give torch the configured number of CPU threads and, on a GPU, the precision of float32 products.

    With ``engine.amp = "off"`` they are float32 throughout: PyTorch's own default takes TF32 for
    convolutions.
    """
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if device.type == "cuda":
        exact = config.engine.amp == "off"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact


def build_detector(config: Config, classes: Sequence[str], *, filled: str | None = None) -> Detector:
    """The detector of the configuration, with its backbone's initial weights.

    Args:
        filled: every weight comes from elsewhere afterwards, so pretrained weights are not asked for (they
            may have to be downloaded): "checkpoint" or "none", for the structure that a backbone has with or
            without them. The random numbers drawn are the same.
    """
    model, weights = config.model, config.model.weights
    if filled is not None:
        skip_classifier(model.backbone, weights)
        weights = filled
    backbone = build_backbone(model.backbone, weights=weights, freeze=model.freeze)
    return find_detector(model.detector).from_settings(model, backbone, len(classes))


def parameter_groups(config: Config, stage: StageConfig, student: nn.Module) -> list[dict]:
    """AdamW groups: everything at the stage's rate, the backbone and the sampling layers at a fraction of it
    (method.md).

    Args:
        student: says itself what belongs to a slow group
            (:meth:`mrt.engine.student.Student.learning_rate_groups`).
    """
    engine = config.engine
    scales = {"base": 1.0, "backbone": engine.backbone_lr_scale, "sampling": engine.sampling_lr_scale}
    slow = {name: group for group, names in student.learning_rate_groups().items() for name in names}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in scales}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups[slow.get(name, "base")].append(parameter)
    return [
        {"params": parameters, "lr": stage.lr * scales[name], "name": name}
        for name, parameters in groups.items()
        if parameters
    ]


def build_optimiser(
    config: Config, stage: StageConfig, student: nn.Module, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the fused kernel."""
    return torch.optim.AdamW(
        parameter_groups(config, stage, student),
        lr=stage.lr,
        weight_decay=config.engine.weight_decay,
        fused=True,
    )
