"""Writing exports: each is written to a temporary folder, compared with the detector, and then moved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor

from mrt import api, experiment
from mrt.arguments import require_types
from mrt.config import ModelConfig
from mrt.data.dataset import DetectionDataset
from mrt.data.images import read_picture
from mrt.data.registry import find_dataset
from mrt.data.synthetic.render import render
from mrt.engine.load import HEADER, PROGRAMS, dynamic_thresholds, load_detector
from mrt.errors import MrtError
from mrt.export import card as cards
from mrt.export.graphs import require_onnx, write_onnx, write_torch_export
from mrt.export.parity import Check, ParityFailed, Tensors, Tolerance, as_dict, compare, compare_tensors, pick
from mrt.export.peers import TransformersNetwork
from mrt.export.program import INPUT, Program, trace
from mrt.files import replacing, require_free, whole_folder
from mrt.models.detector import DeformableDETR
from mrt.models.huggingface import write_huggingface
from mrt.models.published import COCO_COLUMNS, PUBLISHED_CLASSES, published_state
from mrt.models.weights import save_weights
from mrt.predict.detector import Detector
from mrt.predict.inputs import Frame, find
from mrt.predict.network import Preprocessing

FORMATS = ("safetensors", "huggingface", "torch-export", "onnx", "mrt-published")
IMAGES = 8  # number of images that the exported detector is compared on
TOGETHER = 4  # so many of these are compared again at another size, in batches of BATCH
BATCH = 2
SCENE = (640, 320)  # width and height in pixels of rendered images, used if there are no others
BEYOND = (
    "transformers, unlike mrt, lets candidates that reach beyond the image become queries where an empty "
    "cell scores higher than the best of others, as it may before the proposals are trained"
)


@dataclass(frozen=True)
class Exported:
    """A folder that was written, and the checks that it passed."""

    format: str
    folder: Path
    checks: list[Check]
    images: str


@dataclass(frozen=True)
class _Job:
    """The input of an export, the same for all formats.

    Attributes:
        where: as the user named it.
        facts: of the weights.
        eager: the detector as it predicts.
        pictures: images that it is compared on.
        shown: a description of these images.
        size: (height, width) of programs for one size.
    """

    where: str
    which: str
    device: str
    facts: dict[str, Any]
    eager: Detector
    pictures: list[Image.Image]
    shown: str
    size: tuple[int, int] | None
    opset: int
    portable: bool
    say: Callable[[str], None]

    def detector(self) -> DeformableDETR:
        """The network as it was saved; that of ``eager`` may have been changed to run faster."""
        return load_detector(self.where, which=self.which)[0]


def export_detector(where: str | Path, format: str, out: Path | str | None = None, **options: Any) -> Path:
    """Write a detector for use elsewhere, after checking that what is written detects the same.

    Args:
        where: a run, weights, a Hugging Face folder, a shipped name: as in :func:`mrt.load`.
        format: one of :data:`FORMATS`.
        out: the folder to write, new or empty; default: ``exports/NAME-FORMAT``.
        options: of :func:`export_formats`: which, images, size, opset, portable, device, data_root, run_root,
            say.

    Returns:
        The folder.

    Raises:
        MrtError: no such detector, a format that cannot store it, a folder that is not empty, or a package
            that is not installed.
        ParityFailed: the export did not detect the same; it was removed.
    """
    require_types(export_formats, options)
    (found,) = export_formats(where, [format], None if out is None else [Path(out)], **options)
    if isinstance(found, Exception):
        raise found
    return found.folder


def export_formats(
    where: str | Path,
    formats: Sequence[str],
    out: Sequence[Path] | None = None,
    *,
    which: str = "auto",
    images: str | Path | Sequence[str | Path] | None = None,
    size: tuple[int, int] | None = None,
    opset: int = 18,
    portable: bool = False,
    device: str = "cpu",
    data_root: Path | str | None = None,
    run_root: Path | str | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Exported | MrtError | ParityFailed]:
    """:func:`export_detector` for several formats, one after the other.

    One that fails does not stop the others.

    Args:
        out: a folder for each format.
        which: of a run: "teacher", "student" or "auto".
        images: photos to compare on, as ``mrt predict`` takes them; default: the run's own target or source
            set where it is prepared, else rendered street scenes.
        size: (width, height) in pixels of a program for images of one size, which others are stretched to;
            None: any size.
        opset: of the ONNX file, 18 to 23.
        portable: torch-export without mrt's own op: runs where mrt is not installed.
        device: where both sides are compared: "cpu", "cuda", "auto".
        say: called with progress messages.

    Yields:
        For each format what was written, or the error.

    Raises:
        MrtError: errors that concern all formats: no such detector, unreadable images, a folder that is not
            empty.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        unknown = wrong[0] if wrong else ""
        raise MrtError(f"format {unknown!r} is unknown", f"choose from {', '.join(FORMATS)}")
    if "onnx" in formats:
        require_onnx(opset)
    if size is not None and min(size) < 1:
        raise MrtError(f"size {size[0]}x{size[1]}: width and height in pixels, at least 1")
    roots = experiment.find_roots(*(None if root is None else Path(root) for root in (data_root, run_root)))
    found = experiment.find_run(str(where), roots.run_root)
    folders = [Path(folder) for folder in (out or [default_folder(found, kind) for kind in formats])]
    for folder in folders:
        require_free(folder)
    facts = load_detector(found, which=which)[1]
    eager = api.load(found, which=which, device=device, run_root=roots.run_root)
    pictures, shown = choose_images(images, facts, roots.data_root)
    height_width, say = (size[1], size[0]) if size else None, say or (lambda text: None)
    job = _Job(found, which, device, facts, eager, pictures, shown, height_width, opset, portable, say)
    for kind, folder in zip(formats, folders, strict=True):
        try:
            yield _export(job, kind, folder)
        except (MrtError, ParityFailed) as error:
            yield error


