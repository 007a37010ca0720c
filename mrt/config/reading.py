"""From a preset's file and overrides to a checked configuration; every mistake is told by its key."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    TypeAdapter,
    ValidationError,
)

from mrt.config.engine import AUTO
from mrt.config.sections import PLUGINS, MethodConfig
from mrt.config.whole import Config, config_class, upgrade, without_plugins
from mrt.errors import MrtError
from mrt.section import Section

PRESETS = Path(__file__).parents[1] / "presets"
BATCH, ACCUMULATE = "engine.batch_size", "engine.accumulate"  # the first as auto means the second as auto
_LARGEST, _LONGEST = 1 << 20, 1 << 16  # letters of a file of settings, and of one on the command line
_UNEXPECTED = (TypeError, AttributeError, LookupError, OSError, RuntimeError)
_DEEPEST = 30  # lists in lists
_MOST_DOTS = 100
_DOTTED = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++\s*+\.\s*+){30}""")


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


def load_stored(path: Path) -> Config:
    """The settings of a run that is only looked at; without those of plug-ins where they are gone."""
    try:
        return load_config(path)
    except MrtError:
        values, name = _read(path)
        if not _plugins_of(values):
            raise
        return validate(without_plugins(values), name)


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
