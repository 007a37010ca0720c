"""``mrt report``: what happened in a run, or in several, as one page.

Needs the extra ``report``: matplotlib, scikit-learn, jinja2.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.files import write_text

NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "jinja2": "jinja2"}


def require_libraries(command: str = "mrt report") -> None:
    """MrtError if a package of the extra is not installed. ``command``: who needs them."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise MrtError(
            f"{command} needs {', '.join(missing)}, which {are} not installed",
            "install what reports need: pip install 'mrt-detection[report]'",
        )


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    data_root: Path,
    split: str | None = None,
    images: int = 4,
    quick: bool = False,
    device: str = "auto",
    watcher: Watcher | None = None,
    titles: Sequence[str | None] | None = None,
) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``figures/`` about one or several runs.

    Args:
        folders: of the runs. Differences are to the first of several runs, or to the start of a single one.
        out: the folder to write to.
        split: of the target set; default: see :func:`mrt.report.collect.choose_split`.
        images: rows of pictures.
        quick: use only the runs' files; no network is run.
        titles: names of the runs in the report, in their order; None: the names of their folders.

    Returns:
        The page.

    Raises:
        MrtError: libraries are missing, a folder is no run, the split does not exist, or the runs' classes
            differ.
    """
    require_libraries()
    from mrt.report import collect, sections, study
    from mrt.report.page import write_page

    started = time.monotonic()
    runs = collect.load_runs(folders, titles)
    about = study.open_study(
        runs,
        out,
        data_root=data_root,
        split=split,
        images=images,
        quick=quick,
        device=device,
        watcher=watcher or Watcher(),
    )
    about.watcher.begin("figures and intervals", 1)
    sections.fill_record(about)
    about.watcher.end()
    made = []
    about.watcher.begin("page", len(sections.ALL))
    for section in sections.ALL:
        made.append(section(about))
        about.watcher.advance(1)
    about.watcher.end()
    names = [run.title for run in runs]
    title = f"Report on {names[0]}" if len(runs) == 1 else f"Comparison of {', '.join(names)}"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    seconds = round(time.monotonic() - started, 1)
    kind = sections.kind_of(runs[0]) if len(runs) == 1 else f"{len(runs)} runs"
    lead = (
        f"{kind[:1].upper()}{kind[1:]}; preset {runs[0].config.preset}; "
        f"written {when} by mrt report in {seconds:.0f} s."
    )
    record = {**about.record, "written": when, "seconds": seconds}
    write_text(out / "report.json", json.dumps(record, indent=1) + "\n")
    return write_page(out, title, lead, sections.headlines(about), made)[0]
