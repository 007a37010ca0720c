"""CPU time of what a newcomer meets first: help, doctor, and refusals of what is not there.

    python -m benchmarks.front_door [--rounds 9] [--out benchmarks/results/front-door-cpu.json]
    python -m benchmarks.front_door --report RUN [RUN ...] [--data-root data] [--split test] [--out FILE]

Each command is a process of its own, in an empty folder without anything that earlier commands kept, on one
thread. Its user and system time is taken by ``wait4``, so a busy machine hardly matters. They are measured
by turns, after one round that does not count. "typer and rich" is Python that imports these two alone: no
command can take less.

With ``--report``, `mrt report` of the first run and of all of them instead, once each, on as many threads as
there are cores: user and system time, and wall time, which other work on the machine makes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.environment import environment

IMPORTS = "import typer, rich.console, rich.table, rich.panel"
# Name -> words after "python -m mrt_cli", exit code.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "mrt --help": (["--help"], 0),
    "mrt adapt --help": (["adapt", "--help"], 0),
    "mrt doctor, first time": (["doctor"], 0),
    "mrt doctor, again": (["doctor"], 0),
    "adapt: no such set": (["adapt", "--target", "nothere"], 2),
    "adapt: no such weights": (["adapt", "--preset", "small", "--init", "nothere", "--dry-run"], 2),
    "predict: no such weights": (["predict", "nothere", "photo.png"], 2),
    "predict: no such photo": (["predict", "small-source", "nothere"], 2),
    "eval: no such set": (["eval", "small-source", "--data", "nothere"], 2),
    "export: no such weights": (["export", "nothere", "--format", "onnx"], 2),
    "report: no such run": (["report", "nothere"], 2),
}
LIMITS = {"mrt --help": 0.4, "mrt doctor, again": 2.0}  # seconds of CPU
MOST = 2.0  # of mrt --help, as a multiple of importing typer and rich


def cpu_seconds(words: list[str], folder: Path, code: int) -> float:
    """User and system seconds of a Python process with these arguments, which has to end with ``code``."""
    settings = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}
    settings |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.execve(sys.executable, [sys.executable, "-P", *words], {**os.environ, **settings})
    _, status, used = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) != code:
        raise SystemExit(f"{' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}, not {code}")
    return used.ru_utime + used.ru_stime


def report_seconds(runs: list[str], data_root: Path, split: str) -> dict[str, float]:
    """CPU and wall seconds of a report of these runs on a split, written to a folder that is removed."""
    with tempfile.TemporaryDirectory() as out:
        words = [
            "-m",
            "mrt_cli",
            "report",
            *runs,
            "--data-root",
            str(data_root),
            "--split",
            split,
            "--out",
            out,
        ]
        begin = time.monotonic()
        process = os.posix_spawn(sys.executable, [sys.executable, "-P", *words], os.environ)
        _, status, used = os.wait4(process, 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit("the report failed")
        return {"runs": len(runs), "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - begin}


def measure_reports(options: argparse.Namespace) -> None:
    """Reports of one run and of all that are named."""
    found = [
        report_seconds(runs, options.data_root, options.split)
        for runs in ([options.report[:1]] + [options.report] * (len(options.report) > 1))
    ]
    for item in found:
        print(f"report of {item['runs']}: {item['cpu']:.1f} s of CPU, {item['wall']:.1f} s")
    if options.out:
        told = {"reports": found, "environment": environment("cpu")}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", nargs="+", metavar="RUN")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    if options.report:
        measure_reports(options)
        return
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photo.png").touch()
        for number in range(options.rounds + 1):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            found = {"typer and rich": cpu_seconds(["-c", IMPORTS], folder, 0)}
            for command, (words, code) in COMMANDS.items():
                found[command] = cpu_seconds(["-m", "mrt_cli", *words], folder, code)
            for command, seconds in found.items() if number else ():
                figures.setdefault(command, []).append(seconds)
    print(f"median seconds of CPU (least to most), {options.rounds} rounds")
    for command, seconds in figures.items():
        middle = statistics.median(seconds)
        limit = f", wanted: under {LIMITS[command]:g}" if command in LIMITS else ""
        print(f"{command:26} {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}){limit}")
    pairs = zip(figures["mrt --help"], figures["typer and rich"], strict=True)
    ratio = statistics.median(helped / bare for helped, bare in pairs)
    print(f"mrt --help takes {ratio:.2f} times as long as importing typer and rich, wanted: at most {MOST:g}")
    if options.out:
        told = {"seconds": figures, "help_over_imports": ratio, "environment": environment("cpu")}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
