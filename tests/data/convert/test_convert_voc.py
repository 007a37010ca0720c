"""VOC folders: corners that count from 1, lists, and what is wrong with users' files."""

from __future__ import annotations

import json
import os

import pytest
from trees import objects, pack, voc_tree, voc_xml, write_image, write_text

from mrt.data.convert import voc
from mrt.data.convert.recipe import prepare
from mrt.errors import MrtError

BOXES = {
    # the first pixel is 1; the last column of 40 is 40
    "a": [("car", 1, 1, 10, 5), ("dog", 3, 4, 40, 30, 1)],
    "b": [("car", 5, 6, 5, 6)],  # one pixel
    "c": [],
}
FOUND = {"a.jpg": [("car", 0, 0, 10, 5), ("~dog", 2, 3, 38, 27)], "b.jpg": [("car", 4, 5, 1, 1)], "c.jpg": []}


@pytest.fixture
def convert(tmp_path):
    """convert(raw, ...) -> (card, warnings); the card's details hold the warnings too."""

    def run(*raw, **options):
        root = tmp_path / "data"
        return prepare(voc.recipe(list(raw), root, **options), root, "set", overwrite=True, workers=1)

    return run


@pytest.mark.parametrize("packed", [None, "raw.zip", "raw.tgz"])
def test_corners_count_from_1_and_belong_to_the_box(tmp_path, convert, packed):
    folder = voc_tree(tmp_path / "raw" / "VOC2007", BOXES).parent
    card, warnings = convert(pack(folder, tmp_path / packed) if packed else folder)
    assert (objects(card), card.classes, warnings) == (FOUND, ("car", "dog"), [])
    part = card.splits["train"]
    assert (part.num_images, part.num_boxes, part.num_ignored, part.num_empty, part.skipped) == (
        3,
        2,
        1,
        1,
        {},
    )
    assert card.image_sizes == {"40x30": 3}
    assert (card.images_root("train") / "a.jpg").is_file() == (packed != "raw.zip")


def test_decimal_corners_parts_and_areas(tmp_path, convert):
    part = "<object><name>person</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    folder = voc_tree(tmp_path / "raw", {"a": [("car", 1.5, 2.25, 11, 12)]})
    write_text(folder / "Annotations" / "a.xml", voc_xml([("car", 1.5, 2.25, 11, 12)], extra=part))
    card, _ = convert(folder)
    assert objects(card) == {"a.jpg": [("car", 0.5, 1.25, 10.5, 10.75)]}
    assert card.splits["train"].skipped == {"no box": 1}
    assert json.loads(card.annotations_path("train").read_text())["annotations"][0]["area"] == 112.875


def test_lists_make_the_splits(tmp_path, convert):
    lists = {"train": ["b", "a  1"], "val": ["c"], "trainval": ["a", "b", "c"], "car_train": ["c 1"]}
    card, _ = convert(voc_tree(tmp_path / "raw" / "VOC2007", BOXES, lists).parent)
    assert {split: list(objects(card, split)) for split in card.splits} == {
        "train": ["b.jpg", "a.jpg"],
        "val": ["c.jpg"],
    }


def test_trainval_stands_in_for_train_without_what_val_holds(tmp_path, convert):
    card, _ = convert(voc_tree(tmp_path / "raw", BOXES, {"trainval": ["a", "b", "c"], "val": ["c"]}))
    assert {split: list(objects(card, split)) for split in card.splits} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
    }


def test_list_entries_that_cannot_be_used_are_counted(tmp_path, convert):
    folder = voc_tree(
        tmp_path / "raw", BOXES, {"train": ["a", "a", "b.jpg", "c", "nowhere", ""], "test": ["t1", "t2"]}
    )
    (folder / "Annotations" / "c.xml").unlink()
    card, warnings = convert(folder)
    assert list(objects(card)) == ["a.jpg", "b.jpg"]
    assert card.splits["train"].skipped == {"image listed twice": 1, "labels missing": 1, "image missing": 1}
    assert any("image missing, the first is nowhere" in line for line in warnings)
    assert card.details["splits without files"] == ["test"]  # as in VOC2012, whose test labels are secret


