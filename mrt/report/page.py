"""Writes sections of text, tables and figures as one self-contained HTML file, and as a Markdown file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mrt.files import write_text
from mrt.plain import markdown, markdown_code, visible

CELL_WIDTH = 640  # largest width of a picture in the page, in pixels; the file in figures/ has full size

# Abbreviations that a page explains where a pointer rests on them.
SHORT = {
    "AP50": "average precision in per cent, mean of the classes; a box counts as found from IoU 0.5 on",
    "AP75": "the same from IoU 0.75 on",
    "AP": "the mean of that over IoU 0.5, 0.55, ... 0.95 (COCO's figure)",
}


@dataclass(frozen=True)
class Note:
    """A paragraph; ``warning`` makes it stand out."""

    text: str
    warning: bool = False
    kind: str = "note"


@dataclass(frozen=True)
class Table:
    """Rows of texts under their headings; all but the first ``text_columns`` columns are numbers.

    ``strong``: rows printed bold.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    strong: Sequence[int] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Plot:
    """A figure as inline SVG and as a file; ``alt`` is a description for people who cannot see it."""

    name: str
    alt: str
    caption: str
    svg: str
    png: Path
    kind: str = "plot"


@dataclass(frozen=True)
class Cell:
    """One picture of a grid."""

    picture: Image.Image
    alt: str

    @property
    def data(self) -> str:
        """The picture as a data URI, JPEG, at most :data:`CELL_WIDTH` wide."""
        picture = self.picture.convert("RGB")
        if picture.width > CELL_WIDTH:
            size = CELL_WIDTH, round(picture.height * CELL_WIDTH / picture.width)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Grid:
    """Pictures in rows under the columns' titles, and the sheet of all of them as a file."""

    name: str
    alt: str
    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    png: Path
    kind: str = "grid"


@dataclass(frozen=True)
class Code:
    """Text as it is, such as a command."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Facts:
    """Names and values, folded away unless ``open``."""

    title: str
    rows: Sequence[tuple[str, str]]
    open: bool = False
    kind: str = "facts"


Block = Note | Table | Plot | Grid | Code | Facts


@dataclass
class Section:
    """A part of the report; ``name`` is its anchor."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Headline:
    """The numbers at the top of the page: a title, texts by name, and where they come from."""

    title: str
    figures: Sequence[tuple[str, str]]
    about: str


def write_page(
    folder: Path,
    title: str,
    lead: str,
    headlines: Sequence[Headline],
    sections: Sequence[Section],
    name: str = "report",
) -> tuple[Path, Path]:
    """Write ``NAME.html`` and ``NAME.md`` into the folder; returns both paths."""
    sections = [section for section in sections if section.blocks]
    content = {"title": title, "lead": lead, "headlines": headlines, "sections": sections, "folder": folder}
    paths = folder / f"{name}.html", folder / f"{name}.md"
    write_text(paths[0], _environment(True).get_template("report.html.j2").render(content))
    write_text(paths[1], _environment(False).get_template("report.md.j2").render(content))
    return paths


@cache
def _environment(for_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mrt.report"),
        autoescape=for_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
    )
    environment.filters["beside"] = lambda path, folder: Path(os.path.relpath(path, folder)).as_posix()
    environment.filters["text"] = markdown
    environment.filters["cell"] = partial(markdown, begins=False)
    environment.filters["block"] = markdown_code
    environment.filters["described"] = _described
    environment.filters["interval"] = _interval
    environment.globals["short"] = SHORT
    return environment


def _seen(value: Any) -> Any:
    """A text of the page with control characters as visible escapes; markup, such as a figure, as it is."""
    return visible(value) if type(value) is str else value


def _interval(value: str) -> tuple[str, str]:
    """A figure, and its interval if it has one: "+6.2 [5.1, 7.3]" in two."""
    figure, bracket, rest = visible(value).partition(" [")
    return figure, bracket.strip() + rest


def _described(svg: str, alt: str) -> str:
    """The SVG with a role and a name for screen readers."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(visible(alt))}"', 1)
