"""Broken inputs for parsers, many a second and always the same for a seed, and what becomes of each.

:class:`Mutator` changes a good input in its structure (JSON, YAML, XML: values replaced, removed, repeated,
renamed), in its lines, in its bytes, or by stretching it; archives are changed in their headers. :func:`run`
gives such inputs to a parser and counts what happens. The strategies of ``tests/data/convert/mutations.py``
do the same for hypothesis, which shrinks what it finds but is many times slower; values and edits are shared.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "convert"))

from mutations import (
    EMPTY,
    ENCODINGS,
    HOW,
    VALUES,
    WORDS,
    XML_HEADS,
    edited,
    json_text,
    node_at,
    places_in,
    xml_text,
    xml_tree,
    yaml_text,
)

from mrt.errors import MrtError

SECONDS, MEMORY = 5.0, 1 << 30  # that one input may take
ACCEPTED, REFUSED, TRACEBACK, HANG, TOO_MUCH = "accepted", "refused", "traceback", "hang", "memory"
BAD = (TRACEBACK, HANG, TOO_MUCH)
_STRETCH = (
    b" ",
    b"\n",
    b"a",
    b"9",
    b"[",
    b"{",
    b"/",
    b"a/",
    b"\\",
    b'"',
    b"\0",
    b"<a>",
    b"\xff",
    b",",
    b"0 ",
    b"- ",
    b"#\n",
    b"a.",
    b"a=",
    b"a:",
    b"&a ",
    b"\xed\xa0\x80",
    b"PK\x01\x02",
)
_STRETCHED = 100_000  # bytes: what takes time in proportion to their square is noticed
_SEPARATOR = re.compile(r"([ ,;\t=:]+)")
_SEPARATORS = (" ", ",", ";", "\t", "  ", ", ", "|", "", "\u00a0", "\u3000")
_ENDS = ("\n", "\r\n", "\r", "\n\n", "\x85", "\u2028", "\x0c", "\0", " ", "")
_WRITERS: dict[str, Callable[[Any, bool], str]] = {".json": json_text, ".yaml": yaml_text, ".xml": xml_text}
_WALL = 8 << 30  # of memory that is asked for, used or not: Pillow asks for what a file claims to hold
_KEPT = 20  # failures of one kind of place that are kept with their input


class Mutator:
    """Broken versions of a good input.

    Args:
        suffix: what it is: ".json", ".yaml", ".xml", ".zip", ".tgz", or anything else for text or bytes.
        binary: it has no lines.
    """

    def __init__(self, good: bytes, suffix: str, binary: bool = False) -> None:
        self.good, self.suffix = good, suffix
        self.binary = binary or suffix in (".zip", ".tgz")
        self._tree: Any = None
        self._paths: list[tuple] = []
        if suffix in _WRITERS:
            self._tree = _tree_of(good.decode(), suffix)
            self._paths = list(places_in(self._tree))
        # where an archive says what is in it, changes tell most
        self._marks = (
            [match.start() for match in re.finditer(rb"PK[\x01-\x07]{2}", good)] if suffix == ".zip" else []
        )
        self._unzipped = gzip.decompress(good) if suffix == ".tgz" else b""

    def make(self, rng: Random) -> bytes:
        """One broken input."""
        if rng.random() < 0.01:
            return _stretched(self.good, rng)
        if self.suffix == ".tgz":
            if rng.random() < 0.2:
                return _edited_bytes(self.good, rng)
            return gzip.compress(_edited_headers(self._unzipped, rng, range(0, len(self._unzipped), 512)), 1)
        if self._marks and rng.random() < 0.8:
            return _edited_headers(self.good, rng, self._marks)
        if self.binary:
            return _edited_bytes(self.good, rng)
        if self._paths and rng.random() < 0.7:
            return self._edited_tree(rng)
        if rng.random() < 0.6:
            return _in_bytes(_edited_lines(self.good.decode(), rng), rng)
        return _edited_bytes(self.good, rng)

    def _edited_tree(self, rng: Random) -> bytes:
        tree = self._tree
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            path, how = rng.choice(self._paths), rng.choice(HOW)
            new: Any = None
            if how == "copy":
                how, new = "replace", node_at(self._tree, rng.choice(self._paths))
            elif how in ("replace", "repeat"):
                new = _value(rng)
            tree = edited(tree, path, how, new, rng.choice(WORDS) or "x")
        text = _WRITERS[self.suffix](tree, rng.random() < 0.8)
        if self.suffix == ".xml" and rng.random() < 0.2:
            text = rng.choice(XML_HEADS) + text
        return _in_bytes(text, rng)


def _tree_of(text: str, suffix: str) -> Any:
    if suffix == ".xml":
        return xml_tree(ElementTree.fromstring(text))
    if suffix == ".yaml":
        import yaml

        return yaml.safe_load(text)
    return json.loads(text)


def _value(rng: Random, depth: int = 0) -> Any:
    """A value that no reader expects."""
    kind = rng.random()
    if kind < 0.45 or depth > 2:
        return rng.choice(VALUES)
    if kind < 0.7:
        return rng.choice(WORDS)
    if kind < 0.8:
        return rng.choice((rng.randint(-3, 50), rng.uniform(-50, 100), 2.0 ** rng.randint(-1080, 1023)))
    if kind < 0.82:
        return "a" * rng.choice((300, 5000, 70_000))
    if kind < 0.91:
        return [_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(WORDS): _value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def _in_bytes(text: str, rng: Random) -> bytes:
    name = rng.choice(ENCODINGS) if rng.random() < 0.1 else "utf-8"
    return text.encode(name, "surrogatepass" if name.startswith("utf") and name != "utf-7" else "replace")


def _edited_lines(text: str, rng: Random) -> str:
    """Lines doubled, cut, joined, moved; words swapped, added, missing or strange."""
    lines = [_SEPARATOR.split(line) for line in text.splitlines()] or [[""]]
    end = "\n"
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.randrange(len(lines))
        line = lines[row]
        at, other = (rng.randrange(0, len(line), 2) for _ in range(2))
        kind = rng.randrange(12)
        if kind < 3:
            line[at] = str(rng.choice(WORDS))
        elif kind == 3:
            line[at], line[other] = line[other], line[at]
        elif kind == 4:
            line[at:at] = [str(rng.choice(WORDS)), rng.choice(_SEPARATORS)]
        elif kind == 5:
            lines[row] = [*line[:at], *line[at + 2 :]] or [""]
        elif kind == 6:
            line[1::2] = [rng.choice(_SEPARATORS)] * len(line[1::2])
        elif kind == 7:
            lines[row:row] = [list(line) for _ in range(rng.choice((1, 2, 5)))]
        elif kind == 8:
            lines[row] = "".join(line)[: rng.randrange(len("".join(line)) + 1)].split("\uffff")
        elif kind == 9:
            end = rng.choice(_ENDS)
        elif kind == 10:
            lines.insert(rng.randrange(len(lines) + 1), [str(rng.choice(WORDS))])
        else:
            lines.append(lines.pop(row))
    return end.join("".join(line) for line in lines) + rng.choice((end, "", "\x1a"))


def _edited_bytes(content: bytes, rng: Random) -> bytes:
    """Bytes flipped, set, cut, moved, repeated or inserted."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randint(0, len(content)), rng.choice((1, 1, 2, 3, 8, 40))
        kind = rng.randrange(11)
        if kind < 3:
            content = _one_byte(content, at, rng)
        elif kind == 3:
            content = content[:at] + rng.randbytes(length) + content[at + length :]
        elif kind == 4:
            content = content[:at] + content[at + length :]
        elif kind == 5:
            content = rng.choice((content[:at], content[at:], content[at:] + content[:at]))
        elif kind == 6:
            content = content[:at] + rng.randbytes(rng.randint(1, 6)) + content[at:]
        elif kind == 7:
            content = content[:at] + rng.choice((b"\0", b"\xff")) * length + content[at + length :]
        elif kind == 8:
            content = content[:at] + content[at : at + length] * 3 + content[at + length :]
        elif kind == 9:
            content = content[:at] + _in_bytes(str(rng.choice(WORDS)), rng) + content[at:]
        elif rng.random() < 0.1:
            content = rng.choice(EMPTY)
    return content


