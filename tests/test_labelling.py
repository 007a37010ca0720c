"""Labelling a set from outside, and the code in docs/labels.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from tiny_set import write_set

import mrt
from mrt.data.card import DatasetCard, read_card
from mrt.data.outside import read_labels
from mrt.data.synthetic.generate import generate
from mrt.errors import Interrupted, MrtError
from mrt.labelling import (
    NO_AREA,
    NOT_FINITE,
    Labeller,
    LabellerFailed,
    check,
    class_finder,
    label,
    load_detector,
    load_function,
    part_of,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "labels.md"
CLASSES = ("car", "traffic light")
SIZE = (40, 60)  # height, width


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    """A labeller's folder is on the path only within its test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def card(tmp_path) -> DatasetCard:
    """A set of five images, whose annotations nobody could read."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, *SIZE, 3), dtype=np.uint8)
    card = write_set(tmp_path / "there", {7 + n: image for n, image in enumerate(pixels)}, [], CLASSES)
    file = card.annotations_path("train")
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": ["not to be read"]}))
    return card


def answer_for(image: Any, classes: list[str]) -> dict[str, Any]:
    """Two boxes that depend on the image, one unknown and one empty."""
    x = image.getpixel((0, 0))[0] / 10
    boxes = [[x, 2, x + 10, 9], [-5, 30, 20, 50], [0, 0, 5, 5], [9, 9, 9, 12]]
    return {"boxes": boxes, "labels": ["car", 1, "dog", 0], "scores": [0.9, 0.4, 0.5, 0.6]}


def labeller(function: Callable[..., Any] = answer_for) -> Labeller:
    """A labeller from a function of this file."""
    from mrt.data.images import read_picture

    def answers(records, classes):
        for record in records:
            yield function(read_picture(record.path, record.size), list(classes))

    return Labeller("test", answers, "0")


def script(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return f"{path}:label"


# Answers

ROWS = ([[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 60.0, 40.0]], ["traffic light", "car"], [0.75, 0.5])
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@pytest.mark.parametrize(
    "answer",
    [
        {"boxes": ROWS[0], "labels": ROWS[1], "scores": ROWS[2]},
        {"boxes": np.array(ROWS[0]), "labels": np.array(ROWS[1]), "scores": np.array(ROWS[2], np.float16)},
        {"boxes": np.array(ROWS[0]), "labels": np.array([1, 0]), "scores": ROWS[2], "more": None},
        {
            "boxes": torch.tensor(ROWS[0], requires_grad=True),
            "labels": torch.tensor([1, 0]),
            "scores": torch.tensor(ROWS[2], dtype=torch.bfloat16),
        },
        {"boxes": [torch.tensor(row) for row in ROWS[0]], "labels": (1, 0), "scores": torch.tensor(ROWS[2])},
        [
            {"box": dict(zip(CORNERS, box, strict=True)), "label": name, "score": score}
            for box, name, score in zip(*ROWS, strict=True)
        ],
        [
            {"box": dict(zip(CORNERS, torch.tensor(box), strict=True)), "label": name, "score": np.float32(s)}
            for box, name, s in zip(*ROWS, strict=True)
        ],
    ],
)
def test_every_form_of_an_answer_says_the_same(answer):
    found = check(answer, SIZE, CLASSES)
    assert found["labels"] == [1, 0] and found["scores"] == [0.75, 0.5]
    assert found["boxes"] == [[1.0, 2.0, 10.0, 20.5], [0.0, 0.0, 60.0, 40.0]]
    assert found["unknown"] == found["dropped"] == {}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"boxes": [], "labels": [], "scores": []},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)},
        {"boxes": np.zeros((0, 4)), "labels": [], "scores": np.zeros(0)},
    ],
)
def test_nothing_found(answer):
    assert check(answer, SIZE, CLASSES)["boxes"] == []


def test_names_are_matched_exactly_then_loosely():
    find = class_finder(("car", "Car", "traffic light", "t-shirt"))
    assert [find(name) for name in ("car", "Car", "traffic light.", " Traffic Light", "t - shirt")] == [
        *(0, 1),
        *(2, 2),
        3,
    ]
    assert [find(name) for name in ("CAR", "cars", "", ".")] == [None] * 4


def test_what_is_cut_left_out_and_counted():
    answer = {
        "boxes": [
            *([-5, -5, 20, 100], [70, 0, 80, 9], [5, 5, 5, 9], [9, 9, 3, 3], [1, 1, np.nan, 9]),
            *([0, 0, np.inf, 4], [0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9]),
        ],
        "labels": ["car"] * 6 + ["dog", "dog", "cat"],
        "scores": [1.00001, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.01],
    }
    found = check(answer, SIZE, CLASSES, 0.05)
    assert (found["boxes"], found["scores"]) == ([[0.0, 0.0, 20.0, 40.0]], [1.0])
    assert found["dropped"] == {NO_AREA: 3, NOT_FINITE: 2}
    assert found["unknown"] == {"dog": 2}, "what is below the threshold counts nowhere"


BOX = [1, 2, 30, 40]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "nothing (None)"),
        ("car", "'car', a str"),
        (np.zeros((3, 5)), "an array of shape (3, 5)"),
        ([[1, 2, 3, 4]], "a list of 1, of which one is a list of 4"),
        ({"box": []}, "a dict with box: it has no boxes and no labels and no scores"),
        ([{"score": 1, "label": "car"}], "it has no box"),
        ([{"score": 1, "label": "car", "box": BOX}], "the box [1, 2, 30, 40]"),
        ({"boxes": [BOX], "labels": None, "scores": [1]}, "labels is nothing (None)"),
        ({"boxes": [BOX], "labels": ["car", "car"], "scores": [1]}, "scores of shape (1,) beside 2 labels"),
        ({"boxes": BOX, "labels": ["car"], "scores": [1]}, "boxes of shape (4,) beside 1 labels"),
        ({"boxes": [[1, 2]], "labels": ["car"], "scores": [1]}, "boxes of shape (1, 2)"),
        ({"boxes": [BOX, [1]], "labels": [0, 0], "scores": [1, 1]}, "boxes: not all of one length"),
        ({"boxes": [BOX], "labels": ["car"], "scores": ["high"]}, "scores: ['high'] are not numbers"),
        ({"boxes": [["1"] * 4], "labels": ["car"], "scores": [1]}, "are not numbers"),
        ({"boxes": [BOX], "labels": ["car"], "scores": [87.5]}, "score 87.5: a score lies between 0 and 1"),
        ({"boxes": [BOX], "labels": ["car"], "scores": [-0.5]}, "score -0.5"),
        ({"boxes": [BOX], "labels": ["car"], "scores": [np.nan]}, "score nan"),
        ({"boxes": [BOX], "labels": [2], "scores": [1]}, "label 2: indices of 2 classes go from 0 to 1"),
        ({"boxes": [BOX], "labels": [-1], "scores": [1]}, "label -1"),
        ({"boxes": [BOX], "labels": [0.0], "scores": [1]}, "label '0.0': neither a class name nor a whole"),
        ({"boxes": [BOX], "labels": [True], "scores": [1]}, "label 'True'"),
        ({"boxes": [[0.1, 0.2, 0.5, 1.0]], "labels": [0], "scores": [1]}, "all boxes lie between 0 and 1"),
    ],
)
def test_an_answer_that_is_none(answer, expected, card, tmp_path):
    with pytest.raises(ValueError) as error:
        check(answer, SIZE, CLASSES)
    assert expected in str(error.value)
    with pytest.raises(MrtError) as told:
        label(card, labeller(lambda image, classes: answer), tmp_path / "labels.json")
    assert told.value.message == f"test, image 0007.png: returned {error.value}"
    assert told.value.hint.startswith("expected: a dict with boxes (n, 4)")
    assert not list(tmp_path.glob("labels*")), "nothing is written"


# The file


def test_the_file_describes_itself(card, tmp_path):
    out = tmp_path / "new" / "labels.json"
    found = label(card, labeller(), out, threshold=0.1)
    content = json.loads(out.read_text())
    assert list(content) == ["info", "images", "categories", "annotations"]
    info = content["info"]
    assert info["tool"] == "mrt label" and info["mrt"] == mrt.__version__ and info["labeller"] == "test"
    assert (info["set"], info["split"], info["threshold"]) == ("there", "train", 0.1)
    own = json.loads(card.annotations_path("train").read_text())
    assert {tuple(sorted(image.items())) for image in content["images"]} == {
        tuple(sorted(image.items())) for image in own["images"]
    }
    assert content["categories"] == own["categories"]
    assert [item["id"] for item in content["annotations"]] == list(range(1, 11))
    first, second = content["annotations"][:2]
    assert first["image_id"] == second["image_id"] == 7 and first["score"] == 0.9
    assert second == {
        **{"id": 2, "image_id": 7, "category_id": 2, "bbox": [0.0, 30.0, 20.0, 10.0]},
        **{"area": 200.0, "iscrowd": 0, "score": 0.4},
    }
    assert found.images == 5 and found.boxes == {"car": 5, "traffic light": 5}
    assert found.scores["car"] == pytest.approx(4.5)
    assert (found.unknown, found.dropped) == ({"dog": 5}, {NO_AREA: 5})
    assert sorted(path.name for path in out.parent.iterdir()) == ["labels.json"]


def test_others_read_the_file(card, tmp_path, capsys):
    out = tmp_path / "labels.json"
    label(card, labeller(), out, limit=3)
    coco = COCO(str(out))
    capsys.readouterr()
    assert coco.getImgIds() == [7, 8, 9] and len(coco.getAnnIds(catIds=[2])) == 3
    given = read_labels(str(out), card, "train", CLASSES, lowest=0.3)
    assert sorted(given.images) == [7, 8, 9] and given.boxes() == 6
    assert given.images[7].boxes[1].tolist() == [0, 30, 20, 40]


def test_file_names_are_those_of_the_set(card, tmp_path):
    file = card.annotations_path("train")
    text = file.read_text().replace('"0007.png"', '"./0007.png"')
    file.write_text(text)
    label(card, labeller(), tmp_path / "labels.json", limit=1)
    assert json.loads((tmp_path / "labels.json").read_text())["images"][0]["file_name"] == "./0007.png"


def test_a_function_gets_an_rgb_picture_and_the_names(card, tmp_path):
    def function(image, classes):
        assert (image.mode, image.size, classes) == ("RGB", (60, 40), ["fish", "boat"])
        classes.clear()  # its own list
        return [{"score": 0.5, "label": "Boat.", "box": dict(zip(CORNERS, BOX, strict=True))}]

    found = label(card, labeller(function), tmp_path / "labels.json", classes=["fish", "boat"])
    assert found.boxes == {"boat": 5}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"classes": []}, "a name is empty"),
        ({"classes": ["car", " "]}, "a name is empty"),
        ({"classes": ["car", "car"]}, "'car' is given twice"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"split": "val"}, "no split 'val'"),
    ],
)
def test_what_cannot_be_asked(changes, expected, card, tmp_path):
    with pytest.raises(MrtError, match=expected):
        label(card, labeller(), tmp_path / "labels.json", **changes)


def test_a_set_without_classes_needs_names(tmp_path):
    bare = write_set(tmp_path / "bare", {1: np.zeros((*SIZE, 3), np.uint8)}, [], (), labelled=False)
    with pytest.raises(MrtError, match="bare: has no class names") as error:
        label(bare, labeller(), tmp_path / "labels.json")
    assert "--classes car,person" in error.value.hint
    assert label(bare, labeller(), tmp_path / "labels.json", classes=CLASSES).boxes["car"] == 1


def test_nothing_is_overwritten(card, tmp_path):
    out = tmp_path / "labels.json"
    out.write_text("mine")
    with pytest.raises(MrtError, match=r"labels\.json: exists already"):
        label(card, labeller(), out)
    with pytest.raises(MrtError, match="there: is a folder"):
        label(card, labeller(), tmp_path / "there")
    assert out.read_text() == "mine"


# Going on


class StopAt:
    """A labelling function that is stopped by Ctrl-C at its call of that number."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def __call__(self, image: Any, classes: list[str]) -> Any:
        self.calls += 1
        if self.calls == self.number:
            raise KeyboardInterrupt
        return answer_for(image, classes)


