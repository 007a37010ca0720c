"""Safetensors files that tell whether they are still what was written.

Beside the tensors such a file holds a description in JSON, the sha256 of that text, and the sha256 of the
text with every tensor's name, type, shape and bytes. A reader of the description alone checks the first, a
reader of the tensors both. Files of formats before :data:`SEALED` have a description without these, or none.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mrt.errors import MrtError
from mrt.models.digest import SHA256, TEXT, TEXT_SHA256, changed, content_digest
from mrt.models.pretrained import State, require_finite
from mrt.plain import is_text

FORMAT = 3  # of the description; 1 had only one kind of detector, 2 no checksums
SEALED = 3  # the first format with checksums
DEEPEST = 20  # levels of lists and objects in a description
AS_WRITTEN = "Take the file as mrt wrote it: copy it again from where it came from."


def pack(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file.

    Args:
        description: anything that JSON can hold, with "format".
        tensors: by name.

    Raises:
        MrtError: a number of the description is not finite.
    """
    content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(description)
    if (found := _unfit(description)) is not None:
        raise MrtError(
            f"{found[0]} = {found[1]}: {found[2]}, so it cannot be stored with weights",
            "Store numbers, texts, lists and mappings of them.",
        )
    metadata = {TEXT: text, TEXT_SHA256: _text_digest(text), SHA256: content_digest(text, content)}
    return ordered(save(content, metadata))


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ordered(content: bytes) -> bytes:
    """The same file with its metadata sorted by name, which not every version of safetensors does."""
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end])
    names = list(head["__metadata__"])
    if names == sorted(names):
        return content
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def is_sealed(path: Path) -> bool:
    """Whether a file has a description, or a part of what belongs to one. False if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool({TEXT, TEXT_SHA256} & set(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError):
        return False


def read_description(path: Path) -> dict[str, Any] | None:
    """A file's description, checked against its sha256 but not against the tensors; None if it has none.

    Raises:
        MrtError: no such file; it is no safetensors file; the description has changed since it was written,
            is no JSON object, has a number that is not finite, or is of a newer format.
    """
    return _described(path, _metadata(path))[0]


def read_sealed(path: Path) -> tuple[dict[str, Any] | None, State]:
    """A file's description (None if it has none) and its tensors, whole as they were written.

    Raises:
        MrtError: as :func:`read_description`; or the tensors have changed since, or one is not finite.
    """
    described, text, digest = _described(path, _metadata(path))
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error
    if digest is not None and content_digest(text, state) != digest:
        raise changed(path, "its tensors")
    require_finite(state, str(path))
    return described, state


def _metadata(path: Path) -> dict[str, str]:
    path = Path(path)
    if not path.is_file():
        raise MrtError(f"{path}: no such weights file", "Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> MrtError:
    reason = (str(error).splitlines() or [""])[0]
    return MrtError(f"{path} is not a weights file of this project: {reason}", "Get the file again.")


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any] | None, str, str | None]:
    """The description, its text, and the sha256 that the content must have; None: it has none of these."""
    text, of_text, of_all = (metadata.get(name) for name in (TEXT, TEXT_SHA256, SHA256))
    if text is None:
        if of_text is not None:
            raise changed(path, "the names of its metadata")
        return None, "", None
    digests = [digest for digest in (of_text, of_all) if digest is not None]
    if len(digests) == 1 or (of_text is not None and of_text != _text_digest(text)):
        raise changed(path, "its class names and settings")
    described = _parsed(text, path)
    number = described.get("format")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise MrtError(
            f"{path} has no description of its detector: format is {shown(number)}, not a whole number of at "
            "least 1",
            "Name a weights file that mrt has written.",
        )
    if number > FORMAT:
        raise MrtError(
            f"{path} is of format {shown(number)}, which a newer mrt has written; this one knows {FORMAT}",
            "Update mrt.",
        )
    if number >= SEALED and not digests:
        raise changed(path, "the names of its metadata")
    return described, text, of_all


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise MrtError(
            f"{path} is not a weights file of this project: its description is no JSON: {reason}", AS_WRITTEN
        ) from error
    if not isinstance(described, dict):
        raise MrtError(
            f"{path} has no description of its detector: it is {shown(described)}, not an object",
            "Name a weights file that mrt has written.",
        )
    if (found := _unfit(described)) is not None:
        raise MrtError(f"{path}: {found[0]} = {found[1]}: {found[2]}", AS_WRITTEN)
    return described


def _unfit(described: Any) -> tuple[str, str, str] | None:
    """The first entry that is not finite, nested too deeply or no text: place, value and what is wrong."""
    left: list[tuple[str, Any, int]] = [("", described, 0)]
    while left:
        place, value, depth = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return place, shown(value), "not a finite number"
        if isinstance(value, int) and abs(value) >= 2**63:
            return place, shown(value), "not a number of 64 bits"
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        if any(isinstance(text, str) and not is_text(text) for text in texts):
            return place, shown(value), "not a text that can be written"
        if depth > DEEPEST:
            return place[:80], "...", "nested too deeply"
        if isinstance(value, dict):
            left += [(f"{place}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(f"{place}[{index}]", item, depth + 1) for index, item in enumerate(value)]
    return None


def is_name(text: Any) -> bool:
    """Whether something is a text that can name a class: not blank, without control characters."""
    if not isinstance(text, str) or not text.strip():
        return False
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def shown(value: Any) -> str:
    """A value for an error message, cut to a readable length."""
    try:
        text = "missing" if value is None else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
