"""No input makes a parser fail with a traceback, hang, or fill the memory: see ``mutate.py``.

``make test`` gives each parser some dozens of broken inputs, always the same ones; ``make soak`` gives it
100,000 (``MRT_MUTATIONS=N``: so many) of another seed (``MRT_SEED=N``). With ``MRT_SOAK_REPORT=FOLDER`` the
counts are written there, one JSON file for each parser.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pytest
from mrt_cli import preparing
from mutate import ACCEPTED, Mutator, report, run
from mutations import PICTURES, READERS, Reader, cityscapes_tree, coco_tree, own, picture_bytes
from PIL import Image

from mrt import config
from mrt.data import archives, card, outside
from mrt.data.check import check_set
from mrt.data.convert import foggy
from mrt.data.convert.recipe import Recipe, prepare
from mrt.data.dataset import DetectionDataset
from mrt.data.headers import read_header
from mrt.data.images import read_picture
from mrt.data.preview import contact_sheet
from mrt.engine.report import Watcher
from mrt.errors import MrtError

FEW, MANY = 60, int(os.environ.get("MRT_MUTATIONS", "100000"))
SEED = int(os.environ.get("MRT_SEED", "1"))
SKIPPED = "skipped"  # the file was left out and counted, the others became a set

Body = Callable[[bytes], str | None]


@dataclass(frozen=True)
class Parser:
    """A good input of one kind, and what reads it.

    Args:
        make: (empty folder) -> the good input, and the function that is given broken ones.
        suffix: what it is, for :class:`mutate.Mutator`.
    """

    name: str
    make: Callable[[Path], tuple[bytes, Body]]
    suffix: str = ".txt"
    binary: bool = False


# ---- from raw files to a prepared set
# --------------------------------------------------------------------------------------------------

CONVERTED = {
    "COCO": "coco-coco",
    "COCO, splits": "coco-splits",
    "COCO, boxes by shares": "coco-shares",
    "Cityscapes, polygons": "cityscapes-polygons",
    "Cityscapes, instance images": "cityscapes-instances",
    "VOC": "voc-voc",
    "VOC, lists": "voc-list",
    "YOLO, data.yaml": "yolo-yolo-data.yaml",
    "YOLO, label files": "yolo-yolo-labels",
    "YOLO, classes.txt": "yolo-classes.txt",
    "darknet, data": "yolo-darknet-data",
    "darknet, list": "darknet-list",
    "BDD100K, list": "bdd100k-2018-all",
    "BDD100K, a file each": "bdd100k-per-image-daytime",
    "BDD100K, own": "bdd-bdd",
    "KITTI": "kitti-benchmark",
    "KITTI, own": "kitti-kitti",
    "CVAT": "cvat-cvat",
    "LabelMe": "labelme-labelme",
    "VIA": "via-via",
    "Create ML": "createml-createml",
    "Label Studio": "label-studio-label-studio",
    "Supervisely": "supervisely-supervisely",
    "DOTA": "dota-dota",
    "VisDrone": "visdrone-visdrone",
    "Open Images": "openimages-openimages",
    "CSV": "csv-csv",
    "ACDC": "acdc",
    "CFC": "cfc",
    "Sim10k": "sim10k",
    "zip": "coco.zip",
    "tgz": "coco.tgz",
    "found by itself, COCO": "auto-coco",
    "found by itself, DOTA": "auto-dota",
    "found by itself, CVAT": "auto-cvat",
    "found by itself, YOLO": "auto-yolo-labels",
    "found by itself, CSV": "auto-csv",
}


def converted(reader: Reader, folder: Path) -> tuple[bytes, Body]:
    """The whole way from raw files, one of them broken, to the prepared set."""
    raw, root = folder / "raw", folder / "data"
    reader.write(raw)
    place = raw / reader.file
    good = place.read_bytes()

    def body(content: bytes) -> str:
        place.write_bytes(content)
        return _made(root, lambda: reader.recipe(raw, root))

    return good, body


def _made(root: Path, recipe: Callable[[], Recipe]) -> str:
    shutil.rmtree(root, ignore_errors=True)
    archives._open_archives.clear()  # this process has the unbroken one open
    try:
        made, said = prepare(recipe(), root, "set", workers=1, allow_empty=True)
    except MrtError:
        left = {path.name for path in root.glob("*")}
        assert left <= {card.UNPACKED}, f"a refused set leaves {left}"
        raise
    _printable([*said, *made.details.get("losses", ()), *made.details.get("notes", ())])
    again = card.read_card(made.folder)
    assert again == made, "the card that is read is the one that was written"
    return SKIPPED if any(split.skipped for split in made.splits.values()) else ACCEPTED


def _printable(lines: list[str]) -> None:
    for line in lines:
        line.encode("utf-8")  # else it could not be printed


def fog_names(folder: Path) -> tuple[bytes, Body]:
    """Foggy Cityscapes' archive with files of broken names, one a line."""
    labels, root, archive = folder / "labels", folder / "data", folder / "foggy.zip"
    cityscapes_tree(labels)
    shutil.rmtree(labels / "leftImg8bit")
    Image.new("RGB", (64, 32)).save(folder / "a.png")
    picture = (folder / "a.png").read_bytes()
    frames = [f"val/bonn/bonn_00000{number}_000019_leftImg8bit_foggy_beta" for number in (0, 1)]
    betas = ("0.02", "0.01", "0.005")
    good = [f"leftImg8bit_foggy/{frame}_{beta}.png" for frame in frames for beta in betas]

    def body(content: bytes) -> str:
        with zipfile.ZipFile(archive, "w") as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that are there twice
            # zipfile cuts names at a zero
            names = [line.partition("\0")[0] for line in content.decode("utf-8", "replace").splitlines()]
            for name in names:
                if name:
                    out.writestr(name[:20_000], picture)
        return _made(root, lambda: foggy.recipe([archive, labels], root))

    return "\n".join(good).encode(), body


