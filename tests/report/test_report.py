"""Reports of tiny runs: contents, numbers equal to those of the files, and display in a browser offline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from tiny_world import CLASSES

from mrt.engine.facts import write_facts
from mrt.errors import MrtError
from mrt.report import write_report

SECTIONS = (
    *("results", "curves", "pseudo-labels", "trust", "detections", "reconstruction", "features", "errors"),
    *("settings", "data", "environment", "words"),
)
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)


@pytest.fixture(scope="module")
def report(world, runs) -> Path:
    """The folder of a report of the adapted run, which has a stored result."""
    per_class = {name: {"AP50": 30.0, "num_boxes": 3} for name in CLASSES}
    record = {"run": "adapted", "network": "teacher", "data": "hazy", "split": "val", "sha256": ""}
    record["metrics"] = {"AP": 12.26, "AP50": 34.56, "AP75": None, "per_class": per_class}
    (runs / "adapted" / "eval-hazy-val-teacher.json").write_text(json.dumps([record]))
    return write_report([runs / "adapted"], runs / "adapted", data_root=world, images=2).parent


@pytest.fixture(scope="module")
def comparison(world, runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    return write_report([runs / "fair", runs / "adapted"], out, data_root=world, images=1).parent


def headline(page: str) -> list[tuple[str, str]]:
    interval = r'(?: <span class="interval">([^<]*)</span>)?'
    found = re.findall(rf'<dd data-figure="([^"]*)">([^<]*){interval}</dd>', page)
    return [(name, f"{figure} {bounds}".strip()) for name, figure, bounds in found]


def test_the_headline_is_the_stored_result_of_the_last_teacher(report, runs):
    page, found = (report / "report.html").read_text(), json.loads((report / "report.json").read_text())
    stored = json.loads((runs / "adapted" / "eval-hazy-val-teacher.json").read_text())[0]
    result = found["runs"]["adapted"]["result"]
    assert result["metrics"] == stored["metrics"] and result["file"] == "eval-hazy-val-teacher.json"
    assert headline(page)[:2] == [("AP50", "34.6"), ("AP", "12.3")]
    assert "its weights give" in page, "the page says that the stored result is not that of these weights"
    assert "picked by target labels ‡" in page
    assert found["runs"]["adapted"]["best_on_target_labels"]["AP50"] is not None


def test_numbers_measured_for_the_report_are_those_of_its_json(comparison):
    page = (comparison / "report.html").read_text()
    found = json.loads((comparison / "report.json").read_text())
    fair = found["runs"]["fair"]["result"]
    assert fair["file"] is None and ("AP50", f"{fair['metrics']['AP50']:.1f}") in headline(page)
    assert found["against"] == "fair" and set(found["change"]) == {"start", "adapted"}
    gain = found["start"]["metrics"]["AP50"] - fair["metrics"]["AP50"]
    assert found["change"]["start"]["AP50"]["value"] == pytest.approx(gain)
    assert set(found["errors"]) == {"start", "fair", "adapted"}
    change = found["change"]["adapted"]["AP50"]
    card = dict(headline(page))["change in AP50 against fair"]
    assert card == f"{change['value']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]".replace(
        "-0.0", "+0.0"
    )
    assert '<abbr title="average precision' in page and "draws of the images lie in it" in page


def test_networks_look_at_the_images_once(runs, world, tmp_path, monkeypatch):
    """The features of the images that are judged are kept from that pass."""
    from mrt.models.detector import DeformableDETR

    seen: list[int] = []
    forward = DeformableDETR.forward

    def counting(self, images, *more, **kept):
        seen.append(len(images))
        return forward(self, images, *more, **kept)

    monkeypatch.setattr(DeformableDETR, "forward", counting)
    write_report([runs / "adapted"], tmp_path, data_root=world, images=1)
    # Two networks on the 8 target images of val and on the 8 source images beside them.
    assert sum(seen) == 2 * (8 + 8)
    found = json.loads((tmp_path / "report.json").read_text())["features"]
    assert found["images"] == {"source": 8, "target": 8}


def test_every_section_and_figure_of_a_run_is_there(report):
    page, text = (report / "report.html").read_text(), (report / "report.md").read_text()
    assert [name for name in SECTIONS if f'<section id="{name}">' not in page] == []
    plots = {"losses", "ap50", "thresholds", "pseudo-labels"}
    plots |= {"reconstruction", "features", "errors", "ap50-by-class"}
    pictures = {"detections", "pseudo-labels-over-time"}
    files = {path.name for path in (report / "figures").iterdir()}
    assert files >= {f"{name}.png" for name in plots | pictures} | {f"{name}.svg" for name in plots}
    assert all(f'id="figure-{name}"' in page and f"(figures/{name}.png)" in text for name in plots | pictures)
    assert Image.open(report / "figures" / "losses.png").size[0] == 1400, "7 inches at 200 dpi"
    found = json.loads((report / "report.json").read_text())["runs"]["adapted"]
    recorded, validation = found["pseudo_labels"]
    assert recorded["where"].startswith("3 training images")
    assert len(recorded["epochs"]) == 3 and len(validation["epochs"]) == 2
    assert len(found["reconstruction"]["explained"]) == 2


def test_the_page_needs_nothing_else_and_speaks_to_those_who_cannot_see(report, comparison):
    for page in ((folder / "report.html").read_text() for folder in (report, comparison)):
        assert not re.search(r"https?://|<script|<link(?! rel=\"icon\" href=\"data:)", page)
        assert not re.search(r'(?:src|href)="(?!data:|#)', page)
        assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
        assert page.count("<img ") == page.count(' alt="')
        assert page.count("<svg") == page.count('<svg role="img" aria-label="')
        names = re.findall(r' id="([^"]*)"', page)
        assert len(names) == len(set(names))
        assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= set(names)


def test_a_comparison_shows_what_differs(comparison):
    text = (comparison / "report.md").read_text()
    assert "| seed | 1 | 0 |" in text and "| fair | fair source-only baseline |" in text
    assert "Not shown: fair was not taught by pseudo labels." in text


def test_what_is_missing_is_said(report, runs, tmp_path):
    """No network is run, data and log are missing, and the run is not finished."""
    half = tmp_path / "half"
    kept = ("config.json", "run.json", "eval-hazy-val-teacher.json", "teacher.safetensors")
    half.mkdir()
    for name in kept:
        shutil.copy(runs / "adapted" / name, half / name)
    facts = json.loads((half / "run.json").read_text()) | {"finished": ["mae"]}
    facts.pop("logs", None)  # which says that the log was longer
    write_facts(half, facts)
    page = write_report([half], tmp_path / "out", data_root=tmp_path / "nowhere", quick=True).read_text()
    assert [name for name in SECTIONS if f'<section id="{name}">' not in page] == []
    for text in ("no network was run", "the runs have logged nothing yet", "hazy: it is not in"):
        assert text in page
    assert headline(page)[0] == ("AP50", "34.6"), "what is stored is still told"
    assert "half is not finished: stages done: mae; to come: teach" in page


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, r, t: write_report([t], t, data_root=w), "not a run folder"),
        (lambda w, r, t: write_report([r / "adapted"], t, data_root=w, split="tset"), "no split 'tset'"),
    ],
)
def test_bad_input_gives_one_clear_error(world, runs, tmp_path, call, message):
    with pytest.raises(MrtError, match=message):
        call(world, runs, tmp_path)


def test_missing_libraries_are_named(monkeypatch, runs, world, tmp_path):
    import importlib.util

    original = importlib.util.find_spec

    def find(name: str):
        return None if name in ("matplotlib", "sklearn") else original(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    message = r"needs matplotlib, scikit-learn, which are not installed\n.*mrt-detection\[report\]"
    with pytest.raises(MrtError, match=message):
        write_report([runs / "adapted"], tmp_path, data_root=world)


PROBE = """<script>
window.addEventListener("error", event => {
  document.documentElement.dataset.error = event.message || event.target.src;
}, true);
window.addEventListener("load", () => {
  const images = [...document.images], drawn = [...document.querySelectorAll("figure svg")];
  document.documentElement.dataset.seen = JSON.stringify({
    broken: images.filter(image => !(image.complete && image.naturalWidth > 0)).length, images: images.length,
    flat: drawn.filter(figure => figure.getBoundingClientRect().height < 50).length, drawn: drawn.length,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    asked: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length});
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_all_without_a_network(report, tmp_path, width):
    page = tmp_path / "probed.html"
    page.write_text((report / "report.html").read_text().replace("<head>", f"<head>{PROBE}", 1))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    flags += ["--proxy-server=127.0.0.1:9", f"--window-size={width},900"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-2000:]
    expected = {"broken": 0, "images": 2 * 3 + 2 * 4, "flat": 0, "drawn": 8, "wide": False, "asked": 0}
    assert json.loads(seen[1].replace("&quot;", '"')) == expected
    assert "data-error" not in done.stdout and "CONSOLE" not in done.stderr
