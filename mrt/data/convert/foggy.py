"""Foggy Cityscapes with Cityscapes' labels.

Either the published images, or fog made from Cityscapes' own disparity and camera files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mrt.data.archives import open_file
from mrt.data.convert import fog
from mrt.data.convert.cityscapes import (
    CLASSES,
    FRAME,
    IMAGES,
    LABELS_WANTED,
    SITE,
    SKY,
    Frame,
    check_options,
    find_frames,
    find_labels,
    labelled_split,
    missing_splits,
    usable_labels,
    visible_things,
)
from mrt.data.convert.coco_file import number_of
from mrt.data.convert.raw import RawFiles, Unpacking, parse_json, require
from mrt.data.convert.recipe import Picture, Recipe, Skipped, Split
from mrt.data.headers import BROKEN, ImageProblem, open_picture
from mrt.errors import MrtError

# extinction per metre of the published levels, as the file names write them
BETAS = ("0.005", "0.01", "0.02")
PACKAGES = ("foggy", "foggyDBF")  # leftImg8bit_NAME: the first is the benchmark's
_FOGGY = FRAME + r"_leftImg8bit_foggy_beta_(\d+\.?\d*)\.png$"


class Inputs(NamedTuple):
    """The files from which one frame's fog is made; None: missing."""

    image: Path | None
    labels: Path | None
    disparity: Path | None
    camera: Path | None


class FogJob(NamedTuple):
    """One picture to make: its file below the images' folder, its inputs, the fog level, the classes."""

    file: str
    inputs: Inputs
    beta: str
    classes: tuple[str, ...]


def recipe(
    raw: Sequence[Path],
    data_root: Path,
    *,
    fog_beta: str = "0.02",
    simulate: bool = False,
    package: str | None = None,
    classes: Sequence[str] = CLASSES,
    splits: Sequence[str] = tuple(IMAGES),
    on_unpack: Unpacking | None = None,
) -> Recipe:
    """``leftImg8bit_trainvaltest_foggy.zip`` (or ``..._foggyDBF.zip``) and ``gtFine_trainvaltest.zip``.

    Each may be unpacked or as it came.

    Expects ``leftImg8bit_foggy{DBF}/{split}/{city}/{name}_leftImg8bit_foggy_beta_{0.005,0.01,0.02}.png`` and
    Cityscapes' labels (:mod:`mrt.data.convert.cityscapes`, also for the boxes and what is skipped).

    With ``simulate`` the images are made (:mod:`mrt.data.convert.fog`) and written into the set, from
    ``leftImg8bit_trainvaltest.zip``, ``disparity_trainvaltest.zip`` and ``camera_trainvaltest.zip``:
    ``{split}/{city}/{name}_{leftImg8bit.png,disparity.png,camera.json}``. Holes in the disparity are filled
    from the nearest measurements in the row: that of the same object if there is one, else the farther one.
    The sky is where the labels say so, and infinitely far. Then frames are also skipped with "disparity
    missing", "camera missing", "disparity cut short or unreadable", "disparity size differs from the image's"
    or "disparity without a measurement".

    Args:
        fog_beta: "0.02" (the benchmark), "0.01" or "0.005"; "all": three images of each frame, which is
            another benchmark.
        package: which images, "foggy" or "foggyDBF"; default: the first of them that is found. The card says
            which.
        classes, splits, on_unpack: as for Cityscapes.

    Raises:
        MrtError: an invalid option; no images of that level or package, no labels; with ``simulate`` no files
            to make fog from; a camera file that cannot be used.
    """
    check_options(classes, splits)
    if fog_beta not in (*BETAS, "all"):
        raise MrtError(f"fog_beta is {fog_beta!r}, expected {', '.join(BETAS)} or all")
    if package is not None and (package not in PACKAGES or simulate):
        raise MrtError(
            f"package is {package!r}, expected {' or '.join(PACKAGES)}, and none where the fog is simulated"
        )
    betas = BETAS if fog_beta == "all" else (fog_beta,)
    make = _simulated if simulate else _published
    found, details, files = make(raw, data_root, betas, package, tuple(classes), splits, on_unpack)
    if fog_beta == "all":
        details["note"] = (
            "three images of each frame, one a fog level: not the benchmark, which has level 0.02 only"
        )
    return Recipe(
        domain="fog",
        classes=tuple(classes),
        splits={split: jobs for split, jobs in found.items() if jobs is not None},
        source=files.source,
        details={"fog_beta": fog_beta, "simulated": simulate, "boxes": "of the visible pixels"}
        | details
        | missing_splits(found),
        expected={split: {"images": IMAGES[split] * len(betas)} for split in splits},
    )


