"""The sections of the settings that belong to parts of the method. Needs no torch: commands that only read
settings answer at once.

Each section says which stages its settings reach and which of them act at all, so that an ablation trains
equal stages once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from mrt.section import Fraction, OpenFraction, Section, without_defaults

if TYPE_CHECKING:
    from mrt.config import Config


STRIDES = (8, 16, 32)  # of the backbone's maps C3, C4, C5
ALL_STAGES = "Let the backbone learn, in every stage from the first on (model.freeze=stem)"


class DomainConfig(Section):
    """The three discriminators behind a gradient reversal layer (teaching stage)."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    words: ClassVar[Mapping[str, str]] = {"domain": "domain"} | dict.fromkeys(
        ("domain_backbone", "domain_encoder", "domain_decoder"), ""
    )
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "discriminators": {f"domain_{place}": place for place in ("backbone", "encoder", "decoder")}
    }
    enabled: bool = True
    backbone_weight: NonNegativeFloat = 0.3
    encoder_weight: NonNegativeFloat = 1.0
    decoder_weight: NonNegativeFloat = 1.0
    reversal: NonNegativeFloat = Field(1.0, description="eta of the gradient reversal layer")
    ramp: Fraction = Field(
        0.0, description="share of the teaching stage over which eta grows linearly from 0; 0: at once"
    )

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Where the discriminators are off, their settings do not act."""
        values = super().acting(kind, config)
        return values if self.enabled or not values else {"enabled": False}

    def warning(self, kind: str, config: Config) -> str | None:
        """A discriminator cannot align a map that nothing changes."""
        on = self.enabled and kind == "teach" and self.backbone_weight > 0
        if not on or config.model.frozen_stride < STRIDES[-1]:
            return None
        return (
            f"domain.backbone_weight = {self.backbone_weight:g}: the backbone is frozen (model.freeze = "
            f"{config.model.freeze}), so its map cannot be aligned, only what comes after it. "
            f"{ALL_STAGES}, or take this discriminator away (--set domain.backbone_weight=0)"
        )


def decayed(weight: float, decay: str, decay_epoch: int, epoch: int) -> float:
    """A weight in an epoch (from 0).

    Args:
        decay: "none": always the same; "hard": 0 from ``decay_epoch`` on; "linear": falls to 0 until then.
    """
    if decay == "none":
        return weight
    if decay == "hard":
        return weight if epoch < decay_epoch else 0.0
    return weight * max(0.0, 1.0 - epoch / max(1, decay_epoch))


VARIANTS = {
    "published": {"mse_over": "all", "valid_ratios": "mask", "keep_padding": False, "carry_over": False},
    "paper": {"mse_over": "masked", "valid_ratios": "padding", "keep_padding": True, "carry_over": True},
}


class MaeConfig(Section):
    """The masked-autoencoder branch."""

    reaches: ClassVar[tuple[str, ...]] = ("mae", "teach")
    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("decay", "decay_epoch", "carry_over"), ("teach",)
    )
    words: ClassVar[Mapping[str, str]] = {"mae": "reconstruction", "mae_explained": "of it explained"}
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "masked autoencoder": {"target/mae": "target", "source/mae": "source"},
        "masked variance explained": {
            "target/mae_explained": "target",
            "source/mae_explained": "source",
        },
    }
    use: Literal["none", "pretrain", "branch"] = Field(
        "branch", description="none; only in stage 2; in stages 2 and 3"
    )
    data: Literal["target", "source", "both"] = "target"
    mask_ratio: float = Field(0.8, ge=0, lt=1)
    layers: PositiveInt = 2
    level: NonNegativeInt = Field(2, description="backbone map that is rebuilt; 2 is C5")
    weight: NonNegativeFloat = 1.0
    decay: Literal["none", "hard", "linear"] = "hard"
    decay_epoch: NonNegativeInt = Field(
        10, description="epochs of the teaching stage after which the weight is 0 (hard, linear)"
    )
    variant: Literal["published", "paper"] = Field(
        "published",
        description=(
            "what the decoder sees of visible cells (a learned embedding, the encoder's output); "
            "if given, sets four of those below, too"
        ),
    )
    grid: tuple[PositiveInt, PositiveInt] = Field(
        (21, 42),
        description=(
            "rows and columns of the learned embedding (variant published); interpolated to any other size"
        ),
    )
    normalise: bool = Field(
        False,
        description=(
            "rebuild the map with mean 0 and variance 1 in each channel: an error of 1 means that nothing is "
            "explained, whatever the backbone"
        ),
    )
    mse_over: Literal["all", "masked"] = "all"
    valid_ratios: Literal["padding", "mask"] = Field(
        "padding", description='"mask" repeats the published code\'s bug'
    )
    keep_padding: bool = Field(True, description="padding cells stay masked in the masked pass")
    carry_over: bool = Field(
        True, description="teaching begins with the MAE stage's decoder, not with a new one"
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_variant(cls, values: Any) -> Any:
        """Where the paper and its code differ (docs/method.md), settings that are not given follow a variant
        that is.
        """
        if not isinstance(values, Mapping):
            return values
        return {**VARIANTS.get(values.get("variant"), {}), **values}

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Nothing where the branch is off; in stage 2, "pretrain" and "branch" are the same."""
        values = super().acting(kind, config)
        if not values or (self.use == "none") or (kind == "teach" and self.use != "branch"):
            return {}
        if kind == "mae":
            values.pop("use")
        elif self.decay == "none":
            values.pop("decay_epoch")
        if self.variant == "paper":
            values.pop("grid")
        return without_defaults(self, values, "grid", "normalise")

    def warning(self, kind: str, config: Config) -> str | None:
        """Over a frozen map the branch can shape little."""
        uses = {"mae": ("pretrain", "branch"), "teach": ("branch",)}
        frozen = self.level < len(STRIDES) and config.model.frozen_stride >= STRIDES[self.level]
        if self.use not in uses.get(kind, ()) or not self.weight or not frozen:
            return None
        return (
            f"mae.use = {self.use}: the map that the autoencoder rebuilds never changes (mae.level = "
            f"{self.level}, model.freeze = {config.model.freeze}), so it can shape only what comes after it. "
            f"{ALL_STAGES}, or take the autoencoder away (--set mae.use=none)"
        )

    def problem(self, config: Config) -> str | None:
        """The level must be one of the maps that the detector looks at."""
        if self.use == "none":
            return None
        levels = config.model.num_levels
        lowest, highest = max(0, BACKBONE_MAPS - levels), BACKBONE_MAPS - 1
        if lowest <= self.level <= highest:
            return None
        if self.level > highest:
            why = f"the backbone has {BACKBONE_MAPS} maps to rebuild"
        else:
            why = (
                f"with model.num_levels = {levels} the detector looks at the coarsest {levels} of the "
                f"backbone's {BACKBONE_MAPS} maps"
            )
        choice = f"take {highest}" if lowest == highest else f"take {lowest} to {highest}"
        return f"mae.level = {self.level}: {why}; {choice} ({highest} is C5), or mae.use=none"


