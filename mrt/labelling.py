"""Labels from outside: a labeller looks at the images of a prepared set, and a COCO file says what it found.

A labeller is a function ``(image, classes)`` in a file or module of the user's, or a detector. The set's own
boxes are never read. docs/labels.md has examples.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import pkgutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt import __version__
from mrt.data.card import DatasetCard, coco_categories, file_sha256, read_json
from mrt.data.dataset import DetectionDataset, ImageRecord
from mrt.data.images import read_picture
from mrt.engine.report import Watcher
from mrt.errors import Interrupted, MrtError
from mrt.files import write_text

if TYPE_CHECKING:
    from mrt.predict.detector import Detector

EXAMPLES = "docs/labels.md has complete examples"
EXPECTED = (
    "expected: a dict with boxes (n, 4), which are x0, y0, x1, y1 in pixels, labels (n), which are class "
    "names or their indices, and scores (n) from 0 to 1; or a list of dicts with score, label and box (xmin, "
    f"ymin, xmax, ymax); {EXAMPLES}"
)
MOST_TEXT = 300  # characters of an error's text in a message
ROUNDING = 1e-4  # so much may a score be above 1 or below 0
NO_AREA, NOT_FINITE = "no area inside the image", "not finite"


class LabellerFailed(MrtError):
    """The user's code raised an error, which is the ``__cause__``."""

    def trace(self) -> str:
        """The traceback of the user's error, from the user's code on."""
        cause = self.__cause__
        return "".join(traceback.format_exception(type(cause), cause, _own_part(cause)))


@dataclass(frozen=True)
class Labeller:
    """Something that finds objects in images.

    Attributes:
        name: as it was asked for.
        answers: gives what is found in each of some images, in order. The answers are as :func:`check` takes
            them.
        digest: sha256 of its code or weights; None where they are no single file.
        lacking: classes that it cannot find.
    """

    name: str
    answers: Callable[[Sequence[ImageRecord], Sequence[str]], Iterator[Any]]
    digest: str | None = None
    lacking: tuple[str, ...] = ()


@dataclass
class Found:
    """What a labeller found.

    Attributes:
        images: number of images that were looked at; ``before``: of them in earlier runs.
        boxes, scores: number of boxes and sum of their scores by class.
        unknown: boxes that were left out, by the name that is no class. dropped: by another reason.
    """

    images: int = 0
    before: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Count what :func:`check` made of an image's answer."""
        self.images += 1
        for label, score in zip(entry["labels"], entry["scores"], strict=True):
            self.boxes[classes[label]] += 1
            self.scores[classes[label]] += score
        self.unknown.update(entry["unknown"])
        self.dropped.update(entry["dropped"])


