"""``mrt eval``: COCO figures of runs and weights, as a table, JSON, CSV and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .arguments import PairsCommand, parse_pairs

if TYPE_CHECKING:
    from mrt.engine.inference import Result


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|WEIGHTS...", help="Run names or folders, weights files, or shipped names (demo-source).")
    ],
    data: Annotated[str | None, typer.Option(help="Data set to evaluate on. Default: the target that the first run was made for.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    which: Annotated[str, typer.Option(help="teacher, student, or auto: the teacher where there is one.", metavar="NETWORK")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures as JSON. Default: eval-SET-SPLIT-NETWORK.json in each run.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Where to write them as CSV. Default: beside the JSON.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the same images with each run's detections and the truth into this file (.png, .jpg).")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in the picture.")] = 4,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time.")] = None,
    map_class: options.MapClass = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Evaluate detectors: COCO AP50, AP, AP75, and AP50 of each class."""
    from mrt.errors import MrtError

    from .console import say, watching
    from .experiment import find_roots

    if which not in ("auto", "teacher", "student"):
        raise MrtError(f"--which {which}: expected teacher, student or auto")
    if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise MrtError(f"--picture {picture}: expected a .png or .jpg file")
    roots, renamed = find_roots(data_root, run_root), parse_pairs("--map-class", map_class)
    options_of_all = {"split": split, "which": which, "device": device or "auto", "batch_size": batch_size, "class_map": renamed}
    with watching() as watcher:
        results = []
        for name in runs:
            results.append(run_one(name, roots, data=data, watcher=watcher, **options_of_all))
            data = data or results[0].card.name
    titles = [short_name(name) for name in runs]
    titles = titles if len(set(titles)) == len(titles) else runs
    show(titles, results)
    for path in write(runs, results, roots.run_root, json_file, csv_file):
        say(f"Written to {path}")
    if picture is not None:
        draw(picture, dict(zip(titles, results, strict=True)), images)
        say(f"Drawn in {picture}")


def short_name(name: str) -> str:
    """A table's heading for a run: its last folder or the weights file's stem."""
    return Path(name).stem if Path(name).suffix in (".safetensors", ".pth", ".pt") else Path(name).name or name


def run_one(
    name: str,
    roots: Any,
    *,
    data: str | None,
    split: str,
    which: str,
    device: str,
    watcher: Any,
    batch_size: int | None = None,
    class_map: Mapping[str, str] | None = None,
) -> Result:
    """Evaluate one run or weights file; ``class_map``: the data set's class names in the detector's words, where they differ."""
    from mrt.engine.inference import evaluate_detector

    from .experiment import find_run

    where = find_run(name, roots.run_root)
    return evaluate_detector(
        where,
        data=data,
        split=split,
        which=which,
        device=device,
        batch_size=batch_size,
        data_root=roots.data_root,
        watcher=watcher,
        overrides={"data.class_map": dict(class_map)} if class_map else None,
    )


def describe(result: Result) -> str:
    """What was evaluated on, as an honest table says it."""
    card, part = result.card, result.card.split(result.split)
    details = ", ".join(f"{key} {value}" for key, value in card.details.items() if isinstance(value, (int, float, str)))
    sizes = ", ".join(card.image_sizes) if len(card.image_sizes) <= 3 else f"{len(card.image_sizes)} sizes"
    return "; ".join(
        text
        for text in (
            f"{part.num_images} images of {sizes}, {part.num_boxes} boxes",
            f"{card.domain}" + (f" ({details})" if details else ""),
            f"annotations sha256 {part.sha256[:12]}",
        )
        if text
    )


def show(titles: Sequence[str], results: Sequence[Result]) -> None:
    """The table: a column per run."""
    from mrt.ablate import METRICS

    from .console import figure, show_table

    first = results[0]
    columns = ["", *(f"{title} ({result.network})" for title, result in zip(titles, results, strict=True))]
    rows = [[metric, *(figure(getattr(result.metrics, metric)) for result in results)] for metric in METRICS]
    for name in first.metrics.per_class:
        values = (result.metrics.per_class.get(name) for result in results)
        rows.append([f"AP50 {name}", *(figure(value.AP50 if value else None) for value in values)])
    show_table(f"{first.card.name}, split {first.split}", columns, rows, caption=describe(first))


def record(name: str, result: Result) -> dict[str, Any]:
    """One result as plain values for JSON."""
    return {
        "run": str(name),
        "network": result.network,
        "data": result.card.name,
        "domain": result.card.domain,
        "details": result.card.details,
        "split": result.split,
        "sha256": result.card.split(result.split).sha256,
        "metrics": result.metrics.to_dict(),
    }


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """A line per run and class, "all" first: per cent, empty where a class has no ground truth."""
    import csv
    import io

    from mrt.ablate import METRICS

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "network", "data", "split", "class", *METRICS])
    for item in records:
        metrics = item["metrics"]
        for name, values in {"all": metrics, **metrics["per_class"]}.items():
            numbers = [values.get(metric) for metric in METRICS]
            cells = ["" if number is None else f"{number:.4f}" for number in numbers]
            writer.writerow([item["run"], item["network"], item["data"], item["split"], name, *cells])
    return text.getvalue()


def write(names: Sequence[str], results: Sequence[Result], run_root: Path, json_file: Path | None, csv_file: Path | None) -> list[Path]:
    """Write the figures; returns the files. Under torchrun the first process writes."""
    from .console import RANK
    from .experiment import find_run

    records = [record(name, result) for name, result in zip(names, results, strict=True)]
    if json_file is not None or csv_file is not None:
        jobs = [(json_file, csv_file, records)]
    else:
        jobs = []
        for name, item in zip(names, records, strict=True):
            where = Path(find_run(name, run_root))
            folder = where if where.is_dir() else run_root / "eval" / short_name(name)
            stem = f"eval-{item['data']}-{item['split']}-{item['network']}"
            jobs.append((folder / f"{stem}.json", folder / f"{stem}.csv", [item]))
    return [path for as_json, as_csv, items in jobs for path in _write(as_json, as_csv, items)] if RANK == 0 else []


def _write(json_file: Path | None, csv_file: Path | None, records: list[dict[str, Any]]) -> list[Path]:
    import json

    from mrt.files import write_text

    texts = {json_file: json.dumps(records, indent=1) + "\n", csv_file: to_csv(records)}
    paths = [path for path in texts if path is not None]
    for path in paths:
        write_text(path, texts[path])
    return paths


def draw(file: Path, columns: Mapping[str, Result], images: int) -> None:
    """The same images with each result's detections and the ground truth; images are spread evenly over those that have objects."""
    from mrt.evaluate.draw import comparison

    from .console import RANK

    if RANK != 0:
        return
    dataset = next(iter(columns.values())).dataset
    with_objects = [record.image_id for record in dataset.records if len(record.boxes)] or [record.image_id for record in dataset.records]
    count = min(images, len(with_objects))
    chosen = [with_objects[(2 * index + 1) * len(with_objects) // (2 * count)] for index in range(count)]
    save_picture(comparison(dataset, chosen, {title: result.detections for title, result in columns.items()}), file)


def save_picture(picture: Any, file: Path) -> None:
    """Write a PIL image as .png or .jpg, as a whole."""
    from mrt.files import replacing

    with replacing(file) as out:
        picture.save(out, format="PNG" if file.suffix.lower() == ".png" else "JPEG")


def register(app: typer.Typer) -> None:
    app.command("eval", cls=PairsCommand)(evaluate)
