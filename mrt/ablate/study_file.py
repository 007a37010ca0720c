"""A study of one's own: a TOML file that says which rows a table has. ``mrt ablate --study rows.toml``.

title = "when does the autoencoder help"       # optional: what the table is called
preset = "synth2foggy"                         # optional: unless --preset or --target say
base = "teacher-student"                       # optional: what others are compared with
set = { "teach.epochs" = 6 }                   # optional: settings of all rows; --set changes them

[[row]]
name = "teacher-student"
method = "teacher"                             # optional: one of mrt adapt --method
set = { "teacher.threshold_start" = 0.3 }      # on top of it; these win over --set

[[row]]
name = "oracle"
end = "oracle-target"                          # optional: what is measured; default teach
note = "the same training with the target's labels"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrt.ablate.studies import METHODS, End, Row, Study, row_config
from mrt.config import nearest
from mrt.data.card import read_json
from mrt.errors import MrtError

HINT = "docs/experiments.md#a-study-of-your-own shows a whole file"
NOT_IN_A_ROW = {"seed": "seeds are given with --seeds 0 1 2", "preset": "name it at the top of the file"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class _Row(_Strict):
    name: str = Field(min_length=1, max_length=80)
    method: str | None = None
    end: str = "teach"
    settings: dict[str, Any] = Field(default_factory=dict, alias="set")
    paper: float | None = None
    note: str = ""


class _File(_Strict):
    title: str | None = None
    preset: str | None = None
    base: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict, alias="set")
    rows: list[_Row] = Field(min_length=1, alias="row")


def read_study(path: str | Path) -> Study:
    """The study that a file describes; its settings are not checked yet (:func:`check`).

    Raises:
        MrtError: there is no such file, it is no TOML, or a field is wrong.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MrtError(f"--study {path}: {getattr(error, 'strerror', None) or error}", HINT) from None
    except tomllib.TOMLDecodeError as error:
        raise MrtError(f"{path}: not TOML: {error}", HINT) from None
    except RecursionError:
        raise MrtError(f"{path}: lists or tables that lie in each other too deep", HINT) from None
    try:
        found = _File.model_validate(values)
    except ValidationError as error:
        lines = [f"{_place(item['loc'], values)}: {item['msg']}" for item in error.errors()]
        raise MrtError(f"{path}: " + "\n".join(lines), HINT) from None
    rows: dict[str, Row] = {}
    for row in found.rows:
        where = f"{path}: row {row.name!r}"
        if row.name in rows:
            raise MrtError(f"{where}: there are two of this name", "each row needs a name of its own")
        _require_one_of(row.end, get_args(End), f"{where}: end")
        if row.method is not None:
            _require_one_of(row.method, list(METHODS), f"{where}: method")
        own = _flat(row.settings, where)
        method = METHODS[row.method] if row.method else {}
        rows[row.name] = Row(row.name, {**method, **own}, row.end, row.paper, row.note)
    base = found.base or next(iter(rows))
    _require_one_of(base, list(rows), f"{path}: base")
    common = _flat(found.settings, str(path))
    return Study(found.title or path.stem, tuple(rows.values()), base, common, found.preset)


def check(study: Study, where: str | Path, preset: str | Path) -> None:
    """MrtError, with file and row, for a setting that is unknown or a value that does not fit."""
    for row in study.rows:
        try:
            row_config(row, preset, (), study.settings)
        except MrtError as error:
            raise MrtError(f"{where}: row {row.name!r}: {error.message}", error.hint) from None


def title_of(study: Study) -> str:
    """How a study's table begins."""
    return f"Ablation: {study.title}"


def require_same_study(stem: Path, study: Study) -> None:
    """MrtError if the table that would be written over is one of another title."""
    file = stem.with_name(f"{stem.name}.json")
    before = read_json(file).get("title") if file.is_file() else None
    if isinstance(before, str) and not before.startswith(f"{title_of(study)}, "):
        raise MrtError(f"{file}: is another study's table: {before}", "name this one's files: --name NAME")


def _flat(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Dotted keys of settings, written as ``"teach.epochs" = 6`` or ``teach = { epochs = 6 }``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and "." not in name
        for key, one in (
            {f"{name}.{key}": one for key, one in value.items()} if inner else {name: value}
        ).items():
            if key in NOT_IN_A_ROW:
                raise MrtError(f"{where}: {key}: not a setting of a row", NOT_IN_A_ROW[key])
            if key in found:
                raise MrtError(f"{where}: {key}: given twice", "write it once")
            found[key] = one
    return found


def _require_one_of(name: str, known: Any, where: str) -> None:
    if name not in known:
        guess = nearest(name, list(known))
        raise MrtError(
            f"{where} = {name!r}: unknown" + (f": did you mean {guess}?" if guess else ""),
            f"there are: {', '.join(known)}",
        )


def _place(loc: tuple[int | str, ...], values: Mapping[str, Any]) -> str:
    """Where a wrong field is: of a row, by its name or number."""
    if len(loc) < 2 or loc[0] != "row" or not isinstance(loc[1], int):
        return ".".join(map(str, loc))
    row = values["row"][loc[1]]
    name = row.get("name") if isinstance(row, Mapping) else None
    title = f"row {name!r}" if isinstance(name, str) and name else f"row {loc[1] + 1}"
    return ": ".join([title, *map(str, loc[2:])])
