"""Every setting of a run, checked before anything heavy is imported (this module does not know torch).

A configuration is a TOML preset plus overrides (``--set a.b=c``). Unknown keys are refused with the nearest
known name, wrong values with one line per field. What a run used is written to ``config.json`` in its folder.
The defaults are the paper's city2foggy settings; ``docs/method.md`` names the table behind each number.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from mrt import plugins
from mrt.errors import MrtError
from mrt.parts.settings import DistillConfig, DomainConfig, MaeConfig, RetrainConfig, TeacherConfig
from mrt.section import ADAPTING, Fraction, OpenFraction, Section, without_defaults

PRESETS = Path(__file__).parent / "presets"
SMALLEST = 32  # pixels of an image's side: half of a cell of the coarsest of four maps
Side = Annotated[int, Field(ge=SMALLEST)]
PLUGINS = "method.plugins"
DETECTOR = "deformable_detr"
AUTO = "auto"
BATCH, ACCUMULATE = "engine.batch_size", "engine.accumulate"  # the first as auto means the second as auto
SCHEMA = 2  # of stored settings; those without a number are 1
_LARGEST, _LONGEST = 1 << 20, 1 << 16  # letters of a file of settings, and of one on the command line
_UNEXPECTED = (TypeError, AttributeError, LookupError, OSError, RuntimeError)
_DEEPEST = 30  # lists in lists
_MOST_DOTS = 100
_DOTTED = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++\s*+\.\s*+){30}""")


class Settings(BaseSettings):
    """What belongs to the machine, not to the experiment: environment variables ``MRT_DATA_ROOT`` and
    ``MRT_RUN_ROOT``.
    """

    model_config = SettingsConfigDict(env_prefix="MRT_", extra="ignore")
    data_root: Path = Path("data")
    run_root: Path = Path("runs")


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


# of [engine]: they change no result
MACHINE_KEYS = (
    "device",
    "threads",
    "workers",
    "log_every",
    "keep_checkpoints",
    "keep_teachers",
    "checkpoint_minutes",
    "on_nonfinite",
    "timeout",
    "compile",
    "checkpointing",
    "snapshots",
    "shares_every",
    "loggers",
)


# What the summands of a step's sum are called (:mod:`mrt.engine.shares`), in plain words.
DRIVERS = {
    "source": "source labels",
    "target": "target labels",
    "align": "discriminators",
    "rebuild": "autoencoder",
}