@pytest.fixture
def stopped(card, tmp_path) -> Path:
    """The output of a run that was stopped at the fourth of five images, but for its progress not there."""
    out = tmp_path / "labels.json"
    with pytest.raises(
        Interrupted, match=r"stopped after 3 of 5 images; they are kept in .*labels\.json\.part"
    ):
        label(card, labeller(StopAt(4)), out)
    assert not out.exists()
    return out


def test_a_stopped_run_goes_on_to_the_same_file(card, tmp_path, stopped):
    with part_of(stopped).open("ab") as file:
        file.write(b'{"image": 10, "lab')  # killed while it wrote
    count = StopAt(0)
    found = label(card, labeller(count), stopped)
    assert count.calls == 2 and (found.before, found.images) == (3, 5)
    whole = tmp_path / "whole.json"
    assert label(card, labeller(), whole) == type(found)(**{**vars(found), "before": 0})
    assert whole.read_bytes() == stopped.read_bytes()
    assert not part_of(stopped).exists()


def test_a_run_that_is_stopped_twice(card, stopped):
    with part_of(stopped).open("ab") as file:
        file.write(b'{"image"')
    with pytest.raises(Interrupted, match="after 4 of 5"):
        label(card, labeller(StopAt(2)), stopped)
    lines = part_of(stopped).read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines[1:]] == [7, 8, 9, 10]
    assert label(card, labeller(), stopped).before == 4


