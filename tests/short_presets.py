"""Presets that take seconds: all settings of training are read and used, and nothing is learned."""

from __future__ import annotations

import re
from pathlib import Path

TINY = """
[model]
backbone = "resnet18"
weights = "none"
freeze = "none"
hidden_dim = 16
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 2
feedforward_dim = 32
num_queries = 10
"""


def short_presets(original: Path, folder: Path, *, tiny: bool = False) -> Path:
    """Copies of all presets with one epoch of a step for each stage; returns ``folder``.

    Args:
        tiny: also a network of nothing that starts from nothing, but in ``own``, which takes the network of
            the weights that adaptation starts from.
    """
    for file in original.glob("*.toml"):
        text = re.sub(r"(?m)^(steps_per_epoch|epochs|decay_epoch|eval_every) = .*\n", "", file.read_text())
        text = re.sub(r"(?m)^(workers|keep_teachers|batch_size) = .*\n", "", text)
        for section in ("data", "pretrain", "mae_stage", "teach", "mae", "engine"):
            text += "" if f"[{section}]\n" in text else f"\n[{section}]\n"
        for section in ("pretrain", "mae_stage", "teach"):
            text = text.replace(f"[{section}]\n", f"[{section}]\nepochs = 1\nsteps_per_epoch = 1\n")
        text = text.replace("[mae]\n", "[mae]\ndecay_epoch = 1\n")
        text = text.replace("[engine]\n", "[engine]\nbatch_size = 2\nworkers = 0\nthreads = 1\n")
        if tiny and file.stem != "own":
            text = re.sub(r"(?ms)^\[model\]\n.*?(?=^\[|\Z)", "", text) + TINY
            text = re.sub(
                r"(?m)^(init|source_sides|sides|max_size|size_multiple|source_crop|cache) = .*\n", "", text
            )
            sizes = "sides = [48]\nsource_sides = [48]\nmax_size = 96\n"
            text = text.replace("[data]\n", f"[data]\n{sizes}")
        (folder / file.name).write_text(text)
    return folder
