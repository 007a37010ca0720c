"""Apple's GPUs (device "mps"), as far as a machine without one can tell: nothing is float64 there, and the op
takes PyTorch's path and says so.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from test_plain_step import STAGES, batches_of, config, make_learner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrt.engine import distributed
from mrt.engine.meter import Meter
from mrt.engine.step import training_step
from mrt.errors import MrtError
from mrt.host import wide
from mrt.ops import fallback_reason
from mrt.ops.native import choose

HOLDERS = ("mrt.adapt.pseudo_labels", "mrt.adapt.thresholds", "mrt.parts.source_record", "mrt.engine.meter")


class Narrow(TorchDispatchMode):
    """Inside, an operation that gives float64 fails, as on Apple's GPUs."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{function}: no float64")
        return result


def refused(tensor: torch.Tensor) -> torch.Tensor:
    """What moving a tensor there does."""
    if tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    return tensor


def test_sums_are_as_wide_as_the_device_can():
    assert wide("mps") == torch.float32 and wide("cpu") == wide(torch.device("cuda", 0)) == torch.float64


@pytest.mark.parametrize("stage", ["source", "teach+mae"])
def test_a_step_needs_no_float64(stage, monkeypatch):
    for name in HOLDERS:
        monkeypatch.setattr(import_module(name), "wide", lambda device: torch.float32)
    learner = make_learner(config("paper's kind", **{"mae.normalise": True}), STAGES[stage])
    learner.student._apply(refused)
    meter = Meter(learner)
    (batches,) = batches_of("padded target", steps=1)
    with Narrow():
        seen = training_step(learner, batches, 1.0, 1.0)
        meter.add(seen)
    assert meter.read()["total"] == pytest.approx(float(seen["total"]))


def test_float64_would_be_noticed():
    with Narrow(), pytest.raises(TypeError, match="no float64"):
        torch.ones(3).double()


def test_the_op_takes_pytorchs_path_and_says_so():
    assert choose("mps", "auto") == "python" and fallback_reason("mps")


def test_the_device_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(MrtError, match="torch sees no Apple GPU"):
        distributed.join("mps")
    with pytest.raises(MrtError, match="choose auto, cpu, cuda or mps"):
        distributed.join("tpu")


def test_one_process_takes_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.join("mps") == distributed.World(0, 1, torch.device("mps"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MrtError, match="is for one process"):
        distributed.join("mps")