def label(
    card: DatasetCard,
    labeller: Labeller,
    out: Path,
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    threshold: float = 0.05,
    limit: int | None = None,
    watcher: Watcher | None = None,
) -> Found:
    """Let a labeller look at a split's images, and write what it finds as a COCO file.

    What is found is kept in ``OUT.part`` until all images are done. Where that file is there, from an earlier
    call that was stopped, its images are not looked at again.

    Args:
        classes: names to look for; None: the set's.
        threshold: boxes with a lower score are not written.
        limit: look at the first so many images only.

    Raises:
        MrtError: ``out`` exists; ``OUT.part`` is of another question; no such split, no class; an image
            cannot be read; the labeller's answer is none.
        LabellerFailed: its code raises an error.
        Interrupted: stopped by Ctrl-C.
    """
    watcher = watcher or Watcher()
    classes = choose_classes(card, classes)
    if not 0 <= threshold <= 1:
        raise MrtError(f"threshold {threshold:g}: a score lies between 0 and 1")
    require_new(out)
    dataset = DetectionDataset(card, split, labelled=False, limit=limit)
    records = dataset.records
    names = {image["id"]: image["file_name"] for image in read_json(dataset.annotations_file)["images"]}
    question = {
        "labeller": labeller.name,
        "labeller_sha256": labeller.digest,
        "set": card.name,
        "split": split,
        "annotations_sha256": file_sha256(dataset.annotations_file),
        "threshold": threshold,
        "classes": list(classes),
    }
    progress = Progress(part_of(out), question)
    entries = progress.read([record.image_id for record in records])
    left = records[len(entries) :]
    found = Found(before=len(entries))
    for entry in entries:
        found.add(entry, classes)
    watcher.begin(f"label {card.name} {split}", len(records), len(entries))
    try:
        with progress, contextlib.closing(labeller.answers(left, classes)) as answers:
            for record in left:
                entry = _entry(labeller, answers, record, names[record.image_id], classes, threshold)
                progress.add(entry)
                entries.append(entry)
                found.add(entry, classes)
                watcher.advance(1, objects=float(len(entry["labels"])))
    except KeyboardInterrupt:
        kept = f"; they are kept in {progress.path}" if entries else ""
        raise Interrupted(f"stopped after {len(entries)} of {len(records)} images{kept}") from None
    watcher.end()
    info = {"tool": "mrt label", **question, "mrt": __version__}
    del info["classes"]
    content = {
        "info": info,
        "images": [
            {"id": r.image_id, "file_name": names[r.image_id], "width": r.size[1], "height": r.size[0]}
            for r in records
        ],
        "categories": coco_categories(classes),
        "annotations": _annotations(entries),
    }
    write_text(out, json.dumps(content, ensure_ascii=False) + "\n")
    progress.path.unlink(missing_ok=True)
    return found


def part_of(out: Path) -> Path:
    """Where the progress of a run that writes ``out`` is kept."""
    return out.with_name(f"{out.name}.part")


def require_new(out: Path) -> None:
    """MrtError if there is something where the labels would be written."""
    if out.exists():
        what = "is a folder" if out.is_dir() else "exists already"
        raise MrtError(f"{out}: {what}", "nothing is overwritten: name another file with --out")


