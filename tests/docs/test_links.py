"""Links of the repository's pages lead somewhere: to files that are there, and to headings that they have."""

from __future__ import annotations

import re

import pytest
from pages import DOCS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What a page's headings are called in links, by the rule of GitHub, which the site follows."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number, given = 0, name
        while given in found:
            number += 1
            given = f"{name}-{number}"
        found.add(given)
    return found


def dead_links(page: str, folder, own: set[str]) -> list[str]:
    dead = []
    for link in LINK.findall(CODE.sub("", page)):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        there = folder / path if path else None
        if there is not None and not there.exists():
            dead.append(link)
        elif anchor:
            names = own if there is None else anchors(there.read_text(encoding="utf-8"))
            if anchor not in names:
                dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page):
    text = page.read_text(encoding="utf-8")
    assert dead_links(text, page.parent, anchors(text)) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A `b`: c\n```\n# no heading\n```\n")
    page = "# Here\n[x](there.md#a-b-c) [x](#here) [x](http://x) `[x](no)`\n"
    page += "[x](no.md) [x](there.md#no-heading) [x](#no)"
    assert dead_links(page, tmp_path, anchors(page)) == ["no.md", "there.md#no-heading", "#no"]
