"""Every setting of a run, checked before anything heavy is imported (this module does not know torch).

A configuration is a TOML preset plus overrides (``--set a.b=c``). Unknown keys are refused with the nearest known name,
wrong values with one line per field. What a run used is written to ``config.json`` in its folder.
The defaults are the paper's city2foggy settings; ``docs/method.md`` names the table behind each number.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from mrt.errors import MrtError

PRESETS = Path(__file__).parent / "presets"
Share = Annotated[float, Field(ge=0, le=1)]
OPTIONAL = ("init", "data.classes", "teacher.ignore_above")  # where the word none means nothing; elsewhere it is a choice
OpenShare = Annotated[float, Field(gt=0, lt=1)]


class Settings(BaseSettings):
    """What belongs to the machine, not to the experiment: environment variables ``MRT_DATA_ROOT`` and ``MRT_RUN_ROOT``."""

    model_config = SettingsConfigDict(env_prefix="MRT_", extra="ignore")
    data_root: Path = Path("data")
    run_root: Path = Path("runs")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Which prepared sets are used, and the image sizes."""

    source: str = "cityscapes"
    target: str = "foggy"
    classes: tuple[str, ...] | None = Field(None, description="classes to detect, by name; none: those of the source set")
    class_map: dict[str, str] = Field(default_factory=dict, description="names of the target's classes in the source's words")
    source_split: str = "train"
    target_split: str = "train"
    validation_split: str = "val"
    source_sides: tuple[PositiveInt, ...] = Field((480, 512, 544, 576, 608, 640, 672), description="short sides of stage 1, px")
    source_crop: bool = Field(True, description="random crop in stage 1")
    sides: tuple[PositiveInt, ...] = Field((800,), description="short sides of stages 2 and 3 and of evaluation, px")
    max_size: PositiveInt = Field(1333, description="longest side of an image, px")
    cache: Literal["none", "ram"] = Field("none", description="keep decoded images in memory (small sets)")


class ModelConfig(Section):
    """The Deformable DETR detector."""

    backbone: str = "resnet50"
    weights: str = Field(
        "imagenet",
        description="the backbone's: imagenet, none, a file; or a whole detector's to begin with: coco, hf:OWNER/NAME, a run, a file",
    )
    freeze: Literal["stem", "all", "none"] = "stem"
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

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class LossConfig(Section):
    """Weights of the detection loss and of the matching cost, and the focal loss' parameters."""

    class_weight: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    focal_alpha: Share = 0.25
    focal_gamma: NonNegativeFloat = 2.0
    target_weight: NonNegativeFloat = Field(1.0, description="coef_target: weight of everything computed on target images")


class DomainConfig(Section):
    """The three discriminators behind a gradient reversal layer (teaching stage)."""

    enabled: bool = True
    backbone_weight: NonNegativeFloat = 0.3
    encoder_weight: NonNegativeFloat = 1.0
    decoder_weight: NonNegativeFloat = 1.0
    reversal: NonNegativeFloat = Field(1.0, description="eta of the gradient reversal layer")
    ramp: Share = Field(0.0, description="share of the teaching stage over which eta grows linearly from 0; 0: at once")


VARIANTS = {
    "published": {"mse_over": "all", "valid_ratios": "mask", "keep_padding": False, "carry_over": False},
    "paper": {"mse_over": "masked", "valid_ratios": "padding", "keep_padding": True, "carry_over": True},
}


class MaeConfig(Section):
    """The masked-autoencoder branch."""

    use: Literal["none", "pretrain", "branch"] = Field("branch", description="none; only in stage 2; in stages 2 and 3")
    data: Literal["target", "source", "both"] = "target"
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.8
    layers: PositiveInt = 2
    level: NonNegativeInt = Field(2, description="feature level that is rebuilt; 2 is C5")
    weight: NonNegativeFloat = 1.0
    decay: Literal["none", "hard", "linear"] = "hard"
    decay_epoch: NonNegativeInt = Field(10, description="epochs of the teaching stage after which the weight is 0 (hard, linear)")
    variant: Literal["published", "paper"] = Field(
        "published",
        description="what the decoder sees of visible cells (a learned embedding, the encoder's output); if given, sets the next four too",
    )
    mse_over: Literal["all", "masked"] = "all"
    valid_ratios: Literal["padding", "mask"] = Field("padding", description='"mask" repeats the published code\'s bug')
    keep_padding: bool = Field(True, description="padding cells stay masked in the masked pass")
    carry_over: bool = Field(True, description="teaching begins with the MAE stage's decoder, not with a new one")

    @model_validator(mode="before")
    @classmethod
    def _follow_variant(cls, values: Any) -> Any:
        """Where the paper and its code differ (docs/method.md), settings that are not given follow a variant that is."""
        if not isinstance(values, Mapping):
            return values
        return {**VARIANTS.get(values.get("variant"), {}), **values}