def default_folder(where: str | Path, kind: str) -> Path:
    """``exports/NAME-FORMAT`` in the working folder."""
    path = Path(where)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        name = path.stem
    else:
        name = path.resolve().name if path.exists() else path.name
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-")
    return Path("exports") / f"{safe or 'detector'}-{kind}"


def choose_images(
    images: str | Path | Sequence[str | Path] | None, facts: dict[str, Any], data_root: Path
) -> tuple[list[Image.Image], str]:
    """The pictures that the two detectors are compared on, and a description of them."""
    if images is not None:
        asked = [images] if isinstance(images, (str, Path)) else list(images)
        sources, broken = find(asked)
        frames = [frame for source in sources if source.kind == "images" for frame in source.frames()]
        if broken:
            raise broken[0]
        if not frames:
            raise MrtError(f"{' '.join(map(str, asked))}: holds no images", "name a folder of photos")
        pictures, left_out = _readable(frames)
        names = ", ".join("/".join(Path(name).resolve().parts[-2:]) for name in asked)
        without = f", without {len(left_out)} that cannot be read ({left_out[0].message})" if left_out else ""
        return pictures, f"{len(pictures)} of {len(frames)} images of {names}{without}"
    data = (facts.get("config") or {}).get("data") or {}
    for name in filter(None, (data.get("target"), data.get("source"))):
        try:
            card = find_dataset(name, data_root)
            split = data.get("validation_split")
            split = split if split in card.splits else next(iter(card.splits))
            records = DetectionDataset(card, split, labelled=False).records
            chosen = [records[index] for index in pick(len(records), IMAGES)]
            pictures = [read_picture(record.path, record.size) for record in chosen]
        except (MrtError, StopIteration):
            continue
        return pictures, f"{len(pictures)} images of {card.name}, split {split}"
    scenes = [render(0, "clear", "export", number, SCENE).image for number in range(IMAGES)]
    shown = f"{IMAGES} rendered street scenes (no photos were named, no data set is prepared)"
    return [Image.fromarray(scene) for scene in scenes], shown


def _readable(frames: Sequence[Frame]) -> tuple[list[Image.Image], list[MrtError]]:
    """Pictures spread over all frames, and what is wrong with those that would have been among them.

    Raises:
        MrtError: none can be read.
    """
    frames, left_out = list(frames), []
    while frames:
        pictures, odd = [], []
        for index in pick(len(frames), IMAGES):
            try:
                pictures.append(frames[index].read())
            except MrtError as error:
                odd.append(index)
                left_out.append(error)
        if not odd:
            return pictures, left_out
        frames = [frame for index, frame in enumerate(frames) if index not in odd]
    raise left_out[0]


