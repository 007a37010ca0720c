"""Where else a run's numbers go, beside ``metrics.jsonl`` and TensorBoard: Weights & Biases and MLflow, by
their own libraries (``engine.loggers``, ``--log``). Needs no torch.

Where to and as whom is told to those libraries as always: ``WANDB_PROJECT`` (default: mrt), ``WANDB_MODE``,
``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` (default: mrt). A run that goes on writes to the same run
there; what it had told after its last checkpoint is told again. Nothing that goes wrong there ends a run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mrt.errors import MrtError

PROJECT = "mrt"  # and experiment, unless the environment names one
MOST_PARAMETERS = 100  # MLflow takes so many at a time
LONGEST_PARAMETER = 500  # letters that every version of MLflow takes
_NO_NAME = re.compile(r"[^\w\-./ ]")  # what MLflow's names may not have


class Logger(Protocol):
    """A place for numbers."""

    def add(self, tag: str, numbers: Mapping[str, float], step: int, when: float) -> None:
        """Numbers of a stage (``tag``; of a network, ``stage/network``) at its ``step``; ``when``: Unix
        seconds.
        """

    def close(self, failed: bool) -> None:
        """The run has ended, or was stopped or ``failed``."""


class WandB:
    """Weights & Biases."""

    def __init__(
        self, folder: Path, key: str, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=key,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._stages: set[str] = set()
        if self._run.url:
            say(f"Weights & Biases: {self._run.url}")

    def add(self, tag: str, numbers: Mapping[str, float], step: int, when: float) -> None:
        stage = tag.partition("/")[0]
        if stage not in self._stages:  # each stage counts its own steps
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        named = {f"{tag}/{name}": value for name, value in numbers.items()}
        self._run.log({**named, f"{stage}/step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow's tracking server, database or folder."""

    def __init__(
        self, folder: Path, key: str, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        there = self._client.search_runs([experiment], f"tags.`mrt.run` = '{key}'", max_results=1)
        if there:
            self._run = there[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {"mrt.run": key, "mrt.folder": folder.name}
            self._run = self._client.create_run(experiment, tags=tags, run_name=folder.name).info.run_id
            flat = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in flatten(settings).items()]
            for start in range(0, len(flat), MOST_PARAMETERS):
                self._client.log_batch(self._run, params=flat[start : start + MOST_PARAMETERS])
        say(f"MLflow: run {self._run} of experiment {name}")

    def add(self, tag: str, numbers: Mapping[str, float], step: int, when: float) -> None:
        metrics = [
            self._metric(_NO_NAME.sub("_", f"{tag}/{name}"), value, int(1000 * when), step)
            for name, value in numbers.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


LOGGERS: dict[str, tuple[str, type]] = {"wandb": ("wandb", WandB), "mlflow": ("mlflow", MLflow)}


def require_loggers(names: Sequence[str]) -> None:
    """MrtError if the library of one is not installed."""
    for name in names:
        library, _ = LOGGERS[name]
        if importlib.util.find_spec(library) is None:
            raise MrtError(
                f"--log {name} (engine.loggers): {library} is not installed",
                f"install it: pip install {library}; or log without it: --set engine.loggers=[]",
            )


class Loggers:
    """All of a run's; one that fails is told of once and left.

    Args:
        names: of :data:`LOGGERS`. folder: of the run. started: when it began, as ``run.json`` says; with the
            folder's name it is how a run that goes on is known again.
        settings: all, by section. say: tells the user a line.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        started: str | None,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._say, self._open = say, {}
        key = hashlib.sha256(f"{folder.name} {started}".encode()).hexdigest()[:16]
        for name in names:
            _, kind = LOGGERS[name]
            self._try(
                name, lambda name=name, kind=kind: self._open.update({name: kind(folder, key, settings, say)})
            )

    def add(self, tag: str, numbers: Mapping[str, float], step: int, when: float) -> None:
        """See :class:`Logger`."""
        for name, logger in list(self._open.items()):
            self._try(name, lambda logger=logger: logger.add(tag, numbers, step, when))

    def close(self, failed: bool) -> None:
        """See :class:`Logger`."""
        for name, logger in list(self._open.items()):
            self._try(name, lambda logger=logger: logger.close(failed))
        self._open.clear()

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is, the run goes on
            self._open.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"{name}: {reason}. Nothing more is logged there; metrics.jsonl has everything")


def flatten(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