BACKBONE_MAPS = 3  # C3, C4, C5


class TeacherConfig(Section):
    """EMA teacher, pseudo labels, and labels from outside."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("ema", "warmup", "every", "fast_ema", "fast_share"), ("source", "teach", "fair")
    )
    optional: ClassVar[tuple[str, ...]] = ("ignore_above", "labels", "fast_ema")
    words: ClassVar[Mapping[str, str]] = {"pseudo_labels": "pseudo labels per image"}
    ema: OpenFraction = 0.9996
    warmup: bool = Field(
        False, description="start with a faster average: decay (1 + t) / (10 + t) until it reaches ema"
    )
    every: PositiveInt = Field(
        1, description="steps between two updates of the teacher (asynchronous average)"
    )
    fast_ema: OpenFraction | None = Field(
        None, description="decay of the part of the teacher that the target changes most (dual-rate average)"
    )
    fast_share: OpenFraction = Field(0.5, description="share of the weights that fast_ema is for")
    pseudo_labels: bool = True
    box_loss: bool = Field(False, description="box losses on pseudo labels too")
    nms_iou: OpenFraction = 0.7
    dynamic: bool = Field(
        True, description="per-class dynamic thresholds; otherwise every class keeps threshold_start"
    )
    threshold_start: Fraction = 0.3
    threshold_min: Fraction = 0.25
    threshold_max: Fraction = 0.45
    threshold_alpha: NonNegativeFloat = 0.5
    threshold_gamma: Fraction = 0.9
    ignore_above: Fraction | None = Field(
        None, description="teacher scores between this and the threshold are neither object nor background"
    )
    least_labels: NonNegativeFloat = Field(
        0.0,
        description=(
            "labels per target image that its detection losses are divided by at least: without it, the "
            "fewer there are, the more background weighs; 0: at least one label in the batch"
        ),
    )
    most_labels: NonNegativeFloat = Field(
        0.0,
        description=(
            "labels of a class a target image, at most, in objects of that class a source image: its "
            "threshold rises as far as that takes; 0: no limit"
        ),
    )
    labels: str | None = Field(
        None,
        description=(
            "labels of the target's images from outside: a COCO file (mrt label writes one) or a prepared "
            "set; fused with the teacher's, or alone where pseudo_labels is off"
        ),
    )
    labels_score: Fraction = Field(0.3, description="score from which a label from outside counts")
    labels_iou: OpenFraction = Field(0.55, description="overlap from which two boxes are one object (fused)")
    labels_alone: Literal["keep", "weigh", "ignore"] = Field(
        "keep",
        description=(
            "an object that only the teacher or only the outside labels have: a label; a label with its "
            "side's share of the weights as confidence; neither object nor background"
        ),
    )
    labels_weight: float = Field(
        1.0, ge=0, le=1000, description="of the labels from outside beside the teacher's, which is 1 (fused)"
    )
    labels_decay: Literal["none", "hard", "linear"] = "none"
    labels_decay_epoch: NonNegativeInt = Field(
        0, description="epochs of teaching after which their weight is 0 (hard, linear)"
    )

    @field_validator("labels")
    @classmethod
    def _whole_path(cls, name: str | None) -> str | None:
        """A path still means the same when a run goes on from another folder; names of sets stay."""
        path = Path(name or "").expanduser()
        is_path = path.suffix or path.name != name
        return str(path.resolve()) if name and is_path and path.exists() else name

    @property
    def fuses(self) -> bool:
        """Whether labels from outside are fused with the teacher's."""
        return self.labels is not None and self.pseudo_labels

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """In stage 1 only where an average is kept; static thresholds have no bounds, and without pseudo
        labels there are none.
        """
        values = super().acting(kind, config)
        if kind == "source" and not config.pretrain.ema:
            return {}
        unused = {"labels"}  # they count by their content
        if self.fast_ema is None:
            unused.add("fast_share")
        if not self.dynamic or not self.pseudo_labels:
            unused |= {"threshold_min", "threshold_max", "threshold_alpha", "threshold_gamma"}
        if not self.pseudo_labels:
            unused |= {"threshold_start", "dynamic", "ignore_above", "nms_iou", "most_labels"}
            unused |= {"box_loss"} if self.labels is None else set()
        if not self.fuses:
            unused |= {"labels_iou", "labels_alone", "labels_weight", "labels_decay", "labels_decay_epoch"}
        if self.labels is None:
            unused.add("labels_score")
        if self.labels is None and not self.pseudo_labels and not config.distill.enabled:
            unused.add("least_labels")
        if self.labels_decay == "none":
            unused.add("labels_decay_epoch")
        values = {key: value for key, value in values.items() if key not in unused}
        return without_defaults(self, values, "every", "fast_ema", "least_labels", "most_labels")

    def reads(self, kind: str, config: Config, data_root: Path) -> dict[str, str]:
        """Labels from outside."""
        if self.labels is None or kind != "teach":
            return {}
        from mrt.data.registry import labels_digest

        return {"teacher.labels": labels_digest(self.labels, config.data.target_split, data_root)}

    def problem(self, config: Config) -> str | None:
        """The thresholds' bounds must be in order."""
        if self.threshold_min > self.threshold_max:
            return f"teacher.threshold_min {self.threshold_min} is above threshold_max {self.threshold_max}"
        if self.ignore_above is not None and self.ignore_above > self.threshold_min:
            return f"teacher.ignore_above {self.ignore_above} is above threshold_min {self.threshold_min}"
        if self.fast_ema is not None and self.fast_ema > self.ema:
            return f"teacher.fast_ema {self.fast_ema} is above ema {self.ema}: it would be the slower one"
        if self.labels is not None and config.distill.enabled:
            return "teacher.labels: are not fused with soft distillation; set distill.enabled=false"
        return None