class EngineConfig(Section):
    """The training engine."""

    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        (*MACHINE_KEYS, "eval_every", "eval_batch_size"), ()
    ) | dict.fromkeys(("on_collapse", "patience"), ("teach",))
    batch_size: PositiveInt = Field(
        8,
        description=(
            "images per domain and step over all processes together; auto: the preset's, with as many of "
            "them at a time as fit in memory (engine.accumulate=auto)"
        ),
    )
    accumulate: PositiveInt | Literal["auto"] = Field(
        1,
        description=(
            "batches whose gradients are summed before a step; divides batch_size; auto: as few as memory "
            "allows, measured when a run begins and kept in its config.json"
        ),
    )
    weight_decay: NonNegativeFloat = 1e-4
    clip: PositiveFloat = Field(0.5, description="largest gradient norm")
    backbone_lr_scale: PositiveFloat = 0.1
    sampling_lr_scale: PositiveFloat = Field(0.1, description="for sampling offsets and reference points")
    warmup_steps: NonNegativeInt = 0
    amp: Literal["off", "tf32", "bf16", "fp16"] = Field(
        "off",
        description=(
            "precision: off (float32), tf32 (float32 with shorter factors in products, GPUs only), bf16, fp16"
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "torch.compile the network's layers; auto: on GPUs; image sizes beyond the first few "
            "run uncompiled"
        ),
    )
    checkpointing: bool = Field(
        False, description="keep fewer activations and compute them again: for small GPUs"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: an NVIDIA GPU if there is one; mps: Apple's GPUs"
    )
    workers: NonNegativeInt = 4
    threads: NonNegativeInt = Field(0, description="CPU threads of torch; 0: torch's own choice")
    log_every: PositiveInt = 20
    eval_every: NonNegativeInt = Field(
        1,
        description=(
            "epochs between evaluations on the validation split, and once at the end of each stage; 0: none"
        ),
    )
    eval_batch_size: PositiveInt = 8
    keep_checkpoints: NonNegativeInt = Field(
        0, description="numbered checkpoints to keep of each stage, beside the last two"
    )
    keep_teachers: NonNegativeInt = Field(
        0,
        description="teachers of each stage to keep, one an epoch, as weights in the folder teachers",
    )
    checkpoint_minutes: NonNegativeFloat = Field(
        30.0, description="minutes between checkpoints within an epoch; 0: at the ends of epochs only"
    )
    on_nonfinite: str = Field(
        "stop",
        description=(
            "a step whose loss or gradient is not finite: stop; or skip N: skip such steps, of each stage at "
            "most N"
        ),
    )
    shares_every: NonNegativeInt = Field(
        100,
        description=(
            "steps between looks at which part drives (its share of the loss and of the gradient); 0: never"
        ),
    )
    loggers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="where else the log's numbers go, by these libraries (docs/experiments.md)"
    )
    on_collapse: Literal["warn", "stop", "restore"] = Field(
        "warn",
        description=(
            "when pseudo labels vanish, explode or become one class, or the teacher gets worse: say so; stop "
            "the run; or end the stage with the teacher of the last good epoch, or of the best if it got "
            "worse (needs keep_teachers=3)"
        ),
    )
    patience: NonNegativeInt = Field(
        0,
        description=(
            "epochs of teaching in a row without a rise of the teacher's prototypes (docs/trust.md) after "
            "which teaching ends with the best epoch's teacher (needs keep_teachers=1); 0: never"
        ),
    )
    snapshots: NonNegativeInt = Field(
        16, description="target images whose pseudo labels are recorded after each epoch of teaching"
    )
    timeout: PositiveInt = Field(
        600,
        description=(
            "seconds that a process waits for the others, or for its data workers, before the run fails"
        ),
    )

    def acting(self, kind: str, config: Config) -> dict[str, Any]:
        """Settings that came later count where they are not as everything was before; so do the images that
        decide when a stage ends.
        """
        values = without_defaults(self, super().acting(kind, config), "on_collapse", "patience")
        watched = kind == "teach" and (self.patience or self.on_collapse != "warn")
        return values | ({"snapshots": self.snapshots} if watched else {})

    def problem(self, config: Config) -> str | None:
        """What watching needs must be there."""
        if self.on_collapse == "restore" and self.keep_teachers < 3:
            return (
                "engine.on_collapse=restore: too few teachers are kept to go back to one; set "
                "engine.keep_teachers=3"
            )
        asked = "patience" if self.patience else f"on_collapse={self.on_collapse}"
        if (self.patience or self.on_collapse != "warn") and not config.teacher.pseudo_labels:
            return (
                f"engine.{asked}: watches the teacher's pseudo labels, and there are none "
                "(teacher.pseudo_labels=false)"
            )
        if self.patience and not self.snapshots:
            return (
                "engine.patience: prototypes are looked at on the snapshots' images; set engine.snapshots=16"
            )
        if self.patience and config.method.source_free:
            return (
                "engine.patience: prototypes need source images, and method.source_free has none; set it to 0"
            )
        if self.patience and not self.keep_teachers:
            return "engine.patience: goes back to the best teacher, so keep them; set engine.keep_teachers=1"
        return None

    @field_validator("accumulate", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not number and value != AUTO:
            raise ValueError("should be a number of batches, at least 1, or auto")
        return value

    @field_validator("on_nonfinite")
    @classmethod
    def _stop_or_skip(cls, value: str) -> str:
        if re.fullmatch(r"stop|skip [1-9][0-9]{0,8}", value) is None:
            raise ValueError("is neither stop nor skip N, with N such as 10")
        return value

    @property
    def skip_nonfinite(self) -> int:
        """How many steps that are not finite may be skipped."""
        return int(self.on_nonfinite.removeprefix("skip ")) if self.on_nonfinite != "stop" else 0


class Config(Section):
    """A whole experiment: three stages over one detector and two domains. Plug-ins add sections
    (:func:`config_class`).
    """

    reaches_of: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "preset": (),
        "init": (),
    }  # weights count by their content
    optional: ClassVar[tuple[str, ...]] = ("init",)
    preset: str = "custom"
    seed: NonNegativeInt = 0
    init: str | None = Field(
        None, description="where adaptation starts: a run folder, a weights file, or a shipped name"
    )
    method: MethodConfig = MethodConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    domain: DomainConfig = DomainConfig()
    mae: MaeConfig = MaeConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    retrain: RetrainConfig = RetrainConfig()
    pretrain: PretrainConfig = PretrainConfig()
    mae_stage: MaeStageConfig = MaeStageConfig()
    teach: TeachConfig = TeachConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.engine.accumulate != AUTO and self.engine.batch_size % self.engine.accumulate:
            raise ValueError(
                f"engine.batch_size {self.engine.batch_size} is not a multiple of engine.accumulate "
                f"{self.engine.accumulate}"
            )
        problems = [
            problem for section in self.sections().values() if (problem := section.problem(self)) is not None
        ]
        if problems:
            raise ValueError(problems[0])
        return self

    def sections(self) -> dict[str, Section]:
        """The sections by name, those of plug-ins too."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if isinstance(value, Section)}

    def warnings(self, *kinds: str) -> list[str]:
        """What is on in these kinds of stages and yet can do nothing there, in words."""
        found = [section.warning(kind, self) for section in self.sections().values() for kind in kinds]
        return [f"Warning: {text}" for text in dict.fromkeys(found) if text is not None]

    def plain(self) -> dict[str, Any]:
        """The settings as they are stored: plain values, with the number of their schema."""
        return {"schema": SCHEMA, **self.model_dump(mode="json")}

    def to_json(self) -> str:
        """The resolved settings as JSON text; ``load_config`` reads it back."""
        return json.dumps(self.plain(), indent=2) + "\n"


@lru_cache(maxsize=16)
def config_class(names: tuple[str, ...] = ()) -> type[Config]:
    """The class of a configuration with the sections of plug-ins.

    Raises:
        MrtError: no such plug-in, or a section of that name is there already.
    """
    sections: dict[str, type[Section]] = {}
    for name in names:
        for key, section in plugins.load(name).sections.items():
            if key in Config.model_fields or key in sections:
                raise MrtError(
                    f"method.plugins: {name}: its section [{key}] is there already",
                    "give its part another name",
                )
            sections[key] = section
    if not sections:
        return Config
    fields: dict[str, Any] = {key: (section, section()) for key, section in sections.items()}
    return create_model("Config", __base__=Config, __module__=__name__, **fields)


def loss_words() -> dict[str, str]:
    """Built-in losses by their names in the log -> their names in the progress view; "": it has them not."""
    sections = (getattr(field.annotation, "words", {}) for field in Config.model_fields.values())
    return {name: word for words in sections for name, word in words.items()}


def upgrade(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Stored settings in the schema of now, without its number.

    Args:
        values: as :meth:`Config.plain` gave them, or settings that were never stored (they have no number).

    Raises:
        MrtError: they were stored by a newer mrt.
    """
    values = dict(values)
    schema = values.pop("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise MrtError(
            f"{where}: schema = {schema}: settings of a newer mrt, this one knows {SCHEMA}",
            "update mrt to read them",
        )
    engine = values.get("engine")
    if isinstance(engine, Mapping) and engine.get("batch_size") == AUTO:
        rest = {key: value for key, value in engine.items() if key != "batch_size"}
        values["engine"] = {**rest, "accumulate": AUTO}
    if schema < 2:  # what did nothing was taken away; what was added means the same by default
        for stage in ("mae_stage", "teach"):
            if isinstance(values.get(stage), Mapping):
                values[stage] = {key: value for key, value in values[stage].items() if key != "ema"}
    return values


