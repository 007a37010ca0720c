"""Signals that ask a run to stop, or for a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrt.engine.loop import Run


class Notice:
    """While inside, SIGUSR1, with which clusters announce the end of a job's time, asks for a checkpoint; if
    it is nobody else's (such as submitit's). SIGTERM ends what is done before and after the steps as Ctrl-C
    does; within them :class:`StopSignals` has both.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.asked = False
        self._say, self._before, self._ended = say, None, None

    def __enter__(self) -> Notice:
        number = getattr(signal, "SIGUSR1", None)
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
                self._before = signal.signal(number, self._ask)
        with contextlib.suppress(ValueError):
            if "WORLD_SIZE" not in os.environ and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._ended = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._ended is not None:
            signal.signal(signal.SIGTERM, self._ended)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # outside of the steps nothing waits to be saved

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._say("Asked for a checkpoint: the state is saved after the next step.")


class StopSignals:
    """While inside, Ctrl-C and SIGTERM ask the run to stop after the current step; a second Ctrl-C stops at
    once.

    Of several processes (``alone=False``) each is asked by the launcher, which also does so when one of them
    has died: then there is no next step and nothing to save, so nothing is promised.
    """

    def __init__(self, run: Run, alone: bool = True) -> None:
        self.run, self.alone, self.previous = run, alone, {}

    def __enter__(self) -> None:
        try:
            self.previous = {
                number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread: signals are somebody else's
            self.previous = {}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.run.stopping = True
        more = "; the state will be saved. (Ctrl-C again stops at once.)" if self.alone else "."
        self.run.watcher.say(f"Stopping after this step{more}")
