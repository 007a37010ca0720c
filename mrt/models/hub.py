"""Detectors on the Hugging Face hub.

Their names are ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``; some have short names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mrt.errors import MrtError

PREFIX = "hf:"
# Short names; they may be used wherever weights are named.
ALIASES = {"coco": "hf:SenseTime/deformable-detr-with-box-refine-two-stage"}
_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CONNECT_SECONDS = 10
_DESCRIPTION = ("config.json", "preprocessor_config.json")


def hub_name(where: str) -> str | None:
    """The name ``hf:...`` that ``where`` is or is short for, else None."""
    where = ALIASES.get(where, where)
    return where if where.startswith(PREFIX) else None


def fetch(name: str) -> Path:
    """Download a model's folder, or find it in the cache (``HF_HOME``).

    Only its description and weights are downloaded: ``.safetensors`` files, or ``pytorch_model.bin`` where
    there are none.

    Raises:
        MrtError: the name is malformed, there is no such model, there is no connection and nothing in the
            cache, or huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(ALIASES.get(name, name))
    if match is None:
        raise MrtError(
            f"{name}: not the name of a model on the Hugging Face hub",
            "such names are hf:OWNER/NAME or hf:OWNER/NAME@REVISION",
        )
    repository, revision = match["repository"], match["revision"]
    hub = _library()
    try:
        _reach(hub)
        wanted = _wanted(hub, repository, revision)
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except hub.errors.RepositoryNotFoundError:
        raise MrtError(
            f"{name}: there is no such model on the Hugging Face hub, or it is private",
            "check the name; log in: hf auth login",
        ) from None
    except hub.errors.RevisionNotFoundError:
        raise MrtError(f"{name}: this model has no revision {revision!r}") from None
    except Exception as error:  # no network, a proxy, a full disk, ...: of many types, from several libraries
        return _cached(hub, name, repository, revision, error)


def _reach(hub: Any) -> None:
    """Raise at once if there is no connection; the library itself would try again for half a minute."""
    if hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    hub.get_session().head(hub.constants.ENDPOINT, timeout=CONNECT_SECONDS)


def _cached(hub: Any, name: str, repository: str, revision: str | None, error: Exception) -> Path:
    """The folder that an earlier download left in the cache."""
    try:
        folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            return folder
    except (OSError, ValueError):  # nothing there
        pass
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise MrtError(
        f"{name}: could not be downloaded, and is not in the cache ({reason})",
        f"Where there is a connection: hf download {repository} --local-dir FOLDER, "
        f"then name that folder instead of {name}.",
    )


def _wanted(hub: Any, repository: str, revision: str | None) -> list[str]:
    files = hub.HfApi().list_repo_files(repository, revision=revision)
    endings = (".safetensors", ".safetensors.index.json")
    safe = [file for file in files if file.endswith(endings) and "/" not in file]
    return [*_DESCRIPTION, *(safe or ["pytorch_model.bin"])]


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise MrtError(
            "downloading from the Hugging Face hub needs huggingface_hub, which is not installed",
            "pip install huggingface_hub",
        ) from None
    return huggingface_hub