def without_plugins(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings without the sections of plug-ins.

    That is enough to use a trained detector, and no code of others is run for it.
    """
    values = dict(values)
    method = values.get("method")
    if isinstance(method, Mapping) and method.get("plugins"):
        values = {
            key: value for key, value in values.items() if key in Config.model_fields or key == "schema"
        }
        values["method"] = {**method, "plugins": ()}
    return values


def load_stored(path: Path) -> Config:
    """The settings of a run that is only looked at; without those of plug-ins where they are gone."""
    try:
        return load_config(path)
    except MrtError:
        values, name = _read(path)
        if not _plugins_of(values):
            raise
        return validate(without_plugins(values), name)


def preset_names() -> list[str]:
    """Names of the presets that come with mrt."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(
    preset: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Config:
    """Read a preset and apply overrides.

    Args:
        preset: a preset's name, a ``.toml`` file or a run's ``config.json``.
        overrides: texts ``section.key=value``; values are read as TOML (``true``, ``0.5``, ``[1, 2]``), else
            as plain text.
        changes: the same as a mapping from dotted key to value, applied first.

    Raises:
        MrtError: unknown preset or key (with the nearest known name), or a value that does not fit (one line
            per field).
    """
    values, name = _read(preset)
    given = list((changes or {}).items())
    for text in overrides:
        key, separator, raw = text.partition("=")
        if not separator or not key.strip():
            raise MrtError(
                f"--set {text}: expected section.key=value", "for example --set mae.mask_ratio=0.5"
            )
        if len(text) > _LONGEST:
            raise MrtError(
                f"--set {text[:60]}...: {len(text)} letters are too many for a setting",
                "write it into a .toml file and name that with --preset",
            )
        given.append((key.strip(), _parse(raw.strip(), f"--set {key.strip()}")))
    given = [(ACCUMULATE, value) if (key, value) == (BATCH, AUTO) else (key, value) for key, value in given]
    for key, value in sorted(
        given, key=lambda item: item[0] != PLUGINS
    ):  # plug-ins first: they bring settings of their own
        _assign(values, key, value)
    return validate(values, name, {key for key, _ in given})


def validate(values: Mapping[str, Any], where: str = "configuration", given: Collection[str] = ()) -> Config:
    """Check plain values and return a frozen :class:`Config`; MrtError with one line per wrong field.

    Args:
        where: the file that the values come from, for the message.
        given: dotted keys whose values come from elsewhere, such as an option: the file is not blamed for
            them.
    """
    values = upgrade(values, where)
    kind = config_class(_plugins_of(values))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(item, kind) for item in found]
        places = {".".join(map(str, item["loc"][:2])) for item in found}
        where = "" if places <= set(given) else where
    except _UNEXPECTED as error:  # of a section's own check, which expects another value
        lines = _unexpected(values, kind) or [str(error)]
    raise MrtError(
        (f"{where}: " if where else "") + "\n".join(lines),
        "see every setting with: mrt pretrain-source --dry-run",
    ) from None


