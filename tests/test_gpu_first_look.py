"""The first look at a GPU: a dry run of it all, and the order, budget and failures of its steps."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_first_look as first_look
from benchmarks import gpu_first_look_machine as machine
from benchmarks import gpu_first_look_op as op
from benchmarks import gpu_first_look_report as report
from benchmarks import gpu_first_look_runner as runner
from benchmarks import gpu_first_look_speed as speed
from benchmarks import gpu_first_look_tools as tools
from benchmarks.gpu_first_look_runner import Look, NotHere, Step, run_steps
from mrt import ops
from mrt.ops import native

BLOCKED = ("pydantic", "pydantic_settings", "pycocotools")
# Python reads a file of this name when it starts, in children, too.
HOOK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
needs_kernels = pytest.mark.skipif(native.fallback_reason("cpu") is not None, reason="no C++ kernels")


@pytest.fixture
def look() -> Look:
    return Look("cpu", True, time.time() + 1000)


def states(look: Look) -> dict[str, str]:
    return {record["name"]: record["state"] for record in look.steps}


def told(look: Look) -> dict[str, str]:
    return {record["name"]: record.get("why", "") for record in look.steps}


def go(look: Look, *steps: Step, **options) -> None:
    run_steps(steps, look, options.pop("save", lambda: None), **options)


def fails(look: Look) -> None:
    raise ValueError("no\nluck")


# A dry run


@pytest.mark.soak
@needs_kernels
def test_a_dry_run_where_pydantic_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    paths = os.pathsep.join([str(tmp_path), str(runner.REPOSITORY)])
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_first_look", "--dry-run", "--minutes", "60"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / report.JSON).read_text())
    names = [step.name for step in first_look.all_steps(True)]
    assert found["dry_run"] and [step["name"] for step in found["steps"]] == names
    for step in found["steps"]:
        if step["name"].startswith(("train", "memory")):
            assert step["state"] == "skipped" and "needs the package pydantic" in step["why"]
        elif step["name"] in ("op: streams and graphs", "sanitizer: racecheck"):
            assert step["state"] == "skipped" and "needs a GPU" in step["why"]
        else:
            assert step["state"] == "ok", step
    assert all(check["ok"] for check in found["checks"]) and len(found["checks"]) > 150
    assert {"op E float32 both", "op D bfloat16 forward"} <= {row["name"] for row in found["rows"]}
    page = (tmp_path / "out" / report.PAGE).read_text()
    assert report.DRY in page and all(name in page for name in names)
    assert found["provenance"]["torch"] == torch.__version__ and len(found["provenance"]["sources"]) == 12


@pytest.mark.soak
def test_the_steps_that_need_settings(tmp_path, capsys):
    """Where these can be read; the others are above."""
    words = ["--dry-run", "--out", str(tmp_path), "--only", "train", "memory"]
    assert first_look.main(words) == 0
    found = json.loads((tmp_path / report.JSON).read_text())
    assert {step["state"] for step in found["steps"]} == {"ok"} and len(found["steps"]) == 3
    names = {row["name"] for row in found["rows"]}
    assert {"step teach+mae bf16 eager", "best step teach+mae", "memory source+mae bf16"} <= names
    assert len(found["checks"]) == 3 and "mend first: nothing" in capsys.readouterr().out


def test_it_goes_on_where_a_process_ended(tmp_path):
    words = ["--dry-run", "--out", str(tmp_path), "--only", "build", "card"]
    first_look.main(words)
    path = tmp_path / report.JSON
    left = json.loads(path.read_text())
    left["steps"] = [{"name": "build", "state": "running", "seconds": 0.0}]
    path.write_text(json.dumps(left | {"checks": [], "figures": []}))
    assert first_look.main([*words, "--go-on"]) == 1
    build, card = json.loads(path.read_text())["steps"]
    assert build["state"] == "failed" and "the process ended" in build["why"] and card["state"] == "ok"


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        first_look.main([])
    assert "--dry-run" in capsys.readouterr().err


def test_the_real_order():
    names = [step.name for step in first_look.all_steps(False)]
    assert len(names) == len(set(names)) and names[0] == "build"
    groups = ["op: encoder", "speed: E, float32", "train: losses", "train: teach+mae, bf16, eager"]
    groups += ["memory: teach+mae, bf16", "NCCL", "sanitizer: memcheck", "ncu"]
    assert sorted(groups, key=names.index) == groups
    assert {f"train: teach+mae, bf16, {how}" for how in ("eager", "compiled")} <= set(names)


# Order, budget, failures


def test_a_failure_does_not_stop_the_others(look):
    def wrong(look: Look) -> None:
        look.check("one", 2.0, 1.0)
        look.check("two", float("nan"), 1.0)

    def ends(look: Look) -> None:
        raise SystemExit("the op is wrong")

    def absent(look: Look) -> None:
        raise NotHere("there is no such tool")

    runs = {"fails": fails, "wrong": wrong, "ends": ends, "absent": absent, "last": lambda look: "done"}
    go(look, *(Step(name, run) for name, run in runs.items()))
    expected = {"fails": "failed", "wrong": "failed", "ends": "failed", "absent": "skipped", "last": "ok"}
    assert states(look) == expected and list(states(look)) == list(runs)
    assert told(look)["fails"] == "ValueError: no luck" and "2 of 2" in told(look)["wrong"]
    assert look.steps[0]["traceback"][-1].startswith("tests/test_gpu_first_look.py:")
    assert look.checks[1]["error"] == "nan" and not look.checks[1]["ok"]
    json.dumps(look.kept(), allow_nan=False)


def test_what_there_is_no_time_for_is_skipped_and_said(look):
    look.deadline = time.time() + 10
    go(look, Step("long", fails, least=30), Step("short", lambda look: None, least=1))
    assert states(look) == {"long": "skipped", "short": "ok"}
    assert "10 s left" in told(look)["long"] and "at least 30" in told(look)["long"]


def test_a_step_that_takes_too_long_is_stopped(look):
    go(look, Step("slow", lambda look: time.sleep(20), most=0.02), Step("next", lambda look: None))
    assert states(look) == {"slow": "failed", "next": "ok"}
    assert "OutOfTime" in told(look)["slow"]


def test_missing_packages_and_gpus(look, monkeypatch, tmp_path):
    (tmp_path / "wants_more.py").write_text("import no_such_package.inner\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    go(
        look,
        Step("wants", fails, needs=("json", "wants_more")),
        Step("broken", fails, needs=("broken",)),
        Step("gpu", fails, gpu_only=True),
    )
    assert states(look) == {"wants": "skipped", "broken": "failed", "gpu": "skipped"}
    assert "package no_such_package" in told(look)["wants"]


def test_the_report_is_written_before_and_after_each_step(look):
    seen = []
    save = partial(lambda: seen.append([record["state"] for record in look.steps]))
    go(look, Step("a", lambda look: None), Step("b", fails), save=save)
    assert ["running"] in seen and ["ok", "running"] in seen and seen[-1] == ["ok", "failed"]


def test_a_dead_device_gets_a_new_process(look):
    """The new process does not repeat what is recorded."""

    class Replaced(Exception):
        pass

    def restart() -> None:
        raise Replaced

    steps = [Step("good", lambda look: None), Step("kills", fails), Step("after", lambda look: None)]
    with pytest.raises(Replaced):
        go(look, *steps, restart=restart, dead=lambda: True)
    assert states(look) == {"good": "ok", "kills": "failed"} and "answers no more" in told(look)["kills"]
    another = Look("cpu", True, look.deadline)
    another.restore(json.loads(json.dumps(look.kept())))
    go(another, *steps, restart=restart, dead=lambda: False)
    assert states(another) == {"good": "ok", "kills": "failed", "after": "ok"} and another.restarts == 1


def test_a_step_that_cannot_be_stopped_gets_a_new_process(look, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0.1)
    replaced = threading.Event()
    with runner.watched(
        Step("hangs", fails, most=0.0),
        look,
        record := {"name": "hangs"},
        lambda: None,
        lambda: replaced.set(),
    ):
        assert replaced.wait(60)
    assert record["state"] == "failed" and "never ends" in record["why"]


def test_the_new_process_gets_the_same_words(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda program, words: called.append(words))
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-m", "benchmarks.gpu_first_look", "--go-on", "--out", "x"]
    )
    runner.replace_process()
    assert called == [[sys.executable, "-m", "benchmarks.gpu_first_look", "--out", "x", "--go-on"]]


# What to mend first


def figures(**measured: float) -> list[dict]:
    return report.with_goals({"name": name, "unit": "ms", "measured": ms} for name, ms in measured.items())


def test_what_is_wrong_comes_before_what_failed_before_what_is_slow():
    slow = figures(**{"op E float32 both": 2.976, "op D float32 both": 0.122})
    failed = [{"name": "ncu", "state": "failed", "why": "oh"}]
    wrong = [
        {"step": "op", "name": "a", "ok": True, "error": 0.0, "limit": 1.0},
        {"step": "op", "name": "b", "ok": False, "error": "nan", "limit": 1.0},
    ]
    build = [{"name": "build", "state": "failed", "why": "no kernels"}]
    assert report.mend_first(build + failed, wrong, slow).startswith("the build: no kernels")
    assert report.mend_first(failed, wrong, slow).startswith("a wrong result, op, b: off by nan")
    assert report.mend_first(failed, wrong[:1], slow).startswith("the step that failed, ncu")
    assert report.mend_first([], [], slow).startswith(
        "speed, op E float32 both: 2.976 ms, goal 1.488 ms"[:40]
    )
    assert "0.50 of the goal" in report.mend_first([], [], slow)
    fast = figures(**{"op E float32 both": 1.0, "op D float32 both": 0.12})
    assert report.mend_first([], [], fast).startswith("nothing: every goal")
    assert "no figure that has a goal" in report.mend_first([], [], figures(copy=1.0))


def test_of_each_kind_of_step_the_best_counts():
    rows = [
        {"name": "step source bf16 eager", "unit": "ms", "measured": 90.0, "kind": "source"},
        {"name": "step source bf16 compiled", "unit": "ms", "measured": 60.0, "kind": "source"},
        {"name": "step source off eager", "unit": "ms", "measured": "nan", "kind": "source"},
        {"name": "op E float32 times as fast as PyPI", "unit": "times", "measured": 8.0},
    ]
    by_name = {row["name"]: row for row in report.with_goals(rows)}
    assert by_name["best step source"]["measured"] == 60 and by_name["best step source"]["goal"] == 55
    assert (
        by_name["step source bf16 eager"]["ratio"] is None
        and by_name["step source bf16 eager"]["floor"] == 26
    )
    assert by_name["op E float32 times as fast as PyPI"]["ratio"] == 2


def test_the_page(look, tmp_path):
    def steps(look: Look) -> None:
        look.check("off", 1.0, 0.5)
        look.figure("op E float32 both", "ms", 3.0, quartiles=[2.9, 3.1])
        look.figure("something", "GB", float("inf"))
        look.note("a note")

    go(look, Step("op", steps), Step("broken | step", fails))
    report.write(tmp_path, look, {"device": "a GPU"})
    page = (tmp_path / report.PAGE).read_text()
    for text in ("a wrong result, op, off", "3 ms (2.9-3.1)", "| 0.50 |", "inf GB", "- a note", "a GPU"):
        assert text in page
    assert "broken | step: ValueError: no luck" in page and "test_gpu_first_look.py" in page
    assert json.loads((tmp_path / report.JSON).read_text())["mend_first"] in page


# The op, the build, the tools


@needs_kernels
def test_a_wrong_op_is_noticed(look, monkeypatch):
    right = ops.ms_deform_attn_fused
    monkeypatch.setattr(ops, "ms_deform_attn_fused", lambda *arguments: right(*arguments) * 1.01)
    for name in ("encoder", "layouts"):
        go(look, Step(name, getattr(op, name)))
    assert set(states(look).values()) == {"failed"}
    exact = [
        check for check in look.checks if check["step"] == "encoder" and check["name"].endswith("float32")
    ]
    assert exact and not any(check["ok"] for check in exact)


@needs_kernels
def test_inputs_of_full_size_are_made_once(monkeypatch):
    """What a dry run leaves out of the op's speed."""
    case = op.fitted(speed.bench.CUDA_CASES["E"], Look("cpu", True, 0))
    made, inputs = [], speed.bench.Case.inputs
    monkeypatch.setattr(
        speed.bench.Case, "inputs", lambda self, seed: made.append(seed) or inputs(self, seed)
    )
    monkeypatch.setitem(speed.bench.CUDA_CASES, "E", case)
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    look = Look("cpu", False, time.time() + 100)
    go(look, Step("E", lambda look: speed.op_case("E", ["float32", "bfloat16"], look)))
    assert states(look) == {"E": "ok"} and made == [0, 1, 2] and len(look.checks) == 2