def test_stopped_before_the_first_image_leaves_nothing(card, tmp_path):
    with pytest.raises(Interrupted, match=r"after 0 of 5 images$"):
        label(card, labeller(StopAt(1)), tmp_path / "labels.json")
    assert not list(tmp_path.glob("labels*"))


@pytest.mark.parametrize(
    ("other", "changes", "expected"),
    [
        ({}, {"threshold": 0.2}, "threshold was 0.05, and is 0.2 now"),
        ({}, {"classes": ["car"]}, "classes was car, traffic light, and is car now"),
        ({"name": "b.py:label"}, {}, "labeller was test, and is b.py:label now"),
        ({"digest": "1"}, {}, "test has been changed since"),
        ({}, {"limit": 2}, "has 3 images already, and 2 are asked for"),
    ],
)
def test_progress_of_another_question_is_left_alone(other, changes, expected, card, stopped):
    before = part_of(stopped).read_bytes()
    with pytest.raises(MrtError) as error:
        label(card, Labeller(**{**vars(labeller()), **other}), stopped, **changes)
    assert expected in error.value.message and str(part_of(stopped)) in error.value.message
    assert "choose another --out" in error.value.hint
    assert part_of(stopped).read_bytes() == before and not stopped.exists()


def test_a_set_that_was_made_anew(card, stopped):
    file = card.annotations_path("train")
    file.write_text(file.read_text() + "\n")
    with pytest.raises(MrtError, match="the set there has been made anew since"):
        label(card, labeller(), stopped)