def _one_byte(content: bytes, at: int, rng: Random) -> bytes:
    if at >= len(content):
        return content
    return (
        content[:at]
        + bytes([rng.choice((content[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))])
        + content[at + 1 :]
    )


def _edited_headers(content: bytes, rng: Random, marks: Any) -> bytes:
    """One to four bytes of an archive's headers changed; of a tar's, the checksum is made to fit again."""
    tar = isinstance(marks, range)
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.choice(marks)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = start + rng.randrange(512 if tar else 60)
            if tar and rng.random() < 0.6:  # mode, sizes, kind, magic, prefix: what is no name
                at = start + rng.choice((*range(100, 160), 156, 156, 156, *range(257, 265), *range(345, 512)))
                word = rng.choice(
                    (
                        b"S",
                        b"L",
                        b"K",
                        b"x",
                        b"g",
                        b"1",
                        b"2",
                        b"5",
                        b"7",
                        b"\x80",
                        b"\xff",
                        b"7777777",
                        b"\0",
                    )
                )
                content = content[:at] + word + content[at + len(word) :]
            else:
                content = _one_byte(content, at, rng)
        if tar and rng.random() < 0.9:
            header = content[start : start + 512]
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            content = content[: start + 148] + b"%06o\0 " % total + content[start + 156 :]
    return content


def _stretched(content: bytes, rng: Random) -> bytes:
    """A hundred thousand bytes of one kind somewhere in it."""
    piece, at = rng.choice(_STRETCH), rng.randint(0, len(content))
    return content[:at] + piece * (_STRETCHED // len(piece)) + content[at:]


@dataclass
class Counts:
    """What became of the inputs given to one parser.

    Attributes:
        failures: where it happened -> how often, the first inputs (as Latin-1 text) and what was raised.
    """

    parser: str
    seed: int
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def bad(self) -> int:
        """Tracebacks, hangs and inputs that took too much memory."""
        return sum(self.outcomes.get(kind, 0) for kind in BAD)

    def tell(self) -> str:
        """One line; and for each kind of failure its first input."""
        said = ", ".join(f"{self.outcomes[kind]} {kind}" for kind in sorted(self.outcomes))
        rate = self.inputs / max(self.seconds, 1e-9)
        lines = [f"{self.parser}: seed {self.seed}, {self.inputs} inputs: {said} ({rate:.0f} a second)"]
        for place, found in self.failures.items():
            lines.append(
                f"  {found['count']} x {place}: {found['raised'][:300]}\n    {found['inputs'][0][:400]!r}"
            )
        return "\n".join(lines)


class _TooLong(BaseException):
    """The time that an input may take is over."""


def run(
    parser: str, body: Callable[[bytes], str | None], mutator: Mutator, count: int, seed: int = 0
) -> Counts:
    """Give ``count`` broken inputs to a parser, each with a limit of time and of memory.

    Args:
        body: reads the content; returns an outcome other than "accepted", if it was one. ``MrtError`` counts
            as "refused"; what else it raises is a failure.
    """
    counts = Counts(parser, seed)
    outcomes: Counter[str] = Counter()
    begin = time.monotonic()
    with _limits():
        for number in range(count):
            content = mutator.make(Random(f"{parser} {seed} {number}"))
            outcome, error = _outcome(body, content)
            outcomes[outcome] += 1
            if error is not None:
                _keep(counts, outcome, error, content)
    counts.inputs, counts.outcomes, counts.seconds = count, dict(outcomes), time.monotonic() - begin
    return counts


def _outcome(body: Callable[[bytes], str | None], content: bytes) -> tuple[str, BaseException | None]:
    before = _peak()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        outcome, error = body(content) or ACCEPTED, None
    except MrtError as refused:
        outcome, error = (REFUSED, None) if refused.message.strip() else (TRACEBACK, refused)
    except _TooLong as late:
        outcome, error = HANG, late
    except MemoryError as full:
        outcome, error = TOO_MUCH, full
    except Exception as broken:
        outcome, error = TRACEBACK, broken
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _peak() - before
    if grown > MEMORY >> 4:  # so that it does not hide what the next ones take
        Path("/proc/self/clear_refs").write_text("5")
    if error is None and grown > MEMORY:
        return TOO_MUCH, MemoryError(f"{grown} bytes")
    return outcome, error


def _peak() -> int:
    """The most memory, in bytes, that this process has held since that was last forgotten."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@contextmanager
def _limits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _WALL, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)


def _keep(counts: Counts, outcome: str, error: BaseException, content: bytes) -> None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "soak" not in frame.filename]
    ours = next(
        (frame for frame in reversed(frames) if "/mrt/" in frame.filename), frames[-1] if frames else None
    )
    where = f"{Path(ours.filename).name}:{ours.lineno}" if ours else "?"
    found = counts.failures.setdefault(
        f"{outcome} {type(error).__name__} at {where}", {"count": 0, "raised": "", "inputs": []}
    )
    found["count"] += 1
    found["raised"] = found["raised"] or str(error)[:1000]
    if len(found["inputs"]) < _KEPT:
        found["inputs"].append(content[:20_000].decode("latin-1"))


def report(counts: Counts) -> None:
    """Write the counts into the folder that ``MRT_SOAK_REPORT`` names, if it names one."""
    folder = os.environ.get("MRT_SOAK_REPORT")
    if not folder:
        return
    name = re.sub(r"\W+", "-", counts.parser)
    place = Path(folder) / f"parsers-{name}-{hashlib.sha256(counts.parser.encode()).hexdigest()[:4]}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(asdict(counts), indent=1), encoding="utf-8")
