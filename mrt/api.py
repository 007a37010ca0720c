"""The Python functions of mrt, which the command line calls, too. ``import mrt`` has all of them.

Every argument has the meaning of the option with the same name. Mistakes raise :class:`mrt.MrtError`, whose
message says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mrt import experiment
from mrt.arguments import checked
from mrt.config import validate, without_plugins
from mrt.engine import distributed
from mrt.engine.inference import Result, evaluate_detector
from mrt.engine.load import EXPORT_CARD, PROGRAMS, dynamic_thresholds, export_card, load_detector
from mrt.engine.report import Watcher
from mrt.errors import MrtError
from mrt.predict.detector import Detector, Thresholds
from mrt.predict.network import Preprocessing, TorchNetwork


@checked
def load(
    where: str | Path,
    *,
    which: str = "auto",
    device: str | torch.device = "auto",
    amp: str = "off",
    run_root: Path | str | None = None,
) -> Detector:
    """A detector that is ready to predict.

    Args:
        where: a run (its name in the run root, or its folder), a weights file (of mrt, published MRT or
            official Deformable DETR), a folder of ``mrt export`` or of a Hugging Face model, a name that
            ships with mrt ("small-source"), or a model to download ("coco", "hf:OWNER/NAME").
        which: network of a run: "teacher", "student", or "auto", the teacher if there is one.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps", or torch's own.
        amp: precision: "off" (float32), "tf32", "bf16" or "fp16".
        run_root: the folder of all runs.

    Raises:
        MrtError: there is no such detector or device, or a file cannot be read.
    """
    device = str(device)
    roots = experiment.find_roots(None, Path(run_root) if run_root else None)
    where = experiment.require_detector(str(where), roots.run_root, which)
    if (Path(where) / EXPORT_CARD).is_file() and export_card(Path(where))["format"] in PROGRAMS:
        from mrt.export.runtime import load_program

        return load_program(Path(where), device)
    detector, facts = load_detector(where, which=which, device=choose_device(device))
    config = validate(without_plugins(facts.get("config") or {}), facts["file"])
    found = dynamic_thresholds(facts)
    thresholds = Thresholds(found, "the run's dynamic thresholds") if found else None
    preprocessing = Preprocessing.of(config.data)
    return Detector(TorchNetwork(detector, amp), facts["classes"], preprocessing, thresholds, facts)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        MrtError: there is no such device.
    """
    if name in distributed.DEVICES:
        return distributed.join(name).device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MrtError(
            f"device {name!r}: {str(error).splitlines()[0]}", "choose auto, cpu, cuda, cuda:NUMBER or mps"
        ) from None
    return device


@checked
def adapt(
    target: str | Path | None = None,
    *,
    source: str | Path | None = None,
    preset: str | None = None,
    method: str | None = None,
    stage: Sequence[str] | None = None,
    init: str | Path | None = None,
    class_map: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | Path | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    allow_change: bool = False,
    seed: int | None = None,
    device: str | None = None,
    amp: str | None = None,
    data_root: Path | str | None = None,
    run_root: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Adapt a source detector to an unlabelled target domain: ``mrt adapt``.

    Args:
        settings: any settings by dotted name, e.g. ``{"mae.mask_ratio": 0.5, "teach.epochs": 10}``; others
            are those of the preset.
        resume: continue the run of that name.
        resume_from: continue it from this one of its checkpoints ("previous", "teach-0003") instead of the
            last.
        allow_change: let a run that is continued have other settings; ``run.json`` records them.
        watcher: is told about the progress (:class:`mrt.engine.report.Watcher`).

    Returns:
        The run's folder, which :func:`load` takes.

    Raises:
        MrtError: bad input.
        mrt.errors.RunFailed: a loss is not finite.
    """
    plan = experiment.plan_adaptation(
        target=_text(target),
        source=_text(source),
        preset=preset,
        method=method,
        stage=stage,
        init=_text(init),
        class_map=class_map,
        settings=settings,
        name=_text(name),
        resume=resume,
        resume_from=resume_from,
        allow_change=allow_change,
        seed=seed,
        device=device,
        amp=amp,
        data_root=_path(data_root),
        run_root=_path(run_root),
    )
    return plan.run(plan.starting_weights(), watcher)


@checked
def pretrain_source(
    source: str | Path | None = None,
    *,
    target: str | Path | None = None,
    preset: str | None = None,
    match_compute: bool = False,
    augment: str | None = None,
    ema: bool = False,
    oracle: str | None = None,
    init: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | Path | None = None,
    resume: bool = False,
    resume_from: str | None = None,
    allow_change: bool = False,
    seed: int | None = None,
    device: str | None = None,
    amp: str | None = None,
    data_root: Path | str | None = None,
    run_root: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Train a detector on the labelled source, or one of the fair baselines: ``mrt pretrain-source``.

    The other arguments, the result and the errors are those of :func:`adapt`.
    """
    plan = experiment.plan_pretraining(
        source=_text(source),
        target=_text(target),
        preset=preset,
        match_compute=match_compute,
        augment=augment,
        ema=ema,
        oracle=oracle,
        init=_text(init),
        settings=settings,
        name=_text(name),
        resume=resume,
        resume_from=resume_from,
        allow_change=allow_change,
        seed=seed,
        device=device,
        amp=amp,
        data_root=_path(data_root),
        run_root=_path(run_root),
    )
    return plan.run(plan.starting_weights(), watcher)


@checked
def evaluate(
    where: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    which: str = "auto",
    class_map: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    data_root: Path | str | None = None,
    run_root: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Result:
    """COCO metrics of a run or weights on a labelled data set: ``mrt eval``.

    Args:
        where: as in :func:`load`.
        data: name of the data set; None: the target of the run.
        split: of the data set; None: the validation split, else test, else the first that has boxes.
        class_map: the detector's names for classes that have another name in the data set.

    Returns:
        ``metrics`` (AP50 and others in per cent, also by class), ``detections``, and the data they were
        computed on.

    Raises:
        MrtError: there is no such detector or data set, or the split has no labels or no boxes.
    """
    roots = experiment.find_roots(_path(data_root), _path(run_root))
    return evaluate_detector(
        experiment.require_detector(str(where), roots.run_root, which),
        data=_text(data),
        split=split,
        which=which,
        device=device,
        batch_size=batch_size,
        data_root=roots.data_root,
        watcher=watcher,
        overrides={"data.class_map": dict(class_map)} if class_map else None,
    )


@checked
def export(where: str | Path, format: str, out: Path | str | None = None, **options: Any) -> Path:
    """Write a detector for use elsewhere, and check that the written one detects the same: ``mrt export``.

    Args:
        where: as in :func:`load`.
        format: "safetensors", "huggingface", "torch-export", "onnx" or "mrt-published".
        out: the folder to write.
        options: see :func:`mrt.export.export_detector`.

    Returns:
        The folder.
    """
    from mrt.export import export_detector

    return export_detector(where, format, _path(out), **options)


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _text(name: Path | str | None) -> str | None:
    return None if name is None else str(name)