# splits by name, the card's details, the raw files
Found = tuple[dict[str, Split | None], dict[str, Any], RawFiles]


def _published(
    raw: Sequence[Path],
    data_root: Path,
    betas: Sequence[str],
    package: str | None,
    classes: tuple[str, ...],
    splits: Sequence[str],
    on_unpack: Unpacking | None,
) -> Found:
    """Foggy Cityscapes as its owners made it."""
    files = RawFiles(raw, rf"_leftImg8bit_foggy_beta_[\d.]+\.png$|{LABELS_WANTED}", data_root, on_unpack)
    images: dict[str, dict[tuple[Frame, str], Path]] = {name: {} for name in PACKAGES}
    for match, place in files.matching(_FOGGY):
        *frame, beta = match.groups()
        images[_package_of(place)].setdefault((Frame(*frame), beta), place)
    there = [name for name in PACKAGES if images[name]]
    get = (
        f"Give leftImg8bit_trainvaltest_{package or 'foggy'}.zip, too: it is on {SITE}; "
        "or make the fog with --simulate."
    )
    require(there, "Foggy Cityscapes images ({split}/{city}/*_leftImg8bit_foggy_beta_*.png)", files, get)
    if package is None:
        package = there[0]
    require(
        images[package],
        f"images of the package leftImg8bit_{package}, only of leftImg8bit_{there[0]}",
        files,
        get,
    )
    labels = find_labels(files)
    levels = {beta for _, beta in images[package]}
    missing = [beta for beta in betas if beta not in levels]
    if missing:
        raise MrtError(
            f"fog_beta: the images of leftImg8bit_{package} have no level {', '.join(missing)}",
            f"There are: {', '.join(sorted(levels))}.",
        )
    found = {}
    for split in splits:
        known = {frame for frame, _ in images[package]} | {*labels}
        frames = sorted(frame for frame in known if frame.split == split)
        entries = [
            (frame, images[package].get((frame, beta)), _file(frame, beta), {"fog_beta": float(beta)})
            for frame in frames
            for beta in betas
        ]
        found[split] = labelled_split(entries, labels, classes)
    details: dict[str, Any] = {"package": f"leftImg8bit_{package}"}
    if len(there) > 1:
        details["packages_there"] = [f"leftImg8bit_{name}" for name in there]
    return found, details, files


def _package_of(place: Path) -> str:
    """Which package an image is of, by the innermost folder or archive that says so."""
    for folder in place.parents:
        said = re.search(r"foggy(DBF)?", folder.name, re.IGNORECASE)
        if said:
            return PACKAGES[1] if said[1] else PACKAGES[0]
    return PACKAGES[0]


def _file(frame: Frame, beta: str) -> str:
    return f"{frame.city}/{frame.name}_leftImg8bit_foggy_beta_{beta}.png"