@pytest.mark.parametrize("content", ["no json\n", "[1]\n", '{"question": {}}\n{"image": 7}\n', "{}\n{}\n"])
def test_a_file_that_is_no_progress(content, card, tmp_path):
    out = tmp_path / "labels.json"
    part_of(out).write_text(content)
    with pytest.raises(MrtError, match="not the progress of an mrt label"):
        label(card, labeller(), out)
    assert part_of(out).read_text() == content


def test_two_at_once(card, stopped):
    fcntl = pytest.importorskip("fcntl")
    with part_of(stopped).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(MrtError, match="another mrt label is at work on it"):
            label(card, labeller(), stopped)
    assert label(card, labeller(), stopped).before == 3


# Functions


def test_a_function_in_a_file_with_its_neighbours(card, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("NAME = 'car'\n")
    text = "import neighbour_of_mine\n\n\ndef label(image, classes):\n"
    text += "    return {'boxes': [[1, 2, 3, 4]], 'labels': [neighbour_of_mine.NAME], 'scores': [0.5]}\n"
    spec = script(tmp_path, text)
    one = load_function(spec)
    assert label(card, one, tmp_path / "labels.json").boxes == {"car": 5}
    script(tmp_path, text + "# edited\n")
    assert load_function(spec).digest != one.digest


def test_a_function_in_a_module(card, somewhere):
    Path("package_of_mine").mkdir()
    Path("package_of_mine/__init__.py").touch()
    Path("package_of_mine/shot.py").write_text("class Model:\n    def __call__(self, image, classes):\n")
    with Path("package_of_mine/shot.py").open("a") as file:
        file.write("        return []\n\n\nlabel = Model()\n")
    assert label(card, load_function("package_of_mine.shot:label"), Path("labels.json")).images == 5
    with pytest.raises(MrtError, match=r"there is no module 'package_of_mine\.shto'") as error:
        load_function("package_of_mine.shto:label")
    assert "did you mean package_of_mine.shot?" in error.value.hint


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("mine.py", "--with mine.py: names no function", "--with mine.py:label"),
        (":label", "names no function", "FILE.py:FUNCTION"),
        ("mien.py:label", "mien.py: no such file", "did you mean mine.py?"),
        ("nowhere/a.py:label", "nowhere/a.py: no such file", "check the path"),
        ("./:label", "is a folder", "check the path"),
        ("notes/text:label", "notes/text: no such file", "check the path"),
        ("mine.py:labels", "there is no function 'labels' in it", "did you mean 'label'?"),
        ("mine.py:xyz", "there is no function 'xyz'", "it has: label, one"),
        ("mine.py:NUMBERS", "NUMBERS is no function but a list of 2", "label"),
        (
            "mine.py:one",
            "one(image) cannot be called with an image and the class names",
            "one(image, classes)",
        ),
        ("no_such_module_x:label", "there is no module 'no_such_module_x'", "FILE.py:FUNCTION"),
        ("not a module:label", "'not a module' is neither a file nor a module", ".py"),
    ],
)
def test_a_function_that_is_not_there(spec, message, hint, somewhere):
    text = "NUMBERS = [1, 2]\n\n\ndef label(image, classes):\n    return []\n\n\n"
    text += "def one(image):\n    return []\n"
    script(somewhere, text)
    with pytest.raises(MrtError) as error:
        load_function(spec)
    assert message in error.value.message and hint in error.value.hint
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "import no_such_module_y\n",
            "ModuleNotFoundError: No module named 'no_such_module_y' (mine.py, line 1)",
        ),
        ("def label(:\n", "SyntaxError"),
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y' (mine.py, line 2)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (mine.py, line 2)"),
    ],
)
def test_a_file_that_cannot_be_imported(text, expected, tmp_path):
    with pytest.raises(LabellerFailed) as error:
        load_function(script(tmp_path, text))
    assert f"mine.py: cannot be imported: {expected}" in error.value.message
    assert "labellers.py" not in error.value.trace() and "importlib" not in error.value.trace()


