"""``engine.compile``: the network's layers through ``torch.compile``, one region each.

Regions are layers, not the whole step: all layers of a kind share one compiled graph, so compiling takes as
long as for one of them, and what cannot be compiled (matching, pseudo labels) stays outside. Each region is
compiled for the image sizes it meets, up to :data:`SIZES` of them; batches of further sizes run uncompiled,
which is said once. Both ways compute the same up to float rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mrt.engine.report import Watcher
from mrt.errors import MrtError

SIZES = 4  # sets of image sizes per network that are compiled: a set costs tens of seconds once


class Regions(Protocol):
    """A network that says what is compiled of it."""

    def compile_regions(self) -> Sequence[nn.Module]:
        """The layers, each compiled by itself."""


class Compiler:
    """Compiles networks in place, and decides batch by batch whether the compiled layers are used.

    Args:
        mode: "off"; "on"; "auto": on a GPU, unless the machine has no working compiler (then it says so and
            nothing is compiled). A layer that cannot be compiled ends a run with "on", and with "auto" runs
            as it is, with PyTorch's warning.
        device: where the networks run.
        watcher: is told of a fallback.
        backend: of ``torch.compile``.

    Raises:
        MrtError: mode "on" where nothing can be compiled.
    """

    def __init__(
        self,
        mode: str = "off",
        device: torch.device | None = None,
        watcher: Watcher | None = None,
        backend: str = "inductor",
    ) -> None:
        self.watcher, self.backend = watcher or Watcher(), backend
        self.sizes: dict[str, set[Any]] = {}
        self._told = False
        self.mode = mode
        self.active = mode == "on" or (mode == "auto" and device is not None and device.type == "cuda")
        problem = _problem(device or torch.device("cpu")) if self.active and backend == "inductor" else None
        if problem is not None:
            self.active = False
            if mode == "on":
                raise MrtError(
                    f'engine.compile = "on", but torch.compile does not work here: {problem}',
                    'Use engine.compile = "off".',
                )
            self.watcher.say(
                f"engine.compile: torch.compile does not work here, layers run uncompiled ({problem})"
            )

    def compile(self, *networks: Regions | None) -> None:
        """Mark the layers of networks for compilation, which happens when they are first used. State dicts
        stay as they are.
        """
        if not self.active:
            return
        torch._dynamo.config.suppress_errors = self.mode == "auto"
        torch._functorch.config.donated_buffer = False  # graphs are gone through again for shares
        torch._dynamo.config.optimize_ddp = False  # regions are smaller than DDP's buckets: nothing to split
        # About twenty graphs for each set of sizes, all counted together: kinds of layers, student and
        # teacher, with and without a mask.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64 * SIZES)
        torch._dynamo.config.accumulated_recompile_limit = max(
            torch._dynamo.config.accumulated_recompile_limit, 64 * SIZES
        )
        for network in networks:
            for region in network.compile_regions() if network is not None else ():
                region.compile(dynamic=False, backend=self.backend)

    def stance(
        self, images: Mapping[str, tuple[Tensor, Tensor | None]], network: str = "student"
    ) -> AbstractContextManager:
        """The context in which ``network`` looks at a batch of images (by domain: images and padding mask):
        compiled or not.
        """
        if not self.active:
            return nullcontext()
        key = frozenset((tuple(pixels.shape), mask is None) for pixels, mask in images.values())
        known = self.sizes.setdefault(network, set())
        if key in known or len(known) < SIZES:
            known.add(key)
            return nullcontext()
        if not self._told:
            self._told = True
            height, width = next(iter(images.values()))[0].shape[2:]
            self.watcher.say(
                f"engine.compile: images of more than {SIZES} sizes; batches of further sizes, such as "
                f"{width}x{height}, run uncompiled. "
                "Where few batches are alike, engine.compile=off spares the compilation."
            )
        return torch.compiler.set_stance("force_eager")


def uncompiled() -> AbstractContextManager:
    """A context in which compiled layers run as they are: for evaluation, whose batches are of other sizes
    than training's.
    """
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled; loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _problem(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device; None if a small layer and its gradient can."""
    with torch.random.fork_rng(devices=[]):  # the run's own draws go on as if nothing had been tried
        layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(device)
    try:
        torch.compile(layer, dynamic=False)(torch.ones(2, 8, device=device)).sum().backward()
    except Exception as error:  # a missing compiler, header or Triton fails in many ways inside
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
