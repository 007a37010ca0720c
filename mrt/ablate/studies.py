"""What a comparison is made of: rows, each a set of settings with a name; the paper's studies, and grids.

A study varies one thing and keeps the rest, as an ablation should. Its rows carry the paper's AP50 where
there is one: Cityscapes to Foggy Cityscapes, one run each, a ResNet-50 Deformable DETR. Where the paper's own
table changes more than its title says, a note tells.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mrt.config import Config, flag_name, known_keys, load_config, nearest
from mrt.errors import MrtError

PAPER = "City→Foggy"  # the benchmark of the paper's ablations, as the tables call it
End = Literal["source", "mae", "teach", "fair", "oracle-target", "oracle-source+target"]

# Named sets of settings for `mrt adapt --method`. The first five are table 4 of the paper: they keep the
# discriminators of its baseline, and whatever is added to it is added with dynamic thresholds, as there.
METHODS: dict[str, dict[str, Any]] = {
    "teacher": {"teacher.dynamic": False, "mae.use": "none", "retrain.every": 0},
    "+dt": {"teacher.dynamic": True, "mae.use": "none", "retrain.every": 0},
    "+mae": {"teacher.dynamic": True, "mae.use": "branch", "retrain.every": 0},
    "+retrain": {"teacher.dynamic": True, "mae.use": "none"},
    "mrt": {"teacher.dynamic": True, "mae.use": "branch"},
    "limited": {
        "teacher.dynamic": False,
        "teacher.threshold_start": 0.25,
        "teacher.ignore_above": 0.1,
        "teacher.most_labels": 0.8,
        "domain.enabled": False,
        "mae.use": "none",
        "retrain.every": 0,
    },
    "aldi": {
        "teacher.pseudo_labels": False,
        "teacher.labels": None,
        "distill.enabled": True,
        "domain.enabled": False,
        "mae.use": "none",
        "retrain.every": 0,
    },
    "source-free": {
        "method.source_free": True,
        "domain.enabled": False,
        "mae.use": "none",
        "retrain.every": 0,
    },
}
METHOD_WORDS = {
    "teacher": "teacher-student with discriminators, the paper's baseline",
    "+dt": "that with dynamic thresholds",
    "+mae": "that with dynamic thresholds and the masked autoencoder",
    "+retrain": "that with dynamic thresholds and selective retraining",
    "mrt": "all of them, the paper's method",
    "limited": "teacher-student without discriminators, labels limited by the source's counts",
    "aldi": "soft distillation, without thresholds and discriminators (ALDI++)",
    "source-free": "from weights alone, without any source image",
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what the table calls it.
        settings: dotted key -> value, on top of the preset and ``--set``.
        end: the stage whose detector is measured: stage 1, stage 2, stage 3, or a baseline.
        paper: the paper's AP50. note: what a reader of that number must know.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    end: End = "teach"
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Study:
    """A table: its title, its rows, and which of them the others are compared with; settings of all rows, and
    the preset, where the study has its own.
    """

    title: str
    rows: tuple[Row, ...]
    base: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None


def _vary(
    key: str,
    values: Mapping[Any, tuple[str, float | None]],
    notes: Mapping[Any, str] | None = None,
    **fixed: Any,
) -> tuple[Row, ...]:
    """Rows that differ in one setting; ``fixed`` (section__key=value) holds for all of them."""
    rest = {name.replace("__", "."): value for name, value in fixed.items()}
    return tuple(
        Row(name, {**rest, key: value}, paper=ap50, note=(notes or {}).get(value, ""))
        for value, (name, ap50) in values.items()
    )


_MAE_ONLY = {
    "teacher__dynamic": True,
    "mae__use": "branch",
    "retrain__every": 0,
}  # tables 5: no retraining yet
_NO_DT = "the paper's figure is its table 4 row without dynamic thresholds, which this study keeps on"
_VARIANTS = ("mae.variant", "mae.mse_over", "mae.valid_ratios", "mae.keep_padding", "mae.carry_over")

BASELINES = (
    Row(
        "fair source-only",
        end="fair",
        note="the steps, rates, augmentation and averaging of adaptation, and nothing adaptive",
    ),
    Row("oracle: target labels", end="oracle-target", note="the same training with the target's labels"),
    Row(
        "oracle: source + target labels",
        end="oracle-source+target",
        note="the same training with both domains' labels",
    ),
)

STUDIES: dict[str, Study] = {
    "methods": Study(
        "whole methods (docs/method.md)",
        (*(Row(name, settings) for name, settings in METHODS.items()), *BASELINES[:2]),
        base="fair source-only",
    ),
    "components": Study(
        "the parts of the method (paper, table 4)",
        (
            Row("source", end="source", paper=28.5),
            Row("source + MAE", {"mae.use": "branch"}, end="mae", paper=35.8),
            Row("teacher-student", METHODS["teacher"], paper=44.9),
            Row("+ DT", METHODS["+dt"], paper=45.5),
            Row("+ DT + MAE", METHODS["+mae"], paper=48.3),
            Row("+ DT + retraining", METHODS["+retrain"], paper=48.1),
            Row("+ DT + MAE + retraining", METHODS["mrt"], paper=51.2),
        ),
        base="teacher-student",
    ),
    "mask-ratio": Study(
        "mask ratio (paper, table 5a)",
        _vary("mae.mask_ratio", {0.5: ("0.5", 47.1), 0.8: ("0.8", 48.3), 0.9: ("0.9", 46.8)}, **_MAE_ONLY),
        base="0.8",
    ),
    "decay": Study(
        "decay of the autoencoder's weight in teaching (paper, table 5b)",
        _vary(
            "mae.decay",
            {"none": ("none", 47.9), "linear": ("linear", 48.2), "hard": ("hard", 48.3)},
            **_MAE_ONLY,
        ),
        base="hard",
    ),
    "mae-data": Study(
        "images the autoencoder learns from (paper, table 5c)",
        _vary(
            "mae.data",
            {"source": ("source", 44.5), "both": ("source + target", 47.0), "target": ("target", 48.3)},
            **_MAE_ONLY,
        ),
        base="target",
    ),
    "mae-use": Study(
        "use of the autoencoder (paper, table 5d)",
        _vary(
            "mae.use",
            {
                "none": ("none", 44.9),
                "pretrain": ("pretrain (stage 2 only)", 42.7),
                "branch": ("branch (stages 2 and 3)", 48.3),
            },
            {"none": _NO_DT},
            teacher__dynamic=True,
            retrain__every=0,
        ),
        base="none",
    ),
    "retrain-parts": Study(
        "parts that are retrained (paper, table 6a)",
        _vary(
            "retrain.parts",
            {
                "none": ("none", 44.9),
                "all": ("all", 46.0),
                "encoder+decoder": ("encoder + decoder", 46.6),
                "backbone+decoder": ("backbone + decoder", 47.1),
                "backbone+encoder": ("backbone + encoder", 48.1),
            },
            {"none": _NO_DT},
            teacher__dynamic=True,
            mae__use="none",
        ),
        base="none",
    ),
    "retrain-init": Study(
        "weights that retraining goes back to (paper, table 6b)",
        _vary(
            "retrain.source",
            {"random": ("random", 45.5), "source": ("source", 48.1), "mae": ("source + MAE", 51.2)},
            {"source": "48.1 is also the paper's figure without the autoencoder; here it stays on"},
            teacher__dynamic=True,
            mae__use="branch",
        ),
        base="random",
    ),
    "mae-variant": Study(
        "the autoencoder of the paper and of its published code (docs/method.md)",
        tuple(
            Row(name, {**METHODS["mrt"], **dict(zip(_VARIANTS, values, strict=True))})
            for name, values in {
                "paper": ("paper", "masked", "padding", True, True),
                "published": ("published", "all", "mask", False, False),
                "published, padding ratios": ("published", "all", "padding", True, True),
            }.items()
        ),
        base="published, padding ratios",
    ),
}


def find_study(name: str) -> Study:
    """A study by its name, or that of a ``.toml`` file; MrtError names the nearest one."""
    if name.endswith(".toml"):
        from mrt.ablate.study_file import read_study

        return read_study(name)
    if name not in STUDIES:
        guess = nearest(name, list(STUDIES))
        raise MrtError(
            f"--study {name}: unknown study" + (f": did you mean {guess}?" if guess else ""),
            f"there are: {', '.join(STUDIES)}; or a file of your own: --study rows.toml",
        )
    return STUDIES[name]


@dataclass(frozen=True)
class Axis:
    """A setting that is varied: its dotted key and the values, as texts like those of ``--set``."""

    key: str
    values: tuple[str, ...]


def find_key(name: str, plugins: Sequence[str] = ()) -> str:
    """The dotted key that an option's name stands for: ``mask-ratio``, ``mask_ratio`` or ``mae.mask_ratio``.

    Args:
        plugins: whose settings count, too.

    Raises:
        MrtError: no setting has that name (the nearest one is named), or several have (all are named).
    """
    plain = name.replace("-", "_")
    keys = known_keys(plugins)
    if plain in keys:
        return plain
    found = [key for key in keys if key.rpartition(".")[2] == plain]
    if len(found) == 1:
        return found[0]
    if found:
        raise MrtError(
            f"--{name}: several settings have this name: {', '.join(found)}",
            f"write the whole key, e.g. --axis {found[0]} VALUE VALUE",
        )
    guess = nearest(plain, [key.rpartition(".")[2] for key in keys]) or nearest(plain, keys)
    meant = f": did you mean --{guess if '.' in guess else flag_name(guess)}?" if guess else ""
    raise MrtError(
        f"--{name}: neither an option nor a setting{meant}",
        "see every setting with: mrt adapt --preset small --dry-run",
    )


def make_axes(given: Sequence[tuple[str, Sequence[str]]], plugins: Sequence[str] = ()) -> list[Axis]:
    """Axes from (name, values) pairs, of the settings of plug-ins too; MrtError for an axis without values or
    given twice.
    """
    axes: list[Axis] = []
    for name, values in given:
        if not name:
            raise MrtError("--axis: no setting is named", "for example --axis mae.mask_ratio 0.5 0.8")
        key = find_key(name, plugins)
        if key in ("seed", "preset"):
            raise MrtError(
                f"--{name}: not an axis", "seeds are given with --seeds 0 1 2, a preset with --preset"
            )
        if not values:
            raise MrtError(f"--{name}: no values", f"for example --{name} 0.5 0.8")
        if any(axis.key == key for axis in axes):
            raise MrtError(f"--{name}: given twice", "write all its values after one option")
        axes.append(Axis(key, tuple(values)))
    return axes


def grid_rows(
    axes: Sequence[Axis],
    preset: str | Path,
    overrides: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> list[Row]:
    """A row for every combination of the axes' values, in order; equal values (0.8, 0.80) count once."""
    rows: dict[str, Row] = {}
    names = [Path(value).name for axis in axes for value in axis.values]
    short = len(set(names)) == len(names)  # of files, in place of whole paths
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
        config = load_config(preset, [*overrides, *chosen], changes)
        settings = {axis.key: plain(setting(config, axis.key)) for axis in axes}
        name = ", ".join(f"{flag_name(key)} {_word(value, short)}" for key, value in settings.items()) or str(
            config.preset
        )
        rows.setdefault(json.dumps(settings), Row(name, settings))
    return list(rows.values())


def row_config(
    row: Row, preset: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a row: the preset, ``changes``, ``overrides``, and last the row's own settings."""
    kept = [text for text in overrides if text.partition("=")[0].strip() not in row.settings]
    return load_config(preset, kept, {**(changes or {}), **row.settings})


def setting(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _word(value: Any, short: bool) -> str:
    if value is None:
        return "none"
    if short and isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)
