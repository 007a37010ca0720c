"""The masked autoencoder (L_mask; paper, section 3.3): the encoder sees a fifth of an image's cells, and a
decoder rebuilds a map of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mrt.data.loader import Batch
from mrt.domains import DOMAINS, SOURCE, TARGET
from mrt.errors import MrtError
from mrt.files import replacing
from mrt.losses import Loss, explained_variance, reconstruction_loss
from mrt.models.detector import DeformableDETR
from mrt.models.interface import Detector, EncoderInput, Features
from mrt.models.mae import MaskedAutoencoder, random_masks
from mrt.models.pretrained import State
from mrt.models.sealed import FORMAT, pack, read_sealed
from mrt.parts.base import Look, Moment, Needs, Part, Seen, Site
from mrt.parts.settings import MaeConfig, decayed

if TYPE_CHECKING:
    from mrt.config import Config

FILE = "mae.safetensors"  # in a run's folder: what a later teaching stage carries over
HOLDS = "masked autoencoder"  # what the file says of itself
EXPLAINED = "mae_explained"  # in the log: the share of the masked cells' variance that is explained
PUBLISHED_ONLY = {  # tensors that only the published variant has
    "query_embed.weight",
    "reference_points.weight",
    "reference_points.bias",
}
NORMALISED_ONLY = {f"statistics.{name}" for name in ("mean", "var", "updates", "added")}  # with mae.normalise
OPTIONAL = (PUBLISHED_ONLY, NORMALISED_ONLY)  # the tensors of each are there together or not at all
DOMAINS_OF = {"target": (TARGET,), "source": (SOURCE,), "both": DOMAINS}


class Rebuild(Part):
    """The masked-autoencoder branch.

    Args:
        used: the values of ``mae.use`` with which the stage has the branch.
        decays: whether its weight follows ``mae.decay``. kept: whether its weights are written down when the
            stage is over.

    Attributes:
        autoencoder: the branch. weight: lambda_mask at this step. domains: whose images are rebuilt.
    """

    name = "rebuild"

    def __init__(
        self, used: Sequence[str] = ("pretrain", "branch"), decays: bool = False, kept: bool = False
    ) -> None:
        self.used, self.decays, self.kept = used, decays, kept

    def is_on(self, config: Config) -> bool:
        """``mae.use``."""
        return config.mae.use in self.used

    def needs(self, config: Config) -> Needs:
        """Target images, unless only the source's are rebuilt."""
        return Needs(target=TARGET in DOMAINS_OF[config.mae.data])

    def networks(self, site: Site) -> dict[str, nn.Module]:
        """The branch of the stage before where it is carried over, else a new one."""
        carried = _carried(site) if site.config.mae.carry_over else None
        self.autoencoder = carried if carried is not None else build_mae(site.config, site.detector)
        return {"mae": self.autoencoder}

    def begin(self, site: Site) -> None:
        """Whose images are rebuilt: ``mae.data``."""
        self.domains = DOMAINS_OF[site.config.mae.data]
        if self.autoencoder.statistics is not None:
            self.autoencoder.statistics.share = site.world.sum

    def before_step(self, batches: Sequence[Mapping[str, Batch]], look: Look | None, moment: Moment) -> None:
        """The branch rests once its weight is 0."""
        self.weight = mae_weight(self.site.config.mae, moment.epoch, self.decays)
        if self.weight and self.autoencoder.statistics is not None:
            self.autoencoder.statistics.update()

    def encode(self, domain: str, features: Features) -> EncoderInput | None:
        """The same images with most cells masked."""
        if not self.weight or domain not in self.domains:
            return None
        image, ratio = features.levels[0], self.site.config.mae.mask_ratio
        masks = random_masks(features.spatial_shapes, len(image), ratio, device=image.device)
        return self.autoencoder.mask(features, masks)

    def losses(self, seen: Seen) -> list[Loss]:
        """Mean squared error of the rebuilt map; to log, the share of the masked cells' variance that is
        explained.
        """
        found, over = [], self.site.config.mae.mse_over
        for (part, domain), (masked, memory) in seen.extra.items():
            if part == self.name:
                rebuilt = self.autoencoder.rebuild(self.site.detector, masked, memory)
                padding = (
                    rebuilt.padding if over == "masked" else None
                )  # the whole map includes its padding, as published
                loss = reconstruction_loss(rebuilt.prediction, rebuilt.target, rebuilt.mask, padding, over)
                found.append(Loss(domain, "mae", loss, self.weight))
                explained = explained_variance(
                    rebuilt.prediction, rebuilt.target, rebuilt.mask, rebuilt.padding
                )
                found.append(Loss(domain, EXPLAINED, explained, None))
        return found

    def finish(self, folder: Path) -> None:
        """Keep the branch for a teaching stage that starts from this run."""
        if self.kept:
            save_autoencoder(folder, self.autoencoder)


