"""A configuration as a whole, with the sections of plug-ins, and as it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import (
    Field,
    NonNegativeInt,
    create_model,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from mrt import plugins
from mrt.config.engine import AUTO, EngineConfig
from mrt.config.sections import (
    DataConfig,
    LossConfig,
    MaeStageConfig,
    MethodConfig,
    ModelConfig,
    PretrainConfig,
    TeachConfig,
)
from mrt.errors import MrtError
from mrt.parts.settings import DistillConfig, DomainConfig, MaeConfig, RetrainConfig, TeacherConfig
from mrt.section import Section

SCHEMA = 2  # of stored settings; those without a number are 1


class Settings(BaseSettings):
    """What belongs to the machine, not to the experiment: environment variables ``MRT_DATA_ROOT`` and
    ``MRT_RUN_ROOT``.
    """

    model_config = SettingsConfigDict(env_prefix="MRT_", extra="ignore")
    data_root: Path = Path("data")
    run_root: Path = Path("runs")


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
