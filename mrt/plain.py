"""Texts with names in them that strangers chose (classes, files, data sets, runs), made safe to show.

Needs no torch.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

# What moves a terminal's cursor, changes its colours or turns the order of letters around: control
# characters except tab and newline, marks of writing direction, separators of lines, invisible spaces and
# tags, and halves of characters, which cannot be printed. Joiners stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MARKS = re.compile(r"[\\`*{}<>&~|]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is one
_BRACKETS = re.compile(r"[\[\]]")
_INTERVAL = re.compile(r"(\[[-+\d., ]*\])(?![(\[:])")  # of numbers; no link
_FIRST = re.compile(r"(\d*)([#+=.)-])(?=[-#=\s]|$)")  # begins a heading, a list or a rule
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp)(:)|\bwww(\.)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def visible(text: Any) -> str:
    """The text with what would act on a terminal, or hide, as visible escapes such as ``\\x1b``; newlines and
    tabs stay.
    """
    return _HIDDEN.sub(_escape, str(text))


def one_line(text: Any) -> str:
    """As :func:`visible`, with newlines and tabs as escapes too: for a name, which must not look like
    several lines.
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def is_text(text: str) -> bool:
    """Whether the text can be written: half a character (a lone surrogate), which JSON and the names of files
    may hold, cannot.
    """
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def quoted(path: Any) -> str:
    """A path or a name as one word of a command to type."""
    return shlex.quote(str(path))


def slug(text: str) -> str:
    """A name for files and anchors: letters and digits, in lower case, with hyphens between, or "run"."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split()) or "run"


def markdown(text: Any, begins: bool = True) -> str:
    """One line of Markdown that shows the text as it is: no markup, HTML, link or table comes from it.

    Args:
        begins: whether it stands at the beginning of a line, where some letters mean more than elsewhere.
    """
    text = " ".join(visible(text).split("\n")).strip()
    parts = _INTERVAL.split(text)
    shown = "".join(part if number % 2 else _marked(part) for number, part in enumerate(parts))
    return _FIRST.sub(r"\1\\\2", shown, count=1) if begins and _FIRST.match(shown) else shown


def markdown_code(text: Any) -> str:
    """A block of code with the text in it, whatever it holds."""
    text = visible(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}\n{text}\n{fence}"


def _marked(text: str) -> str:
    text = _MARKS.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), text)
    text = _BRACKETS.sub(lambda found: f"\\{found[0]}", text)
    return _ADDRESS.sub(_unlinked, text)


def _unlinked(found: re.Match[str]) -> str:
    """An address that GitHub would make a link, as plain text."""
    return f"{found[1]}\\:" if found[1] else f"{found[0][:-1]}\\."


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