def choose_classes(card: DatasetCard, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names to look for: those given, else the set's.

    Raises:
        MrtError: there are none, or one is empty or given twice.
    """
    names = tuple(card.classes if classes is None else classes)
    if not names and classes is None:
        raise MrtError(
            f"{card.name}: has no class names of its own, so it must be said what to look for",
            "name the classes, such as --classes car,person",
        )
    if not names or not all(name.strip() for name in names):
        raise MrtError(f"--classes {','.join(names)!r}: a name is empty", "for example --classes car,person")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise MrtError(f"--classes: {twice[0]!r} is given twice", "name each class once")
    return names


# Labellers


def load_function(spec: str) -> Labeller:
    """The labeller ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``; its code is run.

    A file may import its neighbours, a module may lie in the current folder.

    Raises:
        MrtError: there is no such file, module or function, or it cannot be called with an image and classes.
        LabellerFailed: its code raises an error when it is imported.
    """
    where, colon, name = spec.rpartition(":")
    if not (colon and where and name):
        raise MrtError(
            f"--with {spec}: names no function",
            f"write FILE.py:FUNCTION or MODULE:FUNCTION, such as --with {spec.strip(':') or 'my.py'}:label",
        )
    is_file = where.endswith(".py") or "/" in where or os.sep in where
    module = _from_file(spec, Path(where).expanduser()) if is_file else _from_module(spec, where)
    function = _member(spec, module, name)
    origin = Path(getattr(module, "__file__", None) or "")
    digest = file_sha256(origin) if origin.is_file() else None

    def answers(records: Sequence[ImageRecord], classes: Sequence[str]) -> Iterator[Any]:
        for record in records:
            picture = read_picture(record.path, record.size)
            try:
                answer = function(picture, list(classes))
            except (Exception, SystemExit) as error:  # whatever the code of others raises
                raise LabellerFailed(f"{spec}, image {record.path}: {_why(error, origin)}") from error
            yield answer

    return Labeller(spec, answers, digest)


def load_detector(
    where: str,
    classes: Sequence[str],
    threshold: float,
    *,
    device: str = "auto",
    run_root: Path | None = None,
) -> Labeller:
    """A detector as a labeller; ``where`` is as in :func:`mrt.load`.

    Args:
        classes: names to look for; those of the detector that are the same (:func:`class_finder`) are taken.
        threshold: lowest score that is of interest.

    Raises:
        MrtError: there is no such detector, or it knows none of the classes.
    """
    from mrt import api
    from mrt.predict.detector import Options

    detector = api.load(where, device=device, run_root=run_root)
    find = class_finder(classes)
    theirs = [name for name in detector.classes if find(name) is not None]
    known = {find(name) for name in theirs}
    if not theirs:
        raise MrtError(
            f"--detector {where}: finds none of the classes {', '.join(classes)}; "
            f"it finds {_some(detector.classes)}",
            f"name some of its classes with --classes, or translate its names in a function: {EXAMPLES}",
        )
    lacking = tuple(name for number, name in enumerate(classes) if number not in known)
    file = Path(str(detector.facts.get("file", "")))
    options = Options(threshold, _batch(detector), classes=theirs)

    def answers(records: Sequence[ImageRecord], _: Sequence[str]) -> Iterator[Any]:
        from mrt.predict.inputs import Frame

        def reader(record: ImageRecord) -> Callable[[], Any]:
            return lambda: read_picture(record.path, record.size)

        frames = (Frame(str(record.path), reader(record), record.path) for record in records)
        with contextlib.closing(detector.stream(frames, options)) as results:
            for _frame, result in results:
                if isinstance(result, MrtError):
                    raise result
                yield {"boxes": result.boxes, "labels": result.names, "scores": result.scores}

    return Labeller(where, answers, file_sha256(file) if file.is_file() else None, lacking)


def _batch(detector: Detector) -> int:
    """Images of one size at a time."""
    device = getattr(detector.network, "device", None)
    return 8 if getattr(device, "type", "cpu") == "cuda" else 1


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        there = [entry.name for entry in folder.iterdir() if entry.suffix == ".py"] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        hint = f"did you mean {folder / near[0]}?" if near else "check the path"
        raise MrtError(
            f"--with {spec}: {path} is a folder" if path.is_dir() else f"{path}: no such file", hint
        )
    resolved = path.resolve()
    key = f"mrt_labeller_{hashlib.sha256(str(resolved).encode()).hexdigest()[:12]}"
    place = importlib.util.spec_from_file_location(key, resolved)
    if place is None or place.loader is None:
        raise MrtError(f"{path}: not a Python file", "its name must end in .py")
    module = importlib.util.module_from_spec(place)
    sys.modules[key] = module  # dataclasses and pickles look there
    _can_import_from(resolved.parent)
    try:
        place.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LabellerFailed(f"{path}: cannot be imported: {_why(error, resolved)}") from error
    return module


def _from_module(spec: str, name: str) -> ModuleType:
    _can_import_from(Path.cwd())
    if not all(part.isidentifier() for part in name.split(".")):
        raise MrtError(f"--with {spec}: {name!r} is neither a file nor a module", "a file's name ends in .py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (name == missing or name.startswith(f"{missing}.")):
            raise LabellerFailed(f"module {name}: cannot be imported: {_why(error)}") from error
        above, _, last = missing.rpartition(".")
        places = getattr(sys.modules.get(above), "__path__", []) if above else None
        there = [found.name for found in pkgutil.iter_modules(places)]
        near = difflib.get_close_matches(last, there, n=1, cutoff=0.75)
        guess = f"did you mean {'.'.join(filter(None, (above, near[0])))}? " if near else ""
        raise MrtError(
            f"--with {spec}: there is no module {missing!r}",
            f"{guess}Modules are installed or lie in the current folder; files are named FILE.py:FUNCTION",
        ) from None
    except (Exception, SystemExit) as error:
        raise LabellerFailed(f"module {name}: cannot be imported: {_why(error)}") from error


def _can_import_from(folder: Path) -> None:
    """Modules of the folder can be imported, but take the place of no others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _member(spec: str, module: ModuleType, name: str) -> Callable[..., Any]:
    found = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    if not hasattr(module, name):
        own = [key for key, value in found.items() if getattr(value, "__module__", None) == module.__name__]
        functions = [key for key in own if callable(found[key])]
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(functions) or 'no function'}"
        raise MrtError(f"--with {spec}: there is no function {name!r} in it", hint)
    function = getattr(module, name)
    if not callable(function):
        raise MrtError(
            f"--with {spec}: {name} is no function but {_described(function)}",
            f"write a function {name}(image, classes); {EXAMPLES}",
        )
    try:
        inspect.signature(function).bind("image", "classes")
    except TypeError:
        given = inspect.signature(function)
        raise MrtError(
            f"--with {spec}: {name}{given} cannot be called with an image and the class names",
            f"write a function {name}(image, classes); {EXAMPLES}",
        ) from None
    except ValueError:  # some of C have no signature
        pass
    return function


