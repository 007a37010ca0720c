"""Names of strangers, shown: no control characters in terminals, no markup in pages."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt.plain import markdown, markdown_code, one_line, visible

EVIL = [
    "a|b",
    "`code` *bold* _soft_ ~~gone~~",
    "<script>alert(1)</script>",
    "[click](https://evil.example)",
    "![pixel](https://evil.example/a.png)",
    "www.evil.example",
    "a\\|b\\",
    "# head",
    "1. one",
    "- item",
    "---",
    "two\nlines",
    "&lt;b&gt;",
    "[1]: https://evil.example",
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("ok\rmrt: done", r"ok\x0dmrt: done"),
        ("a\u202egpj.b", r"a\u202egpj.b"),
        ("\x9b2J", r"\x9b2J"),
        ("bell\a", r"bell\x07"),
        ("half \udcff", r"half \udcff"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("two\nlines\tand é 犬 👨‍👩‍👧", "two\nlines\tand é 犬 👨‍👩‍👧"),
    ],
)
def test_what_would_act_on_a_terminal_is_shown(text, shown):
    assert visible(text) == shown
    assert one_line(text) == shown.replace("\n", "\\n").replace("\t", "\\t")


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_control_character_is_left(text):
    shown = visible(text)
    shown.encode()
    assert all(letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs") for letter in shown)
    assert visible(shown) == shown and "\n" not in one_line(text)


def unescaped(text: str) -> str:
    """What Markdown shows of an escaped text."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))


@pytest.mark.parametrize("text", EVIL)
def test_markdown_shows_the_text_and_nothing_else(text):
    made = markdown(text)
    assert unescaped(made) == text.replace("\n", " ")
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", made)  # what is left can mean something
    assert not re.search(r"[|`*<>~\[\]]|https?:|www\.|^(#|- |1\.|---)", plain)


def test_numbers_and_settings_stay_readable():
    for text in ("38.0 [36.2, 40.7]", "engine.eval_every", "-", "+6.2", "synthetic-foggy (beta 0.1)"):
        assert markdown(text, begins=False) == text
    assert markdown("38.0 points") == "38.0 points"
    assert markdown("[1](x)") == r"\[1\](x)"


def test_code_ends_where_it_ends():
    made = markdown_code("mrt adapt '```\n# no heading'").split("\n")
    assert made[0] == made[-1] == "````" and markdown_code("mrt eval") == "```\nmrt eval\n```"
