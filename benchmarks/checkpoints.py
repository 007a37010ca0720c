"""How long writing a checkpoint holds up training: at once, or copied and written by a thread.

    python -m benchmarks.checkpoints [--device cuda] [--rounds 5] [--out figures.json]

The state is that of teaching with the paper's network (city2foggy): student, teacher, and AdamW's two moments
of every trained weight. Both ways are measured by turns, after one round that does not count. "held up" is
the time until the next step could begin, "on disk" the time until the file is whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from mrt.config import load_config
from mrt.engine import build, store


def state_of(device: str) -> dict[str, Any]:
    """A checkpoint's state, all of it on ``device``."""
    config = load_config("city2foggy", ["model.weights=none"])
    classes = [f"class{number}" for number in range(8)]
    detector = build.build_detector(config, classes).to(device)
    weights = detector.state_dict()
    trained = [value for value in detector.parameters() if value.requires_grad]
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": value.detach() * 0, "exp_avg_sq": value.detach() * 0}
        for number, value in enumerate(trained)
    }
    teacher = {key: value.clone() for key, value in weights.items()}
    return {"stage": "teach", "step": 1, "student": weights, "teacher": teacher, "optimiser": moments}


def measure(state: dict[str, Any], folder: Path, background: bool, device: str) -> tuple[float, float]:
    """Seconds until the next step could begin, and until the file is whole."""
    checkpoints = store.Checkpoints(folder, background=background)
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    checkpoints.write(state, {"stage": "teach", "step": 1})
    held = time.perf_counter() - began
    checkpoints.wait()
    return held, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    state = state_of(options.device)
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for name, background in (("at once", False), ("in the background", True)):
                held, whole = measure(state, Path(folder), background, options.device)
                if number:
                    rows = figures.setdefault(name, {"held up": [], "on disk": []})
                    rows["held up"].append(held)
                    rows["on disk"].append(whole)
        size = (Path(folder) / "last.pt").stat().st_size
    print(f"{size / 1e6:.0f} MB, {options.device}, {options.rounds} rounds; median seconds (least to most)")
    for name, rows in figures.items():
        cells = (
            f"{what} {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
            for what, times in rows.items()
        )
        print(f"{name:18} {'   '.join(cells)}")
    if options.out:
        told = {"bytes": size, "seconds": figures, "environment": environment(options.device)}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
