"""``--gpus N`` with two real processes on the CPU, while torch is made to report two GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import TINY, mrt, refused
from mrt_cli import launch

BELIEVE = "import torch; torch.cuda.device_count = lambda: 2; from mrt_cli.app import main; main()"
PLAIN = "from mrt_cli.app import main; main()"
LONG = ["pretrain.epochs=2000", "engine.eval_every=0", "engine.timeout=20"]
BOUND = 60  # time limit in seconds for a process to end; it takes 2 to 5 on two idle cores


def start(
    folder: Path, worlds: Path, *words: str, settings: list[str] | None = None, code: str = BELIEVE
) -> subprocess.Popen:
    command = [sys.executable, "-c", code, "pretrain-source", "--preset", "small"]
    command += ["--data-root", str(worlds), "--gpus", "2", *words]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*command, "--set", *TINY, *(settings or [])],
        cwd=folder,
        env=environment,
        start_new_session=True,
        **pipes,
    )


def ranks(process: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id of the processes that the launcher started."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        items = Path(f"/proc/{child}/environ").read_text().split("\0")
        variables = dict(item.split("=", 1) for item in items if "=" in item)
        if "RANK" in variables:
            found[int(variables["RANK"])] = int(child)
    return found


def wait_for_epochs(process: subprocess.Popen, folder: Path, lines: int) -> None:
    log, end = folder / "runs" / "small-source" / "metrics.jsonl", time.monotonic() + 2 * BOUND
    while not log.is_file() or log.read_text().count("\n") < lines:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
CONTINUE = "continue with: mrt pretrain-source --gpus 2 --resume"


@linux
@pytest.mark.soak
def test_a_killed_process_ends_the_run_and_two_go_on_from_the_checkpoint(worlds, somewhere):
    process = start(somewhere, worlds, settings=LONG)
    wait_for_epochs(process, somewhere, 4)
    children = ranks(process)
    os.kill(children[1], signal.SIGKILL)
    _, told = process.communicate(timeout=BOUND)
    assert process.returncode == 1 and "Traceback" not in told
    assert "process 1 was ended by SIGKILL" in told and told.count(CONTINUE) == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children.values())

    before = torch.load(somewhere / "runs/small-source/checkpoints/last.pt", weights_only=True)["step"]
    again = start(somewhere, worlds, "--resume", "--name", "small-source", settings=LONG)
    # Ctrl-C in a terminal reaches only the launcher, because its processes have their own sessions.
    time.sleep(1)
    wait_for_epochs(again, somewhere, 2 * before + 4)
    os.killpg(again.pid, signal.SIGINT)
    _, told = again.communicate(timeout=BOUND)
    assert again.returncode == 1 and "Traceback" not in told
    assert told.count(CONTINUE) == 1 and told.count("mrt: ") == 1, told
    assert torch.load(somewhere / "runs/small-source/checkpoints/last.pt", weights_only=True)["step"] > before


@linux
@pytest.mark.soak
def test_processes_on_the_cpu_end_when_their_launcher_is_killed(worlds, somewhere):
    process = start(somewhere, worlds, "--device", "cpu", settings=LONG, code=PLAIN)
    wait_for_epochs(process, somewhere, 2)
    children = ranks(process)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=BOUND)
    end = time.monotonic() + BOUND
    while any(Path(f"/proc/{child}").exists() for child in children.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    last = torch.load(somewhere / "runs/small-source/checkpoints/last.pt", weights_only=True)
    assert last["step"] >= 2 and len(last["random"]) == 2


def test_the_exit_code_of_the_processes_is_passed_on(worlds, somewhere):
    process = start(somewhere, worlds, "--init", "nothing")
    _, told = process.communicate(timeout=BOUND)
    assert process.returncode == 2 and "no run folder, weights file" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("there", "words", "message"),
    [
        (0, ["--gpus", 2], "run mrt doctor; to try 2 processes on the CPU: "),
        (1, ["--gpus", 2], "there is 1 on this machine take --gpus 1"),
        (4, ["--gpus=3"], "batch_size = 2 cannot be shared by 3 processes"),
        (0, ["--gpus=3", "--device", "cpu"], "batch_size = 2 cannot be shared by 3 processes"),
    ],
)
def test_gpus_that_cannot_be_had_are_one_error(worlds, somewhere, monkeypatch, there, words, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    command = "pretrain-source --preset small"
    assert message in refused(command, "--data-root", worlds, *words, "--set", *TINY)
    assert not (somewhere / "runs").exists()


def test_the_command_for_processes_on_the_cpu_is_the_one_that_was_given():
    ctx = SimpleNamespace(
        info_name="adapt", meta={launch.WORDS: ["--gpus", "2", "--device=cuda", "--set", "a=b c"]}
    )
    assert launch._on_the_cpu(ctx) == "mrt adapt --device cpu --gpus 2 --set 'a=b c'"
    assert launch._on_the_cpu(None) == "the same command with --device cpu"


def test_gpus_under_torchrun_is_refused(worlds, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused("pretrain-source --preset small --gpus 2", "--data-root", worlds, "--set", *TINY)
    assert "--nproc-per-node" in told
    assert "runs in one process" in refused("prepare-data synthetic", "--data-root", worlds)


def test_the_processes_get_the_same_words(worlds, somewhere, monkeypatch):
    seen = []

    def start(gpus, ctx):
        seen.append((gpus, ctx.info_name, launch.without("--gpus", ctx.meta[launch.WORDS])))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "start", start)
    words = ["--preset", "small", "--data-root", worlds, "--seed", 3]
    assert mrt("pretrain-source", *words, "--gpus", 2, "--set", *TINY, "mae.variant='paper'").exit_code == 0
    assert seen == [(2, "pretrain-source", [*map(str, words), "--set", *TINY, "mae.variant='paper'"])]
    assert launch.without("--gpus", ["--gpus=4", "-x", "--gpus", "2", "--seed", "1"]) == ["-x", "--seed", "1"]