def test_points_of_16_bits_stay_off_the_borders_of_cells():
    """There a location's gradient jumps, so a right kernel would be called wrong."""
    bench, case = speed.bench, speed.bench.CPU_CASES["odd"]
    kinds = (torch.bfloat16, torch.float32, *[torch.bfloat16] * 3)
    given = case.inputs(0)
    sizes = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)[:, None]

    def least_share(offsets):
        share = (given[1][:, :, None, :, None] * sizes - 0.5 + offsets.double()) % 1
        return torch.minimum(share, 1 - share).min().item()

    moved = bench.rounded(case, given, kinds)
    assert least_share(given[2].bfloat16()) == 0 and least_share(moved[2]) > 1e-3
    assert (moved[2] != given[2].bfloat16()).double().mean() < 0.01
    exact = bench.results(bench.backends(case, "cpu")[0][bench.GRID], [tensor.double() for tensor in moved])

    def rounded_twice(*leaves):  # as an output added up in 16 bits
        return (right(*leaves).bfloat16() * 1.004).to(torch.bfloat16)

    right = bench.backends(case, "cpu")[0][bench.GRID]
    assert not bench.check(right, moved, exact)[1]
    assert "output" in bench.check(rounded_twice, moved, exact)[1]


def test_a_backend_that_is_wrong_ends_its_dtype_only(look, monkeypatch):
    def run_case(case, device, dtypes, names, budget):
        if dtypes == ["float32"]:
            raise SystemExit("mrt fused is wrong in float32")
        times = {"ms": 1.0, "ms_quartiles": [1.0, 1.0], "ratio": 2.0, "ratio_quartiles": [2.0, 2.0]}
        row = {"errors": {"output": 1e-3}, **dict.fromkeys(speed.PARTS, times)}
        return {dtypes[0]: {"core": {"mrt fused": row}}}

    monkeypatch.setattr(speed.bench, "run_case", run_case)
    monkeypatch.setattr(speed, "require_kernels", lambda look: None)
    go(look, Step("E", lambda look: speed.op_case("E", ["float32", "bfloat16"], look)))
    assert states(look) == {"E": "failed"} and "wrong in float32" in told(look)["E"]
    assert [row["name"] for row in look.figures][:3] == [f"op E bfloat16 {part}" for part in speed.PARTS]