def _export(job: _Job, kind: str, folder: Path) -> Exported:
    job.say(f"{kind}: writing")
    with whole_folder(folder) as work:
        detector = job.detector()
        card, weights = _WRITERS[kind](job, detector, work)
        cards.write_card(work, card)
        job.say(f"{kind}: comparing on {job.shown}")
        checks, tensors = _compare(job, kind, work, weights)
        if tensors.different or not all(check.ok for check in checks):
            note = BEYOND if _only_transformers(checks, detector) else ""
            raise ParityFailed(f"{job.where} as {kind}", checks, tensors, Tolerance(), note)
        card["parity"] = as_dict(checks, tensors, Tolerance(), job.shown)
        cards.write_card(work, card)
    return Exported(kind, folder, checks, job.shown)


def _compare(job: _Job, kind: str, work: Path, weights: Mapping[str, Tensor]) -> tuple[list[Check], Tensors]:
    """The checks of a folder before it is moved to its place, read as its users will read it.

    ``weights`` are those that it should contain.
    """
    tensors = compare_tensors(weights, load_detector(work)[0].state_dict() if kind not in PROGRAMS else {})
    exported = api.load(work, device=job.device)
    if kind in PROGRAMS:
        tensors = compare_tensors(weights, exported.network.tensors())
    if kind == "mrt-published":  # holds no image size
        exported.preprocessing = job.eager.preprocessing
    fixed = exported.preprocessing.fixed
    name = f"{kind}, {fixed[1]}x{fixed[0]}" if fixed else kind
    same_order = kind == "mrt-published" and not set(job.eager.classes) <= set(exported.classes)
    checks = [compare(job.eager, exported, job.pictures, name, size=fixed, same_order=same_order)]
    if kind in PROGRAMS:
        size = fixed or _other_size(job.eager.preprocessing, job.pictures[0])
        some = job.pictures[:TOGETHER] if len(job.pictures) > 1 else job.pictures * BATCH
        name = f"{kind}, {size[1]}x{size[0]}, batches of {BATCH}"
        checks.append(compare(job.eager, exported, some, name, size=size, batch=BATCH))
    if kind == "huggingface" and not TransformersNetwork.there():
        job.say(
            "huggingface: transformers is not installed (pip install transformers), "
            "so the folder was only read back by mrt"
        )
    elif kind == "huggingface":
        network = TransformersNetwork(work, job.eager.network.device)
        theirs = Detector(network, network.classes, job.eager.preprocessing)
        checks.append(compare(job.eager, theirs, job.pictures, f"{kind}, run by transformers"))
    return checks, tensors


def _only_transformers(checks: Sequence[Check], detector: DeformableDETR) -> bool:
    """Whether only transformers detects differently, for which :data:`BEYOND` may be the reason."""
    return detector.two_stage and len(checks) == 2 and checks[0].ok


def _other_size(preprocessing: Preprocessing, picture: Image.Image) -> tuple[int, int]:
    """An odd (height, width) unlike that of the images: smaller, or larger if they are small."""
    height, width = preprocessing.size(picture.height, picture.width)
    scale = 0.75 if min(height, width) >= 300 else 1.3
    return round(height * scale) | 1, round(width * scale) | 1


# --- the formats: each function writes to the folder and returns its card and the weights it should contain

_Written = tuple[dict[str, Any], Mapping[str, Tensor]]


def _card(job: _Job, kind: str, file: str, detector: DeformableDETR, **more: Any) -> dict[str, Any]:
    network = {**detector.arguments, "backbone": detector.backbone.name}
    return cards.make_card(kind, file, job.eager, network, cards.describe_source(job.where, job.facts), more)


def _write_safetensors(job: _Job, detector: DeformableDETR, work: Path) -> _Written:
    kept = ("classes", "network", "config", "run", HEADER)
    facts = {name: job.facts[name] for name in kept if name in job.facts}
    if (dynamic := dynamic_thresholds(job.facts)) is not None:
        facts["thresholds"] = dynamic
    card = _card(job, "safetensors", "model.safetensors", detector)
    if "run" in card["source"]:
        facts["run"] = card["source"]["run"]
    save_weights(work / "model.safetensors", detector, facts)
    return card, detector.state_dict()


