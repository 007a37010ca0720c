"""Cards: reading returns what was written, and a broken card is reported with the place of the error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mrt.data.card import CARD_NAME, read_card, read_json, write_card
from mrt.data.registry import find_dataset, labels_file
from mrt.errors import MrtError


def test_round_trip(small_set):
    card = replace(small_set, details={"beta": 0.02}, source="drawn")
    write_card(card)
    assert read_card(card.folder) == read_card(card.folder / CARD_NAME) == card


def test_counts(small_set):
    split = small_set.split("train")
    assert (split.num_images, split.num_boxes, split.num_empty, split.num_ignored) == (7, 7, 2, 0)
    assert split.boxes_per_class == {"car": 5, "person": 2}
    assert small_set.image_sizes == {"40x28": 3, "40x32": 2, "40x24": 2}
    assert len(split.sha256) == 64


def test_absolute_image_roots_stay(small_set, tmp_path):
    split = replace(small_set.split("train"), images=str(tmp_path / "elsewhere"))
    assert replace(small_set, splits={"train": split}).images_root("train") == tmp_path / "elsewhere"


def test_needs_no_torch():
    code = "import sys, mrt.data.card, mrt.data.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_split_lists_those_there(small_set):
    with pytest.raises(MrtError, match="train"):
        small_set.split("val")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"classes": [', "not valid JSON"),
        (b'{"classes": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[]", "not a data set card"),
        (b'{"classes": ["a", "a"], "splits": {}}', "classes"),
        (b'{"classes": [], "splits": []}', "splits"),
        (
            b'{"classes": [], "splits": {"train": {"annotations": 3, "images": "i"}}}',
            "splits.train.annotations",
        ),
        (b'{"classes": [], "splits": {"train": {"annotations": "../x.json", "images": "i"}}}', "inside"),
        (b'{"version": 9, "classes": [], "splits": {}}', "version"),
        (b'{"classes": ["\\ud800"], "splits": {}}', "half a character"),
        (b'{"classes": [], "splits": {"tr\\udc80": {}}}', "half a character"),
        (b'{"classes": ' + b"[" * 5000, "nested too deeply"),
        (b'{"classes": [], "splits": {}, "version": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_cards_name_the_field(tmp_path, content, words):
    (tmp_path / CARD_NAME).write_bytes(content)
    with pytest.raises(MrtError, match=words) as error:
        read_card(tmp_path)
    assert CARD_NAME in str(error.value)


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_registry_finds_by_name_and_path(small_set, tmp_path):
    for asked in ("small", small_set.folder, small_set.folder / CARD_NAME):
        assert find_dataset(asked, tmp_path) == small_set
    (tmp_path / "half_made").mkdir()
    with pytest.raises(MrtError, match="there: small\\)"):
        find_dataset("absent", tmp_path)
    with pytest.raises(MrtError, match="there: none"):
        find_dataset("absent", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "\0", "~nobody/x", "\ud800"])
def test_names_that_nothing_can_have(tmp_path, name):
    with pytest.raises(MrtError, match="No data set"):
        find_dataset(name, tmp_path)
    for where in (name, f"{name}.json"):
        with pytest.raises(MrtError, match=r"teacher\.labels = "):
            labels_file(where, "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("foggy", "downloads with: mrt prepare-data foggy --raw FOLDER_OR_ZIPS --data-root"),
        ("synthetic-night", "mrt prepare-data synthetic --domain night --data-root"),
        ("cityscape", "Did you mean 'cityscapes'"),
        ("mine", "there: small.*\n.*mrt prepare-data custom --raw FOLDER --name mine"),
    ],
)
def test_a_missing_set_says_what_to_run(small_set, tmp_path, name, words):
    with pytest.raises(MrtError, match=words):
        find_dataset(name, tmp_path)


def test_cards_are_plain_json(small_set):
    content = json.loads((small_set.folder / CARD_NAME).read_text())
    assert set(content) >= {
        "version",
        "name",
        "domain",
        "classes",
        "splits",
        "image_sizes",
        "source",
        "labelled",
    }
    assert "folder" not in content
