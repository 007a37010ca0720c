"""No content of a raw file ends in a traceback.

Every reader is tried on thousands of broken files, from the raw files to the prepared set.

What comes out is an MrtError, or a set that keeps all its promises (:func:`mutations.require_sound`). ``make
test`` tries the same hundred or so files each time, ``make soak`` (or MRT_MUTATIONS=N) many others.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import (
    PICTURES,
    READERS,
    Reader,
    broken,
    coco_tree,
    counted,
    each_value_in_each_place,
    edited,
    own,
    picture_bytes,
    places_in,
    require_nothing_lost,
    require_sound,
)

from mrt.data import archives
from mrt.data.card import CARD_NAME, UNPACKED, read_card
from mrt.data.check import check_set
from mrt.data.convert.recipe import prepare
from mrt.data.dataset import DetectionDataset
from mrt.data.headers import read_header
from mrt.data.images import read_picture
from mrt.data.preview import contact_sheet
from mrt.errors import MrtError

FEW, MANY = 60, int(os.environ.get("MRT_MUTATIONS", "10000"))
ALONE = [name for name in READERS if not name.startswith(("auto-", "beside-"))]
PREPARED = (CARD_NAME, "train.json")
EVERY_RUN = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.soak)]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing is synced to the disk: files need not survive a crash of the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def try_all(strategy, body: Callable[[bytes], None], count: int) -> None:
    """Call ``body`` with examples of the strategy: always the same ones if there are few."""
    checks = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.filter_too_much,
    ]
    how = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count <= FEW,
        suppress_health_check=checks,
    )

    @how
    @given(content=strategy)
    def run(content: bytes) -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            body(content)
        shown = [
            str(one.message)
            for one in told
            if not issubclass(one.category, (DeprecationWarning, ResourceWarning))
        ]
        assert not shown, f"printed: {shown}"

    run()


def conversion(folder: Path, reader: Reader) -> Callable[[bytes], None]:
    """One trial: the whole way from raw files, one of them broken, to the prepared set."""
    raw, root = folder / "raw", folder / "data"
    reader.write(raw)
    place = raw / reader.file

    def body(content: bytes) -> None:
        place.write_bytes(content)
        shutil.rmtree(root, ignore_errors=True)
        archives._open_archives.clear()  # this process has the unbroken one open
        try:
            card, said = prepare(reader.recipe(raw, root), root, "set", workers=1, allow_empty=True)
        except MrtError as error:
            assert error.message.strip() and {path.name for path in root.glob("*")} <= {UNPACKED}
            return
        require_sound(card, said)
        require_nothing_lost(card, counted(reader.records, content), counted(reader.images, content))

    return body


@pytest.mark.parametrize("count", EVERY_RUN)
@pytest.mark.parametrize("name", READERS)
def test_raw_files(tmp_path, name, count):
    reader = READERS[name]
    body = conversion(tmp_path, reader)
    good = (tmp_path / "raw" / reader.file).read_bytes()
    body(good)
    assert reader.unasked or (tmp_path / "data" / "set" / CARD_NAME).is_file(), (
        "the unbroken file gives a set"
    )
    few = FEW if name in ALONE else FEW // 4  # the same readers, found by themselves or in company
    try_all(broken(good, PurePosixPath(reader.file).suffix), body, count if count > FEW else few)


def prepared(folder: Path) -> Path:
    """A prepared set without hashes, so that a changed file is still read."""
    raw, root = folder / "data" / "raw", folder / "data"  # so that the card has no path of this machine
    coco_tree(raw)
    card, _ = prepare(own("coco")(raw, root), root, "set", workers=1)
    place = card.folder / CARD_NAME
    content = json.loads(place.read_text(encoding="utf-8"))
    content["splits"]["train"]["sha256"] = ""
    place.write_text(json.dumps(content), encoding="utf-8")
    return card.folder


def _check(folder: Path) -> None:
    assert all(isinstance(line, str) and line for line in check_set(read_card(folder), workers=1))


def _sheet(folder: Path) -> None:
    contact_sheet(folder, 2, width=40)


def _dataset(folder: Path) -> None:
    card = read_card(folder)
    for split in card.splits:
        _samples(DetectionDataset(card, split))


USERS = {"check": _check, "sheet": _sheet, "dataset": _dataset}
OF_PREPARED = [f"{file} {user}" for file in PREPARED for user in USERS]


def use(folder: Path, name: str) -> None:
    """Do with a prepared set what commands do."""
    try:
        USERS[name](folder)
    except MrtError as error:
        assert error.message.strip()


def _samples(dataset: DetectionDataset) -> None:
    assert all(isinstance(line, str) for line in dataset.left_out())
    dataset.boxes_per_class()
    dataset.largest_size()
    json.dumps(dataset.coco_ground_truth())
    for index in range(min(len(dataset), 2)):
        dataset[index]


def body_of(folder: Path, name: str) -> tuple[Callable[[bytes], None], Path]:
    """What is tried on a reader's file, and that file.

    ``name`` is a reader ("coco-coco"), or a prepared set's file and a user of it ("train.json check").
    """
    if name in READERS:
        return conversion(folder, READERS[name]), folder / "raw" / READERS[name].file
    file, user = name.split()
    made = prepared(folder)
    USERS[user](made)

    def body(content: bytes) -> None:
        (made / file).write_bytes(content)
        use(made, user)

    return body, made / file


@pytest.mark.parametrize("count", EVERY_RUN)
@pytest.mark.parametrize("name", OF_PREPARED)
def test_prepared_sets(tmp_path, name, count):
    body, place = body_of(tmp_path, name)
    try_all(broken(place.read_bytes(), ".json"), body, count)


def picture_body(place: Path) -> Callable[[bytes], None]:
    """The trial for the bytes of a picture."""

    def body(content: bytes) -> None:
        place.write_bytes(content)
        header = picture = None
        try:
            header = read_header(place)
        except MrtError as error:
            assert error.message.strip()
        try:
            picture = read_picture(place)
        except MrtError as error:
            assert error.message.strip()
        if header and picture:
            assert picture.mode == "RGB"
            assert header.upright == picture.size, f"{header}, read as {picture.size}"

    return body


@pytest.mark.parametrize("count", EVERY_RUN)
@pytest.mark.parametrize("suffix", PICTURES)
def test_pictures(tmp_path, suffix, count):
    body = picture_body(tmp_path / f"b{suffix}")
    good = picture_bytes(tmp_path, suffix)
    body(good)
    try_all(broken(good, suffix), body, count)


STRUCTURED = [name for name in ALONE if READERS[name].file.endswith((".json", ".yaml", ".xml"))]


@pytest.mark.soak
@pytest.mark.parametrize("name", [*STRUCTURED, *OF_PREPARED])
def test_each_value_in_each_place(tmp_path, name):
    body, place = body_of(tmp_path, name)
    for content in each_value_in_each_place(place.read_bytes(), place.suffix):
        body(content)


OF_JSON = [name for name in ALONE if READERS[name].file.endswith(".json")]
DEPTHS = range(400, 1000, 5)


def kinds_of_places(tree: Any) -> list[tuple]:
    """A path for each kind of node; of a list's entries only the first."""
    found: dict[tuple, tuple] = {}
    for path in places_in(tree):
        if path:
            found.setdefault(tuple("" if isinstance(key, int) else key for key in path), path)
    return list(found.values())


@pytest.mark.soak
@pytest.mark.parametrize("name", [*OF_JSON, *OF_PREPARED])
def test_values_within_values(tmp_path, name):
    """A value nested just so deeply that the parser still reads it, but later steps may not."""
    body, place = body_of(tmp_path, name)
    good = json.loads(place.read_bytes())
    for depth in DEPTHS:
        for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            for path in kinds_of_places(good):
                body(json.dumps(edited(good, path, "replace", "HERE", "")).replace('"HERE"', deep).encode())