def _write_published(job: _Job, detector: DeformableDETR, work: Path) -> _Written:
    columns = _published_columns(job.eager.classes)
    usual = ModelConfig()
    fixed = ["hidden_dim", "num_heads", "num_encoder_layers", "num_decoder_layers", "feedforward_dim"]
    fixed += ["num_levels", "num_points"] + (["num_queries"] if detector.two_stage else [])
    own = detector.arguments
    different = [f"{name} {own[name]}" for name in fixed if own[name] != getattr(usual, name)]
    if detector.backbone.name != "resnet50":
        different.append(f"backbone {detector.backbone.name}")
    if detector.two_stage and detector.proposal_content != "position":
        different.append("proposals with content")
    if different:
        raise MrtError(
            f"{job.where}: the published layout is that of one network, and this one differs: "
            f"{', '.join(different)}",
            "take another format: safetensors holds every detector",
        )
    state = published_state(detector, classes=job.eager.classes, checkpoint_classes=columns)
    with replacing(work / "model.pth") as file:
        torch.save({"model": state}, file)
    known = list(columns) != list(job.eager.classes)
    card = _card(job, "mrt-published", "model.pth", detector, columns=["", *columns], names_are_known=known)
    return card, detector.state_dict()


def _published_columns(classes: Sequence[str]) -> Sequence[str]:
    """The names of class columns 1, 2, ... in the published layout, which stores no names itself.

    Raises:
        MrtError: a reader would give them other names, because it knows a list of the same length.
    """
    coco = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    for known in (PUBLISHED_CLASSES, coco):
        if set(classes) <= set(known):
            return known
    if len(classes) + 1 in (len(PUBLISHED_CLASSES) + 1, COCO_COLUMNS):
        others = PUBLISHED_CLASSES if len(classes) < COCO_COLUMNS - 1 else coco
        raise MrtError(
            f"{len(classes)} classes ({', '.join(classes[:3])}, ...): the published layout holds no names, "
            f"and readers would take so many columns for {', '.join(others[:3])}, ...",
            "take another format: safetensors and huggingface hold the names",
        )
    return classes


def _write_huggingface(job: _Job, detector: DeformableDETR, work: Path) -> _Written:
    card = _card(job, "huggingface", "model.safetensors", detector)
    sizes = job.eager.preprocessing
    name = default_folder(job.where, "huggingface").name.removesuffix("-huggingface")
    text = cards.model_card(card, name)
    write_huggingface(
        work,
        detector,
        job.eager.classes,
        short_side=sizes.short_side,
        max_size=sizes.max_size,
        size_multiple=sizes.multiple,
        card=text,
    )
    return card, detector.state_dict()


def _program_card(
    job: _Job, kind: str, file: str, program: Program, detector: DeformableDETR, **more: Any
) -> dict[str, Any]:
    height, width = job.size or ("height", "width")

    def tensor(shape: list[int | str], dtype: str, values: str) -> dict[str, Any]:
        return {"shape": shape, "type": dtype, "values": values}

    pairs = ["batch", program.candidates]
    pixels = tensor(["batch", 3, height, width], "float32", "RGB, 0 to 255, not normalised")
    outputs = {
        "scores": tensor([*pairs], "float32", "falling, in [0, 1]"),
        "labels": tensor([*pairs], "int64", "indices into classes"),
        "boxes": tensor([*pairs, 4], "float32", "x0, y0, x1, y1 as shares of the image, not cut to it"),
    }
    card = _card(job, kind, file, detector, input={"name": INPUT, **pixels}, outputs=outputs, **more)
    card["preprocessing"]["fixed"] = list(job.size) if job.size else None
    return card


def _write_torch_export(job: _Job, detector: DeformableDETR, work: Path) -> _Written:
    program = Program(detector)
    write_torch_export(trace(program, job.size, kernels=not job.portable), work / "model.pt2")
    card = _program_card(job, "torch-export", "model.pt2", program, detector, portable=job.portable)
    return card, program.state_dict()


def _write_onnx(job: _Job, detector: DeformableDETR, work: Path) -> _Written:
    program = Program(detector)
    write_onnx(trace(program, job.size, kernels=False), work / "model.onnx", job.opset)
    shutil.copyfile(Path(__file__).with_name("detect.py"), work / "detect.py")
    card = _program_card(job, "onnx", "model.onnx", program, detector, opset=job.opset)
    return card, program.state_dict()


_WRITERS: dict[str, Callable[[_Job, DeformableDETR, Path], _Written]] = {
    "safetensors": _write_safetensors,
    "huggingface": _write_huggingface,
    "torch-export": _write_torch_export,
    "onnx": _write_onnx,
    "mrt-published": _write_published,
}
