"""Every setting of a run, checked before anything heavy is imported (this package does not know torch).

A configuration is a TOML preset plus overrides (``--set a.b=c``). Unknown keys are refused with the nearest
known name, wrong values with one line per field. What a run used is written to ``config.json`` in its folder.

    sections  method, data, model, losses, stages (those of the method's parts: mrt.parts.settings)
    engine    how training runs
    whole     all of it, with the sections of plug-ins, and as it is stored
    reading   from a preset's file and overrides to a checked configuration
"""

from __future__ import annotations

from mrt.config.engine import AUTO, DRIVERS, MACHINE_KEYS
from mrt.config.reading import (
    PRESETS,
    flag_name,
    known_keys,
    load_config,
    load_stored,
    named_plugins,
    nearest,
    preset_names,
    validate,
)
from mrt.config.sections import DETECTOR, LossConfig, ModelConfig, StageConfig
from mrt.config.whole import Config, Settings, config_class, loss_words, without_plugins

__all__ = [
    "AUTO",
    "Config",
    "DETECTOR",
    "DRIVERS",
    "LossConfig",
    "MACHINE_KEYS",
    "ModelConfig",
    "PRESETS",
    "Settings",
    "StageConfig",
    "config_class",
    "flag_name",
    "known_keys",
    "load_config",
    "load_stored",
    "loss_words",
    "named_plugins",
    "nearest",
    "preset_names",
    "validate",
    "without_plugins",
]