# ---- what is prepared
# --------------------------------------------------------------------------------------------------


class Listener(Watcher):
    """Takes what a command prints, which must be possible to print."""

    def say(self, text: str = "") -> None:
        _printable([text])


def _checked(folder: Path) -> None:
    preparing.look_at([folder], True, 0, Listener())


def _sheet(folder: Path) -> None:
    contact_sheet(folder, 2, width=40)


def _read(folder: Path) -> None:
    found = card.read_card(folder)
    assert check_set(found, workers=1) is not None
    for split in found.splits:
        dataset = DetectionDataset(found, split)
        _printable([*dataset.left_out(), *dataset.boxes_per_class()])
        dataset.largest_size()
        json.dumps(dataset.coco_ground_truth())
        for index in range(min(len(dataset), 2)):
            dataset[index]


def _rewritten(folder: Path) -> None:
    found = card.read_card(folder)
    card.write_card(found, folder / "again")
    assert card.read_card(folder / "again").splits == found.splits


def prepared(file: str, use: Callable[[Path], None], folder: Path) -> tuple[bytes, Body]:
    """A prepared set with one broken file, and no hashes, so that it is still read."""
    root = folder / "data"
    raw = root / "raw"  # below the data root, so that the card has no path of this machine
    coco_tree(raw)
    made, _ = prepare(own("coco")(raw, root), root, "set", workers=1)
    place = made.folder / card.CARD_NAME
    content = json.loads(place.read_text(encoding="utf-8"))
    content["splits"]["train"]["sha256"] = ""
    place.write_text(json.dumps(content), encoding="utf-8")

    def body(content: bytes) -> None:
        (made.folder / file).write_bytes(content)
        use(made.folder)

    return (made.folder / file).read_bytes(), body


def labels_from_outside(results: bool, folder: Path) -> tuple[bytes, Body]:
    """A COCO file, or a list of results, with labels of a prepared set's images."""
    prepared("train.json", _checked, folder)
    own_labels = card.read_card(folder / "data" / "set")
    content = json.loads(own_labels.annotations_path("train").read_bytes())
    for number, annotation in enumerate(content["annotations"]):
        annotation["score"] = 0.5 + number / 10
    place = folder / "labels.json"

    def body(content: bytes) -> None:
        place.write_bytes(content)
        found = outside.read_labels(
            str(place), own_labels, "train", ("car", "person"), {"person": "person"}, lowest=0.3
        )
        _printable(list(found.notes))

    return json.dumps(content["annotations"] if results else content).encode(), body


# ---- pictures and settings
# --------------------------------------------------------------------------------------------------


def picture(suffix: str, folder: Path) -> tuple[bytes, Body]:
    """The header and the pixels of an image file."""
    place = folder / f"b{suffix}"

    def body(content: bytes) -> None:
        place.write_bytes(content)
        header = read_header(place)
        assert read_picture(place).size == header.upright

    return picture_bytes(folder, suffix), body


TOML = """
seed = 3
[method]
plugins = []
[data]
source = "a"
classes = ["car", "person"]
class_map = {motor = "motorcycle"}
sides = [100, 200]
[mae]
variant = "paper"
mask_ratio = 0.5
grid = [3, 4]
[teacher]
labels = "labels.json"
fast_ema = 0.9
[engine]
batch_size = 4
clip = 1e-1
amp = "bf16"
"""


def settings(suffix: str, folder: Path) -> tuple[bytes, Body]:
    """A preset of one's own, or a run's settings."""
    place = folder / f"mine{suffix}"

    def body(content: bytes) -> None:
        place.write_bytes(content)
        found = config.load_config(place, ["mae.use=none", "data.class_map.a=b"])
        place.with_suffix(".json").write_text(found.to_json(), encoding="utf-8")
        assert config.load_config(place.with_suffix(".json")) == found
        config.without_plugins(found.plain())

    good = TOML if suffix == ".toml" else config.load_config("city2foggy").to_json()
    return good.encode(), body


SET = """mae.mask_ratio=0.5
mae.variant=paper
data.classes=[car, person]
data.class_map.motor=motorcycle
teach.epochs=10
data.sides=[800, 600]
method.plugins=[a.py, "b.py"]
engine.clip=1e-1
teacher.fast_ema=none
"""


