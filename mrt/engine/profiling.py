"""``--profile N``: where the time of a few training steps goes, as a trace and as a short table."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from mrt.engine.report import Watcher
from mrt.files import replacing

SKIPPED = 2  # steps before the profiler looks: first allocations, choice of kernels
WARM_UP = 1  # steps that the profiler sees and throws away: its own start costs time
ROWS = 10


class StepProfiler:
    """Profiles some steps of a stage; call :meth:`step` after each. Leaving it early writes what was seen
    until then.

    Args:
        folder: the run's; the trace is ``profile-<stage>.json.gz``, which chrome://tracing and
            ui.perfetto.dev open.
        stage: the stage's name.
        steps: how many are profiled; 0: none, and nothing here costs anything.
        watcher: is told the most expensive calls.
    """

    def __init__(self, folder: Path, stage: str, steps: int, watcher: Watcher) -> None:
        self.path, self.stage, self.steps, self.watcher = (
            folder / f"profile-{stage}.json.gz",
            stage,
            steps,
            watcher,
        )
        self._seen, self._profiler = 0, None

    def __enter__(self) -> StepProfiler:
        if self.steps:
            activities = [ProfilerActivity.CPU] + (
                [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            )
            plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=self.steps, repeat=1)
            self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            if self._seen <= SKIPPED + WARM_UP:
                self.watcher.say(
                    f"{self.stage}: no profile, it ended within the {SKIPPED + WARM_UP} steps of warm-up"
                )

    def step(self) -> None:
        """A training step has been made."""
        if self._profiler is not None:
            self._seen += 1
            self._profiler.step()

    def _write(self, profiler: profile) -> None:
        steps = min(self.steps, self._seen - SKIPPED - WARM_UP)
        if steps < 1:
            return
        with tempfile.TemporaryDirectory() as scratch, replacing(self.path) as file:
            plain = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(plain))
            file.write(gzip.compress(plain.read_bytes(), compresslevel=6))
        for line in expensive_calls(profiler, self.stage, steps):
            self.watcher.say(line)
        self.watcher.say(
            f"Trace of {steps} {'step' if steps == 1 else 'steps'}: {self.path} (open it in ui.perfetto.dev)"
        )


def expensive_calls(profiler: profile, stage: str, steps: int) -> list[str]:
    """The calls that took most time of their own, as lines of a table; on a GPU the kernels' time, else the
    calling thread's.
    """
    calls = profiler.key_averages()
    on_gpu = any(call.self_device_time_total for call in calls)
    where, attribute = ("GPU", "self_device_time_total") if on_gpu else ("CPU", "self_cpu_time_total")
    own = {call.key: (getattr(call, attribute) / 1e3 / steps, call.count / steps) for call in calls}
    total = sum(milliseconds for milliseconds, _ in own.values()) or 1.0
    lines = [
        f"{stage}: the most expensive calls of a step, {where} time without what they call",
        f"{'ms':>9}{'%':>6}{'calls':>8}  call",
    ]
    for name, (milliseconds, count) in sorted(own.items(), key=lambda item: -item[1][0])[:ROWS]:
        lines.append(f"{milliseconds:9.2f}{100 * milliseconds / total:6.1f}{count:8.0f}  {name}")
    return lines