def mae_weight(settings: MaeConfig, epoch: int, decays: bool) -> float:
    """lambda_mask in an epoch (from 0): constant in the MAE stage, decaying in the teaching stage (method.md,
    masked autoencoder).
    """
    if not decays:
        return settings.weight
    return decayed(settings.weight, settings.decay, settings.decay_epoch, epoch)


def _carried(site: Site) -> MaskedAutoencoder | None:
    if isinstance(site.before, Rebuild):
        return site.before.autoencoder
    if site.start is None:
        return None
    with torch.random.fork_rng(
        devices=[]
    ):  # networks that are made after it begin as if it had been carried over within one run
        autoencoder = build_mae(site.config, site.detector)
    if load_autoencoder(site.start, autoencoder):
        return autoencoder
    site.say(f"No masked autoencoder to carry over in {site.start}: teaching begins with a new one.")
    return None


def build_mae(config: Config, detector: Detector) -> MaskedAutoencoder:
    """A new masked-autoencoder branch for a detector.

    Raises:
        MrtError: a level that the backbone does not have, or a detector that is no Deformable DETR.
    """
    if not isinstance(detector, DeformableDETR):
        raise MrtError(
            f"mae.use = {config.mae.use!r}: the masked autoencoder rebuilds what a Deformable DETR's "
            "encoder sees, "
            f"not a detector of kind {detector.kind!r}",
            "switch it off: --set mae.use=none",
        )
    mae, sizes, channels = config.mae, detector.arguments, detector.backbone.channels
    if mae.level >= len(channels):
        raise MrtError(
            f"mae.level = {mae.level}: the backbone has {len(channels)} maps to rebuild",
            f"levels are 0 to {len(channels) - 1} (C5)",
        )
    names = ("hidden_dim", "num_heads", "num_points", "num_levels", "feedforward_dim")
    return MaskedAutoencoder(
        **{name: sizes[name] for name in names},
        num_layers=mae.layers,
        level=mae.level,
        out_channels=channels[mae.level],
        variant=mae.variant,
        image_size=mae.grid,
        valid_ratios=mae.valid_ratios,
        keep_padding=mae.keep_padding,
        dropout=config.model.dropout,
        normalise=mae.normalise,
    )


def save_autoencoder(folder: Path, autoencoder: nn.Module) -> None:
    """``mae.safetensors``: what a later teaching stage carries over."""
    content = pack({"format": FORMAT, "holds": HOLDS}, autoencoder.state_dict())
    with replacing(folder / FILE) as file:
        file.write(content)


def load_autoencoder(folder: Path, autoencoder: nn.Module) -> bool:
    """Fill the branch with what :func:`save_autoencoder` wrote; False if the folder holds none or one of
    another shape (other settings of ``[mae]`` or another detector).

    Raises:
        MrtError: the file cannot be read, has changed since it was written, holds something else, or a value
            of it is not finite.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return False
    described, saved = read_sealed(path)
    wanted = autoencoder.state_dict()
    if described is not None and described.get("holds") != HOLDS:
        raise _another(path, f"its description does not say that it holds a {HOLDS}")
    if (odd := _not_of_an_autoencoder(saved, wanted)) is not None:
        raise _another(path, odd)
    if {key: value.shape for key, value in saved.items()} != {
        key: value.shape for key, value in wanted.items()
    }:
        return False
    autoencoder.load_state_dict(saved)
    return True


def _not_of_an_autoencoder(saved: State, wanted: State) -> str | None:
    """What makes tensors unlike those of any masked autoencoder, however it was set; None if nothing does."""

    def kind(name: str) -> str:
        return re.sub(r"^layers\.\d+\.", "layers.", name)

    layers = {name.split(".")[1] for name in saved if kind(name) != name}
    in_layer = {kind(name) for name in wanted if kind(name) != name}
    outside = {name for name in wanted if kind(name) == name}
    unknown = [name for name in saved if kind(name) not in in_layer.union(outside, *OPTIONAL)]
    if unknown:
        return f"{unknown[0]} is not one of its tensors"
    needed = outside.difference(*OPTIONAL)
    needed |= {name.replace("layers.", f"layers.{layer}.", 1) for layer in layers for name in in_layer}
    for together in OPTIONAL:
        needed |= together if together & set(saved) else set()
    missing = sorted(needed - set(saved))
    if missing:
        return f"it lacks {missing[0]}"
    whole = [name for name, value in saved.items() if not value.is_floating_point()]
    return f"{whole[0]} does not hold fractions" if whole else None


def _another(path: Path, why: str) -> MrtError:
    return MrtError(
        f"{path}: not a masked autoencoder of mrt: {why}",
        "copy the file again from the run that wrote it, or delete it: teaching then begins with a new one",
    )