def test_the_fallback_is_not_taken_for_the_kernels(look, monkeypatch):
    monkeypatch.setattr(native, "requested", "python")
    go(look, Step("build", machine.build), Step("op", op.encoder))
    assert set(states(look).values()) == {"failed"} and "MRT_OPS_BACKEND=python" in told(look)["op"]


def test_layouts_are_what_they_are_called(look):
    case = op.fitted(op.Case(op.MIDDLE, 2), look)
    inputs = op.given(case, torch.float32, "cpu")
    laid = {name: lay(inputs) for name, lay in op.LAYOUTS.items()}
    for name in ("parts of one product", "heads first", "not on 16 bytes"):
        assert all(torch.equal(a, b) for a, b in zip(laid[name], inputs, strict=True))
    _, _, offsets, logits, _ = laid["parts of one product"]
    assert not offsets.is_contiguous() and not logits.is_contiguous()
    assert offsets.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    assert not laid["heads first"][0].is_contiguous()
    assert all(tensor.data_ptr() % 16 for tensor in laid["not on 16 bytes"])
    assert 0 in laid["expanded"][1].stride() and 0 in laid["expanded"][4].stride()
    value, references, offsets, *_ = op.in_quarter_steps(case, torch.bfloat16, "cpu")
    sizes = torch.tensor([(width, height) for height, width in case.shapes])
    cells = references[:, :, None, :, None] * sizes[:, None] - 0.5 + offsets.float()
    share = cells % 1
    assert value.dtype == torch.bfloat16 and ((share > 0.02) & (share < 0.98)).all()


