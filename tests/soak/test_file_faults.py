"""Every file operation of a run fails in turn: one message, and a run that goes on or is not there.

The operations are those on files below the run root: opening, writing, flushing to disk, renaming, removing,
making folders and links, listing, locking. ``make test`` tries a few, ``make soak`` each with ENOSPC, EIO and
EACCES (MRT_FAULTS=N: every Nth; MRT_FAULTS_ON=TEXT: those with TEXT in their names).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_world import tiny_config
from undisturbed import assert_same_run, ended, fork, report

from mrt.engine.facts import is_run

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.scandir", "os.listdir"}
EVENTS |= {"os.chmod", "os.truncate", "fcntl.flock", "fcntl.lockf"}
STEP = int(os.environ.get("MRT_FAULTS", "1"))
ONLY = os.environ.get("MRT_FAULTS_ON", "")  # operations whose names have this in them


class Faults:
    """Counts the file operations below a folder in this process, and lets one of them fail.

    Args:
        root: of the files. fail: number of the operation that fails, from 0; -1: none.
    """

    def __init__(self, root: Path, fail: int, error: int) -> None:
        self.root, self.fail, self.error = os.path.realpath(root), fail, error
        self.count = 0
        self.names: list[str] = []
        self._open = io.open

    def install(self) -> None:
        """Cannot be undone: for a child process."""
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def faulty_fsync(descriptor: int) -> None:
            self.step("fsync", descriptor)
            fsync(descriptor)

        os.fsync = faulty_fsync
        builtins.open = io.open = self._opened

    def step(self, what: str, where: Any) -> None:
        path = self._path(where)
        if path is None or not (path + "/").startswith(self.root + "/"):
            return
        number, self.count = self.count, self.count + 1
        self.names.append(f"{what} {os.path.relpath(path, self.root)}")
        if number == self.fail:
            raise OSError(self.error, os.strerror(self.error), path)

    def _path(self, where: Any) -> str | None:
        try:
            if isinstance(where, int):
                return os.readlink(f"/proc/self/fd/{where}")
            return os.path.abspath(os.fsdecode(where))
        except (OSError, TypeError, ValueError):
            return None

    def _audit(self, event: str, arguments: tuple) -> None:
        if event in EVENTS and arguments:
            self.step(event, arguments[1] if event in ("os.rename", "os.link") else arguments[0])

    def _opened(self, file: Any, mode: str = "r", *more: Any, **others: Any) -> Any:
        found = self._open(file, mode, *more, **others)
        if not set(mode) & set("wax+"):
            return found
        return Writing(found, self, found.fileno())


class Writing:
    """A file whose writes count."""

    def __init__(self, file: Any, faults: Faults, descriptor: int) -> None:
        self._file, self._faults, self._descriptor = file, faults, descriptor

    def write(self, content: Any) -> int:
        self._faults.step("write", self._descriptor)
        return self._file.write(content)

    def flush(self) -> None:
        self._faults.step("flush", self._descriptor)
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def adapt(settings: Path, world: Path, source: Path, root: Path, resume: bool) -> None:
    """``mrt adapt`` in this process."""
    from mrt_cli.app import app

    words = ["adapt", "--preset", settings, "--stage", "teach", "--name", "run", "--data-root", world]
    words += ["--run-root", root, *(["--resume"] if resume else ["--init", source])]
    app([str(word) for word in words], prog_name="mrt")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "settings.json"
    small = {"teach.epochs": 2, "teach.steps_per_epoch": 1, "engine.threads": 1, "engine.snapshots": 2}
    path.write_text(tiny_config(**small, **{"engine.eval_every": 2, "engine.log_every": 1}).to_json())
    return path


def one_message(text: str) -> bool:
    return "Traceback" not in text and len(re.findall(r"^mrt: ", text, re.MULTILINE)) == 1


EVERY_RUN = [
    pytest.param(60, ERRORS[:1], id="some"),
    pytest.param(STEP, ERRORS, id="all", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("every", "errors"), EVERY_RUN)
def test_every_file_operation_that_fails_is_one_message(world, source, tmp_path, settings, every, errors):
    log = tmp_path / "log"
    root = tmp_path / "counted"

    def counted(fail: int, error: int, root: Path, names: Path | None = None) -> None:
        faults = Faults(root, fail, error)
        faults.install()
        try:
            adapt(settings, world, source, root, resume=False)
        finally:
            if names is not None:
                names.write_text("\n".join(faults.names))

    names_file = tmp_path / "names"
    assert ended(fork(lambda: counted(-1, 0, root, names_file), log), 300) == 0, log.read_text()
    names = names_file.read_text().split("\n")
    assert len(names) > 50
    counts: dict[str, int] = {"operations": len(names), "faults": 0, "told": 0, "harmless": 0}
    wrong: list[str] = []

    def note(text: str) -> None:
        wrong.append(text)
        report("file-faults-wrong", {"wrong": wrong})  # at once: the rest may take long

    for number in range(0, len(names), every):
        if ONLY not in names[number]:
            continue
        for error in errors:
            root = tmp_path / f"root{number}-{error}"
            child = fork(lambda number=number, error=error, root=root: counted(number, error, root), log)
            code, text = ended(child, 300), log.read_text()
            counts["faults"] += 1
            about = f"{names[number]} {errno.errorcode[error]}: exit code {code}\n{text}"
            if code == 0:
                counts["harmless"] += 1
            elif code in (1, 2) and one_message(text):
                counts["told"] += 1
            else:
                note(about)
                continue
            run = root / "run"
            again = lambda root=root, run=run: adapt(settings, world, source, root, resume=is_run(run))  # noqa: E731
            if ended(fork(again, log), 300) != 0:
                note(f"{about}\nafter it: {log.read_text()}")
                continue
            try:
                assert_same_run(run, tmp_path / "counted" / "run")
            except AssertionError as difference:
                note(f"{about}\nanother run: {difference}")
    report("file-faults", counts | {"wrong": len(wrong)})
    assert not wrong, "\n\n".join(wrong[:5])
