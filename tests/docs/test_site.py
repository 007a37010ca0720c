"""The documentation as a site: it builds without a warning, and shows what the pages say."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, blocks

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("material", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The whole site, built strictly: a dead link, a page that is in no menu or a name that is gone fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_tutorials_are_shown_as_they_are_run(site, page):
    shown = text_of(site / "tutorials" / f"{page.stem}.html")
    for block in blocks(page.read_text(encoding="utf-8")):
        assert block.text.strip() in shown, block.text


def test_front_page_is_the_readme(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "without any labels of them" in text_of(site / "index.html")
    assert 'href="tutorials/own-camera.html"' in page and 'src="images/before-after.webp"' in page
    assert (site / "images" / "before-after.webp").is_file()


def test_nothing_is_loaded_from_elsewhere(site):
    """Pages open without a network: links may lead out, scripts, styles, fonts and pictures do not."""
    for page in site.rglob("*.html"):
        if "report-seed0" in page.name:
            continue
        loaded = re.findall(r'<(?:script|img)[^>]+src="([^"]+)"', page.read_text(encoding="utf-8"))
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|icon)"[^>]+href="([^"]+)"', page.read_text())
        assert [link for link in loaded if link.startswith(("http:", "https:", "//"))] == [], page


def test_api_pages_show_docstrings_and_settings(site):
    page = text_of(site / "api" / "mrt.html")
    assert ":func:" not in page and ":class:" not in page
    for words in ("mrt.api", "A detector that is ready to predict.", "to_supervision", "pretrain_source"):
        assert words in page
    assert "Multi-scale deformable attention" in text_of(site / "api" / "ops.html")
    settings = text_of(site / "api" / "settings.html")
    assert "teach.epochs" in settings and "steps between two updates of the teacher" in settings