def _simulated(
    raw: Sequence[Path],
    data_root: Path,
    betas: Sequence[str],
    package: None,
    classes: tuple[str, ...],
    splits: Sequence[str],
    on_unpack: Unpacking | None,
) -> Found:
    """Fog that is made here."""
    files = RawFiles(
        raw, rf"_(leftImg8bit|disparity)\.png$|_camera\.json$|{LABELS_WANTED}", data_root, on_unpack
    )
    parts = []
    for ending, archive in (
        ("leftImg8bit.png", "leftImg8bit"),
        ("disparity.png", "disparity"),
        ("camera.json", "camera"),
    ):
        parts.append(find_frames(files, FRAME + f"_{re.escape(ending)}$"))
        require(
            parts[-1],
            f"Cityscapes files {{split}}/{{city}}/*_{ending} to make fog from",
            files,
            f"Give {archive}_trainvaltest.zip, too: it is on {SITE}.",
        )
    images, disparities, cameras = parts
    labels = find_labels(files)
    found: dict[str, Split | None] = {}
    for split in splits:
        frames = sorted(frame for frame in {*images, *labels} if frame.split == split)
        sources = (images, labels, disparities, cameras)
        inputs = [(frame, Inputs(*(source.get(frame) for source in sources))) for frame in frames]
        jobs = [FogJob(_file(frame, beta), given, beta, classes) for frame, given in inputs for beta in betas]
        there = any(frame in images for frame in frames)
        found[split] = Split(Path("images") / split, jobs, make_foggy, makes=True) if there else None
    details = {
        "light": "sRGB values as stored, as in Foggy Cityscapes; not linear light",
        "atmospheric_light": "of the 0.1 % brightest in the dark channel (15 x 15) the pixel of median grey",
        "depth": (
            "baseline * fx / disparity; holes filled along the row within objects, "
            "else from behind; sky from the labels"
        ),
    }
    return found, details, files


def make_foggy(job: FogJob, folder: Path) -> Picture | Skipped:
    """Write ``folder/job.file``, the frame in fog as an 8-bit RGB PNG; returns a Picture with its boxes."""
    for what, place in job.inputs._asdict().items():
        if place is None:
            return Skipped(f"{what} missing", job.file)
    image = _read(job.inputs.image)
    if image is None:
        return Skipped("image cut short or unreadable", job.file)
    pixels = _read(job.inputs.disparity, grey=True)
    if pixels is None:
        return Skipped("disparity cut short or unreadable", job.file)
    labels = usable_labels(job.inputs.labels, job.file, (image.shape[1], image.shape[0]))
    if isinstance(labels, Skipped):
        return labels
    if pixels.shape != image.shape[:2]:
        return Skipped("disparity size differs from the image's", job.file)
    sky = labels.ids == SKY
    pixels[sky] = 0  # whatever was measured there: holes must not be filled from the sky
    if not pixels.any():
        return Skipped("disparity without a measurement", job.file)
    baseline, focal = _camera(job.inputs.camera)
    disparity = fog.fill_holes(fog.disparities(pixels), labels.ids)
    clear = fog.transmission(disparity, baseline, focal, float(job.beta), sky)
    foggy = fog.add_fog(image, clear, fog.atmospheric_light(image))
    path = folder / job.file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(foggy).save(path, compress_level=1)  # a quarter of the default's time, files 15 % larger
    things, skipped = visible_things(labels, job.classes)
    return Picture(job.file, image.shape[1], image.shape[0], things, skipped, {"fog_beta": float(job.beta)})


def _read(place: Path | None, grey: bool = False) -> np.ndarray | None:
    """(H, W, 3) uint8 of an image, or (H, W) of a grey one of 16 bits; None if it cannot be decoded."""
    assert place is not None
    try:
        with open_file(place) as file, open_picture(file) as picture:
            if grey and not picture.mode.startswith("I"):
                return None
            return np.array(picture if grey else picture.convert("RGB"))
    except (*BROKEN, ImageProblem):
        return None


def _camera(place: Path | None) -> tuple[float, float]:
    """Baseline in metres and focal length in pixels.

    Raises:
        MrtError: one of them is missing or not a positive number; the message names the field.
    """
    assert place is not None
    content = parse_json(place)
    values = []
    for part, field in (("extrinsic", "baseline"), ("intrinsic", "fx")):
        block = content.get(part) if isinstance(content, dict) else None
        value = block.get(field) if isinstance(block, dict) else None
        number = number_of(value)
        if number is None or isinstance(value, bool) or not 0 < number < math.inf:
            raise MrtError(
                f"{place}: {part}.{field} is {repr(value)[:80]}, expected a positive number",
                f"Get camera_trainvaltest.zip from {SITE}.",
            )
        values.append(number)
    return values[0], values[1]
