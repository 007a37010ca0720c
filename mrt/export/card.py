"""Descriptions in a folder of ``mrt export``: ``export.json`` for programs, and a model card for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mrt
from mrt.data.card import file_sha256, read_json
from mrt.engine.facts import is_run, read_facts
from mrt.engine.load import EXPORT_CARD
from mrt.errors import MrtError
from mrt.files import write_text
from mrt.plain import is_text, markdown, visible
from mrt.predict.detector import Detector
from mrt.report.stored import EVALUATIONS, read_evaluations

VERSION = 1
AGAIN = "export the detector again"
LICENCE = (
    "mrt is under Apache-2.0. Weights carry the terms of the data and the weights that they were "
    "trained from: look them up before passing these on."
)
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "transformers",
    "safetensors",
)


def make_card(
    kind: str,
    file: str,
    eager: Detector,
    detector: Mapping[str, Any],
    source: Mapping[str, Any],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``export.json``, without parity and hashes.

    Args:
        kind, file: the format, and the file in the folder that holds the detector.
        eager: the detector that was exported.
        detector: arguments of its network.
        source: where it came from, see :func:`describe_source`.
        more: further entries of this format.
    """
    preprocessing = eager.preprocessing
    return {
        "version": VERSION,
        "format": kind,
        "file": file,
        "classes": list(eager.classes),
        "thresholds": {"values": eager.thresholds.values, "origin": eager.thresholds.origin},
        "preprocessing": {
            "colours": "RGB, upright",
            "short_side": preprocessing.short_side,
            "max_size": preprocessing.max_size,
            "multiple": preprocessing.multiple,
            "fixed": list(preprocessing.fixed) if preprocessing.fixed else None,
            "filter": "bilinear, antialiased (Pillow)",
        },
        **more,
        "network": dict(detector),
        "source": dict(source),
        "versions": versions(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "licence": LICENCE,
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``export.json``, with the hashes of all other files of the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / EXPORT_CARD)
    hashes = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in files
    }
    text = json.dumps({**card, "files": hashes}, indent=1, ensure_ascii=False)
    if not is_text(text):
        text = json.dumps({**card, "files": hashes}, indent=1)
    write_text(folder / EXPORT_CARD, text + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``export.json``, after a check of every field that a program needs.

    Raises:
        MrtError: it is missing, cut short, or of another version; the message names the field that is wrong.
    """
    path = folder / EXPORT_CARD
    card = read_json(path)
    if not isinstance(card, dict):
        raise MrtError(f"{path}: holds no JSON object", AGAIN)
    if card.get("version") != VERSION:
        raise MrtError(f"{path}: version is {card.get('version')!r}, this mrt reads {VERSION}", AGAIN)
    values = card["thresholds"].get("values") if isinstance(card.get("thresholds"), dict) else None
    classes, listed = card.get("classes"), isinstance(card.get("classes"), list)
    named = listed and bool(classes) and all(isinstance(name, str) for name in classes)
    fine = {
        "format": isinstance(card.get("format"), str),
        "file": isinstance(card.get("file"), str) and Path(card["file"]).name == card["file"],
        "classes": named,
        "thresholds": isinstance(values, dict) and listed and set(values) == set(map(str, classes)),
        "preprocessing": _is_preprocessing(card.get("preprocessing")),
        "files": isinstance(card.get("files"), dict) and all(map(_has_hash, card["files"].values())),
    }
    wrong = [name for name, holds in fine.items() if not holds]
    wrong += ["thresholds"] if not wrong and not all(_is_score(value) for value in values.values()) else []
    if wrong:
        raise MrtError(
            f"{path}: {wrong[0]} is {_shown(card.get(wrong[0]))}",
            f"the file was changed or cut short: {AGAIN}",
        )
    return card


def check_file(folder: Path, card: Mapping[str, Any], name: str) -> Path:
    """A file of the folder, whole as it was written; MrtError if it is missing or another one."""
    path, entry = folder / name, card["files"].get(name)
    if not path.is_file():
        raise MrtError(f"{path}: no such file", f"copy the whole folder, or {AGAIN}")
    if entry is None or file_sha256(path) != entry["sha256"]:
        raise MrtError(
            f"{path}: is not the file that was exported ({EXPORT_CARD} has another sha256)",
            f"copy it again, or {AGAIN}",
        )
    return path


def _is_preprocessing(sizes: Any) -> bool:
    if not isinstance(sizes, dict):
        return False
    fixed = sizes.get("fixed")
    fits = fixed is None or (_is_list_of_counts(fixed) and len(fixed) == 2)
    counts = (sizes.get("short_side"), sizes.get("max_size"), sizes.get("multiple", 1))
    return fits and all(_is_count(value) for value in counts)


def _has_hash(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_count(item) for item in value)


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "missing"
    return text if len(text) <= 80 else text[:77] + "..."


def versions() -> dict[str, str]:
    """Versions of mrt, Python, and the packages that an export uses."""
    found = {"mrt": mrt.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_source(where: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Where a detector comes from: name, hash of its weights, the run's command, data and commit, metrics.

    Args:
        where: as the user named it.
        facts: of :func:`mrt.engine.load.load_detector`.
    """
    file = Path(facts["file"])
    damaged: list[str] = []
    where = Path(where).name if Path(where).is_absolute() else where  # without the folders of this machine
    source: dict[str, Any] = {"where": where, "network": facts.get("network"), "file": file.name}
    if file.is_file():
        source["sha256"] = file_sha256(file)
    run, evaluations = facts.get("run"), []
    if is_run(file.parent):
        run = read_facts(file.parent)
        evaluations, damaged = _evaluations(file.parent, facts.get("network"))
    if isinstance(run, dict) and run:
        kept = ("command", "data", "finished", "environment")
        source["run"] = {name: run[name] for name in kept if name in run}
    if evaluations:
        source["evaluations"] = evaluations
    if damaged:
        source["damaged evaluations"] = damaged
    return source


def _evaluations(folder: Path, network: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The metrics that ``mrt eval`` stored beside the weights of this network, without single classes; and
    what is wrong with files of it that are damaged, which are left out.
    """
    found, damaged = [], []
    for path in sorted(folder.glob(EVALUATIONS)):
        try:
            records = read_evaluations(path)
        except MrtError as error:
            damaged.append(error.message.replace(f"{folder}/", "", 1))
            continue
        for record in records:
            if record["network"] != network:
                continue
            known = ("network", "data", "domain", "split", "sha256", "last")
            item = {name: record.get(name) for name in known}
            numbers = (int, float)
            item["metrics"] = {
                k: value for k, value in record["metrics"].items() if isinstance(value, numbers)
            }
            bounds = (record.get("intervals") or {}).get("figures") or {}
            item["interval of AP50"] = bounds.get("AP50")
            found.append(item)
    return found, damaged


def model_card(card: Mapping[str, Any], name: str) -> str:
    """README.md of a Hugging Face folder: what the model is, how to use it, its data, figures and terms."""
    source, sizes = card["source"], card["preprocessing"]
    run = source.get("run") or {}
    multiple = sizes.get("multiple", 1)
    rounded = (
        f" Then both sides are rounded to a multiple of {multiple}; transformers' processor does not, so "
        "give it images of such a size with do_resize=False."
        if multiple > 1
        else ""
    )
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: object-detection",
        "license: other",
        "license_name: see-the-training-data",
        "tags:",
        "- object-detection",
        "- deformable_detr",
        "- domain-adaptation",
        "---",
        "",
        f"# {_cell(name)}",
        "",
        _what(card, run),
        "",
        f"It detects {len(card['classes'])} classes: {', '.join(map(_cell, card['classes']))}.",
        "",
        "## Use",
        "",
        "With transformers:",
        "",
        "```python",
        "import torch",
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModelForObjectDetection",
        "",
        f"folder = {_python(name)}  # this folder",
        "processor = AutoImageProcessor.from_pretrained(folder)",
        "model = AutoModelForObjectDetection.from_pretrained(folder).eval()",
        'image = Image.open("photo.jpg").convert("RGB")',
        "with torch.no_grad():",
        '    outputs = model(**processor(images=image, return_tensors="pt"))',
        "found = processor.post_process_object_detection(outputs, threshold=0.3, "
        "target_sizes=[image.size[::-1]])[0]",
        "```",
        "",
        "With mrt:",
        "",
        "```python",
        "import mrt",
        "",
        f'found = mrt.load({_python(name)}).predict("photo.jpg")',
        "```",
        "",
        f"Images are scaled so that the short side has {sizes['short_side']} pixels, or fewer where "
        f"the long one would have more than {sizes['max_size']}.{rounded} {_thresholds(card)}",
        "",
        "## Training data",
        "",
        *_data(run),
        "",
        "## Figures",
        "",
        *_figures(source.get("evaluations") or []),
        *(f"\nLeft out, for it is damaged: {_cell(text)}" for text in source.get("damaged evaluations", ())),
        "",
        "## Terms",
        "",
        str(card["licence"]),
        "",
    ]
    return "\n".join(lines)


def _cell(text: Any) -> str:
    """A name as it is, within a line or a table."""
    return markdown(text, begins=False)


def _hash(value: Any) -> str:
    """The first letters of a hash."""
    text = str(value)[:12]
    return f"`{text}`" if text.isalnum() else _cell(text)


def _python(name: str) -> str:
    """A name as a literal of Python that ends no block of code."""
    return json.dumps(visible(name)).replace("`", "\\x60")


def _what(card: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    network = card["network"]
    kind = "two-stage " if network.get("two_stage") else ""
    kind += "with iterative box refinement " if network.get("box_refine") else ""
    text = (
        f"A Deformable DETR object detector ({kind}{network['num_queries']} queries, "
        f"backbone {_cell(network.get('backbone', 'unknown'))}), "
    )
    commands = {"adapt": "adapted to another domain without labels of it", "pretrain-source": "trained"}
    command, environment = commands.get(run.get("command", ""), ""), run.get("environment") or {}
    commit = environment.get("commit")
    made = (
        f"{command} with mrt {_cell(environment.get('mrt', ''))}".strip() if command else "exported with mrt"
    )
    return text.replace(" , ", ", ") + made + (f", commit {_cell(commit)}" if commit else "") + "."


def _thresholds(card: Mapping[str, Any]) -> str:
    values = card["thresholds"]["values"]
    if len(set(values.values())) == 1:
        return f"mrt takes detections from a score of {next(iter(values.values())):g}."
    scores = ", ".join(f"{_cell(name)} {value:.2f}" for name, value in values.items())
    return f"mrt takes detections from these scores: {scores}."


def _data(run: Mapping[str, Any]) -> Sequence[str]:
    data = run.get("data")
    if not isinstance(data, dict) or not data:
        return ["Not on record: the weights were not trained by a run of mrt that is at hand."]
    lines = [
        "| part | set | domain | details | sha256 of the annotations |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, card in data.items():
        details = ", ".join(f"{key} {value}" for key, value in (card.get("details") or {}).items())
        sha256 = card.get("sha256") or {}
        hashes = ", ".join(f"{_cell(split)} {_hash(value)}" for split, value in sha256.items() if value)
        cells = [part, card.get("name"), card.get("domain"), details or "-"]
        lines.append(f"| {' | '.join(map(_cell, cells))} | {hashes or '-'} |")
    if "target" in data:
        lines += [
            "",
            "Labels of the target set were not trained on, unless the command was one for an upper bound "
            "(oracle).",
        ]
    return lines


def _figures(evaluations: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not evaluations:
        return ["None on record. `mrt eval` leaves them with the run, and the next export has them here."]
    lines = [
        "| set, split | domain | AP50 | AP | AP75 | sha256 of the annotations |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in evaluations:
        figures = [_figure(item["metrics"].get(name)) for name in ("AP50", "AP", "AP75")]
        interval = item.get("interval of AP50")
        if isinstance(interval, dict) and interval.get("low") is not None:
            figures[0] += f" [{interval['low']:.1f}, {interval['high']:.1f}]"
        cells = [f"{item.get('data')}, {item.get('split')}", item.get("domain"), *figures]
        lines.append(f"| {' | '.join(map(_cell, cells))} | {_hash(item.get('sha256') or '-')} |")
    last = all(item.get("last") for item in evaluations)
    weights = "the run's last weights" if last else "weights of which nobody knows how they were picked"
    lines += [
        "",
        f"COCO figures in per cent of {weights}, by `mrt eval`: 100 detections an image, no NMS, "
        "ignored objects left out; in brackets a bootstrap interval over the images.",
    ]
    return lines


def _figure(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else "-"
