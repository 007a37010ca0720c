"""A process ends once the one that started it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mrt import follow

CHILD = """
import signal, sys, time
from mrt.follow import follow_the_parent, follow_the_launcher
{handler}
{call}
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))"
PARENT = """
import os, subprocess, sys, time
if sys.argv[2:]:
    os.environ["MRT_LAUNCHER"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=1)
print(child.pid, flush=True)
time.sleep(60)
"""


def family(call: str, handler: str = "", *words: str, **environment: str):
    """A parent whose child follows it; the parent and the child's process id, when the child is ready."""
    code = CHILD.format(handler=handler, call=call)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, code, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    return parent, child


def gone_within(child: int, seconds: float) -> bool:
    """Whether the process ends in time; one that does not is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return False


RANK = {"RANK": "1", "TORCHELASTIC_RUN_ID": "a"}


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize(
    ("call", "handler", "words", "environment", "ends"),
    [
        ("follow_the_parent(pause=0.1)", "", (), {}, True),
        ("follow_the_parent(grace=0.5, pause=0.1)", STUBBORN, (), {}, True),
        ("follow_the_launcher()", "", (), RANK, True),
        ("follow_the_launcher()", "", ("told",), RANK, True),
        ("follow_the_launcher()", "", (), {"RANK": "1"}, False),
    ],
)
def test_a_process_ends_after_its_killed_parent(call, handler, words, environment, ends):
    parent, child = family(call, handler, *words, **environment)
    assert not gone_within.__defaults__ and os.path.isdir(f"/proc/{child}")
    parent.kill()
    parent.wait()
    assert gone_within(child, 10 if ends else 2) is ends
    asked = parent.stdout.read()
    assert asked == ("asked\n" if handler else "")


def test_a_parent_that_is_gone_already_is_noticed(tmp_path):
    code = CHILD.format(handler="", call="follow_the_parent(parent=999_999_999)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert done.returncode == -signal.SIGTERM


def test_the_grace_is_longer_than_the_launchers():
    assert follow.GRACE > 30
