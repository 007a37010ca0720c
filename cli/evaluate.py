"""``mrt eval``: metrics of detectors with intervals, differences and mistakes, as tables and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .arguments import PairsCommand, help_of, is_option, parse_pairs

if TYPE_CHECKING:
    from mrt.engine.inference import Result, Validation


class EvalCommand(PairsCommand):
    """A PairsCommand whose ``--weights`` takes all names that follow it."""

    def takes(self, word: str, option: str) -> bool:
        """Whether a word after a list option is one of its values."""
        return not is_option(word) if option == "--weights" else super().takes(word, option)


# Figures of all classes by their name in the JSON, and what the table calls them.
SUMMARY = {
    "AP50": "AP50",
    "AP": "AP",
    "AP75": "AP75",
    "APs": "AP small",
    "APm": "AP medium",
    "APl": "AP large",
    "AR100": "AR100",
}


def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|WEIGHTS...",
            help=(
                "Run names or folders, weights files (also published ones), Hugging Face folders, "
                "shipped names (small-source)."
            ),
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="WEIGHTS...", help="The same, as an option.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "Data set to evaluate on. Default: the target that the first run was made for; "
                "of a source detector whose target is not here, its source."
            )
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Its split. Default: val, else test, else the first that has boxes."),
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            help="teacher, student, both, or auto: the teacher where there is one, else the student.",
            metavar="NETWORK",
        ),
    ] = "auto",
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help=(
                "Also show the best epochs of each run, which were selected on target labels and are not "
                "comparable."
            ),
        ),
    ] = False,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0, metavar="SAMPLES", help="Draws of the images for confidence intervals; 0: no intervals."
        ),
    ] = 1000,
    level: Annotated[
        float, typer.Option(min=1, max=99.99, metavar="PERCENT", help="Confidence level of the intervals.")
    ] = 95,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors/--no-errors", help="Split the mistakes by kind: what each costs in AP50 (as TIDE does)."
        ),
    ] = True,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Where to write the figures as JSON. Default: eval-SET-SPLIT-NETWORK.json in each run.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Where to write them as CSV. Default: beside the JSON.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Draw the same images with each run's detections and the truth into this file (.png, .jpg)."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in the picture.")] = 4,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time.")] = None,
    map_class: options.MapClass = None,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Evaluate detectors: COCO figures with confidence intervals, each class, what kinds of mistakes cost,
    and paired differences.

    The headline is the last teacher. Several runs are compared with the first, on the same draws of the same
    images.
    """
    from mrt.errors import MrtError
    from mrt.experiment import detectors, find_roots, find_run

    from .console import RANK, say, watching

    runs = [*(runs or ()), *(weights or ())]
    if not runs:
        raise MrtError("mrt eval: evaluate what?", f"name a run or weights: {detectors(run_root)}")
    if which not in ("auto", "teacher", "student", "both"):
        raise MrtError(f"--which {which}: expected teacher, student, both or auto")
    if picture is not None and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise MrtError(f"--picture {picture}: expected a .png or .jpg file")
    roots, renamed = find_roots(data_root, run_root), parse_pairs("--map-class", map_class)
    validations = []
    if best:
        from mrt.engine.inference import read_validation

        validations = [read_validation(find_run(name, roots.run_root)) for name in runs]
    require_asked(runs, which, data, split, roots)
    options_of_all = {
        "split": split,
        "device": device or "auto",
        "batch_size": batch_size,
        "class_map": renamed,
    }
    asked = [(name, network) for name in runs for network in networks(which, find_run(name, roots.run_root))]
    with watching() as watcher:
        results: list[Result] = []
        for name, network in asked:
            results.append(run_one(name, roots, data=data, which=network, watcher=watcher, **options_of_all))
            first = results[0]
            data, options_of_all["split"] = data or first.card.name, first.split
    if RANK != 0:  # only the first process has the detections and reports
        return
    names = [name for name, _ in asked]
    titles = headings(names, results)
    records = analyse(names, results, samples=bootstrap, level=level / 100, errors=errors)
    if best:
        chosen = dict(zip(runs, validations, strict=True))
        for name, item in zip(names, records, strict=True):
            item["validation"] = vars(chosen[name])
    show(titles, records, describe(results[0]))
    if best:
        show_best(dict(zip(runs, validations, strict=True)))
    for path in write(names, records, roots.run_root, json_file, csv_file):
        say(f"Written to {path}")
    if picture is not None:
        draw(picture, dict(zip(titles, results, strict=True)), images)
        say(f"Drawn in {picture}")


