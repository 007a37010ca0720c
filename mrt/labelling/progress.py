"""What was found so far, in a file beside the labels that will be written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrt.errors import MrtError
from mrt.exclusive import hold
from mrt.labelling.answers import some

_ENTRY = ("image", "labels", "boxes", "scores", "unknown", "dropped")


class Progress:
    """A file of JSON lines: the question, then a line for each image that is done.

    It is made with the first image. Within ``with`` it is open, and no other process can add to it.
    """

    def __init__(self, path: Path, question: Mapping[str, Any]) -> None:
        self.path, self.question = path, dict(question)
        self._good = 0  # bytes of whole lines
        self._file: Any = None

    def read(self, images: Sequence[int]) -> list[dict[str, Any]]:
        """What was found in the first of these images. A line that was cut short does not count.

        Raises:
            MrtError: the file is of another question, or of other or more images.
        """
        if not self.path.is_file():
            return []
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        if not newline:
            return []
        try:
            header, *entries = [json.loads(line) for line in whole.split(b"\n")]
            before = dict(header["question"])
            done = [entry["image"] for entry in entries]
            complete = all(key in entry for entry in entries for key in _ENTRY)
        except (ValueError, KeyError, TypeError):
            complete, done, before = False, [], {}
        other = f"delete it to begin anew, or choose another --out{self._costs(done)}"
        if not complete:
            raise MrtError(f"{self.path}: not the progress of an mrt label", other)
        if not done:
            return []
        if before != self.question:
            raise MrtError(f"{self.path}: is of another question: {self._difference(before)}", other)
        if len(done) > len(images):
            raise MrtError(
                f"{self.path}: has {len(done)} images already, and {len(images)} are asked for",
                f"ask for --limit {len(done)} or more to go on with it, or choose another --out",
            )
        if done != list(images[: len(done)]):
            raise MrtError(f"{self.path}: is of other images", other)
        self._good = len(whole) + 1
        return entries

    def _costs(self, done: Sequence[int]) -> str:
        return f" (what was found in {len(done)} images is in it)" if done else ""

    def _difference(self, before: Mapping[str, Any]) -> str:
        if before.get("labeller") == self.question["labeller"]:
            changed = {
                "labeller_sha256": f"{self.question['labeller']} has been changed since",
                "annotations_sha256": f"the set {self.question['set']} has been made anew since",
            }
            for key, text in changed.items():
                if before.get(key) != self.question[key]:
                    return text
        key = next(key for key in {**self.question, **before} if before.get(key) != self.question.get(key))
        then, now = (
            some(value) if isinstance(value, list) else value
            for value in (before.get(key), self.question.get(key))
        )
        return f"{key} was {then}, and is {now} now"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write an image's line."""
        try:
            if self._file is None:
                self._open()
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise MrtError(
                f"{self.path}: could not be written: {error.strerror or error}",
                "check the folder's permissions and the free space",
            ) from error

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if not hold(self._file):
            raise MrtError(
                f"{self.path}: another mrt label is at work on it", "wait for it, or choose another --out"
            )
        self._file.truncate(self._good)
        if not self._good:
            self._file.write(json.dumps({"question": self.question}).encode() + b"\n")
