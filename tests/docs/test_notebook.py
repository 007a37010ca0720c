"""The notebook of the camera tutorial, cell by cell, with presets that take seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import DOCS
from short_presets import short_presets
from test_tutorials import _film, rendered  # noqa: F401

NOTEBOOK = DOCS / "tutorials" / "own-camera.ipynb"


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path_factory, somewhere):
    from mrt.config import reading

    presets = short_presets(reading.PRESETS, tmp_path_factory.mktemp("presets"), tiny=True)
    monkeypatch.setattr(reading, "PRESETS", presets)


def cells(kind: str) -> list[str]:
    """The texts of the cells of a kind ("code", "markdown")."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert all(not cell.get("outputs") for cell in content["cells"]), "it is kept without results"
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_every_cell_runs(rendered, somewhere, capsys):  # noqa: F811
    _film(sorted((rendered / "images" / "train").iterdir()), Path("clip.mp4"))
    names: dict = {}
    for number, text in enumerate(cells("code")):
        exec(compile(text, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "split by time: val is" in said
    assert Path("assess/assess.html").is_file() and names["page"].is_file()
    assert names["better"].name == "camera-corrected" and said.count("small-source") >= 1


def test_it_follows_the_tutorial():
    steps = re.findall(
        r"(?m)^## (\d\. .*)$", (DOCS / "tutorials" / "own-camera.md").read_text(encoding="utf-8")
    )
    assert re.findall(r"(?m)^## (\d\. .*)$", "\n".join(cells("markdown"))) == [
        step.replace("the 50 most telling", "the most telling") for step in steps
    ]