def test_two_years_side_by_side_keep_their_own_lists(tmp_path, convert):
    for year, name in (("VOC2007", "a"), ("VOC2012", "b")):
        voc_tree(tmp_path / "raw" / year, {"a": BOXES[name]}, {"train": ["a"]})
    card, _ = convert(tmp_path / "raw")
    assert objects(card) == {
        "VOC2007/JPEGImages/a.jpg": FOUND["a.jpg"],
        "VOC2012/JPEGImages/a.jpg": FOUND["b.jpg"],
    }


def test_images_and_labels_from_two_archives_with_lists_from_a_third(tmp_path, convert):
    folder = voc_tree(tmp_path / "all" / "VOC", BOXES, {"train": ["a"]})
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        (tmp_path / part / "VOC").mkdir(parents=True)
        (folder / part).rename(tmp_path / part / "VOC" / part)
        pack(tmp_path / part, tmp_path / f"{part}.zip")
    card, _ = convert(*(tmp_path / f"{part}.zip" for part in ("Annotations", "ImageSets", "JPEGImages")))
    assert objects(card) == {"a.jpg": FOUND["a.jpg"]}
    assert card.images_root("train") == tmp_path / "JPEGImages.zip" / "VOC" / "JPEGImages"


def test_each_archive_unpacked_into_its_own_folder(tmp_path, convert):
    folder = voc_tree(tmp_path / "all", BOXES, {"train": ["a", "b"]})
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        (tmp_path / "raw" / f"our_{part}" / "VOC").mkdir(parents=True)
        (folder / part).rename(tmp_path / "raw" / f"our_{part}" / "VOC" / part)
    card, _ = convert(tmp_path / "raw")
    assert objects(card) == {name: FOUND[name] for name in ("a.jpg", "b.jpg")}


def test_lists_beside_the_folder_with_the_data(tmp_path, convert):
    voc_tree(tmp_path / "raw" / "data" / "deep", BOXES)
    write_text(tmp_path / "raw" / "ImageSets" / "train.txt", "b.jpg\nc\n")
    card, _ = convert(tmp_path / "raw")
    assert objects(card) == {name: FOUND[name] for name in ("b.jpg", "c.jpg")}


def test_suffix_case_nested_folders_and_files_side_by_side(tmp_path, convert):
    raw = tmp_path / "raw"
    write_image(raw / "JPEGImages" / "north" / "A.JPG")
    write_text(raw / "Annotations" / "north" / "A.xml", voc_xml(BOXES["a"]))
    write_image(raw / "more" / "b.PNG")
    write_text(raw / "more" / "b.xml", voc_xml(BOXES["b"]))
    write_image(raw / "SegmentationClass" / "north" / "A.png")  # a mask, not the photo
    card, warnings = convert(raw)
    assert objects(card) == {"JPEGImages/north/A.JPG": FOUND["a.jpg"], "more/b.PNG": FOUND["b.jpg"]}
    assert warnings == []


def test_folders_named_train_and_valid_are_splits(tmp_path, convert):
    for name, folder in (("a", "train"), ("b", "valid")):
        write_image(tmp_path / "raw" / folder / "1.jpg")
        write_text(tmp_path / "raw" / folder / "1.xml", voc_xml(BOXES[name]))
    card, _ = convert(tmp_path / "raw")
    assert {split: objects(card, split) for split in card.splits} == {
        "train": {"1.jpg": FOUND["a.jpg"]},
        "val": {"1.jpg": FOUND["b.jpg"]},
    }
    # the other folder's image of that name must not take its place
    (tmp_path / "raw" / "train" / "1.jpg").unlink()
    with_less, _ = convert(tmp_path / "raw")
    assert list(with_less.splits) == ["val"]


def test_an_xml_file_that_two_images_fit_is_left_out(tmp_path, convert):
    folder = voc_tree(tmp_path / "raw", BOXES)
    write_image(folder / "JPEGImages" / "a.png")
    card, _ = convert(folder)
    assert card.splits["train"].skipped == {"several files fit": 1}
    assert "a.jpg" not in objects(card)