def networks(which: str, place: str) -> tuple[str, ...]:
    """What "both" means of what is there: a file and a downloaded model are one network."""
    if which != "both":
        return (which,)
    return ("teacher", "student") if Path(place).is_dir() else ("auto",)


def require_asked(runs: Sequence[str], which: str, data: str | None, split: str | None, roots: Any) -> None:
    """MrtError for a detector or a set that is not there, before anything heavy is imported."""
    from mrt.data.registry import find_dataset
    from mrt.engine.facts import is_run, read_facts, stored_settings
    from mrt.engine.labels import require_labelled, set_to_measure
    from mrt.experiment import find_roots, find_run, require_detector

    network = "auto" if which == "both" else which
    places = [Path(require_detector(name, roots.run_root, network)) for name in runs]
    if data is not None:
        card = find_dataset(data, roots.data_root)
    elif is_run(places[0]):
        command = read_facts(places[0])["command"]
        card = set_to_measure(stored_settings(places[0]), command, roots.data_root)
    else:  # what the weights file says, once it is read
        return
    elsewhere = find_run(runs[0], find_roots(None, None).run_root) != str(places[0])
    require_labelled(card, str(places[0]) if elsewhere and is_run(places[0]) else runs[0], roots.data_root)
    if split is not None:
        card.split(split)