def test_architectures_in_a_library(tmp_path):
    def entry(kind: int, number: int) -> bytes:
        head = struct.pack("<HHIQIIHHI", kind, 0x101, 64, 8, 0, 0, 0, 0, number)
        return head.ljust(64, b"\0") + b"machine!"

    code = entry(2, 80) + entry(1, 90)
    block = machine.FATBIN + struct.pack("<HHQ", 1, 16, len(code)) + code
    library = tmp_path / "_C.so"
    library.write_bytes(b"ELF" + block + b"between" + block[:16] + entry(2, 90))
    codes = machine.architectures(library)
    assert codes == ["sm_80 SASS", "sm_90 PTX", "sm_90 SASS"]
    assert machine.runs_on(codes, (9, 0)) == "sm_90 SASS" and machine.runs_on(codes, (8, 6)) == "sm_80 SASS"
    assert machine.runs_on(codes, (10, 0)) == "sm_90 PTX" and machine.runs_on(codes, (7, 5)) is None


NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","void mrt::cuda::(anonymous namespace)::forward_kernel<float, (int)32>(Inputs)","gpu__time_duration.sum","us","272.1"
"0","7","void mrt::cuda::(anonymous namespace)::forward_kernel<float, (int)32>(Inputs)","launch__registers_per_thread","register/thread","64"
"1","7","mrt::cuda::tiles_kernel(Geometry)","gpu__time_duration.sum","us","554.0"
"1","7","mrt::cuda::tiles_kernel(Geometry)","unknown__metric","%","1"
"""  # noqa: E501 - as ncu writes it


def test_ncus_counters():
    (first, numbers), (second, others) = tools.counter_rows(NCU)
    assert first.startswith("void mrt::cuda::forward_kernel<float") and second == "mrt::cuda::tiles_kernel"
    assert numbers == {"time": "272.1 us", "registers": "64"} and others == {"time": "554.0 us"}
    assert tools.counter_rows("==ERROR== nothing") == []


@pytest.mark.parametrize(
    ("code", "said", "state", "why"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "ok", ""),
        (
            1,
            "========= Invalid __global__ read of size 16 bytes\n===== at f\n= ERROR SUMMARY: 1",
            "failed",
            "Invalid",
        ),
        (1, "========= Error: Device not supported", "skipped", "refuses this device"),
        (3, "Traceback\nImportError: x", "failed", "did not come to its end"),
    ],
)
def test_what_the_sanitizer_says(look, monkeypatch, code, said, state, why):
    monkeypatch.setattr(tools, "require_kernels", lambda look: None)
    monkeypatch.setattr(tools, "tool", lambda name, look: [name])
    done = SimpleNamespace(returncode=code, stdout=said, stderr="")
    monkeypatch.setattr(tools, "run_tool", lambda look, command, most: done)
    go(look, Step("memcheck", partial(tools.sanitizer, "memcheck")))
    assert states(look) == {"memcheck": state} and why in told(look)["memcheck"]
    assert len(look.checks) == (1 if "SUMMARY" in said else 0)


def test_counters_that_may_not_be_read_are_no_failure(look, monkeypatch):
    monkeypatch.setattr(tools, "require_kernels", lambda look: None)
    monkeypatch.setattr(tools, "tool", lambda name, look: [name])
    done = SimpleNamespace(returncode=1, stdout="==ERROR== ERR_NVGPUCTRPERM - no permission", stderr="")
    monkeypatch.setattr(tools, "run_tool", lambda look, command, most: done)
    go(look, Step("ncu", tools.counters))
    assert states(look) == {"ncu": "skipped"} and "ERR_NVGPUCTRPERM" in told(look)["ncu"]


def test_tools_that_are_not_here_or_take_too_long(look, monkeypatch):
    real = Look("cpu", False, look.deadline)
    with pytest.raises(NotHere, match="no such_tool_is_there here"):
        tools.tool("such_tool_is_there", real)
    monkeypatch.setattr(tools, "LEAST", 0.2)
    look.deadline = time.time()
    with pytest.raises(NotHere, match="did not end within 0 s"):
        tools.run_tool(look, [sys.executable, "-c", "import time; time.sleep(30)"], 60)