def _own_part(error: BaseException | None) -> Any:
    """An error's traceback from the user's code on; None where that was not reached."""
    trace = error.__traceback__ if error else None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            return trace
        trace = trace.tb_next
    return None


def _why(error: BaseException, origin: Path | None = None) -> str:
    """An error in one line, with the line of ``origin``, the user's file, in which it came up."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    if len(text) > MOST_TEXT:
        text = f"{text[:MOST_TEXT]} ..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(origin)]
    return f"{text} ({origin.name}, line {frames[-1].lineno})" if origin and frames else text


# Answers


def class_finder(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a class name, as models write it, to an index into ``classes``; None: it is none.

    Names that are not there exactly are compared without case, spaces, and dots at the ends ("Traffic
    light." is "traffic light"), where that is unique.
    """
    exact = {name: number for number, name in enumerate(classes)}
    counts = Counter(map(_plain_name, classes))
    plain = {_plain_name(name): number for name, number in exact.items() if counts[_plain_name(name)] == 1}
    return lambda name: exact.get(name, plain.get(_plain_name(name)))


def _plain_name(name: str) -> str:
    return "".join(name.casefold().split()).strip(".")


def check(
    answer: Any, size: tuple[int, int], classes: Sequence[str], threshold: float = 0.0
) -> dict[str, Any]:
    """What a labeller's answer says of an image, as plain values.

    Args:
        answer: a dict with "boxes" (n, 4) x0, y0, x1, y1 in pixels, "labels" (n) class names or indices, and
            "scores" (n), as lists, arrays or tensors; or a list of dicts with "score", "label" and "box",
            which has "xmin", "ymin", "xmax" and "ymax".
        size: (height, width) of the image, to which boxes are cut.

    Returns:
        "labels": indices; "boxes": [x, y, width, height] in pixels; "scores"; and the numbers
        of boxes left out: "unknown" by name, "dropped" by reason. Scores below the threshold count nowhere.

    Raises:
        ValueError: the answer is none.
    """
    boxes, labels, scores = _columns(answer)
    numbers = _numbers("scores", scores, (len(labels),))
    boxes = _numbers("boxes", boxes, (len(labels), 4))
    wrong = ~((numbers >= -ROUNDING) & (numbers <= 1 + ROUNDING))
    if wrong.any():
        raise ValueError(f"score {numbers[wrong][0]:g}: a score lies between 0 and 1")
    height, width = size
    _require_pixels(boxes, size)
    find = class_finder(classes)
    found: dict[str, Any] = {"labels": [], "boxes": [], "scores": []}
    unknown: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for box, label, score in zip(boxes.tolist(), labels, numbers.clip(0, 1).tolist(), strict=True):
        number = _class_number(label, classes, find)
        if score < threshold:
            continue
        if number is None:
            unknown[label] += 1
            continue
        if not all(map(math.isfinite, box)):
            dropped[NOT_FINITE] += 1
            continue
        x0, x1 = (min(max(value, 0.0), width) for value in box[::2])
        y0, y1 = (min(max(value, 0.0), height) for value in box[1::2])
        row = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
        if row[2] <= 0 or row[3] <= 0:
            dropped[NO_AREA] += 1
            continue
        found["labels"].append(number)
        found["boxes"].append(row)
        found["scores"].append(round(score, 5))
    return {**found, "unknown": dict(unknown), "dropped": dict(dropped)}


