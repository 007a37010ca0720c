"""The sha256 of what a safetensors file holds, which tells whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mrt.errors import MrtError

# In the metadata: the description of a file of mrt, the sha256 of that text, and that of the whole content.
TEXT, TEXT_SHA256, SHA256 = "mrt", "mrt_text_sha256", "mrt_sha256"
COPY_AGAIN = (
    "Copy it again from where it came from. In a run's folder: take the other network's file, or continue "
    "the run with --resume, which writes it again."
)


def content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a description and of each tensor's name, type, shape and bytes, in the order of the names.

    Every part comes after its length, so that no two contents give the same stream of bytes.
    """
    digest = hashlib.sha256()

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        kind = str(value.dtype).removeprefix("torch.")
        add(json.dumps([name, kind, list(value.shape)]).encode())
        add(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def changed(path: Path, what: str) -> MrtError:
    """The error for a file that is no longer what was written."""
    return MrtError(
        f"{path}: changed since it was written: {what} do not match the sha256 in it "
        "(a bad disk or an interrupted copy?)",
        COPY_AGAIN,
    )
