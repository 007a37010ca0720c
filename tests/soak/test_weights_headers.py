"""A hundred thousand descriptions of weights as a stranger might write them: read or refused at once."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from header_mutations import content, mutations, small_file
from safetensors.torch import load_file

from mrt.engine.load import describe, settings_of
from mrt.errors import MrtError
from mrt.models.weights import load_weights, read_header
from mrt.models.weights_header import check_sizes

NUMBER, SEED = 100_000, 2026
LIMIT = 5.0  # seconds for one description
BUILT = 20  # of so many that are not refused, one detector is built


class TooSlow(Exception):
    """A description took longer than :data:`LIMIT`."""


@contextmanager
def limited():
    """Raise TooSlow inside after :data:`LIMIT` seconds."""

    def stop(*_):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A slim file needs a pretrained backbone; nothing is downloaded here."""

    def refused(name: str, weights: str) -> None:
        raise MrtError(f"weights {weights} of {name}: no network")

    monkeypatch.setattr("mrt.models.backbone.classifier_state", refused)


@pytest.mark.soak
def test_a_hundred_thousand_mutated_descriptions(tmp_path):
    path = tmp_path / "x.safetensors"
    small_file(path)
    header = read_header(path)
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    counts: Counter[str] = Counter()
    bad: list[dict[str, str]] = []
    start = time.perf_counter()
    for number, text in enumerate(mutations(header, SEED, NUMBER)):
        path.write_bytes(content(text, tensors, sealed=number % 2 == 0))
        try:
            with limited():
                found = read_header(path)
                check_sizes(found, shapes, path)
                counts["not refused"] += 1
                if counts["not refused"] % BUILT == 0:
                    load_weights(path)
                    settings_of(path)
                describe(path)
        except MrtError as error:
            counts["refused"] += 1
            if "x.safetensors" not in error.message:
                bad.append({"kind": "unnamed", "text": text[:500], "error": error.message[:500]})
        except TooSlow:
            bad.append({"kind": "slow", "text": text[:500], "error": ""})
        except Exception:
            bad.append({"kind": "traceback", "text": text[:500], "error": traceback.format_exc()[-1500:]})
    counts.update(item["kind"] for item in bad)
    seconds = round(time.perf_counter() - start, 1)
    report = {"inputs": NUMBER, "seed": SEED, "seconds": seconds, "counts": dict(counts), "bad": bad[:50]}
    print(f"{NUMBER} descriptions of weights in {seconds} s: {dict(counts)}")
    if folder := os.environ.get("MRT_SOAK_REPORT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "weights_headers.json").write_text(json.dumps(report, indent=1) + "\n")
    assert not bad, json.dumps(bad[:3], indent=1)