class TeacherConfig(Section):
    """EMA teacher and pseudo labels."""

    ema: OpenShare = 0.9996
    warmup: bool = Field(False, description="start with a faster average: decay (1 + t) / (10 + t) until it reaches ema")
    pseudo_labels: bool = True
    box_loss: bool = Field(False, description="box losses on pseudo labels too")
    nms_iou: OpenShare = 0.7
    dynamic: bool = Field(True, description="per-class dynamic thresholds; otherwise every class keeps threshold_start")
    threshold_start: Share = 0.3
    threshold_min: Share = 0.25
    threshold_max: Share = 0.45
    threshold_alpha: NonNegativeFloat = 0.5
    threshold_gamma: Share = 0.9
    ignore_above: Share | None = Field(None, description="teacher scores between this and the threshold are neither object nor background")


class RetrainConfig(Section):
    """Selective retraining."""

    every: NonNegativeInt = Field(40, description="epochs between two re-initialisations; 0: never")
    parts: Literal["none", "all", "encoder+decoder", "backbone+decoder", "backbone+encoder"] = "backbone+encoder"
    source: Literal["random", "source", "mae"] = Field("mae", description="weights it goes back to")


class StageConfig(Section):
    """Length, learning rate and augmentation of one stage."""

    epochs: NonNegativeInt
    lr: PositiveFloat = 2e-4
    lr_drop: PositiveInt = Field(40, description="epoch at which the rate falls to a tenth (schedule step)")
    schedule: Literal["step", "linear", "constant"] = Field("step", description="linear: falls to 0 over the last 40 % of the steps")
    augment: Literal["weak", "strong"] = Field("weak", description="augmentation of source images")
    ema: bool = Field(False, description="keep an EMA copy of the detector (stage 1; stages 2 and 3 follow [teacher])")
    steps_per_epoch: NonNegativeInt = Field(0, description="0: one pass over the smaller set")


