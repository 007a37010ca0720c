"""A whole prediction: every image of every source through the detector, to every writer."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mrt.data.video import SourceBroken
from mrt.errors import MrtError
from mrt.predict.detections import Detections
from mrt.predict.detector import Detector, Options
from mrt.predict.inputs import Frame, Source
from mrt.predict.labels import CocoLabels, StudioTasks, VocLabels, YoloLabels
from mrt.predict.outputs import CocoResults, Crops, Csv, Mark, Pictures, Writer, finish_all

KINDS = {
    "pictures": "annotated images, and an annotated video (H.264) for each video or camera",
    "frames": "annotated images, also for each frame of a video",
    "json": "COCO results",
    "csv": "a line per object",
    "coco": "labels to correct, as a COCO set",
    "yolo": "labels to correct, as a YOLO set",
    "voc": "labels to correct, as a Pascal VOC set",
    "label-studio": "labels to correct, as tasks of Label Studio",
    "none": "nothing",
}


@dataclass
class Tally:
    """Counts of a prediction.

    Attributes:
        images: number of images predicted on.
        seconds: time taken, including reading and writing.
        objects: number of objects by class.
        images_with: number of images with at least one object, by class.
        scores: sum of scores by class.
        broken: messages about inputs that could not be read.
    """

    images: int = 0
    seconds: float = 0.0
    objects: Counter[str] = field(default_factory=Counter)
    images_with: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, found: Detections) -> None:
        """Count an image."""
        self.images += 1
        names = found.names
        self.objects.update(names)
        self.images_with.update(set(names))
        for name, score in zip(names, found.scores.tolist(), strict=True):
            self.scores[name] += score


def make_writers(
    kinds: Sequence[str], folder: Path, classes: Sequence[str], crop: bool = False
) -> list[Writer]:
    """A writer for each kind of output (:data:`KINDS`), below ``folder``.

    Raises:
        MrtError: an unknown kind, or "pictures" together with "frames", or "none" with others.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise MrtError(f"--save {unknown[0]}: unknown", f"choose of {', '.join(KINDS)}")
    if {"pictures", "frames"} <= set(kinds) or ("none" in kinds and len(set(kinds)) > 1):
        raise MrtError(f"--save {' '.join(kinds)}: these exclude each other", "take one of them")
    makers = {
        "pictures": lambda: Pictures(folder),
        "frames": lambda: Pictures(folder, frames=True),
        "json": lambda: CocoResults(folder, classes),
        "csv": lambda: Csv(folder),
        "coco": lambda: CocoLabels(folder, classes),
        "yolo": lambda: YoloLabels(folder, classes),
        "voc": lambda: VocLabels(folder, classes),
        "label-studio": lambda: StudioTasks(folder, classes),
    }
    writers = [makers[kind]() for kind in dict.fromkeys(kinds) if kind in makers]
    return [*writers, *([Crops(folder)] if crop else []), Mark(folder)]


def run(
    detector: Detector,
    sources: Sequence[Source],
    options: Options,
    writers: Sequence[Writer],
    *,
    limit: int | None = None,
    on_source: Callable[[Source], None] = lambda source: None,
    on_frame: Callable[[Source, Frame, Detections | MrtError], None] = lambda source, frame, result: None,
) -> tuple[Tally, list[Path]]:
    """Predict, write, and count. Inputs that cannot be read are skipped and listed in the tally.

    The writers' files are always completed; after Ctrl-C they contain the detections so far.

    Args:
        limit: predict on at most so many images or frames of each source.
        on_source, on_frame: called before each source and after each frame.

    Returns:
        The tally, and the files that were written.

    Raises:
        MrtError: an option that does not fit, or a file that cannot be written.
    """
    detector.check(options)
    tally, start = Tally(), time.perf_counter()
    try:
        for source in sources:
            on_source(source)
            for writer in writers:
                writer.begin(source)
            try:
                with closing(detector.stream(itertools.islice(source.frames(), limit), options)) as results:
                    for frame, result in results:
                        if isinstance(result, MrtError):
                            tally.broken.append(result.message)
                        else:
                            for writer in writers:
                                writer.add(frame, result)
                            tally.add(result)
                        on_frame(source, frame, result)
            except SourceBroken as error:
                tally.broken.append(error.message)
    finally:
        tally.seconds = time.perf_counter() - start
        paths = finish_all(writers)
    return tally, paths