def headings(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    """A heading for each result: the run's name, short if that is unique, and which of its weights."""
    short = {name: short_name(name) for name in names}
    if len(set(short.values())) < len(short):
        short = {name: name for name in names}
    return [f"{short[name]} ({weights_of(result)})" for name, result in zip(names, results, strict=True)]


def weights_of(result: Result) -> str:
    """ "last teacher", "last average" of a detector that nobody was taught by, or "student *" of a checkpoint
    that may be the last or may have been selected.
    """
    network = "average" if result.averaged else result.network
    return f"last {network}" if result.last else f"{network} *"


def short_name(name: str) -> str:
    """A table's heading for a run: its last folder or the weights file's stem."""
    path = Path(name)
    return path.stem if path.suffix in (".safetensors", ".pth", ".pt") else path.name or name


def run_one(
    name: str,
    roots: Any,
    *,
    data: str | None,
    split: str | None,
    which: str,
    device: str,
    watcher: Any,
    batch_size: int | None = None,
    class_map: Mapping[str, str] | None = None,
) -> Result:
    """Evaluate one run or weights file.

    Args:
        class_map: class names of the data set -> of the detector, where they differ.
    """
    from mrt import api

    return api.evaluate(
        name,
        data,
        split=split,
        which=which,
        class_map=class_map,
        batch_size=batch_size,
        device=device,
        data_root=roots.data_root,
        run_root=roots.run_root,
        watcher=watcher,
    )


def describe(result: Result) -> str:
    """The data of an evaluation in words, as the caption of a table."""
    card, part = result.card, result.card.split(result.split)
    details = ", ".join(
        f"{key} {value}" for key, value in card.details.items() if isinstance(value, (int, float, str))
    )
    sizes = ", ".join(card.image_sizes) if len(card.image_sizes) <= 3 else f"{len(card.image_sizes)} sizes"
    texts = (
        f"{part.num_images} images of {sizes}, {part.num_boxes} boxes",
        f"{card.domain}" + (f" ({details})" if details else ""),
        f"annotations sha256 {part.sha256[:12]}",
    )
    return "; ".join(text for text in texts if text)


def analyse(
    names: Sequence[str], results: Sequence[Result], *, samples: int, level: float, errors: bool
) -> list[dict[str, Any]]:
    """Each result as plain values for JSON: figures, intervals, difference to the first result, mistakes.

    Args:
        samples: draws of the images; 0: no intervals and no differences.
        level: confidence level of the intervals, such as 0.95.
        errors: whether to split the mistakes by kind.
    """
    from mrt.evaluate.bootstrap import differences, estimates, intervals
    from mrt.evaluate.errors import split_errors
    from mrt.evaluate.matching import match

    records: list[dict[str, Any]] = []
    first: tuple[Any, Any] | None = None
    for name, result in zip(names, results, strict=True):
        item = record(name, result)
        matches = match(result.detections, result.dataset) if samples or errors else None
        if samples:
            found = estimates(matches, samples)
            item["intervals"] = {"level": level, "samples": samples, "figures": intervals(found, level)}
            if first is None:
                first = matches, found
            else:
                to = {"run": str(names[0]), "network": results[0].network}
                figures = differences(first[0], matches, first[1], found, level)
                item["difference"] = {"to": to, "figures": figures}
        if errors:
            item["errors"] = split_errors(matches).to_dict()
        records.append(item)
    return records


def show(titles: Sequence[str], records: Sequence[dict[str, Any]], caption: str) -> None:
    """The tables: figures, classes, differences and mistakes, with a column or two for each record."""
    from .console import say, show_table

    def cell(item: dict[str, Any], name: str, value: float | None) -> str:
        return with_interval(value, item.get("intervals", {}).get("figures", {}).get(name))

    first, heads = records[0], ["\n(".join(title.rsplit(" (", 1)) for title in titles]
    rows = [
        [label, *(cell(item, name, item["metrics"][name]) for item in records)]
        for name, label in SUMMARY.items()
    ]
    show_table(f"{first['data']}, split {first['split']}", ["", *heads], rows)

    columns = ["", "boxes"]
    for head in heads:
        columns += (f"{head}\nAP50", "\n\nAP") if len(heads) > 1 else ("AP50", "AP")
    rows = []
    for name, values in first["metrics"]["per_class"].items():
        row = [name, str(values["num_boxes"])]
        for item in records:
            mine = item["metrics"]["per_class"].get(name, {})
            row += [cell(item, f"AP50 {name}", mine.get("AP50")), with_interval(mine.get("AP"), None)]
        rows.append(row)
    show_table("Classes", columns, rows)

    compared = [
        (title, item["difference"]["figures"])
        for title, item in zip(heads, records, strict=True)
        if "difference" in item
    ]
    if compared:
        rows = []
        for name in compared[0][1]:
            found = [figures.get(name) for _, figures in compared]
            values = [bounds["value"] if bounds else None for bounds in found]
            if any(value is not None for value in values):
                cells = [with_interval(*pair, "+") for pair in zip(values, found, strict=True)]
                rows.append([name, *cells])
        heading = f"Difference to {titles[0]} on the same images"
        show_table(heading, ["", *(title for title, _ in compared)], rows)

    split = [(title, item["errors"]) for title, item in zip(heads, records, strict=True) if "errors" in item]
    if split:
        kinds = [name for name in split[0][1] if name != "AP50"]
        rows = [[name.replace("_", " "), *(mistakes(found[name]) for _, found in split)] for name in kinds]
        show_table(
            "What mistakes cost: AP50 gained if there were none of a kind (their number)",
            ["", *(title for title, _ in split)],
            rows,
        )
    say(caption, wrap=True)
    if not all(item["last"] for item in records):
        say(
            "* nobody knows whether these weights are a run's last or were picked, perhaps on target labels",
            wrap=True,
        )
    if "intervals" in first:
        about = first["intervals"]
        say(
            f"[low, high]: {100 * about['level']:g} % of {about['samples']} draws of the images; "
            "other training seeds are not in it",
            wrap=True,
        )


def with_interval(value: float | None, bounds: Mapping[str, float | None] | None, sign: str = "") -> str:
    """ "38.0 [36.5, 39.4]", with ``sign`` "+" as "+6.2 [+5.0, +7.4]"; "-" where there is no number."""
    if value is None:
        return "-"
    if bounds is None or bounds["low"] is None:
        return f"{value:{sign}.1f}"
    return f"{value:{sign}.1f} [{bounds['low']:{sign}.1f}, {bounds['high']:{sign}.1f}]"


def mistakes(found: Mapping[str, Any]) -> str:
    """ "8.3 (14)": what mistakes of a kind cost in AP50, and their number."""
    return f"{with_interval(found['dAP'], None)} ({found['count']})"


def show_best(validations: Mapping[str, Validation]) -> None:
    """Tables of what each run measured while it trained: its last networks and the best, which are marked."""
    from .console import figure, show_table

    for name, found in validations.items():
        rows, headline = [], "teacher" if "teacher" in found.last else "student"
        for network, last in found.last.items():
            for label, line in ((f"last {network}", last), (f"best {network} *", found.best[network])):
                figures = [figure(line.get(metric)) for metric in ("AP50", "AP", "AP75")]
                rows.append([label, str(line.get("stage", "-")), str(line.get("epoch", "-")), *figures])
        show_table(
            f"{short_name(name)}: measured while it trained, on {found.data}, split {found.split}",
            ["", "stage", "epoch", "AP50", "AP", "AP75"],
            rows,
            caption=f"* selected on {found.domain} labels: not comparable with the last {headline}",
            text_columns=2,
        )


def record(name: str, result: Result) -> dict[str, Any]:
    """One result as plain values for JSON."""
    from mrt.engine.folder import provenance

    return {
        "run": str(name),
        "network": result.network,
        "last": result.last,
        "data": result.card.name,
        "domain": result.card.domain,
        "details": result.card.details,
        "split": result.split,
        "sha256": result.card.split(result.split).sha256,
        "metrics": result.metrics.to_dict(),
        "environment": provenance(),
    }


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """A line per run and class, "all" first: per cent, empty where there is no figure.

    "AP50 low" and "AP50 high" bound the interval, "AP50 difference" is the difference to the first run, and
    "dAP duplicate" is what those mistakes cost in AP50.
    """
    import csv
    import io

    lines = [line for item in records for line in _csv_lines(item)]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        known = {name: value for name, value in line.items() if value is not None}
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in known.items()})
    return text.getvalue()


