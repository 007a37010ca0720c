"""What the documentation site has beside the pages in docs/: a hook of mkdocs, named in mkdocs.yml.

The repository's README is the front page; CONTRIBUTING, SECURITY and CHANGELOG are pages, as they are. The
API's pages are made of docstrings (mkdocstrings), the list of settings of their declarations. Links are
written for the repository: those to pages and pictures outside docs/ lead to their place in the site, those
to code and folders become words.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where mrt is not installed
# Files of the repository that are pages of the site.
HOUSE = {"README.md": "index.md", **{f"{n}.md": f"{n}.md" for n in ("CONTRIBUTING", "SECURITY", "CHANGELOG")}}
# Pages of the API: title, words, and what each shows; after a colon only these names.
API = {
    "api/mrt.md": (
        "mrt",
        "Load, detect, train, measure, export. With examples: [mrt from Python](../python.md).",
        "mrt.api: load pretrain_source adapt evaluate export",
        "mrt.predict.detector.Detector",
        "mrt.predict.detections.Detections",
        "mrt.errors.MrtError",
        "mrt.engine.report.Watcher",
    ),
    "api/parts.md": (
        "Parts of the method",
        "What an idea of your own is made of: [a new idea in one file](../extending.md).",
        "mrt.parts.base",
    ),
    "api/detectors.md": (
        "Detectors",
        "What a detector of your own has to answer: [extending](../extending.md).",
        "mrt.models.interface",
    ),
    "api/evaluate.md": (
        "Evaluation",
        "COCO figures, intervals, kinds of mistakes: [evaluation](../evaluation.md).",
        "mrt.evaluate.coco",
        "mrt.evaluate.bootstrap",
        "mrt.evaluate.errors",
    ),
    "api/unlabelled.md": (
        "Without labels",
        "Signals of quality and choosing by them: [trust](../trust.md).",
        "mrt.selection: measure measure_all rank choose apply find_candidates images_for",
        "mrt.evaluate.unlabelled",
    ),
    "api/ops.md": (
        "The op",
        "Multi-scale deformable attention: [kernels](../kernels.md).",
        "mrt.ops",
    ),
}
SETTINGS = "api/settings.md"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):(?=<code)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here, and pictures that lie outside docs/."""
    from mkdocs.structure.files import File

    for name, page in HOUSE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page in API:
        files.append(File.generated(config, page, content=api_page(page)))
    files.append(File.generated(config, SETTINGS, content=settings_page()))
    pictures = set()
    for page in files.documentation_pages():
        text = page.content_string
        pictures |= {found for _, _, link in LINK.findall(text) if (found := _outside(page.src_uri, link))}
    for picture in sorted(pictures):
        files.append(File.generated(config, f"outside/{picture}", abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the repository's links into the site's."""
    if page.file.src_uri in API or page.file.src_uri == SETTINGS:
        return markdown
    pieces = CODE.split(markdown)
    # In code nothing is a link; the words of a link may be code, so such links are handled first.
    return _unfold(LINK.sub(lambda link: _rewritten(link, page.file.src_uri), _fold(pieces)), pieces)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Docstrings name things as ``:func:`name```; here that is the name."""
    return ROLE.sub("", html) if page.file.src_uri in API else html


def api_page(page: str) -> str:
    """An API page: its title, words, and the docstrings that it shows."""
    title, words, *shown = API[page]
    lines = [f"# {title}", "", words, ""]
    for what in shown:
        name, _, members = what.partition(": ")
        lines += [f"::: {name}", "    options:", "      show_root_toc_entry: true"]
        if members:
            lines += ["      members:", *(f"        - {member}" for member in members.split())]
        lines.append("")
    return "\n".join(lines)


def settings_page() -> str:
    """Every setting with its values, default and meaning, by section."""
    from mrt.config import Config
    from mrt.section import Section

    lines = [
        "# Settings",
        "",
        "For `--set` (`mrt adapt --set teach.epochs=10`) and `.toml` files. Defaults are those",
    ]
    lines += ["of the paper; presets change some: `mrt adapt --preset NAME --dry-run` shows all of one.", ""]
    tops = {name: field for name, field in Config.model_fields.items() if not _section(field, Section)}
    for name, fields in {"": tops, **{n: f for n, f in Config.model_fields.items() if n not in tops}}.items():
        if name:
            fields = fields.annotation.model_fields
            lines += ["", f"## {name}"]
        lines += ["", "| setting | values | default | |", "| --- | --- | --- | --- |"]
        for setting, field in fields.items():
            default = field.get_default(call_default_factory=True)
            key = f"{name}.{setting}" if name else setting
            cells = [f"`{key}`", _values(field), f"`{default}`", field.description or ""]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _section(field: Any, section: type) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, section)


def _values(field: Any) -> str:
    """What a setting may be, such as "int, > 0"."""
    kind = field.annotation
    words = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    words = re.sub(r"(typing|pathlib|collections\.abc)\.", "", words)
    words = re.sub(r"Annotated\[(\w+), .*?\)\]", r"\1", words)
    words = re.sub(r"Optional\[(.*)\]", r"\1 or None", words)
    words = re.sub(r"^Literal\[(.*)\]", r"\1", words).replace(" | ", " or ")
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [(limits[name], getattr(m, name)) for m in field.metadata for name in limits if hasattr(m, name)]
    return ", ".join([words, *(f"{sign} {value}" for sign, value in found)])


def _target(page: str, link: str) -> str | None:
    """The place in the repository that a page's relative link names; None for all other links."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:|/", link):
        return None
    folder = "" if page in HOUSE.values() else posixpath.join("docs", posixpath.dirname(page))
    return posixpath.normpath(posixpath.join(folder, path))


def _outside(page: str, link: str) -> str | None:
    """The picture outside docs/ that a link names."""
    place = _target(page, link)
    picture = place and place.endswith((".png", ".svg", ".webp", ".jpg")) and not place.startswith("docs/")
    return place if picture and (ROOT / place).is_file() else None


def _rewritten(link: re.Match, page: str) -> str:
    bang, words, target = link.groups()
    place = _target(page, target)
    if place is None:
        return link[0]
    if place in HOUSE:
        there = HOUSE[place]
    elif _outside(page, target):
        there = f"outside/{place}"
    elif place.startswith("docs/") and not (ROOT / place).is_dir():
        there = place.removeprefix("docs/")  # mkdocs says so if there is no such page
    elif (ROOT / place / "README.md").is_file() and place.startswith("docs/"):
        there = f"{place}/README.md".removeprefix("docs/")
    elif (ROOT / place).exists():
        return words  # code or a folder: there is nothing to show
    else:
        return link[0]
    anchor = target.partition("#")[2]
    there = posixpath.relpath(there, posixpath.dirname(page) or ".")
    return f"{bang}[{words}]({there}{'#' + anchor if anchor else ''})"


def _fold(pieces: list[str]) -> str:
    """The text with each piece of code as a mark."""
    return "".join(f"\0{n}\0" if n % 2 else piece for n, piece in enumerate(pieces))


def _unfold(text: str, pieces: list[str]) -> str:
    return re.sub(r"\0(\d+)\0", lambda mark: pieces[int(mark[1])], text)