def _unexpected(values: Mapping[str, Any], kind: type[Config]) -> list[str]:
    """A line for each setting with which its section's own check cannot deal, each looked at by itself."""
    lines = []
    for name, field in kind.model_fields.items():
        section, given = field.annotation, values.get(name)
        if not (isinstance(section, type) and issubclass(section, Section) and isinstance(given, Mapping)):
            continue
        for key in given.keys() & section.model_fields.keys():
            try:
                TypeAdapter(section.model_fields[key].annotation).validate_python(given[key])
                section.model_validate({key: given[key]})
            except ValidationError as error:
                found = [item for item in error.errors() if item["type"] != "missing"]
                lines += [_explain({**item, "loc": (name, key, *item["loc"])}, kind) for item in found]
            except _UNEXPECTED as error:
                lines.append(
                    f"{name}.{key} = {_shown(given[key])}: {getattr(error, 'strerror', None) or error}"
                )
    return lines


def _plugins_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The plug-ins that plain values name; none where they name something else (which :func:`validate`
    refuses).
    """
    method = values.get("method")
    names = method.get("plugins", ()) if isinstance(method, Mapping) else ()
    names = (names,) if isinstance(names, str) else names
    fine = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    try:
        return MethodConfig(plugins=tuple(names)).plugins if fine else ()
    except ValidationError:
        return ()


def named_plugins(preset: str | Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The plug-ins that a preset and ``--set`` name, whatever else they set."""
    own = [text for text in overrides if text.partition("=")[0].strip() == PLUGINS]
    return load_config(preset, own).method.plugins


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name most like ``name``, or none when nothing is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


def known_keys(names: Sequence[str] = ()) -> list[str]:
    """Every dotted key a configuration may have, such as ``mae.mask_ratio``, with those of named plug-ins."""
    return list(_fields(config_class(tuple(names))))


def _fields(kind: type[Config]) -> dict[str, type[Section]]:
    """By dotted key the section that has it."""
    found: dict[str, type[Section]] = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            found |= {f"{name}.{inner}": section for inner in section.model_fields}
        else:
            found[name] = kind
    return found


def flag_name(key: str) -> str:
    """``mae.mask_ratio`` -> ``mask-ratio``: how an ablation axis is called on the command line."""
    return key.rpartition(".")[2].replace("_", "-")