def test_a_module_that_cannot_be_imported(somewhere):
    Path("broken_of_mine.py").write_text("import no_such_module_z\n")
    with pytest.raises(LabellerFailed, match="broken_of_mine: cannot be imported: ModuleNotFound"):
        load_function("broken_of_mine:label")


def test_an_error_within_a_function_names_the_image_and_the_line(card, tmp_path):
    text = "seen = []\n\n\ndef label(image, classes):\n    seen.append(image)\n"
    text += "    if len(seen) == 3:\n        raise ValueError('too\\nmuch')\n    return []\n"
    spec, out = script(tmp_path, text), tmp_path / "labels.json"
    with pytest.raises(LabellerFailed) as error:
        label(card, load_function(spec), out)
    assert error.value.message == (
        f"{spec}, image {tmp_path / 'there' / 'images' / '0009.png'}: ValueError: too much (mine.py, line 7)"
    )
    trace = error.value.trace()
    assert trace.startswith("Traceback") and trace.count("File ") == 1 and "too\nmuch" in trace
    assert len(part_of(out).read_text().splitlines()) == 3, "the two images before it are kept"


def test_an_image_that_cannot_be_read_is_not_the_functions_fault(card, tmp_path):
    (tmp_path / "there" / "images" / "0008.png").write_bytes(b"no image")
    with pytest.raises(MrtError, match=r"0008\.png: cannot be read as an image") as error:
        label(
            card,
            load_function(script(tmp_path, "def label(image, classes):\n    return []\n")),
            tmp_path / "a",
        )
    assert not isinstance(error.value, LabellerFailed)


# Detectors


def test_a_detector_labels_as_it_predicts(world, source, tmp_path):
    card = read_card(world / "hazy")
    classes = ["Green", "blue"]
    by = load_detector(str(source), classes, 0.02, device="cpu")
    assert by.lacking == ("blue",) and len(by.digest) == 64
    found = label(card, by, tmp_path / "labels.json", classes=classes, threshold=0.02, limit=3)
    assert set(found.boxes) == {"Green"} and not found.unknown
    content = json.loads((tmp_path / "labels.json").read_text())
    detector = mrt.load(source)
    for image in content["images"]:
        path = world / "hazy" / "images" / "train" / image["file_name"]
        theirs = detector.predict(path, threshold=0.02, classes=["green"]).to_coco(image["id"])
        mine = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        assert [item["bbox"] for item in mine] == [item["bbox"] for item in theirs]
        assert [item["score"] for item in mine] == [item["score"] for item in theirs]
    with pytest.raises(MrtError, match="finds none of the classes cat; it finds red, green"):
        load_detector(str(source), ["cat"], 0.05, device="cpu")


