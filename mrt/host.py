"""Copies between an accelerator and the host for which neither side waits earlier than necessary."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(device: torch.device | str) -> torch.dtype:
    """The type in which sums are kept on a device: float64, but float32 on Apple's GPUs ("mps"), which
    have no wider one.
    """
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


class HostCopy:
    """A tensor that is being copied to the host.

    From a GPU it is copied to page-locked memory after the operations queued before it. The host continues,
    and :meth:`result` waits for these operations only, not for those queued later. On a CPU there is nothing
    to copy.

    Args:
        tensor: any tensor; no gradient flows.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        tensor = tensor.detach()
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tensor = tensor.cpu()

    def result(self) -> Tensor:
        """The tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on ``device``; the host does not wait for the copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