class EngineConfig(Section):
    """The training engine."""

    batch_size: PositiveInt = Field(8, description="images per domain and step over all processes together")
    accumulate: PositiveInt = Field(1, description="batches whose gradients are summed before a step; divides batch_size")
    weight_decay: NonNegativeFloat = 1e-4
    clip: PositiveFloat = Field(0.5, description="largest gradient norm")
    backbone_lr_scale: PositiveFloat = 0.1
    sampling_lr_scale: PositiveFloat = Field(0.1, description="for sampling offsets and reference points")
    warmup_steps: NonNegativeInt = 0
    amp: Literal["off", "tf32", "bf16", "fp16"] = Field(
        "off", description="precision: off (float32), tf32 (float32 with shorter factors in products, GPUs only), bf16, fp16"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile the network's layers; auto: on GPUs; image sizes beyond the first few run uncompiled"
    )
    checkpointing: bool = Field(False, description="keep fewer activations and compute them again: for small GPUs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: NonNegativeInt = 4
    threads: NonNegativeInt = Field(0, description="CPU threads of torch; 0: torch's own choice")
    log_every: PositiveInt = 20
    eval_every: NonNegativeInt = Field(
        1, description="epochs between evaluations on the validation split, and once at the end of each stage; 0: none"
    )
    eval_batch_size: PositiveInt = 8
    keep_checkpoints: NonNegativeInt = Field(0, description="numbered checkpoints to keep beside the last one")
    snapshots: NonNegativeInt = Field(16, description="target images whose pseudo labels are recorded after each epoch of teaching")
    timeout: PositiveInt = Field(600, description="seconds that a process waits for the others before the run fails")


class Config(Section):
    """A whole experiment: three stages over one detector and two domains."""

    preset: str = "custom"
    seed: NonNegativeInt = 0
    init: str | None = Field(None, description="where adaptation starts: a run folder, a weights file, or a shipped name")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    domain: DomainConfig = DomainConfig()
    mae: MaeConfig = MaeConfig()
    teacher: TeacherConfig = TeacherConfig()
    retrain: RetrainConfig = RetrainConfig()
    pretrain: StageConfig = StageConfig(epochs=50, lr=2e-4, lr_drop=40)
    mae_stage: StageConfig = StageConfig(epochs=40, lr=2e-4, lr_drop=30)
    teach: StageConfig = StageConfig(epochs=80, lr=2e-4, lr_drop=80, augment="strong")
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.engine.batch_size % self.engine.accumulate:
            raise ValueError(f"engine.batch_size {self.engine.batch_size} is not a multiple of engine.accumulate {self.engine.accumulate}")
        if self.mae.level >= self.model.num_levels:
            raise ValueError(f"mae.level {self.mae.level} does not exist: the model has {self.model.num_levels} levels (0 is the finest)")
        if self.teacher.threshold_min > self.teacher.threshold_max:
            raise ValueError(f"teacher.threshold_min {self.teacher.threshold_min} is above threshold_max {self.teacher.threshold_max}")
        if self.teacher.ignore_above is not None and self.teacher.ignore_above > self.teacher.threshold_min:
            raise ValueError(f"teacher.ignore_above {self.teacher.ignore_above} is above threshold_min {self.teacher.threshold_min}")
        return self

    def to_json(self) -> str:
        """The resolved configuration as JSON text; ``load_config`` reads it back."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def preset_names() -> list[str]:
    """Names of the presets that come with mrt."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(preset: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Config:
    """Read a preset and apply overrides.

    Args:
        preset: a preset's name, a ``.toml`` file or a run's ``config.json``.
        overrides: texts ``section.key=value``; values are read as TOML (``true``, ``0.5``, ``[1, 2]``), else as plain text.
        changes: the same as a mapping from dotted key to value, applied first.

    Raises:
        MrtError: unknown preset or key (with the nearest known name), or a value that does not fit (one line per field).
    """
    values, name = _read(preset)
    for key, value in (changes or {}).items():
        _assign(values, key, value)
    for text in overrides:
        key, separator, raw = text.partition("=")
        if not separator or not key.strip():
            raise MrtError(f"--set {text}: expected section.key=value", "for example --set mae.mask_ratio=0.5")
        _assign(values, key.strip(), _parse(raw.strip()))
    return validate(values, name)


def validate(values: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check plain values and return a frozen :class:`Config`; MrtError with one line per wrong field."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise MrtError(f"{where}: " + "\n".join(lines), "see every setting with: mrt pretrain-source --dry-run") from None


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name most like ``name``, or none when nothing is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


def known_keys() -> list[str]:
    """Every dotted key a configuration may have, e.g. ``mae.mask_ratio``."""
    keys = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{inner}" for inner in section.model_fields]
        else:
            keys.append(name)
    return keys


def flag_name(key: str) -> str:
    """``mae.mask_ratio`` -> ``mask-ratio``: how an ablation axis is called on the command line."""
    return key.rpartition(".")[2].replace("_", "-")


def _read(preset: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(preset)
    if path.suffix in (".toml", ".json"):
        if not path.is_file():
            raise MrtError(f"{path}: no such configuration file", f"presets that come with mrt: {', '.join(preset_names())}")
    else:
        path = PRESETS / f"{preset}.toml"
        if not path.is_file():
            guess = nearest(str(preset), preset_names())
            raise MrtError(
                f"unknown preset {str(preset)!r}" + (f": did you mean {guess!r}?" if guess else ""), f"presets: {', '.join(preset_names())}"
            )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MrtError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise MrtError(f"{path}: expected sections and keys, found {type(values).__name__}")
    if path.suffix == ".toml":
        values.setdefault("preset", path.stem)
    return values, path.name


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    known = known_keys()
    free_form = dotted.startswith("data.class_map.")
    if dotted not in known and not free_form:
        guess = nearest(dotted, known) or next((key for key in known if key.endswith("." + dotted)), None)
        raise MrtError(
            f"unknown setting {dotted!r}" + (f": did you mean {guess!r}?" if guess else ""),
            "see every setting with: mrt pretrain-source --dry-run",
        )
    *sections, key = dotted.split(".", 2) if free_form else dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = None if value == "none" and dotted in OPTIONAL else value


def _parse(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _explain(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        guess = nearest(key, known_keys() + list(Config.model_fields))
        return f"unknown setting {key!r}" + (f": did you mean {guess!r}?" if guess else "")
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = item["input"]
    return f"{key} = {given!r}: {message}" if key and not isinstance(given, Mapping) else f"{key + ': ' if key else ''}{message}"
