"""Parts and detectors from outside the package: a file, or an installed package's entry point
(docs/extending.md). Needs no torch itself.

A plug-in is a Python module. Every :class:`mrt.parts.base.Part` and every detector with a ``kind``
(:mod:`mrt.models.interface`) that it defines is known from then on. It is code: load only what you trust.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from mrt.errors import MrtError
from mrt.section import KINDS, Section

GROUP = "mrt.plugins"  # of entry points
VARIABLE = "MRT_PLUGINS"  # plug-ins that are always there, separated like paths
STAGES = ("pretrain", "mae", "teach")  # of a run, as mrt.engine.stages names them
BUILT_IN = "deformable_detr"  # kind of detector
EXAMPLE = "docs/extending.md has a complete example"


@dataclass(frozen=True)
class Plugin:
    """What a module adds.

    Attributes:
        name: as it was asked for. digest: sha256 of its file, by which ablations know it.
        parts: classes of parts. sections: their settings, by the name of the section. detectors: classes by
            kind.
    """

    name: str
    digest: str
    parts: tuple[type, ...] = ()
    sections: dict[str, type[Section]] = field(default_factory=dict)
    detectors: dict[str, type] = field(default_factory=dict)


@lru_cache(maxsize=32)
def load(name: str) -> Plugin:
    """Import a plug-in: a file that ends in .py, else the name of an entry point.

    Raises:
        MrtError: there is none of that name, importing it fails, or it defines nothing.
    """
    path = Path(name) if name.endswith(".py") else None
    if path is not None and not path.is_file():
        raise MrtError(
            f"{name}: no such plug-in file", "name an existing file: --set method.plugins=[my_part.py]"
        )
    try:
        module = _from_file(path) if path is not None else _from_entry_point(name)
    except MrtError:
        raise
    except Exception as error:  # whatever the code of others raises
        why = f"{type(error).__name__}: {error}"
        raise MrtError(f"{name}: the plug-in cannot be imported: {why}", f"mend it; {EXAMPLE}") from error
    origin = path or Path(module.__file__ or "")
    digest = hashlib.sha256(origin.read_bytes()).hexdigest() if origin.is_file() else name
    found = _collect(name, digest, module)
    _loaded[name] = found
    return found


_loaded: dict[str, Plugin] = {}


def everywhere() -> list[Plugin]:
    """The plug-ins that the environment variable ``MRT_PLUGINS`` names, and those that are loaded already."""
    try:
        named = [load(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    except MrtError as error:
        raise MrtError(
            f"{VARIABLE}: {error.message}", f"change the environment variable {VARIABLE}"
        ) from error
    return [*named, *_loaded.values()]


def _from_file(path: Path) -> ModuleType:
    key = f"mrt_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(key, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickles look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def _from_entry_point(name: str) -> ModuleType:
    found = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in found:
        known = f"installed: {', '.join(sorted(found))}" if found else "no installed package has one"
        raise MrtError(
            f"{name}: neither a file that ends in .py nor an entry point of the group {GROUP!r}", known
        )
    loaded: Any = found[name].load()
    return loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]


def _collect(name: str, digest: str, module: ModuleType) -> Plugin:
    from mrt.models.interface import Detector
    from mrt.parts.base import Part

    mine = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__
    ]
    bases = {base for item in mine for base in item.__mro__[1:]}
    parts = tuple(item for item in mine if issubclass(item, Part) and (item.name or item not in bases))
    detectors = {item.kind: item for item in mine if issubclass(item, Detector) and vars(item).get("kind")}
    if BUILT_IN in detectors:
        raise MrtError(f"{name}: mrt has a detector of kind {BUILT_IN!r}", f"choose another name; {EXAMPLE}")
    for part in parts:
        _check_part(name, part, Part)
    used = {part.settings for part in parts}
    for section in mine:
        if issubclass(section, Section) and section not in used:
            raise MrtError(
                f"{name}: no part has the settings {section.__name__}",
                f"write settings = {section.__name__} in its part; {EXAMPLE}",
            )
    if not parts and not detectors:
        raise MrtError(f"{name}: defines neither a Part nor a Detector with a kind", EXAMPLE)
    sections = {part.name: part.settings for part in parts if part.settings is not None}
    return Plugin(name, digest, parts, sections, detectors)


def _check_part(name: str, part: type, base: type) -> None:
    """MrtError for what a part would be silently wrong with: names and stages that mean nothing."""
    who = f"{name}: {part.__name__}"
    if not part.name.isidentifier():
        raise MrtError(f"{who}.name = {part.name!r}: not a name", f"letters, digits and _; {EXAMPLE}")
    if part.name in ("source", "target"):
        raise MrtError(f"{who}.name = {part.name!r}: the name of a domain", f"take another; {EXAMPLE}")
    known = [key for key in dir(base) if not key.startswith("_")]
    for key, value in vars(part).items():
        if key.startswith("_") or not callable(value) or key in ("settings",):
            continue
        if key in known:
            wanted = inspect.signature(getattr(base, key)).parameters
            try:
                inspect.signature(value).bind(*wanted)
            except TypeError:
                asked = f"{key}({', '.join(wanted)})"
                raise MrtError(f"{who}.{key} is called as {asked}", EXAMPLE) from None
            continue
        guess = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        if guess:
            raise MrtError(
                f"{who}.{key}: nothing calls it: did you mean {guess[0]!r}?",
                f"names of a part's own helpers begin with _; {EXAMPLE}",
            )
    if not part.stages:
        raise MrtError(f"{who} does not say in which stages it takes part", f'stages = ("teach",); {EXAMPLE}')
    _check_names(f"{who}.stages", part.stages, STAGES)
    if part.settings is not None:
        section = part.settings
        for reach in (section.reaches, *section.reaches_of.values()):
            _check_names(f"{name}: {section.__name__}.reaches", reach, KINDS)


def _check_names(where: str, names: Any, known: Sequence[str]) -> None:
    if isinstance(names, str) or not set(names) <= set(known):
        raise MrtError(f"{where} = {names!r}: not a tuple of such names", f"there are: {', '.join(known)}")
