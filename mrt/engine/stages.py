"""The paper's three stages, top to bottom.

1. :func:`pretrain_source`: the detector learns from the labelled source.
2. :func:`adapt`, stage "mae": source supervision, while the masked autoencoder learns to rebuild target features.
3. :func:`adapt`, stage "teach": an EMA teacher labels the target, the student learns from source labels, pseudo labels, discriminators
   and the masked autoencoder; selective retraining puts parts of the student back now and then.

Each is the same step (:mod:`mrt.engine.step`) with parts absent. The fair source-only baseline and the oracle run stages 2 and 3 with
every adaptive part absent, so they get the same steps, rates, augmentation and averaging.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrt.config import Config
from mrt.engine import build, checkpoint, distributed
from mrt.engine.folder import begin_run, finish_stage, open_run, require_same_data, save_autoencoder, save_networks
from mrt.engine.labels import require_labels
from mrt.engine.loop import Run, restore_checkpoint, run_stage
from mrt.engine.prepare import RANDOM, Plan, find_cards, label_snapshots, open_workshop, prepare, take_over, validation
from mrt.engine.report import RunLog, Watcher, forget_later_lines
from mrt.engine.snapshots import SNAPSHOTS
from mrt.engine.step import Parts
from mrt.engine.student import SOURCE, TARGET
from mrt.errors import MrtError

Oracle = Literal["target", "source+target"]


def pretrain_source(
    config: Config,
    folder: Path,
    *,
    init: str | None = None,
    resume: bool = False,
    match_compute: bool = False,
    oracle: Oracle | None = None,
    data_root: Path,
    watcher: Watcher | None = None,
    profile: int = 0,
) -> Path:
    """Stage 1: train a detector on labelled images.

    Args:
        config: see :mod:`mrt.config`; ``[pretrain]`` is this stage.
        folder: where the run is written; must not exist unless ``resume``.
        init: weights to start from (a run, a weights file or a shipped name); none starts from the backbone's weights alone.
        resume: continue the run in ``folder`` with its own configuration.
        match_compute: the fair source-only baseline: the steps, rates, augmentation and averaging of :func:`adapt`, and its starting
            point, with every adaptive part absent.
        oracle: train on the target's labels instead of, or together with, the source's.
        profile: steps of each stage to profile (:mod:`mrt.engine.profiling`).

    Returns:
        ``folder``, with ``student.safetensors`` and, where an average was kept, ``teacher.safetensors``.

    Raises:
        MrtError: bad input. RunFailed: a loss that is not finite. Interrupted: stopped; ``resume`` continues.
    """
    labels = oracle or SOURCE
    if match_compute:
        plans = [Plan("mae", config.mae_stage, Parts(), labels), Plan("teach", config.teach, Parts(ema=True), labels)]
        init = _starting_point(config, folder, init) if not resume else init
    else:
        plans = [Plan("pretrain", config.pretrain, Parts(ema=config.pretrain.ema), labels)]
    command = {"command": "pretrain-source", "init": _absolute(init) if init else None, "match_compute": match_compute, "oracle": oracle}
    return _run(plans, config, Path(folder), command, resume, Path(data_root), watcher or Watcher(), profile)


def adapt(
    config: Config,
    folder: Path,
    *,
    stages: tuple[str, ...] = ("mae", "teach"),
    init: str | None = None,
    resume: bool = False,
    data_root: Path,
    watcher: Watcher | None = None,
    profile: int = 0,
) -> Path:
    """Stages 2 and 3: adapt a source-trained detector to unlabelled target images. Arguments as in :func:`pretrain_source`.

    Args:
        stages: "mae", "teach" or both.
        init: where adaptation starts; none takes ``config.init``, else the run ``<preset>-source`` beside ``folder``.
    """
    unknown = [name for name in stages if name not in ("mae", "teach")]
    if unknown or not stages:
        raise MrtError(f"stages {stages}: unknown {unknown}" if unknown else "no stage was asked for", "stages are mae and teach")
    mae, teacher = config.mae, config.teacher
    domains = {"target": (TARGET,), "source": (SOURCE,), "both": (SOURCE, TARGET)}[mae.data]
    plans = []
    if "mae" in stages:
        plans.append(Plan("mae", config.mae_stage, Parts(rebuild=domains if mae.use != "none" else ())))
    if "teach" in stages:
        rebuild = domains if mae.use == "branch" else ()
        plans.append(
            Plan("teach", config.teach, Parts(rebuild=rebuild, teach=teacher.pseudo_labels, judge=config.domain.enabled, ema=True))
        )
    init = _starting_point(config, folder, init) if not resume else init
    return _run(
        plans,
        config,
        Path(folder),
        {"command": "adapt", "init": init, "stages": list(stages)},
        resume,
        Path(data_root),
        watcher or Watcher(),
        profile,
    )


def _starting_point(config: Config, folder: Path, init: str | None) -> str:
    beside = Path(folder).parent / f"{config.preset}-source"
    if init or config.init:
        return _absolute(init or config.init)
    if (beside / "student.safetensors").is_file():
        return str(beside.resolve())
    raise MrtError(
        "adaptation needs a detector that was trained on the source, and none was given",
        f"train one with: mrt pretrain-source --preset {config.preset}\nor name one with --init RUN_OR_WEIGHTS",
    )


def _absolute(init: str) -> str:
    """A path that still means the same when the run is continued from another folder; names of shipped weights stay."""
    return str(Path(init).resolve()) if Path(init).exists() else init


def _run(
    plans: list[Plan],
    config: Config,
    folder: Path,
    command: dict[str, Any],
    resume: bool,
    data_root: Path,
    watcher: Watcher,
    profile: int = 0,
) -> Path:
    """Run the plans one after the other, each from what the one before left."""
    state: dict[str, Any] | None = None
    if resume:
        config, command = open_run(folder, command)
        last = folder / "checkpoints" / "last.pt"
        state = checkpoint.load(last) if last.is_file() else None  # killed before its first checkpoint: from the beginning
    cards = find_cards(plans, config, data_root)
    if resume:
        require_same_data(folder, cards)
    require_labels(config, cards, {domain for plan in plans for domain in plan.labels.split("+")})
    with distributed.joined(config.engine.device, config.engine.timeout) as world:
        build.use_machine(config, world.device)
        checkpoint.seed_everything(config.seed)  # the same weights in every process
        watcher = watcher if world.main else Watcher()
        shop = open_workshop(config, world, cards, command["init"], continued=state is not None, watcher=watcher)
        begin = next((number for number, plan in enumerate(plans) if state and plan.name == state["stage"]), 0)
        if state is None:
            take_over(plans[0], shop, watcher)
        stage = prepare(plans[begin], shop, watcher)  # before the folder is made: what does not fit leaves no trace
        evaluate = validation(shop, watcher)
        if world.main and resume and state:
            for file in ("metrics.jsonl", SNAPSHOTS):
                forget_later_lines(folder / file, [plan.name for plan in plans[:begin]], state["stage"], state["step"])
        if world.main and not resume:
            begin_run(folder, config.model_copy(update={"init": command["init"]}), command, cards, shop.classes)
        world.wait()
        with RunLog(folder, active=world.main) as log:
            run = Run(folder, config, log, watcher, facts={"classes": shop.classes}, evaluate=evaluate, profile=profile)
            if any(plan.parts.teach for plan in plans):
                run.snapshots = label_snapshots(shop, folder)
            for number, plan in enumerate(plans[begin:], begin):
                if number > begin:
                    stage = prepare(plan, shop, watcher)
                if state is not None:
                    restore_checkpoint(state, stage.learner, stage.streams)
                    state = None
                elif world.rank:  # masks and dropout differ between processes
                    checkpoint.seed_everything(config.seed + 1_000_003 * world.rank + (plan.name == "teach"))
                run_stage(plan.name, stage.learner, stage.streams, run, stage.steps_per_epoch, stage.boxes_per_image)
                shop.mae = stage.learner.student.mae
                if world.main:
                    save_networks(folder, config, shop.classes, stage.learner)
                    if plan.name == "mae" and shop.mae is not None:
                        save_autoencoder(folder, shop.mae)
                    if plan.name == "mae" and len(plans) == 1:
                        checkpoint.save(folder / RANDOM, {"seed": config.seed, "state": checkpoint.random_state()})
                    finish_stage(folder, plan.name)
                for network, numbers in (run.evaluate(stage.learner) if run.evaluate else {}).items():
                    log.write(plan.name, "eval", stage.learner.step, {"epoch": plan.settings.epochs, "network": network, **numbers})
                world.wait()
    return folder