def set_words(folder: Path) -> tuple[bytes, Body]:
    """What is given to ``--set``, a word a line."""

    def body(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")  # as a shell's words are
        found = config.load_config(
            "small", [line for line in text.splitlines() if not line.startswith("method.")]
        )
        found.to_json().encode()

    return SET.encode(), body


def _parsers() -> Iterator[Parser]:
    for name, reader in CONVERTED.items():
        found = READERS[reader]
        suffix = PurePosixPath(found.file).suffix
        yield Parser(name, partial(converted, found), suffix, binary=suffix in PICTURES)
    yield Parser("Foggy Cityscapes, names", fog_names)
    for use in (_checked, _read, _sheet):
        yield Parser(
            f"annotations of a prepared set, {use.__name__[1:]}",
            partial(prepared, "train.json", use),
            ".json",
        )
    for use in (_checked, _read, _rewritten):
        yield Parser(f"dataset card, {use.__name__[1:]}", partial(prepared, card.CARD_NAME, use), ".json")
    yield Parser("labels from outside", partial(labels_from_outside, False), ".json")
    yield Parser("labels from outside, results", partial(labels_from_outside, True), ".json")
    for suffix in PICTURES:
        yield Parser(f"image {suffix[1:]}", partial(picture, suffix), suffix, binary=True)
    yield Parser("preset", partial(settings, ".toml"))
    yield Parser("a run's settings", partial(settings, ".json"), ".json")
    yield Parser("--set", set_words)


PARSERS = {parser.name: parser for parser in _parsers()}
HOW_MANY = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.soak)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, in memory where that can be."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing is synced to the disk: files need not survive a crash of the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("count", HOW_MANY)
@pytest.mark.parametrize("name", PARSERS)
def test_any_input_is_read_or_refused(folder, monkeypatch, name, count):
    parser = PARSERS[name]
    monkeypatch.chdir(folder)
    good, body = parser.make(folder)
    with suppress(MrtError):  # some formats are only found, not taken unasked
        body(good)
    counts = run(name, body, Mutator(good, parser.suffix, parser.binary), count, 0 if count == FEW else SEED)
    report(counts)
    print(counts.tell())
    assert not counts.bad, counts.tell()


# ---- settings, one by one
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mae.variant=[paper]", r"mae\.variant = \['paper'\]: input should be 'published' or 'paper'"),
        ("mae.variant={a=1}", r"mae\.variant: input should be"),
        ("mae.layers=" + "9" * 5000, "--set mae.layers: a number of thousands of digits"),
        ("mae.layers=0x" + "f" * 5000, "--set mae.layers: a number of 20000 bits"),
        ("seed=99999999999999999999", "--set seed: a number of 67 bits"),
        ("data.classes=" + "[" * 5000, "--set data.classes: nested too deeply"),
        ("data.classes=" + "[" * 200 + "]" * 200, "--set data.classes: nested too deeply"),
        ("data.classes=" + "{a=" * 5000, r"data\.classes"),
        ("teacher.labels=" + "a/" * 3000 + ".json", r"teacher\.labels = .*: File name too long"),
        ("method.plugins=\0.py", r"method\.plugins = .*null byte"),
        ("a" * 70_000 + "=1", "70002 letters are too many"),
        ("seed=1\nx=2", r"seed = '1\\nx=2': input should be"),
    ],
)
def test_a_word_after_set_is_refused(word, said):
    with pytest.raises(MrtError, match=said):
        config.load_config("small", [word])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "mae = 3", "mae = 3: it is a section"),
        ("a.toml", "mae = [1]", r"mae = \[1\]: it is a section"),
        ("a.toml", "seed = " + "1" * 5000, "a number of thousands of digits"),
        ("a.toml", "a = " + "[" * 5000, "nested too deeply"),
        ("a.toml", "a." * 50_000 + "b = 1", "names of more than 30 parts"),
        ("a.toml", "#" * (2 << 20), "letters are too many for settings"),
        ("a.json", '{"seed": ' + "1" * 5000 + "}", "a number of thousands of digits"),
        ("a.json", '{"a": ' * 5000, "nested too deeply"),
        ("a.json", '{"mae": {"variant": ["paper"]}}', r"mae\.variant = \['paper'\]"),
        ("a.json", '{"method": 5}', "method"),
    ],
)
def test_a_file_of_settings_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(MrtError, match=said) as caught:
        config.load_config(tmp_path / name, ["mae.use=none"])
    assert name in caught.value.message or "section" in caught.value.message


@pytest.mark.parametrize("name", ["a" * 300 + ".toml", "\0.toml", "a" * 5000, "\0"])
def test_a_preset_that_nothing_can_be_called(name):
    with pytest.raises(MrtError, match=r"no such configuration file|unknown preset"):
        config.load_config(name)


def test_stored_settings_of_another_form_have_no_plugins():
    assert config.without_plugins({"method": 5}) == {"method": 5}