class DistillConfig(Section):
    """Soft distillation: the teacher's scores and boxes are soft labels of target images."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    enabled: bool = False
    temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="the teacher's logits are divided by it; below 1 its probabilities are sharper",
    )
    top: PositiveInt = Field(100, description="the teacher's surest queries that are distilled, per image")
    boxes: bool = Field(True, description="distil boxes, too, weighted by the teacher's scores")

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Nothing where it is off."""
        return super().acting(kind, config) if self.enabled else {}

    def problem(self, config: Config) -> str | None:
        """It takes the place of pseudo labels."""
        if self.enabled and config.teacher.pseudo_labels:
            return (
                "distill.enabled: takes the place of pseudo labels; set teacher.pseudo_labels=false "
                "(--method aldi does)"
            )
        return None


class RetrainConfig(Section):
    """Selective retraining."""

    reaches: ClassVar[tuple[str, ...]] = ("teach",)
    every: NonNegativeInt = Field(40, description="epochs between two re-initialisations; 0: never")
    parts: Literal["none", "all", "encoder+decoder", "backbone+decoder", "backbone+encoder"] = (
        "backbone+encoder"
    )
    source: Literal["random", "source", "mae"] = Field("mae", description="weights it goes back to")
    hold: NonNegativeInt = Field(
        0,
        description=(
            "epochs after a return in which the teacher stays as it is, while the student catches up: a fast "
            "average (teacher.ema) would follow the student down; 0: published"
        ),
    )

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Nothing where it never comes: it never follows the last epoch."""
        comes = self.every and self.parts != "none" and self.every < config.teach.epochs
        return without_defaults(self, super().acting(kind, config), "hold") if comes else {}

    def problem(self, config: Config) -> str | None:
        """The teacher must learn between two returns."""
        if not self.every or self.hold < self.every:
            return None
        return (
            f"retrain.hold {self.hold}: after a return the teacher would never learn again; take less than "
            f"retrain.every, {self.every}"
        )


SECTIONS: dict[str, type[Section]] = {
    "domain": DomainConfig,
    "mae": MaeConfig,
    "teacher": TeacherConfig,
    "distill": DistillConfig,
    "retrain": RetrainConfig,
}
