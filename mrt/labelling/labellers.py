"""Labellers: a function of the user's, in a file or module, or a detector."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mrt.data.card import file_sha256
from mrt.data.dataset import ImageRecord
from mrt.data.images import read_picture
from mrt.errors import MrtError
from mrt.labelling.answers import EXAMPLES, class_finder, described, some

if TYPE_CHECKING:
    from mrt.predict.detector import Detector

MOST_TEXT = 300  # characters of an error's text in a message


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
            f"it finds {some(detector.classes)}",
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
            f"--with {spec}: {name} is no function but {described(function)}",
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