def test_a_file_name_of_another_encoding_does_not_stop_the_report(tmp_path, convert):
    folder = voc_tree(tmp_path / "raw", BOXES)
    (folder / "JPEGImages" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    card, _ = convert(folder)
    assert card.splits["train"].skipped == {"labels missing": 1}
    assert "caf\\udce9.jpg" in card.details["warnings"][0]


def test_classes_asked_for_in_their_order(tmp_path, convert):
    card, _ = convert(
        voc_tree(tmp_path / "raw", {**BOXES, "d": [("dog", 1, 1, 10, 5)]}), classes=("dog", "bird")
    )
    assert (card.classes, objects(card)["a.jpg"]) == (("dog", "bird"), [("~dog", 2, 3, 38, 27)])
    assert card.splits["train"].skipped == {"class not asked for": 2}


@pytest.mark.parametrize(
    ("declared", "kept"),
    [((40, 30), True), (None, True), ((0, 0), True), ((41, 30), False), ((30, 40), False)],
)
def test_the_declared_size_must_be_the_images(tmp_path, convert, declared, kept):
    folder = voc_tree(tmp_path / "raw", {"a": BOXES["a"], "b": BOXES["b"]})
    write_text(folder / "Annotations" / "a.xml", voc_xml(BOXES["a"], size=declared))
    card, _ = convert(folder)
    assert ("a.jpg" in objects(card)) is kept
    assert card.splits["train"].skipped == ({} if kept else {"image size differs from the annotation's": 1})
    assert kept or "a.jpg (40x30, not" in card.details["warnings"][0]


@pytest.mark.parametrize(("declared", "size"), [((40, 30), (40, 30)), ((30, 40), (30, 40)), (None, (30, 40))])
def test_a_turned_photo_is_as_the_annotation_says_else_upright(tmp_path, convert, declared, size):
    folder = tmp_path / "raw"
    write_image(folder / "a.jpg", (40, 30), orientation=6)
    write_text(folder / "a.xml", voc_xml([("car", 1, 1, 5, 5)], size=declared))
    card, _ = convert(folder)
    assert card.image_sizes == {f"{size[0]}x{size[1]}": 1}


@pytest.mark.parametrize(
    ("corners", "outcome"),
    [
        ((-3, 0, 60, 99), (0, 0, 40, 30)),
        ((41, 1, 50, 5), "box outside the image"),
        ((0, 0, 0, 0), "box outside the image"),
        ((10, 10, 9, 12), "box without area"),
        ((20, 10, 5, 12), "box without area"),
        (("nan", 1, 5, 5), "box with a number that is not finite"),
        ((1, 1, "inf", 5), "box with a number that is not finite"),
        ((1, "x", 5, 5), "box with a number that is not finite"),
        ((1, "", 5, 5), "box with a number that is not finite"),
    ],
)
def test_boxes_are_cut_to_the_image_or_counted(tmp_path, convert, corners, outcome):
    card, _ = convert(voc_tree(tmp_path / "raw", {"a": [("car", *corners)], "b": BOXES["b"]}))
    expected = ([("car", *outcome)], {}) if isinstance(outcome, tuple) else ([], {outcome: 1})
    assert (objects(card)["a.jpg"], card.splits["train"].skipped) == expected


def test_images_and_annotations_that_cannot_be_read_are_counted(tmp_path, convert):
    folder = voc_tree(tmp_path / "raw", dict.fromkeys("abcdefgh", BOXES["a"]))
    cut = folder / "JPEGImages" / "a.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "JPEGImages" / "b.jpg").write_bytes(b"")
    (folder / "JPEGImages" / "c.jpg").unlink()
    (folder / "Annotations" / "d.xml").unlink()
    write_text(folder / "Annotations" / "e.xml", voc_xml(BOXES["a"])[:-40])
    write_text(folder / "Annotations" / "f.xml", "<note><to>nobody</to></note>")
    write_text(folder / "Annotations" / "g.xml", "<?xml version='1.0' encoding='no-such'?><annotation/>")
    card, _ = convert(folder)
    assert objects(card) == {"h.jpg": FOUND["a.jpg"]}
    assert card.splits["train"].skipped == {
        "image cut short or unreadable": 2,
        "image missing": 1,
        "labels missing": 1,
        "annotation cut short or unreadable": 2,
        "annotation in an unknown encoding": 1,
    }
    assert len([line for line in card.details["warnings"] if "the first is" in line]) == 5


BOMB = (
    '<!DOCTYPE b [<!ENTITY a "xxxxxxxxxx"><!ENTITY b '
    '"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'
)
OUTSIDE = (
    "<!DOCTYPE b [<!ENTITY x SYSTEM "
    '"file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    "text", [BOMB, OUTSIDE, '<!DOCTYPE b SYSTEM "http://nowhere.invalid/b.dtd"><annotation/>']
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused(tmp_path, text, encoding):
    file = tmp_path / "a.xml"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(MrtError, match=r"a\.xml: has a document type"):
        voc.read_annotation(file)


def test_a_document_type_in_one_of_many_files_stops_the_conversion(tmp_path, convert):
    folder = voc_tree(tmp_path / "raw", BOXES)
    write_text(folder / "Annotations" / "b.xml", BOMB)
    with pytest.raises(MrtError, match=r"b\.xml: has a document type"):
        convert(folder, classes=("car",))
    assert not (tmp_path / "data" / "set").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_a_huge_xml_file_is_refused_before_it_is_read(tmp_path, monkeypatch, packed):
    folder = voc_tree(tmp_path / "raw", BOXES)
    monkeypatch.setattr(voc, "MAX_XML_BYTES", 100)
    place = folder / "Annotations" / "a.xml"
    if packed:
        place = pack(folder, tmp_path / "raw.zip") / "Annotations" / "a.xml"
    monkeypatch.setattr(voc, "read_bytes", lambda path: pytest.fail("was read"))
    with pytest.raises(MrtError, match=r"a\.xml: .* too large"):
        voc.read_annotation(place)


def test_other_encodings_that_xml_declares_are_read(tmp_path):
    file = tmp_path / "a.xml"
    text = voc_xml([("Fußgänger", 1, 1, 5, 5)])
    file.write_bytes(f"<?xml version='1.0' encoding='ISO-8859-1'?>{text}".encode("latin-1"))
    assert voc.read_annotation(file).objects[0].label == "Fußgänger"
    file.write_bytes(text.encode("utf-16"))
    assert voc.read_annotation(file).objects[0].label == "Fußgänger"


@pytest.mark.parametrize("entry", ["../../etc/passwd", "/etc/passwd", "..\\secret"])
def test_a_list_entry_that_climbs_out_is_refused(tmp_path, convert, entry):
    folder = voc_tree(tmp_path / "raw", BOXES, {"train": ["a", entry]})
    with pytest.raises(MrtError, match=r"train\.txt: line 2 is "):
        convert(folder)


def test_a_list_of_another_encoding(tmp_path, convert):
    folder = voc_tree(tmp_path / "raw", BOXES, {"train": ["a"]})
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes("a\n".encode("utf-16"))
    assert [*objects(convert(folder)[0])] == ["a.jpg"]
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes("\u00e4\n".encode("latin-1"))
    with pytest.raises(MrtError, match=r"train\.txt: not UTF-8"):
        convert(folder)


@pytest.mark.parametrize(
    ("gone", "message"), [("JPEGImages", "holds no images"), ("Annotations", "holds no VOC annotations")]
)
def test_without_images_or_annotations_the_error_says_so(tmp_path, convert, gone, message):
    folder = voc_tree(tmp_path / "raw", BOXES)
    for file in (folder / gone).iterdir():
        file.unlink()
    with pytest.raises(MrtError, match=message):
        convert(folder)


def test_names_that_do_not_fit_at_all(tmp_path, convert):
    write_image(tmp_path / "raw" / "a.jpg")
    write_text(tmp_path / "raw" / "b.xml", voc_xml([]))
    with pytest.raises(MrtError, match="holds no image with its annotation"):
        convert(tmp_path / "raw")
