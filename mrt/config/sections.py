"""Sections of a configuration: method, data, model, losses and stages.

The defaults are the paper's city2foggy settings; ``docs/method.md`` names the table behind each number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mrt import plugins
from mrt.section import ADAPTING, Fraction, OpenFraction, Section, without_defaults

if TYPE_CHECKING:
    from mrt.config.whole import Config

SMALLEST = 32  # pixels of an image's side: half of a cell of the coarsest of four maps
Side = Annotated[int, Field(ge=SMALLEST)]
PLUGINS = "method.plugins"
DETECTOR = "deformable_detr"


class MethodConfig(Section):
    """What is added to the method (docs/extending.md), and whether there are source images."""

    reaches: ClassVar[tuple[str, ...]] = ()  # plug-ins count by their content
    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = {"source_free": ("teach",)}
    plugins: tuple[str, ...] = Field(
        (), description="files (my_part.py), or names of installed entry points, that add parts or detectors"
    )

    source_free: bool = Field(False, description="adapt without any source image, from weights alone")

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Nothing where there are source images, as always before."""
        return without_defaults(self, super().acting(kind, config), "source_free")

    def problem(self, config: Config) -> str | None:
        """Without source images nothing can ask for them, and the target must be labelled by somebody."""
        if not self.source_free:
            return None
        wrong = ["domain.enabled=false"] if config.domain.enabled else []
        wrong += ["mae.data=target"] if config.mae.use == "branch" and config.mae.data != "target" else []
        if wrong:
            return f"method.source_free: there are no source images; set {' '.join(wrong)}"
        if not (config.teacher.pseudo_labels or config.teacher.labels or config.distill.enabled):
            return (
                "method.source_free: nothing labels the target; set teacher.pseudo_labels=true, or name "
                "teacher.labels"
            )
        return None

    @field_validator("plugins", mode="before")
    @classmethod
    def _one_or_more(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @field_validator("plugins")
    @classmethod
    def _whole_paths(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Paths still mean the same when a run goes on from another folder."""
        return tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in names)


class DataConfig(Section):
    """Which prepared sets are used, and the image sizes."""

    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "target": ADAPTING,
        "target_split": ADAPTING,
        "validation_split": (),
        "cache": (),
        "max_bad": (),
        "source_sides": ("source",),
        "source_crop": ("source",),
        "sides": ADAPTING,
    }
    optional: ClassVar[tuple[str, ...]] = ("classes",)
    source: str = "cityscapes"
    target: str = "foggy"
    classes: tuple[str, ...] | None = Field(
        None, description="classes to detect, by name; none: those of the source set"
    )
    class_map: dict[str, str] = Field(
        default_factory=dict, description="names of the target's classes in the source's words"
    )
    source_split: str = "train"
    target_split: str = "train"
    validation_split: str = "val"
    source_sides: tuple[Side, ...] = Field(
        (480, 512, 544, 576, 608, 640, 672), description="short sides of stage 1, px"
    )
    source_crop: bool = Field(True, description="random crop in stage 1")
    sides: tuple[Side, ...] = Field((800,), description="short sides of stages 2 and 3 and of evaluation, px")
    max_size: Side = Field(1333, description="longest side of an image, px")
    size_multiple: int = Field(
        1,
        ge=1,
        le=256,
        description=(
            "both sides of a scaled image are rounded to a multiple of this, px; 1: not at all (published); "
            "32, the coarsest stride: the cells of all maps lie where they are taken to lie"
        ),
    )
    cache: Literal["none", "ram"] = Field("none", description="keep decoded images in memory (small sets)")
    max_bad: NonNegativeInt = Field(
        10,
        description=(
            "unreadable training images that a run replaces by others before it fails; 0: the first ends it"
        ),
    )

    @model_validator(mode="after")
    def _check_multiple(self) -> DataConfig:
        if self.size_multiple > self.max_size:
            raise ValueError(f"data.size_multiple {self.size_multiple} exceeds data.max_size {self.max_size}")
        return self

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Without source images, the source's name and split do not act."""
        values = without_defaults(self, super().acting(kind, config), "size_multiple")
        unused = ("source", "source_split") if kind == "teach" and config.method.source_free else ()
        return {key: value for key, value in values.items() if key not in unused}


class ModelConfig(Section):
    """The detector."""

    detector: str = Field(DETECTOR, description="its kind; plug-ins add others")
    backbone: str = "resnet50"
    weights: str = Field(
        "imagenet",
        description=(
            "the backbone's: imagenet, none, a file; or a whole detector's to begin with: coco, "
            "hf:OWNER/NAME, a run, a file"
        ),
    )
    freeze: Literal["none", "stem", "stride8", "stride16", "all"] = Field(
        "stem",
        description=(
            "how much of the backbone never learns: nothing; up to stride 4, 8 (C3), 16 (C4); all of it"
        ),
    )
    hidden_dim: PositiveInt = 256
    num_heads: PositiveInt = 8
    num_encoder_layers: PositiveInt = 6
    num_decoder_layers: PositiveInt = 6
    feedforward_dim: PositiveInt = 1024
    num_levels: PositiveInt = 4
    num_points: PositiveInt = 4
    num_queries: PositiveInt = 300
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    box_refine: bool = False
    two_stage: bool = False
    query_init: Literal["learned", "grid"] = "learned"
    proposal_content: Literal["position", "features"] = Field(
        "position",
        description=(
            "what a two-stage query holds beside its position: nothing, or the encoder's features there"
        ),
    )
    class_prior: OpenFraction = Field(0.01, description="initial score of every class")

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Settings that came later count where they are not as everything was before."""
        return without_defaults(
            self, super().acting(kind, config), "detector", "proposal_content", "class_prior"
        )

    def problem(self, config: Config) -> str | None:
        """The detector must be mrt's own or a plug-in's."""
        if self.detector == DETECTOR:
            return None
        found = [*(plugins.load(name) for name in config.method.plugins), *plugins.everywhere()]
        kinds = dict.fromkeys([DETECTOR, *(kind for plugin in found for kind in plugin.detectors)])
        if self.detector in kinds:
            return None
        return (
            f"model.detector = {self.detector!r}: there is no detector of that kind (there are: "
            f"{', '.join(kinds)}); name the plug-in that defines it: {PLUGINS}=[FILE], or in the environment "
            f"variable {plugins.VARIABLE}"
        )

    @property
    def frozen_stride(self) -> int:
        """Up to which stride nothing of the backbone learns; 0: all of it does."""
        strides = {"none": 0, "stem": 4, "stride8": 8, "stride16": 16, "all": 32}
        return strides[self.freeze] if self.weights != "none" else 0

    @property
    def coarsest_stride(self) -> int:
        """Of the maps that mrt's own detector looks at: C5's, doubled for each level beyond it."""
        return 32 * 2 ** max(self.num_levels - 3, 0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class LossConfig(Section):
    """Weights of the detection loss and of the matching cost, and the focal loss' parameters."""

    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = {"target_weight": ("mae", "teach")}
    words: ClassVar[Mapping[str, str]] = {"class": "class", "box": "box L1", "giou": "GIoU"} | dict.fromkeys(
        ("proposal_class", "proposal_box", "proposal_giou"), ""
    )
    panels: ClassVar[Mapping[str, Mapping[str, str]]] = {
        f"{domain}: {what}": {
            f"{domain}/{name}": label
            for name, label in {"class": "class (focal)", "box": "box (L1)", "giou": "box (GIoU)"}.items()
        }
        for domain, what in (("source", "detection"), ("target", "pseudo labels"))
    } | {
        "proposals": {
            f"{domain}/proposal_{name}": f"{domain}: {label}"
            for domain in ("source", "target")
            for name, label in {"class": "class", "giou": "GIoU"}.items()
        }
    }
    class_weight: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegativeFloat = 2.0
    target_weight: NonNegativeFloat = Field(
        1.0, description="coef_target: weight of everything computed on target images"
    )


class StageConfig(Section):
    """Length, learning rate and augmentation of one stage."""

    epochs: NonNegativeInt
    lr: PositiveFloat = 2e-4
    lr_drop: PositiveInt = Field(40, description="epoch at which the rate falls to a tenth (schedule step)")
    schedule: Literal["step", "linear", "constant"] = Field(
        "step", description="linear: falls to 0 over the last 40 % of the steps"
    )
    augment: Literal["weak", "strong"] = Field("weak", description="augmentation of source images")
    steps_per_epoch: NonNegativeInt = Field(0, description="0: one pass over the smaller set")

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """All of them.

        What is idle counts as it did when every stage had one default for it. And every stage had a setting
        "ema" once, which did nothing in stages 2 and 3. So stages that were trained then still count.
        """
        values = super().acting(kind, config)
        if kind == "teach" and config.method.source_free:  # it is the source images' augmentation
            values.pop("augment", None)
        before = {key: StageConfig.model_fields[key].default for key in self.idle()}
        return {"ema": False, **values, **before} if values else {}

    def idle(self) -> tuple[str, ...]:
        """``lr_drop`` belongs to its schedule."""
        return () if self.schedule == "step" else ("lr_drop",)


class PretrainConfig(StageConfig):
    """Stage 1: the detector learns from the labelled source."""

    reaches: ClassVar[tuple[str, ...]] = ("source",)
    epochs: NonNegativeInt = 50
    ema: bool = Field(False, description="keep an average of the detector, with [teacher]'s decay")


class MaeStageConfig(StageConfig):
    """Stage 2: the same, while the masked autoencoder learns to rebuild target features."""

    reaches: ClassVar[tuple[str, ...]] = ("mae", "fair")
    epochs: NonNegativeInt = 40
    lr_drop: PositiveInt = Field(30, description=StageConfig.model_fields["lr_drop"].description)


class TeachConfig(StageConfig):
    """Stage 3: the teacher labels target images for the student."""

    reaches: ClassVar[tuple[str, ...]] = ("teach", "fair")
    epochs: NonNegativeInt = 80
    lr_drop: PositiveInt = Field(80, description=StageConfig.model_fields["lr_drop"].description)
    augment: Literal["weak", "strong"] = Field(
        "strong", description=StageConfig.model_fields["augment"].description
    )
