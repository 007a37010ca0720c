"""Small files of a run's folder that hold numbers, checked field by field before anything is made of them.

``eval-*.json`` of ``mrt eval``, ``result-*.json`` of ``mrt ablate``, ``selection.json`` of ``mrt select``,
``metrics.jsonl`` and ``pseudo_labels.jsonl``. Needs neither torch nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mrt.data.card import read_json
from mrt.engine.facts import SELECTION
from mrt.engine.report import read_log
from mrt.errors import MrtError
from mrt.plain import one_line, quoted
from mrt.seal import take_checksum

EVALUATIONS, RESULTS = "eval-*.json", "result-*.json"
LARGEST = 1e30  # of a number that can be drawn
LONGEST = 80  # letters of a value in a message


def _number(value: Any) -> Any:
    """A whole number of any length is none that can be counted with, nor is True."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > LARGEST):
        raise ValueError("not a number of a size that can be")
    return value


_Strict = ConfigDict(extra="allow", strict=True)
Number = Annotated[float, BeforeValidator(_number), Field(gt=-LARGEST, lt=LARGEST, allow_inf_nan=False)]
PerCent = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**15)]


class _OfClass(TypedDict):
    __pydantic_config__ = _Strict
    num_boxes: Count
    AP: NotRequired[PerCent | None]
    AP50: NotRequired[PerCent | None]
    AP75: NotRequired[PerCent | None]


class _Metrics(TypedDict):
    __pydantic_config__ = _Strict
    AP: PerCent | None
    AP50: PerCent | None
    per_class: dict[str, _OfClass]
    AP75: NotRequired[PerCent | None]


class _Bounds(TypedDict):
    __pydantic_config__ = _Strict
    low: Number | None
    high: Number | None


class _Intervals(TypedDict):
    __pydantic_config__ = _Strict
    figures: NotRequired[dict[str, _Bounds | None]]


class _Evaluation(TypedDict):
    __pydantic_config__ = _Strict
    network: str
    data: str
    split: str
    metrics: _Metrics
    sha256: NotRequired[str | None]
    domain: NotRequired[str | None]
    last: NotRequired[bool]
    intervals: NotRequired[_Intervals | None]


class _ResultData(TypedDict):
    __pydantic_config__ = _Strict
    name: str
    sha256: NotRequired[str | None]


class _Result(TypedDict):
    __pydantic_config__ = _Strict
    network: str
    split: str
    data: _ResultData
    metrics: _Metrics


class _Signal(TypedDict):
    __pydantic_config__ = _Strict
    value: Number | None
    infinite: bool


class _Candidate(TypedDict):
    __pydantic_config__ = _Strict
    name: str
    epoch: Count | None
    signals: dict[str, _Signal]


class _Pick(TypedDict):
    __pydantic_config__ = _Strict
    candidate: str
    beyond_noise: bool


_Images = TypedDict("_Images", {"from": str, "number": Count})


class _Selection(TypedDict):
    __pydantic_config__ = _Strict
    base: str
    images: _Images
    candidates: Annotated[list[_Candidate], Field(min_length=2)]
    picks: dict[str, _Pick]
    standing: dict[str, Any]


class _Line(TypedDict):
    """What every line of a log has."""

    __pydantic_config__ = _Strict
    stage: str
    kind: str
    step: Count
    time: NotRequired[Annotated[Number, Field(ge=0)]]
    epoch: NotRequired[Count]


class _EpochLine(_Line):
    __pydantic_config__ = _Strict
    epoch: Annotated[Count, Field(ge=1)]
    thresholds: NotRequired[dict[str, Number] | None]
    labels_per_image: NotRequired[dict[str, Number] | None]
    agreement: NotRequired[Number | None]
    prototypes: NotRequired[Number | None]
    alarms: NotRequired[list[str]]


class _Quality(TypedDict):
    __pydantic_config__ = _Strict
    precision: PerCent | None
    recall: PerCent | None
    num_boxes: Count


class _OfClassSeen(TypedDict):
    __pydantic_config__ = _Strict
    AP50: NotRequired[PerCent | None]


class _EvalLine(_Line):
    __pydantic_config__ = _Strict
    epoch: Count
    network: str
    AP: NotRequired[PerCent | None]
    AP50: NotRequired[PerCent | None]
    AP75: NotRequired[PerCent | None]
    per_class: NotRequired[dict[str, _OfClassSeen]]
    pseudo_labels: NotRequired[_Quality]


class _Labelled(TypedDict):
    __pydantic_config__ = _Strict
    image_id: int | str
    scores: list[Share]
    classes: list[str]
    boxes: list[Annotated[list[Number], Field(min_length=4, max_length=4)]]


class _Snapshot(TypedDict):
    __pydantic_config__ = _Strict
    stage: str
    step: Count
    epoch: Count
    images: list[_Labelled]


