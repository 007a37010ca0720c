"""The tutorials, run as they are written: every command, in order, in an empty folder.

What is changed to make that fast stands in pages.py and short_presets.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cityscapes_tree import cityscapes_frame
from command_line import mrt
from pages import DOCS, ROOT, as_run, blocks
from short_presets import short_presets

TUTORIALS = DOCS / "tutorials"


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path_factory, somewhere):
    from mrt.config import reading

    presets = short_presets(reading.PRESETS, tmp_path_factory.mktemp("presets"), tiny=True)
    monkeypatch.setattr(reading, "PRESETS", presets)
    monkeypatch.setenv("XDG_CACHE_HOME", str(somewhere / "cache"))


def walk(page: str) -> dict[str, str]:
    """Save the files that a page says to save and run its commands; returns what each command printed."""
    said = {}
    for block in blocks((TUTORIALS / page).read_text(encoding="utf-8")):
        if block.file and block.runs:
            Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language != "sh" or not block.runs:
            continue
        for words in block.commands:
            result = mrt("", *as_run(words))
            command = " ".join(words)
            assert result.exit_code == 0, f"{page}: {command}\n{result.output}"
            said[command] = result.output
    assert said, page
    return said


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """A data root with a few streets in fog, in which the shipped detector finds something."""
    root = tmp_path_factory.mktemp("rendered")
    words = "prepare-data synthetic --domain foggy --train 14 --val 1 --test 1 --size 256x128 --workers 1"
    assert mrt(words, "--data-root", root).exit_code == 0
    return root / "synthetic-foggy"


def test_own_camera(rendered, somewhere):
    pictures = sorted((rendered / "images" / "train").iterdir())
    shutil.copytree(pictures[0].parent, "photos")
    shutil.copytree(pictures[0].parent, "labelled")
    shutil.copy(rendered / "train.json", "labelled")
    _film(pictures, Path("clip.mp4"))
    said = walk("own-camera.md")
    card = json.loads(Path("data/camera/dataset.json").read_text())
    assert card["splits"]["train"]["num_images"] >= 3 and card["splits"]["val"]["num_images"] >= 1
    assert list(Path("before").iterdir()) and len(list(Path("before").iterdir())) == len(
        list(Path("after").iterdir())
    )
    assert "source-free" in said["mrt adapt --target camera --init small-source --name adapted"]
    compared = said["mrt eval small-source adapted --data corrected"]
    assert "Difference to small-source (last average) on the same images" in compared
    assert Path("runs/camera-corrected/student.safetensors").is_file()
    # The page says so of a run that was stopped, too.
    again = mrt("adapt --target camera --init small-source --name adapted --resume")
    assert again.exit_code == 0, again.output


def _film(pictures: list[Path], clip: Path) -> None:
    """A video that shows each picture for two seconds."""
    import av
    from PIL import Image

    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        for picture in pictures:
            for _ in range(4):
                frame = av.VideoFrame.from_image(Image.open(picture).convert("RGB"))
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_paper_table(somewhere):
    for split, city in (("train", "aachen"), ("val", "bonn")):
        for number in (19, 20, 21):
            name = f"{city}_000000_{number:06}"
            cityscapes_frame(Path("downloads"), split, city, name)
            clear = Path("downloads/leftImg8bit") / split / city / f"{name}_leftImg8bit.png"
            foggy = Path("downloads/leftImg8bit_foggy") / split / city
            foggy.mkdir(parents=True, exist_ok=True)
            shutil.copy(clear, foggy / f"{name}_leftImg8bit_foggy_beta_0.02.png")
    said = walk("paper-table.md")
    assert Path("runs/ablate/mask-ratio.md").is_file()
    assert any("paper AP50" in text for text in said.values())


def test_own_method(somewhere):
    said = walk("own-method.md")
    table = json.loads(Path("runs/ablate/rows.json").read_text())
    assert len(table["rows"]) == 4
    assert any("weighted" in text for text in said.values())


def test_readme(rendered, somewhere, monkeypatch):
    """Its commands for one's own photos, and its Python lines."""
    pictures = sorted((rendered / "images" / "train").iterdir())
    shutil.copytree(pictures[0].parent, "my-photos")
    Path("mrt").mkdir()
    monkeypatch.chdir("mrt")
    shutil.copy(pictures[0], "photo.jpg")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = blocks(page)
    (commands,) = (block.commands for block in found if block.text.startswith("mrt prepare-data"))
    for words in commands:
        result = mrt("", *as_run(words))
        assert result.exit_code == 0, result.output
    (lines,) = (block.text for block in found if block.language == "python")
    names: dict = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert Path(names["run"]).name == "mine"