def _columns(answer: Any) -> tuple[Any, list[Any], Any]:
    """Boxes, labels and scores of an answer of either form, as plain lists."""
    if isinstance(answer, Mapping):
        missing = [key for key in ("boxes", "labels", "scores") if key not in answer]
        if missing:
            raise ValueError(f"{_described(answer)}: it has no {' and no '.join(missing)}")
        boxes, labels, scores = (_plain(answer[key]) for key in ("boxes", "labels", "scores"))
        if not isinstance(labels, list):
            raise ValueError(f"labels is {_described(answer['labels'])}")
        return boxes, labels, scores
    if not isinstance(answer, (list, tuple)):
        raise ValueError(_described(answer))
    corners = ("xmin", "ymin", "xmax", "ymax")
    rows = []
    for item in answer:
        if not isinstance(item, Mapping):
            raise ValueError(f"{_described(answer)}, of which one is {_described(item)}")
        missing = [key for key in ("score", "label", "box") if key not in item]
        if missing:
            raise ValueError(
                f"a list, of which one is {_described(item)}: it has no {' and no '.join(missing)}"
            )
        box = item["box"]
        if not (isinstance(box, Mapping) and all(corner in box for corner in corners)):
            raise ValueError(f"a list, of which one has the box {str(_plain(box))[:100]}")
        rows.append(
            ([_plain(box[corner]) for corner in corners], _plain(item["label"]), _plain(item["score"]))
        )
    boxes, labels, scores = ([row[column] for row in rows] for column in range(3))
    return boxes, labels, scores


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists and numbers, also within lists."""
    if hasattr(value, "detach"):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` as float64 of that shape; no values fit any shape for none."""
    try:
        array = np.array(value)
    except ValueError:
        raise ValueError(f"{name}: not all of one length") from None
    if array.size == 0 and shape[0] == 0:
        return np.zeros(shape)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: {str(value)[:100]} are not numbers")
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape} beside {shape[0]} labels")
    return array.astype(np.float64)


def _require_pixels(boxes: np.ndarray, size: tuple[int, int]) -> None:
    """ValueError if the boxes are shares of the image: all between 0 and 1, and not at whole numbers."""
    if len(boxes) and min(size) > 2 and (boxes >= 0).all() and (boxes <= 1).all() and (boxes % 1 != 0).any():
        first = ", ".join(f"{value:g}" for value in boxes[0])
        raise ValueError(f"all boxes lie between 0 and 1, such as [{first}], but should be pixels")


def _class_number(label: Any, classes: Sequence[str], find: Callable[[str], int | None]) -> int | None:
    if isinstance(label, str):
        return find(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label {str(label)[:100]!r}: neither a class name nor a whole number")
    if not 0 <= label < len(classes):
        raise ValueError(f"label {label}: indices of {len(classes)} classes go from 0 to {len(classes) - 1}")
    return label


def _described(value: Any) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value)) or 'nothing in it'}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{str(value)[:60]!r}, a {type(value).__name__}"