def test_a_broken_image_stops_a_detector_too(world, source, tmp_path, card):
    (tmp_path / "there" / "images" / "0008.png").write_bytes(b"no image")
    by = load_detector(str(source), ["red"], 0.0, device="cpu")
    with pytest.raises(MrtError, match=r"0008\.png: cannot be read as an image"):
        label(card, by, tmp_path / "labels.json", classes=["red"], threshold=0.0)
    assert len(part_of(tmp_path / "labels.json").read_text().splitlines()) == 2


# The page


def example(name: str, folder: Path) -> str:
    """The function of an example of the page, written to its file as it stands there."""
    page = PAGE.read_text(encoding="utf-8")
    after = page[re.search(rf"`{re.escape(name)}`", page).end() :]
    return script(folder, re.search(r"```python\n(.*?)```", after, re.DOTALL).group(1), name)


def tiny_grounding_dino(folder: Path, words: tuple[str, ...]) -> None:
    """A Grounding DINO of random weights, whose tokens are whole words."""
    transformers = pytest.importorskip("transformers")
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    tokens = [special.get(number, f"[unused{number}]") for number in range(1030)]  # as the model assumes
    vocabulary = {token: number for number, token in enumerate([*tokens, *words])}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    sides = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "window_size": 2}
    layers = {
        f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")
    }
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            **sides, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], out_indices=[2, 3, 4]
        ),
        text_config=transformers.BertConfig(vocab_size=len(vocabulary), **small, max_position_embeddings=64),
        **layers,
        **{
            "num_queries": 10,
            "d_model": 32,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "max_text_len": 64,
        },
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 192}),
        transformers.BertTokenizer(vocab=vocabulary, model_max_length=64),
    ).save_pretrained(folder)


def tiny_owlv2(folder: Path) -> None:
    """An OWLv2 of random weights, whose tokens are letters."""
    transformers = pytest.importorskip("transformers")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.Owlv2Config(
        text_config={"vocab_size": len(tokens), "max_position_embeddings": 64, **small, **ids},
        vision_config={"image_size": 32, "patch_size": 8, **small},
        projection_dim=16,
    )
    model = transformers.Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(model.box_head.dense2.weight)  # boxes around the patches
    model.save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=64
    )
    processor = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    transformers.Owlv2Processor(processor, tokenizer).save_pretrained(folder)


def test_the_pages_grounding_dino(card, tmp_path, monkeypatch):
    classes = ("car", "person")
    tiny_grounding_dino(tmp_path / "model", classes)
    monkeypatch.setenv("LABEL_MODEL", str(tmp_path / "model"))
    found = label(
        card, load_function(example("grounding_dino.py", tmp_path)), tmp_path / "labels.json", classes=classes
    )
    assert found.images == 5
    assert sum(found.boxes.values()) + sum(found.unknown.values()) + sum(found.dropped.values()) > 5
    assert found.boxes, "random weights give some boxes one name"


def test_the_pages_owlv2(card, tmp_path, monkeypatch):
    tiny_owlv2(tmp_path / "model")
    monkeypatch.setenv("LABEL_MODEL", str(tmp_path / "model"))
    found = label(card, load_function(example("owlv2.py", tmp_path)), tmp_path / "labels.json")
    assert found.images == 5 and set(found.boxes) == set(CLASSES) and not found.unknown


def test_the_pages_translation(somewhere, monkeypatch):
    splits, size = {"train": 2}, (256, 128)
    card = generate(Path("data"), name="streets", domain="clear", splits=splits, size=size, workers=1)
    monkeypatch.setenv("LABEL_MODEL", "small-source")
    one = load_function(example("translated.py", somewhere))
    classes = ["pedestrian", "vehicle"]
    found = label(card, one, Path("labels.json"), classes=classes)
    assert found.images == 2 and set(found.boxes) == set(classes)
    assert found.unknown and set(found.unknown) <= {"rider", "train", "motorcycle", "bicycle"}


def test_the_pages_file(card, tmp_path):
    label(card, labeller(), tmp_path / "labels.json")
    mine = json.loads((tmp_path / "labels.json").read_text())
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1))
    assert list(shown) == list(mine) and list(shown["info"]) == list(mine["info"])
    for name in ("images", "categories", "annotations"):
        assert list(shown[name][0]) == list(mine[name][0])


def test_the_pages_python(somewhere, capsys):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    write_set(Path("data/synthetic-foggy"), {1: pixels, 2: pixels, 3: pixels}, [], ("person", "car"))
    example("my_labeller.py", somewhere)
    code = re.search(r"## From Python\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "2 Counter({'person': 2})\n"
