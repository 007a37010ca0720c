"""Pages of documentation as tests use them: their commands, the files they say to save, their links.

What a tutorial's test changes is all in this file, so that the commands stay as they are written:

- presets take an epoch of a step, and but for ``own`` a tiny network that starts from nothing
  (short_presets.py);
- rendered sets are small (``MORE``).

A block after ``<!-- not run: WHY -->`` is not run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- not run: [^\n]*? -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SAVED = re.compile(r"[Ss]ave this as `([^`]+)`[^`]*\Z")
SMALL = ["--train", "4", "--val", "2", "--test", "2", "--size", "96x64", "--workers", "1"]
MORE = {("prepare-data", "synthetic"): SMALL}


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, the file that it is to be saved as, and whether it is run."""

    language: str
    text: str
    file: str | None
    runs: bool

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block, each as words."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """The blocks of code on a page, in order."""
    found = []
    for match in BLOCK.finditer(page):
        saved = SAVED.search(page[: match.start()])
        found.append(Block(match[2], match[3], saved and saved[1], match[1] is None))
    return found


def as_run(words: list[str]) -> list[str]:
    """What a test runs of a command: the same words, and sizes where sets are rendered."""
    assert words[0] == "mrt", words
    return [*words[1:], *MORE.get(tuple(words[1:3]), [])]
