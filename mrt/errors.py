"""The one error a user may meet."""

from __future__ import annotations


class MrtError(Exception):
    """Something the user can mend: bad input, a missing file, a setting that does not fit.

    The command line prints ``message`` and ``hint`` without a traceback and exits with code 2.

    Args:
        message: what is wrong, with the file, the field and the value that was found.
        hint: what to do next, ideally a command to copy; ``None`` when the message says it all.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class RunFailed(Exception):
    """A run that started properly but could not go on (a non-finite loss, a failed worker): exit code 1."""


class Unstable(RunFailed):
    """A number of training is not finite."""


class Diverged(RunFailed):
    """A number of a run is not finite: going on from its last checkpoint would end in the same.

    Args:
        message: what happened. how: options of the command line that go on from before it; none where there
            is no checkpoint.
    """

    def __init__(self, message: str, how: list[str]) -> None:
        super().__init__(message)
        self.how = how


class Interrupted(RunFailed):
    """The user stopped a run; its state is on disk and ``--resume`` continues it."""


class ProcessLost(Interrupted):
    """One of a run's processes ended or hung; ``--resume`` goes on from the last checkpoint."""
