"""Count the memory of a step: every storage that an operation makes is added when it appears and subtracted
when it is freed. So the peak is exact for all tensors, including parameters, gradients and optimiser state.
docs/memory.md says what is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrt.data.loader import Batch
from mrt.engine.learner import Learner


class LiveBytes(TorchDispatchMode):
    """Inside this context, counts the bytes of all existing storages, on any device but "meta".

    Attributes:
        live: bytes now.
        peak: the maximum so far.

    Args:
        tensors: those that exist already.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._add(tensor)
        return result

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for watch in self._known.values():
            watch.detach()
        self._known.clear()

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # its address, unique while it lives
        if key not in self._known and tensor.device.type != "meta":
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            # The Python object lives as long as the storage.
            self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


def networks_of(learner: Learner) -> list[nn.Module]:
    """The student and, if there is one, the teacher."""
    return [learner.student, *([learner.teacher.module] if learner.teacher is not None else [])]


def state_tensors(learner: Learner, batches: Iterable[dict[str, Batch]]) -> Iterator[Tensor]:
    """The tensors that exist between two steps: weights, buffers, gradients, moments, teacher and data."""
    for network in networks_of(learner):
        yield from network.parameters()
        yield from network.buffers()
    for parameter in learner.student.parameters():
        if parameter.grad is not None:
            yield parameter.grad
    for state in learner.optimiser.state.values():
        yield from _tensors(state)
    for batch in batches:
        for domain in batch.values():
            yield from domain.tensors()


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