CHANGED = "is not what mrt wrote: its checksum does not fit"
_EVALUATIONS = TypeAdapter(Annotated[list[_Evaluation], Field(min_length=1)])
_RESULT = TypeAdapter(_Result)
_SELECTION = TypeAdapter(_Selection)
_TRAIN = TypeAdapter(dict[str, Number | str | None])
_LINES = {"train": TypeAdapter(_Line), "epoch": TypeAdapter(_EpochLine), "eval": TypeAdapter(_EvalLine)}
_SNAPSHOT = TypeAdapter(_Snapshot)


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The records of ``mrt eval``; MrtError if one is damaged, with its field."""
    records = read_json(path)
    if isinstance(records, list) and [record for record in records if not take_checksum(record)]:
        raise MrtError(f"{path}: {CHANGED}", _measure_again(path))
    _check(_EVALUATIONS, records, path, "", _measure_again(path))
    for record in records:
        record.setdefault("sha256", None)
    return records


def read_result(path: Path) -> dict[str, Any]:
    """A result of ``mrt ablate``, its data and sha256 as ``mrt eval`` has them; MrtError if it is damaged."""
    result, again = read_json(path), "delete it and repeat the mrt ablate command, which measures it again"
    if not take_checksum(result):
        raise MrtError(f"{path}: {CHANGED}", again)
    _check(_RESULT, result, path, "", again)
    data = result["data"]
    return {**result, "data": data["name"], "sha256": data.get("sha256")}


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All of a run's folder, with the name of their "file"."""
    found = []
    for path in sorted(folder.glob(EVALUATIONS)):
        found += [{**item, "file": path.name} for item in read_evaluations(path)]
    for path in sorted(folder.glob(RESULTS)):
        found.append({**read_result(path), "file": path.name})
    return found


def read_selection(folder: Path) -> dict[str, Any] | None:
    """What ``mrt select`` found of a run; None if it was not asked. MrtError if the file is damaged."""
    path = folder / SELECTION
    if not path.is_file():
        return None
    found, again = read_json(path), f"delete it, or look again: mrt select {quoted(folder)}"
    if not take_checksum(found):
        raise MrtError(f"{path}: {CHANGED}", again)
    _check(_SELECTION, found, path, "", again)
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; MrtError if a number of one is none."""
    lines = read_log(path)
    for number, line in enumerate(lines, start=1):
        where = f"entry {number}"
        _check(_LINES.get(line["kind"], _LINES["train"]), line, path, where, _mend(path))
        if line["kind"] == "train":
            _check(_TRAIN, line, path, where, _mend(path))
            words = [key for key, value in line.items() if isinstance(value, str) and key not in _WORDS]
            if words:
                found = f"{one_line(words[0])} = {_shown(line[words[0]])}"
                raise MrtError(f"{path}: {where}: {found}: not a number", _mend(path))
    return lines


_WORDS = ("stage", "kind")  # of a train line: what is no number
_KINDS = ("float", "int", "str", "none", "typed-dict")


def read_snapshots(path: Path, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of ``pseudo_labels.jsonl``; MrtError if they are no labels of these classes."""
    lines = read_log(path)
    for number, line in enumerate(lines, start=1):
        where = f"entry {number}"
        _check(_SNAPSHOT, line, path, where, _mend(path))
        for index, image in enumerate(line["images"]):
            lengths = {len(image[key]) for key in ("scores", "classes", "boxes")}
            unknown = [name for name in image["classes"] if name not in classes]
            if len(lengths) > 1 or unknown:
                what = "scores, classes and boxes are not equally many"
                what = f"classes has {_shown(unknown[0])}, which is none of the run's" if unknown else what
                raise MrtError(f"{path}: {where}: images.{index}: {what}", _mend(path))
    return lines


def _mend(path: Path) -> str:
    return (
        f"put the file back as it was (from a backup); mrt doctor {quoted(path.parent)} looks at the rest of "
        "the run"
    )


def _measure_again(path: Path) -> str:
    return f"measure again: mrt eval {quoted(path.parent)}, or delete the file"


def _check(kind: TypeAdapter[Any], value: Any, path: Path, where: str, hint: str) -> None:
    """MrtError with file, field and value of the first thing that is not as it has to be."""
    try:
        kind.validate_python(value)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise MrtError(f"{path}: nested too deeply", hint) from None
        first = min(error.errors(include_url=False), key=lambda item: len(item["loc"]))
        parts = [str(part) for part in first["loc"]]
        field = ".".join(filter(_is_key, parts))
        found = "" if first["type"] == "missing" else f" = {_shown(first['input'])}"
        message = first["msg"][:1].lower() + first["msg"][1:]
        label = one_line(field) or "its content"
        raise MrtError(f"{path}: {where + ': ' if where else ''}{label}{found}: {message}", hint) from None


def _is_key(part: str) -> bool:
    """Whether a part of a field's place is a key or an index, and not the name of a kind of value."""
    return not any(mark in part for mark in ("[", "function-", "constrained-")) and part not in _KINDS


def _shown(value: Any) -> str:
    try:
        text = (
            one_line(repr(value)) if not _is_long(value) else f"a whole number of {value.bit_length()} bits"
        )
    except RecursionError:
        text = "..."
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _is_long(value: Any) -> bool:
    """Python writes out no whole number of thousands of digits."""
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 2000