def _read(preset: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(preset)
    if path.suffix in (".toml", ".json"):
        if not _is_file(path):
            raise MrtError(
                f"{path}: no such configuration file",
                f"presets that come with mrt: {', '.join(preset_names())}",
            )
    else:
        path = PRESETS / f"{preset}.toml"
        if not _is_file(path):
            guess = nearest(str(preset), preset_names())
            raise MrtError(
                f"unknown preset {str(preset)!r}" + (f": did you mean {guess!r}?" if guess else ""),
                f"presets: {', '.join(preset_names())}",
            )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MrtError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from None
    except OSError as error:
        raise MrtError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None
    if len(text) > _LARGEST:
        raise MrtError(
            f"{path}: {len(text)} letters are too many for settings (presets have some thousands)",
            "name a preset, or a run's config.json",
        )
    try:
        values = _parsed(text, str(path), json.loads if path.suffix == ".json" else tomllib.loads)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise MrtError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise MrtError(f"{path}: expected sections and keys, found {type(values).__name__}")
    if path.suffix == ".toml":
        values.setdefault("preset", path.stem)
        _beside(values, path.parent)
    return values, path.name


def _beside(values: dict[str, Any], folder: Path) -> None:
    """Plug-ins and labels that a preset names as files are looked for beside it first."""
    teacher = values.get("teacher")
    labels = teacher.get("labels") if isinstance(teacher, dict) else None
    if isinstance(labels, str) and _is_file(folder / labels):
        teacher["labels"] = str(folder / labels)
    method = values.get("method")
    names = method.get("plugins") if isinstance(method, dict) else None
    names = [names] if isinstance(names, str) else names
    if isinstance(names, list):
        method["plugins"] = [
            str(folder / name) if isinstance(name, str) and _is_file(folder / name) else name
            for name in names
        ]


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    kind = config_class(_plugins_of(values))
    fields, sections = _fields(kind), kind.model_fields
    free_form = dotted.startswith("data.class_map.")
    if dotted not in fields and not free_form:
        guess = nearest(dotted, list(fields)) or next(
            (key for key in fields if key.endswith("." + dotted)), None
        )
        raise MrtError(
            f"unknown setting {dotted!r}" + (f": did you mean {guess!r}?" if guess else ""),
            "see every setting with: mrt pretrain-source --dry-run"
            + (
                ""
                if dotted.partition(".")[0] in sections
                else f"; those of a plug-in need --set {PLUGINS}=[FILE]"
            ),
        )
    *sections, key = dotted.split(".", 2) if free_form else dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise MrtError(
                f"{section} = {_shown(values)}: it is a section, so {dotted} cannot be set in it",
                f"take {section} out of the file, or write its settings below [{section}]",
            )
    means_nothing = value == "none" and dotted in fields and key in fields[dotted].optional
    values[key] = None if means_nothing else value


def _parse(raw: str, what: str) -> Any:
    try:
        values = _parsed(f"value = {raw}", what, tomllib.loads)
        return values["value"] if len(values) == 1 else raw
    except tomllib.TOMLDecodeError:
        if raw.startswith("[") and raw.endswith(
            "]"
        ):  # a list of plain words, as a shell makes them easy to write
            return [_word(item.strip(), what) for item in raw[1:-1].split(",") if item.strip()]
        return raw


def _word(raw: str, what: str) -> Any:
    """An entry of a list of plain words: a number, true, false or a text, but no further list."""
    try:
        values = _parsed(f"value = {raw}", what, tomllib.loads)
        return values["value"] if len(values) == 1 else raw
    except tomllib.TOMLDecodeError:
        return raw


def _parsed(text: str, what: str, loads: Callable[[str], Any]) -> Any:
    """TOML or JSON.

    Raises:
        TOMLDecodeError, JSONDecodeError: it is neither.
        MrtError: it is nested too deeply, or has a number that does not fit into 64 bits.
    """
    dots = max((line.count(".") for line in text.splitlines()), default=0)
    if dots > _MOST_DOTS and _DOTTED.search(text):  # which takes tomllib minutes
        raise MrtError(f"{what}: names of more than {_DEEPEST} parts", "the deepest settings have three")
    try:
        values = loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError):
        raise
    except RecursionError:
        raise MrtError(
            f"{what}: nested too deeply", "settings are texts, numbers, and lists of them"
        ) from None
    except ValueError:  # int() refuses thousands of digits
        raise _too_large(what, "a number of thousands of digits") from None
    left = [(values, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise MrtError(f"{what}: nested too deeply", "settings are texts, numbers, and lists of them")
        if isinstance(value, (dict, list)):
            left += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int) and value.bit_length() > 63:
            raise _too_large(what, f"a number of {value.bit_length()} bits")
    return values


def _too_large(what: str, number: str) -> MrtError:
    return MrtError(f"{what}: {number}", "numbers of settings have at most 64 bits")


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no where nothing can have such a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _shown(value: Any) -> str:
    """A value in a message, which may be long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explain(item: Mapping[str, Any], kind: type[Config]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        guess = nearest(key, [*_fields(kind), *kind.model_fields])
        return f"unknown setting {key!r}" + (f": did you mean {guess!r}?" if guess else "")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "tuple_type":
        message = f"should be a list, such as [{_shown(item['input'])}]"
    message = message[:1].lower() + message[1:]
    given = item["input"]
    return (
        f"{key} = {_shown(given)}: {message}"
        if key and not isinstance(given, Mapping)
        else f"{key + ': ' if key else ''}{message}"
    )
