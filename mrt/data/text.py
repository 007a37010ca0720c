"""Decoding text files, which tools write in any Unicode encoding. Needs no torch."""

from __future__ import annotations

import codecs

# the longer mark first: UTF-32's little-endian one begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(content: bytes) -> str:
    """The Unicode encoding of a text.

    By its byte order mark, or by the zero bytes that UTF-16 puts beside plain letters; else UTF-8.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    head = content[:4]
    if len(head) >= 2 and 0 in head[:2] and any(head[:2]):
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8"


def decode_text(content: bytes) -> str:
    """The text of UTF-8 or UTF-16 bytes, without a byte order mark.

    Raises:
        UnicodeDecodeError: it is in another encoding, or cut within a character.
    """
    return content.decode(encoding_of(content))


def decode_head(content: bytes) -> str:
    """As :func:`decode_text`, of a file's first bytes, with a mark for what cannot be read.

    Enough to tell what kind of file it is.
    """
    return content.decode(encoding_of(content), "replace")
