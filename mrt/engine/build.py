"""From a configuration to objects: data, networks, optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mrt.config import Config, StageConfig
from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.loader import build_loader
from mrt.data.transforms import Sample, build_transform
from mrt.engine.distributed import World
from mrt.engine.labels import class_map_for
from mrt.errors import MrtError
from mrt.models.backbone import build_backbone
from mrt.models.detector import DeformableDETR
from mrt.models.discriminators import Discriminators
from mrt.models.mae import MaskedAutoencoder
from mrt.models.pretrained import skip_classifier

SLOW = ("reference_points", "sampling_offsets")  # method.md: these learn at a tenth of the rate, like the backbone


def use_machine(config: Config, device: torch.device) -> None:
    """Give torch the configured number of CPU threads and, on a GPU, the precision of float32 products.

    With ``engine.amp = "off"`` they are float32 throughout: PyTorch's own default takes TF32 for convolutions.
    """
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if device.type == "cuda":
        exact = config.engine.amp == "off"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact


def training_set(
    config: Config, card: DatasetCard, split: str, classes: list[str], kind: str, *, first_stage: bool, labelled: bool
) -> DetectionDataset:
    """A data set with the training augmentation of a stage.

    Args:
        kind: "weak", "strong" or "pair" (both views of the same geometry).
        first_stage: sizes and crops of stage 1 rather than of adaptation.
        labelled: False for target images: their labels are not even read.
    """
    data = config.data
    sides, crop = (data.source_sides, data.source_crop) if first_stage else (data.sides, False)
    transform = build_transform(kind, sides, data.max_size, crop=crop)
    return DetectionDataset(
        card, split, classes=classes, transform=transform, class_map=class_map_for(config, card), labelled=labelled, cache=_cache(config)
    )


def evaluation_set(config: Config, card: DatasetCard, split: str, classes: list[str]) -> DetectionDataset:
    """A data set as it is evaluated: resized only."""
    transform = build_transform("eval", config.data.sides, config.data.max_size)
    return DetectionDataset(
        card, split, classes=classes, transform=transform, class_map=class_map_for(config, card), labelled=True, cache=_cache(config)
    )


class Joined(Dataset):
    """Several data sets of the same classes, one after the other (the oracle that trains on source and target)."""

    def __init__(self, parts: Sequence[DetectionDataset]) -> None:
        self.parts = parts
        self.places = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: SampleKey) -> Sample:
        part, index = self.places[key.index]
        return part[SampleKey(index, key.seed)]

    def preload(self) -> None:
        """Decode what the parts keep in memory, before worker processes start."""
        for part in self.parts:
            part.preload()


def _cache(config: Config) -> str | None:
    return None if config.data.cache == "none" else config.data.cache


def batch_share(config: Config, processes: int) -> int:
    """Images per domain, process and backward pass. MrtError if the total batch does not divide."""
    engine = config.engine
    share, rest = divmod(engine.batch_size, processes * engine.accumulate)
    if rest or not share:
        raise MrtError(
            f"engine.batch_size = {engine.batch_size} cannot be shared by {processes} processes x {engine.accumulate} accumulated batches",
            f"take a multiple of {processes * engine.accumulate}",
        )
    return share


def training_loader(config: Config, dataset: DetectionDataset | Joined, world: World, seed: int) -> DataLoader:
    """Batches of one process: the total batch divided by processes and accumulation."""
    engine = config.engine
    return build_loader(
        dataset,
        batch_size=batch_share(config, world.size),
        seed=seed,
        shuffle=True,
        num_workers=engine.workers,
        rank=world.rank,
        world_size=world.size,
        drop_last=True,
        pin_memory=world.device.type == "cuda",
    )


def build_detector(config: Config, classes: Sequence[str], *, filled: str | None = None) -> DeformableDETR:
    """The detector of the configuration, with its backbone's initial weights.

    Args:
        filled: every weight comes from elsewhere afterwards, so pretrained weights are not asked for (they may have to be downloaded):
            "checkpoint" or "none", for the structure that a backbone has with or without them. The random numbers drawn are the same.
    """
    model, weights = config.model, config.model.weights
    if filled is not None:
        skip_classifier(model.backbone, weights)
        weights = filled
    backbone = build_backbone(model.backbone, weights=weights, freeze=model.freeze)
    sizes = model.model_dump(exclude={"backbone", "weights", "freeze"})
    return DeformableDETR(backbone, num_classes=len(classes), **sizes)


def build_mae(config: Config, detector: DeformableDETR) -> MaskedAutoencoder:
    """A new masked-autoencoder branch for the detector."""
    model, mae, channels = config.model, config.mae, detector.backbone.channels
    if mae.level >= len(channels):
        raise MrtError(
            f"mae.level = {mae.level}: the backbone has {len(channels)} maps to rebuild", f"levels are 0 to {len(channels) - 1} (C5)"
        )
    return MaskedAutoencoder(
        model.hidden_dim,
        model.num_heads,
        model.num_points,
        model.num_levels,
        model.feedforward_dim,
        num_layers=mae.layers,
        level=mae.level,
        out_channels=channels[mae.level],
        variant=mae.variant,
        valid_ratios=mae.valid_ratios,
        keep_padding=mae.keep_padding,
        dropout=model.dropout,
    )


def build_discriminators(config: Config, detector: DeformableDETR) -> Discriminators:
    """New discriminators for the detector."""
    return Discriminators(config.model.hidden_dim, config.model.num_levels, detector.backbone.channels[-1], eta=config.domain.reversal)


def parameter_groups(config: Config, stage: StageConfig, student: nn.Module) -> list[dict]:
    """AdamW groups: everything at the stage's rate, the backbone and the sampling layers at a fraction of it (method.md)."""
    engine = config.engine
    scales = {"base": 1.0, "backbone": engine.backbone_lr_scale, "sampling": engine.sampling_lr_scale}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in scales}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups[group_of(name)].append(parameter)
    return [{"params": parameters, "lr": stage.lr * scales[name], "name": name} for name, parameters in groups.items() if parameters]


def group_of(name: str) -> str:
    """The learning-rate group of a parameter of the student: "base", "backbone" or "sampling"."""
    if name.startswith("detector.backbone."):
        return "backbone"
    return "sampling" if any(word in name for word in SLOW) else "base"


def build_optimiser(config: Config, stage: StageConfig, student: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the fused kernel."""
    return torch.optim.AdamW(parameter_groups(config, stage, student), lr=stage.lr, weight_decay=config.engine.weight_decay, fused=True)
