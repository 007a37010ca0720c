"""Users' YOLO sets: layouts, data.yaml as tools write it, and bad label lines."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from trees import objects, pack, write_image, write_text

from mrt.data.convert.recipe import prepare
from mrt.data.convert.yolo import recipe
from mrt.errors import MrtError

# In a picture of 40x30: a box of 20x15 in the middle, and one of 10x6 in the upper left corner.
LINES = "0 0.5 0.5 0.5 0.5\n1 0.125 0.1 0.25 0.2\n"
BOXES = [("car", 10, 7.5, 20, 15), ("person", 0, 0, 10, 6)]
YAML = "train: images/train\nval: images/val\nnc: 2\nnames: ['car', 'person']\n"


def make(raw, tmp_path, **options):
    """The card of the set that is made from ``raw``."""
    how = {"workers": 1, "overwrite": True, "allow_empty": options.pop("allow_empty", False)}
    return prepare(recipe([raw], tmp_path / "data", **options), tmp_path / "data", "own", **how)[0]


def split_trees(folder, settings=YAML, image="images/{}", label="labels/{}"):
    """Splits train and val with one labelled image each, and data.yaml if there is a text for it."""
    for split in ("train", "val"):
        write_image(folder / image.format(split) / "1.jpg")
        write_text(folder / label.format(split) / "1.txt", LINES)
    if settings is not None:
        write_text(folder / "data.yaml", settings)
    return folder


@pytest.fixture
def one(tmp_path):
    """one(label text) -> card of a set with one picture of 40x30."""

    def make_one(
        text, settings="train: images\nnames: {0: car, 1: person}\n", more=MappingProxyType({}), **image
    ):
        write_image(tmp_path / "raw" / "images" / "a.jpg", **image)
        write_text(tmp_path / "raw" / "data.yaml", settings)
        if isinstance(text, bytes):
            write_text(tmp_path / "raw" / "labels" / "a.txt", "").write_bytes(text)
        elif text is not None:
            write_text(tmp_path / "raw" / "labels" / "a.txt", text)
        return make(tmp_path / "raw", tmp_path, **more)

    return make_one


@pytest.mark.parametrize("packed", [None, "set.zip", "set.tgz"])
def test_images_and_labels_side_by_side(tmp_path, packed):
    raw = split_trees(tmp_path / "raw")
    card = make(pack(raw, tmp_path / packed) if packed else raw, tmp_path)
    assert card.classes == ("car", "person") and list(card.splits) == ["train", "val"]
    assert objects(card) == {"1.jpg": BOXES} and objects(card, "val") == {"1.jpg": BOXES}
    assert card.images_root("val").as_posix().endswith("images/val")


@pytest.mark.parametrize(
    "settings",
    [
        "path: /content/datasets/own\ntrain: images/train\nval: images/val\nnames: [car, person]\n",
        "path: ../datasets/own  # where it was\ntrain: images/train\nval: "
        "images/val\ntest:\nnames:\n  0: car\n  1: person\n",
        "train: ../images/train\nval: ../images/val\nnames: [car, person]\n",
        "train: /home/somebody/own/images/train\nval: /home/somebody/own/images/val\nnames: [car, person]\n",
        "train: [images/train]\nvalid: ./images/val/\nnames: [car, person]\n",
        "train: images\\train\nval: images\\val\nnames: [car, person]\n",
    ],
)
def test_paths_of_another_machine(tmp_path, settings):
    card = make(split_trees(tmp_path / "raw", settings), tmp_path)
    assert [card.images_root(split).name for split in card.splits] == ["train", "val"]
    assert objects(card) == objects(card, "val") == {"1.jpg": BOXES}


def test_a_folder_per_split(tmp_path):
    settings = "train: ../train/images\nval: ../valid/images\nnames: [car, person]\n"
    raw = split_trees(tmp_path / "raw", settings, "{}/images", "{}/labels")
    (raw / "val").rename(raw / "valid")
    card = make(raw, tmp_path)
    assert objects(card, "val") == {"1.jpg": BOXES}
    assert card.images_root("val").as_posix().endswith("valid/images")


def test_another_splits_folder_is_no_substitute(tmp_path):
    raw = split_trees(
        tmp_path / "raw",
        "train: train/images\nval: val/images\nnames: [car, person]\n",
        "{}/images",
        "{}/labels",
    )
    (raw / "train").rename(raw / "test")
    with pytest.raises(MrtError, match=r"data\.yaml: train is 'train/images', and there is no such folder"):
        make(raw, tmp_path)


def test_lists_of_images(tmp_path):
    raw = split_trees(tmp_path / "raw", "train: train.txt\nval: val.txt\nnames: [car, person]\n")
    write_text(raw / "train.txt", "./images/train/1.jpg\n./images/train/2.jpg\n\n")
    write_text(raw / "val.txt", "images/val/1.jpg\n")
    card = make(raw, tmp_path)
    assert objects(card) == {"1.jpg": BOXES} and card.split("train").skipped == {"image missing": 1}
    write_text(raw / "train.txt", "images/train/1.jpg\n../../secret.jpg\n")
    with pytest.raises(MrtError, match=r"train\.txt: line 2 is '\.\./\.\./secret\.jpg'"):
        make(raw, tmp_path)
    write_text(raw / "train.txt", "images/train/7.jpg\n")
    with pytest.raises(MrtError, match=r"train\.txt: none of its 1 images is there"):
        make(raw, tmp_path)


def test_without_a_settings_file(tmp_path):
    raw = split_trees(tmp_path / "raw", None)
    with pytest.raises(MrtError, match=r"holds no class names"):
        make(raw, tmp_path)
    write_text(raw / "classes.txt", "car\nperson\n")
    assert objects(make(raw, tmp_path), "val") == {"1.jpg": BOXES}
    write_text(raw / "obj.names", "person\ncar\n")
    with pytest.raises(MrtError, match=r"different class names in classes\.txt, obj\.names"):
        make(raw, tmp_path)


def test_labels_beside_the_images(tmp_path):
    write_image(tmp_path / "raw" / "obj_train_data" / "a.png")
    write_text(tmp_path / "raw" / "obj_train_data" / "a.txt", LINES)
    write_text(tmp_path / "raw" / "obj.names", "car\nperson\n")
    assert objects(make(tmp_path / "raw", tmp_path)) == {"a.png": BOXES}


@pytest.mark.parametrize("text", [None, "", "\n \n"])
def test_an_image_without_objects_stays(one, text):
    card = one(text, more={"allow_empty": True})
    assert card.split("train").num_empty == 1 and card.split("train").skipped == {}


def test_shares_are_of_the_upright_picture(one):
    card = one("0 0.5 0.5 0.5 0.5\n", size=(40, 30), orientation=6)
    assert card.image_sizes == {"30x40": 1} and objects(card) == {"a.jpg": [("car", 7.5, 10, 15, 20)]}


def test_polygons_and_key_points(one):
    assert objects(one("1 0.25 0.1 0.5 0.2 0.375 0.5 0.3 0.4\n")) == {"a.jpg": [("person", 10, 3, 10, 12)]}
    pose = "train: images\nkpt_shape: [2, 3]\nnames: [car, person]\n"
    assert objects(one("0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 1\n", pose)) == {"a.jpg": [BOXES[0]]}


def test_bad_lines_are_left_out_and_counted(one):
    bad = {
        "line that is not class cx cy w h": [
            "0 0.5 0.5 0.5",
            "car 0.5 0.5 0.5 0.5",
            "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
        ],
        "annotation of an unknown category": [
            "2 0.5 0.5 0.5 0.5",
            "-1 0.5 0.5 0.5 0.5",
            "0.5 0.5 0.5 0.5 0.5",
        ],
        "box with a number that is not finite": ["0 0.5 nan 0.5 0.5", "0 0.5 0.5 inf 0.5"],
        "box with shares outside 0 to 1": ["0 20 15 10 8", "0 0.5 -0.2 0.5 0.5"],
        "box without area": ["0 0.5 0.5 0 0.5", "0 0.5 0.5 0.5 -0.005"],
        "annotation listed twice": ["0  0.5 0.5 0.5 0.5"],
    }
    text = "\ufeff" + LINES + "".join(f"{line}\r\n" for lines in bad.values() for line in lines)
    card = one(text)
    assert objects(card) == {"a.jpg": BOXES}
    assert card.split("train").skipped == {reason: len(lines) for reason, lines in bad.items()}


def test_boxes_over_the_edge_are_cut(one):
    assert objects(one("0.0 1.005 0.5 0.5 0.5\n")) == {"a.jpg": [("car", 30.2, 7.5, 9.8, 15)]}


def test_labels_without_an_image_and_bad_images(tmp_path):
    raw = split_trees(tmp_path / "raw")
    write_text(raw / "labels" / "train" / "2.txt", LINES)
    write_text(raw / "labels" / "train" / "classes.txt", "car\nperson\n")
    cut = write_image(raw / "images" / "train" / "3.jpg")
    cut.write_bytes(cut.read_bytes()[:300])
    card = make(raw, tmp_path)
    assert objects(card) == {"1.jpg": BOXES}
    assert card.split("train").skipped == {"image missing": 1, "image cut short or unreadable": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.5 0.5 0.93\n", r"a\.txt, line 1: has 6 columns.*predictions"),
        (b"0 0.5 \xe9\xff", r"a\.txt: not UTF-8"),
    ],
)
def test_label_files_that_cannot_be_used_are_named(one, tmp_path, text, words):
    with pytest.raises(MrtError, match=words):
        one(text)
    assert not (tmp_path / "data" / "own").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("names: [car, person\n", r"not valid YAML \(line"),
        ("names:\n", "names is empty"),
        ("names: 3\n", "names is empty, or no list"),
        ("names: {car: 0}\n", "entry 'car' of names"),
        ("names: [[car]]\n", "entry '0' of names"),
        ("names: [car]\nnc: 2\n", "nc is 2, but there are 1 names"),
        ("names: [car]\ntrain: {a: b}\n", None),
        ("names: [car]\ntrain: images/night\n", "train is 'images/night', and there is no such folder"),
        ("names: [car]\ntrain: night.txt\n", r"train is 'night\.txt', and there is no such file"),
        ("names: [car]\ntrain: [[images]]\n", "train is no path"),
    ],
)
def test_settings_that_cannot_be_used_are_named(one, settings, words):
    if words is None:
        assert one(LINES, settings).classes == ("car",)
        return
    with pytest.raises(MrtError, match=words) as error:
        one(LINES, settings)
    assert "data.yaml" in str(error.value) and error.value.hint


def test_names_that_yaml_takes_for_something_else(one):
    assert one("0 0.5 0.5 0.5 0.5\n", "train: images\nnames: [no, 12, null]\n").classes == (
        "no",
        "12",
        "null",
    )


def test_two_sets_in_one_folder(tmp_path):
    for name, settings in (("a", YAML), ("b", YAML.replace("'car', 'person'", "'person', 'car'"))):
        split_trees(tmp_path / "raw" / name, settings)
    card = make(tmp_path / "raw", tmp_path)
    other = [("person", *BOXES[0][1:]), ("car", *BOXES[1][1:])]
    assert objects(card) == {
        "a/images/train/1.jpg": BOXES,
        "b/images/train/1.jpg": other,
    }
    assert card.classes == ("car", "person")
    write_text(tmp_path / "raw" / "dataset.yaml", YAML)  # one above both
    with pytest.raises(
        MrtError, match=r"several YOLO files with class names: a/data\.yaml, b/data\.yaml, dataset\.yaml"
    ):
        make(tmp_path / "raw", tmp_path)
