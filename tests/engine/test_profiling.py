from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from tiny_world import make_set, tiny_config

from mrt.engine import stages
from mrt.engine.profiling import ROWS, SKIPPED, WARM_UP, StepProfiler
from mrt.engine.report import Watcher


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def products(folder: Path, profiled: int, made: int) -> tuple[list[str], int | None]:
    """What is said, and the matrix products in the trace (None: there is no trace), of ``made`` steps of one
    product each.
    """
    listener = Listener()
    with StepProfiler(folder, "toy", profiled, listener) as profiler:
        for _ in range(made):
            torch.mm(torch.ones(2, 2), torch.ones(2, 2))
            profiler.step()
    trace = folder / "profile-toy.json.gz"
    return listener.said, names(trace).count("aten::mm") if trace.is_file() else None


def names(trace: Path) -> list[str]:
    return [event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]


def test_so_many_steps_are_profiled_after_the_warm_up_and_no_more(tmp_path):
    said, count = products(tmp_path, profiled=2, made=SKIPPED + WARM_UP + 5)
    assert count == 2
    assert "Trace of 2 steps" in said[-1] and any("aten::mm" in line for line in said)
    assert len(said) <= 2 + ROWS + 1


def test_a_stage_that_ends_early_gives_the_steps_it_made(tmp_path):
    said, count = products(tmp_path, profiled=5, made=SKIPPED + WARM_UP + 1)
    assert count == 1
    assert "Trace of 1 step:" in said[-1]


def test_a_stage_within_the_warm_up_says_so(tmp_path):
    said, count = products(tmp_path, profiled=5, made=SKIPPED + WARM_UP)
    assert count is None
    assert len(said) == 1 and "no profile" in said[0]


def test_nothing_is_profiled_unless_asked_for(tmp_path):
    assert products(tmp_path, profiled=0, made=9) == ([], None)


def test_each_stage_of_a_run_writes_its_own_trace_with_the_parts_of_a_step(tmp_path):
    make_set(tmp_path / "data", "clear", seed=1)
    make_set(tmp_path / "data", "hazy", haze=0.5, seed=2)
    source = stages.pretrain_source(tiny_config(), tmp_path / "source", data_root=tmp_path / "data")
    folder = stages.adapt(
        tiny_config(), tmp_path / "run", init=str(source), data_root=tmp_path / "data", profile=1
    )
    mae, teach = (names(folder / f"profile-{stage}.json.gz") for stage in ("mae", "teach"))
    parts = ["step: student", "step: losses", "step: backward", "step: optimiser"]
    assert all(part in mae for part in parts) and "step: teacher" not in mae
    assert all(part in teach for part in [*parts, "step: teacher", "step: average"])
    assert not list(source.glob("profile-*"))
