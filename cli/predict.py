"""``mrt predict``: boxes on images, videos and cameras, as pictures, files, and labels to correct."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .arguments import ListCommand, is_option

if TYPE_CHECKING:
    from mrt.config import Settings
    from mrt.predict.detector import Detector
    from mrt.predict.inputs import Frame, Source
    from mrt.predict.job import Tally

# A copy of mrt.predict.job.KINDS, which explains each.
KINDS = ("pictures", "frames", "json", "csv", *options.LABEL_SETS, "none")
SHOWN = 12  # thresholds by class that fit a message


def _nth(text: str | int) -> int:
    """The number of ``--every``; a usage error for a time, which mrt prepare-data takes."""
    number = str(text)
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise typer.BadParameter(f"{number}: a number of frames, from 1; for example 30 for each 30th")
    return int(number)


class PredictCommand(ListCommand):
    """A ListCommand whose inputs may stand before, between and after options that take several values.

    A word is a value of such an option only if it looks like one. Class names can look like anything, so
    ``--classes`` takes several words only after the inputs; ``--classes car,person`` works anywhere.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = args[: args.index("--classes")] if "--classes" in args else []
        free = (
            word for previous, word in zip(["", *before], before, strict=False) if not is_option(previous)
        )
        self.inputs_come_first = any(word == "-" or os.path.exists(word) for word in free)
        return super().parse_args(ctx, args)

    def takes(self, word: str, option: str) -> bool:
        """Whether a word after a list option is one of its values, and not an input."""
        if option == "--save":
            return all(kind in KINDS for kind in word.split(","))
        if option == "--threshold":
            return _is_number(word.rpartition("=")[2])
        return self.inputs_come_first and not (is_option(word) or os.path.exists(word))


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|WEIGHTS INPUT...",
            help="The detector: a run, a weights file, an exported or Hugging Face folder, a shipped name, "
            "or coco (downloaded). Then images, folders, prepared sets, globs, zip archives, videos, "
            "a camera's number, or - for standard input.",
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="The detector, as an option; all words are inputs then.")
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND...",
            help="What to write: pictures (default; videos as H.264), frames, json (COCO results), csv; "
            "labels to correct as coco, yolo, voc or label-studio; none.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder to write to. Default: predictions, predictions-2, ...")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE|CLASS=SCORE...",
            help=(
                "Lowest score, for all classes or for some. "
                "Default: the run's dynamic thresholds where it has them, else 0.3."
            ),
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Keep these classes only.")
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option(
            metavar="IOU", help="Of two boxes of a class that overlap more than this, drop the lower score."
        ),
    ] = None,
    agnostic: Annotated[
        bool, typer.Option("--agnostic", help="NMS and tiles look at all classes together.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Most objects of an image.")] = 100,
    crop: Annotated[
        bool, typer.Option("--crop", help="Also write each object as an image of its own.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="For large images: look at square tiles of this side, too, and merge (as sahi does).",
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that neighbours have in common.")] = 0.2,
    every: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", parser=_nth, help="Of videos and cameras, look at every N-th frame."
        ),
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Look at N images, and at N frames of each video, at most."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=(
                "Images of one size at a time. Default: 8 on a GPU, else 1. "
                "What is found does not depend on it."
            ),
        ),
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            help="Of a run: teacher, student, or auto: the teacher where there is one.", metavar="NETWORK"
        ),
    ] = "auto",
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Show annotated pictures in a window, image by image, videos as they come."
        ),
    ] = False,
    run_root: options.RunRoot = None,
    device: options.Device = None,
    amp: options.Amp = None,
) -> None:
    """Detect objects in images, videos or from a camera, e.g. mrt predict runs/my-run photos/."""
    from mrt.errors import Interrupted, MrtError, RunFailed
    from mrt.experiment import find_roots, require_detector
    from mrt.predict import inputs as asked

    from .console import say, watching
    from .experiment import require_one_process

    require_one_process("predict")
    kinds, classes = _words(save) or ["pictures"], _words(classes)
    for kind in kinds:
        if kind not in KINDS:
            raise MrtError(f"--save {kind}: unknown", f"choose of {', '.join(KINDS)}")
    if which not in ("auto", "teacher", "student"):
        raise MrtError(f"--which {which}: expected teacher, student or auto")
    detector, *inputs = words if weights is None else [weights, *words]
    roots = find_roots(None, run_root)
    _require_detector_first(detector, inputs, roots, named=weights is not None)
    if not inputs:
        raise MrtError(
            f"mrt predict {detector}: predict on what?",
            f"name images, folders, prepared sets or videos: mrt predict {shlex.quote(detector)} PHOTOS",
        )
    wanted = _thresholds(threshold)
    sources, broken = asked.find([_place(word, roots.data_root) for word in inputs], every)
    detector = require_detector(detector, roots.run_root, which)

    import torch

    from mrt import api
    from mrt.predict.detector import Options
    from mrt.predict.job import make_writers, run
    from mrt.predict.outputs import drop_empty, free_folder

    folder = free_folder(out, Path("predictions"))

    found = api.load(detector, which=which, device=device or "auto", amp=amp or "off", run_root=run_root)
    if batch_size is None:
        batch_size = 8 if getattr(found.network, "device", torch.device("cpu")).type == "cuda" else 1
    choice = Options(wanted, batch_size, nms, agnostic, top_k, classes, tile, overlap)
    found.check(choice)
    writers = make_writers(kinds, folder, found.classes, crop)
    say(f"{_name(found)}; {len(found.classes)} classes. Thresholds: {_told(found, choice, wanted)}.")
    if every > 1 and all(source.kind == "images" for source in sources):
        say(f"--every {every} is for videos and cameras: all images are looked at.")
    for source in sources:
        for text in source.notes:
            say(text)
        if source.passed_over:
            say(
                f"Neither images nor videos, passed over: {len(source.passed_over)} files, "
                f"such as {source.passed_over[0]}"
            )
    window = _window() if show else None
    with watching() as watcher:
        progress = _Progress(watcher, window)
        try:
            with _ended_as_interrupted():
                tally, paths = run(
                    found,
                    sources,
                    choice,
                    writers,
                    limit=limit,
                    on_source=progress.begin,
                    on_frame=progress.frame,
                )
        except KeyboardInterrupt:
            progress.end()
            written = f"; what was found until then is in {folder}" if folder.exists() else ""
            if any(source.kind != "camera" for source in sources):
                raise Interrupted(f"stopped{written}") from None
            say(f"Stopped{written}.")
            return
        progress.end()
    tally.broken += [error.message for error in broken]
    _summarise(tally, choice)
    if paths:
        say(f"Written to {folder}: {_listed(paths, folder)}")
    else:
        drop_empty(folder)
    if tally.broken:
        lines = "\n".join(f"  {text}" for text in tally.broken)
        raise RunFailed(f"{len(tally.broken)} could not be read:\n{lines}")


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which services and containers are ended, is as Ctrl-C: files and videos are completed."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """A line per image; a progress bar for videos and cameras."""

    def __init__(self, watcher: Any, window: Any) -> None:
        self.watcher, self.window, self.open = watcher, window, False

    def begin(self, source: Source) -> None:
        self.end()
        if source.kind != "images":
            self.watcher.begin(source.name, source.total or 0)
            self.open = True

    def frame(self, source: Source, frame: Frame, result: Any) -> None:
        from mrt.errors import MrtError
        from mrt.plain import one_line
        from mrt.predict.detections import summary
        from mrt.predict.outputs import annotated

        if isinstance(result, MrtError):
            self.watcher.say(f"{one_line(frame.name)}  skipped: {result.message}")
            return
        if source.kind == "images":
            height, width = result.image_size
            self.watcher.say(f"{one_line(frame.name)}  {width}x{height}: {summary(result)}")
        else:
            self.watcher.advance(1, objects=float(len(result)))
        if self.window is not None:
            self.window.show(annotated(frame, result), frame.name, stay=source.kind == "images")

    def end(self) -> None:
        if self.open:
            self.watcher.end()
            self.open = False


def _require_detector_first(detector: str, inputs: Sequence[str], roots: Settings, named: bool) -> None:
    """MrtError if what stands in the place of the detector are images, which it says in what order to name.

    Args:
        named: whether the detector was given as --weights.
    """
    from mrt.data.card import CARD_NAME
    from mrt.engine.whereabouts import may_be_one
    from mrt.errors import MrtError
    from mrt.experiment import find_run
    from mrt.predict.inputs import PICTURE_SUFFIXES, VIDEO_SUFFIXES

    place = _place(detector, roots.data_root)
    if Path(detector).suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES):
        what = "an image or a video"
    elif may_be_one(find_run(detector, roots.run_root)) or not Path(place).is_dir():
        return
    else:
        what = "a prepared set" if (Path(place) / CARD_NAME).is_file() else "a folder"
    weights = sorted(Path(place).glob("*.safetensors"))
    if weights:  # of a run that lost its other files
        usual = next((path for path in weights if path.name == "teacher.safetensors"), weights[0])
        words = ["mrt", "predict", *(["--weights"] if named else []), str(usual), *inputs]
        raise MrtError(
            f"{detector}: is {what}, and neither a run nor a detector's (no run.json, no config.json)",
            f"name the weights in it: {shlex.join(words)}",
        )
    known = [word for word in inputs if may_be_one(find_run(word, roots.run_root))]
    words = ["mrt", "predict", *(known[:1] or ["coco"]), detector]
    words += [word for word in inputs if word not in known[:1]] if not named else []
    more = ["--run-root", str(roots.run_root)] if known and not may_be_one(known[0]) else []
    raise MrtError(
        f"{detector}: is {what}, not a detector", f"name the detector first: {shlex.join(words + more)}"
    )


def _place(word: str, data_root: Path) -> str:
    """An input, or the folder of the prepared set that it names."""
    from mrt.data.card import CARD_NAME

    named = data_root / word
    there = os.path.exists(word) or word == "-" or word.isdecimal()
    return str(named) if not there and (named / CARD_NAME).is_file() else word


def _summarise(tally: Tally, choice: Any) -> None:
    from .console import say, show_table

    if tally.objects:
        rows = [
            [name, str(count), str(tally.images_with[name]), f"{tally.scores[name] / count:.2f}"]
            for name, count in tally.objects.most_common()
        ]
        show_table("Found", ["class", "objects", "images", "mean score"], rows)
    speed = f", {tally.images / tally.seconds:.2g} per second" if tally.images > 1 else ""
    say(f"{tally.images} images in {tally.seconds:.1f} s{speed}: {sum(tally.objects.values())} objects")
    if tally.images and not tally.objects:
        say("Nothing reached its threshold: --threshold 0.1 shows what the detector is less sure of.")


def _listed(paths: Sequence[Path], folder: Path) -> str:
    """ "8 pictures, results.json, coco/"."""
    pictures = [path for path in paths if path.suffix in (".jpg", ".png")]
    names = []
    if pictures:
        first = str(pictures[0].relative_to(folder))
        names.append(first if len(pictures) == 1 else f"{len(pictures)} pictures")
    for path in paths:
        if path not in pictures:
            names.append(f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}")
    return ", ".join(names)


def _name(detector: Detector) -> str:
    """ "Teacher of runs/x", or the file."""
    file, network = Path(str(detector.facts.get("file", ""))), detector.facts.get("network", "")
    in_run = (file.parent / "run.json").is_file()
    return f"{network.capitalize()} of {file.parent}" if in_run else f"Weights {file}"


def _told(detector: Detector, choice: Any, wanted: float | Mapping[str, float] | None) -> str:
    """The thresholds that apply, and where they come from."""
    values = dict(zip(detector.classes, detector.threshold_of(choice).tolist(), strict=True))
    if isinstance(wanted, float):
        return f"{wanted:g} for every class"
    if wanted is None and len(set(values.values())) == 1:
        return detector.thresholds.origin
    shown = ", ".join(f"{name} {value:.2f}" for name, value in list(values.items())[:SHOWN])
    shown += ", ..." if len(values) > SHOWN else ""
    return f"{detector.thresholds.origin if wanted is None else 'as asked, others by default'} ({shown})"


def _thresholds(words: Sequence[str] | None) -> float | dict[str, float] | None:
    """["0.5"] -> 0.5; ["car=0.4", "person=0.2"] -> by class; MrtError for anything else."""
    from mrt.errors import MrtError

    if not words:
        return None
    values: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not _is_number(number) or not 0 <= float(number) <= 1:
            raise MrtError(
                f"--threshold {word}: expected a score between 0 and 1, or CLASS=SCORE",
                "for example --threshold 0.4 or car=0.5",
            )
        if name.strip() in values:
            raise MrtError(f"--threshold {word}: given twice")
        values[name.strip()] = float(number)
    if "" not in values:
        return values
    if len(values) > 1:
        raise MrtError(f"--threshold {' '.join(words)}: either one score for all classes, or scores by class")
    return values[""]


def _words(values: Sequence[str] | None) -> list[str] | None:
    """["a,b", "c"] -> ["a", "b", "c"]."""
    return [word.strip() for value in values for word in value.split(",")] if values else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _window() -> Any:
    """A window to show pictures in; None, with a message, if there is no display."""
    from .console import say
    from .window import Window

    window, why = Window.open()
    if window is None:
        say(f"--show: nothing can be shown here ({why}).")
    return window


def register(app: typer.Typer) -> None:
    app.command("predict", cls=PredictCommand)(predict)