def _entry(
    labeller: Labeller,
    answers: Iterator[Any],
    record: ImageRecord,
    name: str,
    classes: Sequence[str],
    threshold: float,
) -> dict[str, Any]:
    """The next answer, checked, with the image's id."""
    answer = next(answers)
    try:
        entry = check(answer, record.size, classes, threshold)
    except ValueError as error:
        raise MrtError(f"{labeller.name}, image {name}: returned {error}", EXPECTED) from None
    return {**entry, "image": record.image_id}


def _annotations(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """COCO annotations with ids from 1."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        for number, box, score in zip(entry["labels"], entry["boxes"], entry["scores"], strict=True):
            annotation = {
                "id": len(found) + 1,
                "image_id": entry["image"],
                "category_id": number + 1,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
                "score": score,
            }
            found.append(annotation)
    return found


# Progress

_ENTRY = ("image", "labels", "boxes", "scores", "unknown", "dropped")


class Progress:
    """A file of JSON lines: the question, then a line for each image that is done.

    It is made with the first image. Within ``with`` it is open, and no other process can add to it.
    """

    def __init__(self, path: Path, question: Mapping[str, Any]) -> None:
        self.path, self.question = path, dict(question)
        self._good = 0  # bytes of whole lines
        self._file: Any = None

    def read(self, images: Sequence[int]) -> list[dict[str, Any]]:
        """What was found in the first of these images. A line that was cut short does not count.

        Raises:
            MrtError: the file is of another question, or of other or more images.
        """
        if not self.path.is_file():
            return []
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        if not newline:
            return []
        try:
            header, *entries = [json.loads(line) for line in whole.split(b"\n")]
            before = dict(header["question"])
            done = [entry["image"] for entry in entries]
            complete = all(key in entry for entry in entries for key in _ENTRY)
        except (ValueError, KeyError, TypeError):
            complete, done, before = False, [], {}
        other = f"delete it to begin anew, or choose another --out{self._costs(done)}"
        if not complete:
            raise MrtError(f"{self.path}: not the progress of an mrt label", other)
        if not done:
            return []
        if before != self.question:
            raise MrtError(f"{self.path}: is of another question: {self._difference(before)}", other)
        if len(done) > len(images):
            raise MrtError(
                f"{self.path}: has {len(done)} images already, and {len(images)} are asked for",
                f"ask for --limit {len(done)} or more to go on with it, or choose another --out",
            )
        if done != list(images[: len(done)]):
            raise MrtError(f"{self.path}: is of other images", other)
        self._good = len(whole) + 1
        return entries

    def _costs(self, done: Sequence[int]) -> str:
        return f" (what was found in {len(done)} images is in it)" if done else ""

    def _difference(self, before: Mapping[str, Any]) -> str:
        if before.get("labeller") == self.question["labeller"]:
            changed = {
                "labeller_sha256": f"{self.question['labeller']} has been changed since",
                "annotations_sha256": f"the set {self.question['set']} has been made anew since",
            }
            for key, text in changed.items():
                if before.get(key) != self.question[key]:
                    return text
        key = next(key for key in {**self.question, **before} if before.get(key) != self.question.get(key))
        then, now = (
            _some(value) if isinstance(value, list) else value
            for value in (before.get(key), self.question.get(key))
        )
        return f"{key} was {then}, and is {now} now"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write an image's line."""
        try:
            if self._file is None:
                self._open()
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise MrtError(
                f"{self.path}: could not be written: {error.strerror or error}",
                "check the folder's permissions and the free space",
            ) from error

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        _lock(self._file, self.path)
        self._file.truncate(self._good)
        if not self._good:
            self._file.write(json.dumps({"question": self.question}).encode() + b"\n")


def _lock(file: Any, path: Path) -> None:
    """MrtError if another process writes the file."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MrtError(
            f"{path}: another mrt label is at work on it", "wait for it, or choose another --out"
        ) from None


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names in a message, the first of many."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
