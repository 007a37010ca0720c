"""The section of a configuration that is about how training runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from mrt.section import Section, without_defaults

if TYPE_CHECKING:
    from mrt.config.whole import Config

AUTO = "auto"
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
