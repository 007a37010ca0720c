"""Checksums by which a file that is read back is known to be what was written.

A JSON file holds its own: the sha256 of everything else in it. A binary file ends with a seal: JSON with the
sha256 of what comes before it and facts about the content, which can be read without the content. A file that
grows (a log) has the length and the sha256 of what was in it at some moment on record elsewhere
(:class:`Prefix`).
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

KEY = "sha256"  # of a JSON file
CHECKSUM = "checksum"  # of a record within one
MAGIC = b"mrt-seal"
_TAIL = struct.Struct("<II8s")  # length and crc32 of the JSON, magic
BLOCK = 1 << 20


class Broken(ValueError):
    """A file is not what was written."""


def json_digest(values: Mapping[str, Any], key: str = KEY) -> str:
    """sha256 of a JSON object without its own, which is under ``key``."""
    rest = {name: value for name, value in values.items() if name != key}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed_json(values: Mapping[str, Any]) -> str:
    """The text of a JSON file with its checksum."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != KEY}))
    return json.dumps({**plain, KEY: json_digest(plain)}, indent=2) + "\n"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for a JSON file, with its checksum."""
    plain = json.loads(json.dumps(dict(record)))
    return {**plain, CHECKSUM: json_digest(plain, CHECKSUM)}


def take_checksum(record: Any) -> bool:
    """Take the checksum out of a record that was read; False if it does not fit. Older records have none."""
    if not isinstance(record, dict) or CHECKSUM not in record:
        return True
    fits = record[CHECKSUM] == json_digest(record, CHECKSUM)
    del record[CHECKSUM]
    return fits


def write_seal(file: BinaryIO, content: bytes | memoryview, facts: Mapping[str, Any]) -> None:
    """Write content and its seal to a file."""
    text = json.dumps({**facts, "bytes": len(content), KEY: hashlib.sha256(content).hexdigest()}).encode()
    file.write(content)
    file.write(text)
    file.write(_TAIL.pack(len(text), zlib.crc32(text), MAGIC))


def read_seal(path: Path) -> dict[str, Any] | None:
    """The facts in a file's seal, without a look at its content; None if it has no seal.

    Raises:
        Broken: the seal itself is damaged.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL.size))
        tail = file.read()
        if len(tail) < _TAIL.size or _TAIL.unpack(tail)[2] != MAGIC:
            return None
        length, crc, _ = _TAIL.unpack(tail)
        if length > size - _TAIL.size:
            raise Broken("its checksum is damaged")
        file.seek(size - _TAIL.size - length)
        text = file.read(length)
    return _facts(text, crc, size - _TAIL.size - length)


def _facts(text: bytes, crc: int, content: int) -> dict[str, Any]:
    if zlib.crc32(text) != crc:
        raise Broken("its checksum is damaged")
    facts = json.loads(text)
    if not isinstance(facts, dict) or facts.get("bytes") != content:
        raise Broken("it is not as long as it was")
    return facts


def open_seal(content: bytes) -> tuple[memoryview, dict[str, Any] | None]:
    """The content of a sealed file, checked, and the facts in its seal; None for a file without one.

    Raises:
        Broken: it is not what was written.
    """
    if len(content) < _TAIL.size or content[-len(MAGIC) :] != MAGIC:
        return memoryview(content), None
    length, crc, _ = _TAIL.unpack(content[-_TAIL.size :])
    end = len(content) - _TAIL.size - length
    if end < 0:
        raise Broken("its checksum is damaged")
    facts = _facts(content[end : end + length], crc, end)
    inside = memoryview(content)[:end]
    if hashlib.sha256(inside).hexdigest() != facts.get(KEY):
        raise Broken("its content is not what was written")
    return inside, facts


@dataclass(frozen=True)
class Prefix:
    """The beginning of a growing file: its length in bytes and its sha256."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Prefix:
        """All that is in a file now; of a file that is not there, nothing."""
        digest, size = hashlib.sha256(), 0
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    size += len(block)
        return cls(size, digest.hexdigest())

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> Prefix | None:
        """What :meth:`to_dict` gave; None for anything else."""
        if not isinstance(values, dict) or type(values.get("bytes")) is not int or values["bytes"] < 0:
            return None
        return cls(values["bytes"], str(values.get("sha256")))

    def check(self, path: Path, whole: bool = False) -> str | None:
        """What is wrong with the beginning of a file; None if it is what it was.

        Args:
            whole: nothing may have been added since.
        """
        digest, left = hashlib.sha256(), self.bytes
        if not path.is_file():
            return "is missing" if left else None
        with path.open("rb") as file:
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
            more = whole and bool(file.read(1))
        if left:
            return f"is cut short: {self.bytes - left} of {self.bytes} bytes are left"
        if digest.hexdigest() != self.sha256:
            return "is not what was written"
        return "has grown since the run was over" if more else None
