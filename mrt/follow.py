"""A process that ends when the one that started it is gone. Needs no torch."""

from __future__ import annotations

import os
import signal
import threading
import time

PAUSE = 1.0  # seconds between looks
GRACE = 60.0  # seconds that a process of several has to save its state, before it is ended all the same
LAUNCHER = "MRT_LAUNCHER"  # environment variable: the process id of what --gpus started this process from


def follow_the_parent(parent: int | None = None, grace: float | None = None, pause: float = PAUSE) -> None:
    """Ask this process to stop (SIGTERM) once its parent is gone, for nobody would wait for its work.

    Args:
        parent: the parent's process id, where the parent has told it; it may be gone already.
        grace: kill this process so many seconds later, as what it waits for may be gone too; None: never.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(pause)
        os.kill(os.getpid(), signal.SIGTERM)
        if grace is not None:
            time.sleep(grace)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow the parent", daemon=True).start()


def follow_the_launcher() -> None:
    """In a process that --gpus or torchrun started: follow the launcher, which may be killed.

    A process that was started by hand with RANK and WORLD_SIZE goes on when its shell ends.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or "RANK" not in os.environ:
        return
    told = os.environ.get(LAUNCHER, "")
    follow_the_parent(int(told) if told.isdecimal() else None, grace=GRACE)