def _csv_lines(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from mrt.ablate import METRICS

    metrics = item["metrics"]
    bounds, change = (item.get(part, {}).get("figures", {}) for part in ("intervals", "difference"))
    numbers = (*METRICS, *(other for other in SUMMARY if other not in METRICS), "num_boxes")
    for name, values in {"all": metrics, **metrics["per_class"]}.items():
        line = {**{key: item[key] for key in ("run", "network", "data", "split")}, "class": name}
        line |= {number: values.get(number) for number in numbers}
        for metric in METRICS:
            figure = metric if name == "all" else f"{metric} {name}"
            if figure in bounds:
                line |= {f"{metric} {end}": bounds[figure][end] for end in ("low", "high")}
            if figure in change:
                for end, key in (("", "value"), (" low", "low"), (" high", "high")):
                    line[f"{metric} difference{end}"] = change[figure][key]
        if name == "all":
            for kind, found in item.get("errors", {}).items():
                if kind != "AP50":
                    line |= {f"dAP {kind}": found["dAP"], f"number {kind}": found["count"]}
        yield line


def write(
    names: Sequence[str],
    records: Sequence[dict[str, Any]],
    run_root: Path,
    json_file: Path | None,
    csv_file: Path | None,
) -> list[Path]:
    """Write the figures; returns the files."""
    from mrt.experiment import find_run
    from mrt.seal import with_checksum

    if json_file is not None or csv_file is not None:
        return _write(json_file, csv_file, records)
    paths = []
    for name, item in zip(names, records, strict=True):
        where = Path(find_run(name, run_root))
        folder = where if (where / "run.json").is_file() else run_root / "eval" / short_name(name)
        stem = f"eval-{item['data']}-{item['split']}-{item['network']}"
        paths += _write(folder / f"{stem}.json", folder / f"{stem}.csv", [with_checksum(item)])
    return paths


def _write(json_file: Path | None, csv_file: Path | None, records: Sequence[dict[str, Any]]) -> list[Path]:
    import json

    from mrt.files import write_text

    texts = {json_file: json.dumps(records, indent=1) + "\n", csv_file: to_csv(records)}
    paths = [path for path in texts if path is not None]
    for path in paths:
        write_text(path, texts[path])
    return paths


def draw(file: Path, columns: Mapping[str, Result], images: int) -> None:
    """Draw the same images with each result's detections and the ground truth.

    The images are spread evenly over those that have objects.
    """
    from mrt.evaluate.judged import comparison

    from .console import RANK

    if RANK != 0:
        return
    dataset = next(iter(columns.values())).dataset
    with_objects = [record for record in dataset.records if len(record.boxes)]
    drawable = [record.image_id for record in with_objects or dataset.records]
    count = min(images, len(drawable))
    chosen = [drawable[(2 * index + 1) * len(drawable) // (2 * count)] for index in range(count)]
    detections = {title: result.detections for title, result in columns.items()}
    save_picture(comparison(dataset, chosen, detections), file)


def save_picture(picture: Any, file: Path) -> None:
    """Write a PIL image as .png or .jpg; the file appears only once it is complete."""
    from mrt.files import replacing

    with replacing(file) as out:
        picture.save(out, format="PNG" if file.suffix.lower() == ".png" else "JPEG")


def register(app: typer.Typer) -> None:
    app.command("eval", cls=EvalCommand, help=help_of(evaluate))(evaluate)
