"""Speed of the training loader and of the converters of raw data, in images per second and core.

    python -m benchmarks.data [--rounds 9]

The loader's samples are at 800/1333 from PNG files of 2048x1024 and JPEG files of 1280x720, rendered here:
weak view (flip, resize), strong view (also colour jitter, grey, blur) and teaching pair (both). Three
implementations are compared: this project's data set; the same operations with Pillow and torchvision's
classic transforms, as in Unbiased Teacher and its successors; and torchvision v2 on tensors. One thread, CPU
time. The pipelines take turns, each round over all files; each draws its own random numbers, so a round is an
average over its files.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torchvision import io, transforms
from torchvision.transforms import InterpolationMode, v2

from benchmarks import raw_trees
from benchmarks.environment import environment
from mrt.data.card import DatasetCard, coco_categories, describe_split, write_card
from mrt.data.convert.recipe import prepare
from mrt.data.dataset import DetectionDataset, SampleKey
from mrt.data.synthetic.render import render
from mrt.data.synthetic.traffic import CLASSES
from mrt.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, resized_size

SHORT_SIDE, MAX_SIZE = 800, 1333
FILES = {"png 2048x1024": ("png", (2048, 1024)), "jpeg 1280x720": ("jpg", (1280, 720))}
KINDS = ("weak", "strong", "pair")
PHOTOS = 6
CONVERTED = 60

Pipeline = Callable[[Path, int], object]


class Plain:
    """Decode, transforms.Compose on Pillow images, ToTensor, Normalize.

    The short side is given as torchvision's Resize wants it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.geometry = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.Resize(SHORT_SIDE, InterpolationMode.BILINEAR, max_size=MAX_SIZE),
            ]
        )
        self.colours = transforms.Compose(
            [
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([self.blur], p=0.5),
            ]
        )
        self.finish = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        )

    @staticmethod
    def blur(picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    def __call__(self, path: Path, _turn: int) -> object:
        with Image.open(path) as file:
            picture = self.geometry(file.convert("RGB"))
        weak = self.finish(picture) if self.kind != "strong" else None
        return weak, self.finish(self.colours(picture)) if self.kind != "weak" else None


class Tensors(Plain):
    """torchvision's decoder and v2 transforms on uint8 tensors."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.geometry = v2.Compose(
            [v2.RandomHorizontalFlip(), v2.Resize(SHORT_SIDE, max_size=MAX_SIZE, antialias=True)]
        )
        self.colours = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                # kernel 13: three standard deviations of the widest blur, as in this project
                v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            ]
        )
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        )

    def __call__(self, path: Path, _turn: int) -> object:
        picture = self.geometry(io.decode_image(path))
        weak = self.finish(picture) if self.kind != "strong" else None
        return weak, self.finish(self.colours(picture)) if self.kind != "weak" else None


def ours(card: DatasetCard, paths: Sequence[Path], kind: str) -> Pipeline:
    """The data set's own items, boxes and all."""
    dataset = DetectionDataset(card, "train", transform=Transform(kind, (SHORT_SIDE,), MAX_SIZE))
    place = {path.name: index for index, path in enumerate(paths)}
    return lambda path, turn: dataset[SampleKey(place[path.name], f"0/{turn}/{path.name}")]


def render_set(folder: Path, suffix: str, size: tuple[int, int]) -> tuple[DatasetCard, list[Path]]:
    """A set of rendered street scenes.

    JPEG has quality 90. PNG is as Pillow writes it: 3 to 4 MB at 2048x1024, while Cityscapes' files have 2.3.
    """
    (folder / "images").mkdir(parents=True)
    coco: dict = {"images": [], "annotations": [], "categories": coco_categories(CLASSES)}
    paths = []
    for number in range(PHOTOS):
        scene = render(0, "clear", "train", number, size)
        paths.append(folder / "images" / f"{number}.{suffix}")
        Image.fromarray(scene.image).save(paths[-1], **({"quality": 90} if suffix == "jpg" else {}))
        coco["images"].append(
            {"id": number + 1, "file_name": paths[-1].name, "width": size[0], "height": size[1]}
        )
        for n in range(8):
            place = {"id": 8 * number + n + 1, "image_id": number + 1, "category_id": 1}
            coco["annotations"].append(
                place | {"bbox": [50 + 90 * n, 200, 80, 90], "area": 7200, "iscrowd": 0}
            )
    (folder / "train.json").write_text(json.dumps(coco))
    split, sizes = describe_split(folder, "train.json", "images", {})
    card = DatasetCard(
        name=folder.name,
        domain="clear",
        classes=CLASSES,
        splits={"train": split},
        image_sizes=dict(sizes),
        source="rendered",
        folder=folder,
    )
    write_card(card)
    return card, paths


def decode(path: Path, _turn: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The part that every pipeline on Pillow needs: decoding, and resizing if ``size`` is given."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    return picture if size is None else picture.resize(size, Image.Resampling.BILINEAR)


def measure(pipelines: Mapping[str, Pipeline], paths: Sequence[Path], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds per image of each pipeline, one figure a round."""
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for turn in range(rounds):
        random.seed(turn)
        torch.manual_seed(turn)
        for name, pipeline in pipelines.items():
            if turn == 0:
                pipeline(paths[0], turn)  # warms up
            begin = time.process_time()
            for path in paths:
                pipeline(path, turn)
            times[name].append((time.process_time() - begin) / len(paths) * 1e3)
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def loader_rows(work: Path, rounds: int) -> dict[str, dict]:
    """By file kind and view: each pipeline's time, our images per second, and our speed-up and its limit."""
    rows: dict[str, dict] = {}
    print(
        "CPU ms per image, medians (quartiles). Limit: "
        "plain PIL's time over that of decoding and resizing alone, as it does them."
    )
    titles = (
        f"{'files':14} {'view':6} {'mrt':>19} {'plain PIL':>10} {'v2':>6} {'images/s':>9} "
        f"{'faster than PIL':>20}"
    )
    print(f"{titles} {'limit':>6} {'than v2':>8}")
    for files, (suffix, size) in FILES.items():
        card, paths = render_set(work / suffix, suffix, size)
        height, width = resized_size(size[1], size[0], SHORT_SIDE, MAX_SIZE)
        rows[files] = {}
        for kind in KINDS:
            pipelines = {
                "mrt": ours(card, paths, kind),
                "plain PIL": Plain(kind),
                "torchvision v2": Tensors(kind),
                "decode": decode,
                "decode and resize": partial(decode, size=(width, height)),
            }
            times = measure(pipelines, paths, rounds)

            def ratio(name: str, other: str, times: dict[str, list[float]] = times) -> dict[str, float]:
                return summary([a / b for a, b in zip(times[name], times[other], strict=True)])

            limit = ratio("plain PIL", "decode and resize")
            rows[files][kind] = {
                "ms": {name: summary(values) for name, values in times.items()},
                "images per second and core": round(1e3 / statistics.median(times["mrt"]), 2),
                "times faster than plain PIL": ratio("plain PIL", "mrt"),
                "times faster than torchvision v2": ratio("torchvision v2", "mrt"),
                "times faster than plain PIL if all but decoding and resizing were free": limit,
            }
            print(line(files, kind, rows[files][kind]), flush=True)
        pair = rows[files]["pair"]["ms"]
        shown = (f"{name} {pair[name]['median']:.1f}" for name in ("decode", "decode and resize"))
        print(f"{files:14} of these: {', '.join(shown)}", flush=True)
    return rows


def line(files: str, kind: str, row: Mapping) -> str:
    mine, pil, tensors, limit = row["ms"]["mrt"], *(row[key] for key in row if key.startswith("times faster"))
    cells = [f"{files:14} {kind:6}", f"{mine['median']:.1f} ({mine['low']:.1f}-{mine['high']:.1f})".rjust(19)]
    cells += [f"{row['ms']['plain PIL']['median']:10.1f} {row['ms']['torchvision v2']['median']:6.1f}"]
    cells += [
        f"{row['images per second and core']:9.1f}",
        f"{pil['median']:.2f}x ({pil['low']:.2f}-{pil['high']:.2f})".rjust(20),
    ]
    return " ".join([*cells, f"{limit['median']:6.2f} {tensors['median']:7.2f}x"])


def conversion_rows(work: Path, rounds: int) -> dict[str, dict]:
    """Images per second and core of each converter, from finding files to the finished card; one process."""
    png, jpeg = (sorted((work / suffix / "images").iterdir()) for suffix in ("png", "jpg"))
    makers: dict[str, Callable[[Path, int], raw_trees.Tree]] = {
        "cityscapes, instances": lambda raw, count: raw_trees.cityscapes_tree(raw, png, count, True),
        "cityscapes, polygons": lambda raw, count: raw_trees.cityscapes_tree(raw, png, count, False),
        "sim10k": lambda raw, count: raw_trees.sim10k_tree(raw, jpeg, count),
        "bdd100k": lambda raw, count: raw_trees.bdd100k_tree(raw, jpeg, count),
        "coco": lambda raw, count: raw_trees.coco_tree(raw, jpeg, count),
        "voc": lambda raw, count: raw_trees.voc_tree(raw, jpeg, count),
        "yolo": lambda raw, count: raw_trees.yolo_tree(raw, jpeg, count),
        "folder": lambda raw, count: raw_trees.folder_tree(raw, jpeg, count),
    }
    rows: dict[str, dict] = {}
    print(f"\n{'conversion':24} {'images/s/core':>14} {'quartiles':>17}  labels")
    for number, (name, make) in enumerate(makers.items()):
        count = CONVERTED if name.startswith("cityscapes") else 10 * CONVERTED
        raw = work / "raw" / str(number)
        labels, recipe = make(raw, count)
        rates, boxes = [], 0
        for turn in range(-1, min(rounds, 5)):  # turn -1 warms up
            begin = time.process_time()
            sets = work / "sets"
            card, _ = prepare(recipe([raw], sets), sets, f"set{number}", overwrite=True, workers=1)
            elapsed = time.process_time() - begin
            train = card.splits["train"]
            if turn >= 0:
                rates.append(train.num_images / elapsed)
            boxes = train.num_boxes
            if train.num_images != count:
                found = f"{train.num_images} of {count} images were converted"
                raise SystemExit(f"{name}: {found}: {train.skipped}")
        rows[name] = {
            "images": count,
            "boxes": boxes,
            "labels": labels,
            "images per second and core": summary(rates),
        }
        found = rows[name]["images per second and core"]
        print(
            f"{name:24} {found['median']:14.0f} {found['low']:8.0f}-{found['high']:<8.0f}  {labels}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "data-cpu.json", help="JSON file"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict = {"environment": environment("cpu"), "rounds": options.rounds, "files per round": PHOTOS}
    print(", ".join(f"{key} {value}" for key, value in results["environment"].items()) + "\n")
    with tempfile.TemporaryDirectory() as work:
        results["loader"] = loader_rows(Path(work), options.rounds)
        results["conversions"] = conversion_rows(Path(work), options.rounds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
