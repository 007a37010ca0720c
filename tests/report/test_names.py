"""Names of classes, sets and runs that strangers chose, in figures, pages and model cards."""

from __future__ import annotations

import re
from types import SimpleNamespace
from xml.etree import ElementTree

import jinja2
import pytest

from mrt.errors import MrtError
from mrt.export.card import model_card
from mrt.report import figures, looking
from mrt.report.collect import load_runs
from mrt.report.page import Code, Facts, Grid, Headline, Note, Plot, Section, Table, write_page

EVIL = "<script>alert(1)</script> a|b `c` [d](https://evil.example) $x^$ \x1b[31m\u202e--> \n# e"
SIZES = {"short_side": 8, "max_size": 8}


def meaningful(text: str) -> str:
    """Markdown without what is escaped."""
    return re.sub(r"\\[!-/:-@\[-`{-~]", "", text)


def test_figures_of_any_names_are_drawn_and_are_xml(tmp_path):
    names = [EVIL, "_hidden", "$a$ $b_{", "\x00\x0b\ud800", "{x}", "%s", "\\frac", ""]
    figure = figures.bars(names, {EVIL: [1.0] * 8, "$y": [2.0] * 8}, EVIL)
    found = figures.publish(figure, tmp_path, "names")
    for text in ((tmp_path / "names.svg").read_text(), found.inline.replace("xlink:", "")):
        ElementTree.fromstring(text)
        assert "<script" not in text and "\x1b" not in text and "\x00" not in text


def test_a_page_of_evil_names_has_no_markup_of_theirs(tmp_path):
    blocks = [
        *(Note(EVIL), Note(EVIL, warning=True), Code(EVIL + "\n```\n"), Facts(EVIL, [(EVIL, EVIL)])),
        Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], strong=[0]),
        Plot("p", EVIL, EVIL, "<svg></svg>", tmp_path / "p.png"),
        Grid("g", EVIL, EVIL, [EVIL], [[SimpleNamespace(data="data:,", alt=EVIL)]], tmp_path / "g.png"),
    ]
    paths = write_page(
        tmp_path, EVIL, EVIL, [Headline(EVIL, [(EVIL, EVIL)], EVIL)], [Section("s", EVIL, blocks)]
    )
    page, text = (path.read_text() for path in paths)
    assert "<script" not in page
    for content in (page, text):
        assert "\x1b" not in content and "\u202e" not in content
    outside = meaningful(re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE))
    assert "<script" not in outside and outside.count("![") == 2 and "https:" not in outside
    assert not re.search(r"^# e", outside, re.MULTILINE)
    assert "`" not in outside and re.search(r"^````\n", text, re.MULTILINE)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3}


def test_a_model_card_of_evil_names_has_no_markup_of_theirs():
    part = {"name": EVIL, "domain": EVIL, "details": {EVIL: EVIL}, "sha256": {EVIL: EVIL}}
    run = {
        "command": "adapt",
        "data": {"source": part, EVIL: part},
        "environment": {"mrt": EVIL, "commit": EVIL},
    }
    item = {
        "network": "teacher",
        "data": EVIL,
        "split": EVIL,
        "domain": EVIL,
        "sha256": EVIL,
        "metrics": {"AP": 1.0},
    }
    text = model_card(
        {
            "classes": [EVIL, "car"],
            "thresholds": {"values": {EVIL: 0.5, "car": 0.25}},
            "preprocessing": SIZES,
            "network": {"num_queries": 3, "backbone": EVIL},
            "source": {"run": run, "evaluations": [item], "damaged evaluations": [EVIL]},
            "licence": "none",
        },
        EVIL,
    )
    assert "\x1b" not in text and "\u202e" not in text
    code = re.findall(r"^```python\n.*?^```$", text, re.DOTALL | re.MULTILINE)
    assert len(code) == 2
    for block in code:
        compile(block[len("```python\n") : -3], "card", "exec")
    outside = meaningful(re.sub(r"^```python\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    assert "<script" not in outside and "https:" not in outside and "`c`" not in outside
    assert {line.count("|") for line in outside.splitlines() if line.startswith("|")} == {6, 7}


def test_templates_escape_every_text():
    """A new place in the Markdown template has to say how its text is escaped."""
    source = jinja2.PackageLoader("mrt.report").get_source(jinja2.Environment(), "report.md.j2")[0]
    for place in re.findall(r"\{\{(.*?)\}\}", source):
        fixed = place.strip().startswith('"') or place.strip() == "bold"
        assert fixed or re.search(r"\| (text|cell|block|beside)\b", place), place


def test_runs_of_any_titles_are_told_apart(runs):
    folders = [runs / "source", runs / "fair", runs / "adapted"]
    found = load_runs(folders, ["a b", "a-b", "start"])
    study = SimpleNamespace(several=True, runs=found)
    assert [looking._prefix(study, run) for run in found] == ["a-b-1-", "a-b-2-", "the-run-start-"]
    assert [run.title for run in load_runs(folders[:2], ["x", "x"])] == [
        f"{runs.name}/source",
        f"{runs.name}/fair",
    ]
    with pytest.raises(MrtError, match="named twice"):
        load_runs([folders[0], folders[0] / "." / ".." / "source"])
