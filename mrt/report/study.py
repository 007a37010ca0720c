"""The content of a report: runs, the images they are evaluated on, their detections, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from mrt.data.card import DatasetCard
from mrt.data.dataset import DetectionDataset
from mrt.data.images import read_image
from mrt.engine import distributed
from mrt.engine.report import Watcher
from mrt.engine.snapshots import spread_evenly
from mrt.errors import MrtError
from mrt.evaluate.draw import draw_detections, side_by_side
from mrt.evaluate.matching import Matches
from mrt.files import replacing
from mrt.report import networks
from mrt.report.collect import START, RunData, choose_split, find_card
from mrt.report.figures import publish
from mrt.report.networks import Judged
from mrt.report.page import Cell, Grid, Plot


@dataclass
class Study:
    """Runs and the facts about them.

    Attributes:
        out: folder of the report; figures go into ``out/figures``.
        subject: the run whose settings define the images of the evaluation: the first with a target.
        domain, split: of these images; domain is "target" or "source". ``card`` describes them.
        images: rows of pictures.
        points: images of each domain in the feature figures.
        quick: no network is run.
        start: results of the weights that the runs started from, if they are the same for all.
        last: results of the runs' last networks, by title.
        matches: their detections, matched with the labels, by :data:`START` and the runs' titles.
        missing: reasons why something is missing, by "data", "networks", "start".
        record: every number of the report, for ``report.json``.
    """

    runs: list[RunData]
    out: Path
    data_root: Path
    subject: RunData
    domain: str
    split: str
    images: int = 4
    points: int = 100
    quick: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watcher: Watcher = field(default_factory=Watcher)
    card: DatasetCard | None = None
    dataset: DetectionDataset | None = None
    start: Judged | None = None
    last: dict[str, Judged] = field(default_factory=dict)
    matches: dict[str, Matches] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        return len(self.runs) > 1

    @property
    def judged(self) -> dict[str, Judged]:
        """The results to compare, in the order of tables."""
        return ({START: self.start} if self.start else {}) | self.last

    @property
    def data(self) -> str:
        """The name of the data set that the runs are evaluated on."""
        return Path(getattr(self.subject.config.data, self.domain)).name

    @property
    def figures(self) -> Path:
        return self.out / "figures"

    def plot(self, name: str, figure: Figure, alt: str, caption: str) -> Plot:
        """Write a figure's files and make it a block of the page."""
        files = publish(figure, self.figures, name)
        return Plot(name, alt, caption, files.inline, files.png)

    def grid(
        self, name: str, alt: str, caption: str, titles: Sequence[str], rows: Sequence[Sequence[Cell]]
    ) -> Grid:
        """Write a sheet of pictures and make it a block of the page."""
        path = self.figures / f"{name}.png"
        sheet = side_by_side([[cell.picture for cell in row] for row in rows], titles, width=CELL)
        with replacing(path) as file:
            sheet.save(file, format="PNG")  # optimize=True: four times the time for 2 % of the bytes
        return Grid(name, alt, caption, titles, rows, path)


CELL = 640  # pixels of a picture's width on a sheet
LETTERS = 108  # the page's width divided by the height of letters, for every number of columns


def picture_of(
    dataset: DetectionDataset, image_id: int, found: Any, columns: int, threshold: float = 0.0
) -> Image.Image:
    """An image for a grid of so many columns, with detections, or its true boxes if ``found`` is "truth".

    Small images are enlarged; large images keep their size, but have larger letters.
    """
    record = next(record for record in dataset.records if record.image_id == image_id)
    image = Image.fromarray(read_image(record.path, record.size).permute(1, 2, 0).numpy())
    if found == "truth":
        found = {"boxes": record.boxes.numpy(), "labels": record.labels.numpy()}
    scale = max(-(-512 // image.width), 1)
    size = max(image.width * scale * columns // LETTERS, 11)
    return draw_detections(image, found, dataset.classes, threshold=threshold, scale=scale, text_size=size)


def open_study(
    runs: Sequence[RunData],
    out: Path,
    *,
    data_root: Path,
    split: str | None = None,
    images: int = 4,
    quick: bool = False,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Study:
    """Find the data and, unless ``quick``, run the networks on it.

    Raises:
        MrtError: the split does not exist, or the runs detect different classes. Missing data or weights are
            no error: the parts that need them are left out, and the report gives the reason.
    """
    first = runs[0]
    odd = next((run for run in runs if run.classes != first.classes), None)
    if odd is not None:
        raise MrtError(
            f"{odd.folder}: its classes are not those of {first.folder}",
            "compare runs that detect the same classes",
        )
    subject = next((run for run in runs if run.domain == "target"), first)
    target = find_card(subject, "target", data_root)
    domain = "target" if subject.domain == "target" or (target is not None and target.labelled) else "source"
    name = getattr(subject.config.data, domain)
    card = find_card(subject, domain, data_root)
    asked, split = split, choose_split(runs, Path(name).name, split, card)
    watcher = watcher or Watcher()
    if asked is None and card is not None:
        watcher.say(f"Not said, so taken: data set {card.name}, split {split}.")
    study = Study(list(runs), out, data_root, subject, domain, split, images, quick=quick, watcher=watcher)
    study.card = card
    if study.card is None:
        study.missing["data"] = f"the data set {name} is not in {data_root}"
    else:
        study.dataset = networks.evaluation_set(subject, study.card, study.split)
    if quick:
        study.missing["networks"] = "the report was made with --quick: no network was run"
    elif study.dataset is None:
        study.missing["networks"] = study.missing["data"]
    else:
        study.device = distributed.join(device).device
        _look(study)
    return study


def _look(study: Study) -> None:
    starts = {run.facts.get("init") for run in study.runs}
    start = next(iter(starts)) if len(starts) == 1 else None

    def judge(where: str | Path, config: Any) -> Judged:
        more = (study.dataset, config, study.device, study.watcher, study.points)
        return networks.judge(where, "auto", *more)

    if len(starts) > 1:
        study.missing["start"] = "the runs did not start from the same weights"
    elif start is None:
        study.missing["start"] = "the run started from no trained detector"
    else:
        try:
            study.start = judge(start, study.subject.config)
        except MrtError as error:
            study.missing["start"] = f"the weights it started from are not usable: {error.message}"
    for run in study.runs:
        try:
            study.last[run.title] = judge(run.folder, run.config)
        except MrtError as error:
            study.missing["networks"] = error.message


def chosen_images(dataset: DetectionDataset, count: int) -> list[int]:
    """Ids of images spread evenly over those that have objects (over all, if none has)."""
    records = [record for record in dataset.records if len(record.boxes)] or dataset.records
    return [records[index].image_id for index in spread_evenly(len(records), count)]


def by_image(judged: Judged) -> Mapping[int, Any]:
    """Detections by image id."""
    return {found.image_id: found for found in judged.detections}
