"""How much memory a training step takes and how much work it is, counted without a GPU.

Memory: every storage that an operation makes is added when it appears and subtracted when it is freed, so the peak is exact for what
PyTorch calls tensors: parameters, gradients and optimiser state included. What a GPU needs besides is not counted: the CUDA context, the
caching allocator's rounding and gaps, and scratch space inside kernels (cuDNN's above all).

Work: every operation that is not a mere view reads its inputs and writes its outputs once, and products have their multiplications.

A step may be counted while it runs for real on the CPU, or with shapes alone (:func:`shapes_only`): then nothing is computed or stored,
and any batch is counted in seconds on any machine.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mrt.adapt.pseudo_labels import PendingLabels
from mrt.data.loader import Batch
from mrt.engine import build
from mrt.engine.step import Learner
from mrt.losses import Matches, Matching
from mrt.models import position
from mrt.models.precision import LayerNorm


class LiveBytes(TorchDispatchMode):
    """While inside, counts the bytes of all storages that live, on any device but "meta".

    Attributes:
        live: bytes now. peak: most so far.

    Args:
        tensors: what lives already.
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
            self._known[key] = weakref.finalize(storage, self._forget, key, size)  # the Python object lives as long as the storage

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


@dataclass(frozen=True)
class Operation:
    """One call: its name, the dtype of its (first) result, bytes read and written, and floating-point operations of products.

    ``samples``: of deformable attention, the values it reads bilinearly (N * Q * M * L * P * D), else 0.
    """

    name: str
    dtype: torch.dtype
    bytes: int
    flops: int
    samples: int = 0


NO_KERNEL = re.compile(r"aten::(empty|new_empty|_local_scalar_dense|is_pinned)")
ONLY_WRITES = re.compile(r"aten::(copy_|fill_|zero_|bernoulli_|uniform_|normal_|random_)$")  # its first argument


class Work(TorchDispatchMode):
    """While inside, notes each operation that a GPU would run a kernel for (some run several), in ``operations``.

    That is: each that makes a tensor of its own or writes to one; views do neither. Multiplications of grouped convolutions' gradients are
    those of PyTorch's counter, which takes too many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result, kwargs = function(*args, **(kwargs or {})), kwargs or {}
        name, parameters = function._schema.name, function._schema.arguments
        given = [*zip(parameters, args, strict=False), *((item, kwargs[item.name]) for item in parameters if item.name in kwargs)]
        written = _tensors([value for item, value in given if item.alias_info is not None and item.alias_info.is_write])
        read = _tensors((args[1:] if ONLY_WRITES.match(name) else args, kwargs))
        known = {tensor.untyped_storage()._cdata for tensor in (*read, *written)}
        made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known] + written
        if not made or NO_KERNEL.match(name):
            return result
        flops = samples = 0
        if name in ("aten::linear", "aten::conv2d"):  # whole where no gradient is wanted, like the next
            flops = 2 * made[0].numel() * args[1][0].numel()
        elif name in ("aten::matmul", "aten::_addmm_activation"):
            flops = 2 * made[0].numel() * args[name == "aten::_addmm_activation"].shape[-1]
        elif function.overloadpacket in flop_registry:
            flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=result)
        elif name.startswith("mrt::ms_deform_attn_fused"):
            value, logits = (args[1], args[5]) if name.endswith("backward") else (args[0], args[4])
            samples = logits.numel() * value.shape[-1]
        self.operations.append(Operation(name, made[0].dtype, sum(map(_bytes, (*read, *made))), flops, samples))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())  # an expanded one is smaller than it looks


def networks_of(learner: Learner) -> list[nn.Module]:
    """Student and, where there is one, teacher."""
    return [learner.student, *([learner.teacher.module] if learner.teacher is not None else [])]


@contextmanager
def shapes_only(learner: Learner, labels: int) -> Iterator[None]:
    """While inside, tensors have shapes but no values, the learner's own included; it is of no use afterwards.

    Two parts of a step depend on values. The assignment always gives the same number of pairs, so any will do; pseudo labels are taken
    to be ``labels`` an image.
    """
    networks = networks_of(learner)
    patched = [(Matching, "result", Matching.result), (PendingLabels, "result", PendingLabels.result)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made: dict[int, Tensor] = {}

        def emptied(tensor: Tensor) -> Tensor:
            if id(tensor) not in made:
                empty = mode.from_tensor(tensor.detach())
                trained = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if trained else empty
            return made[id(tensor)]

        tables = [table for network in networks for module in network.modules() for table in (module._parameters, module._buffers)]
        originals = [dict(table) for table in tables]  # kept until all are replaced: one that is freed would hand its id on
        for table in tables:
            table.update({name: emptied(tensor) for name, tensor in table.items() if tensor is not None})
        originals.clear()
        learner.optimiser = build.build_optimiser(learner.config, learner.stage, learner.student, learner.world.device)
        Matching.result = _any_pairs
        PendingLabels.result = lambda pending: [_any_labels(labels) for _ in range(len(pending._rows.result()))]
        position._kept_geometry.cache_clear()
        position._kept_level_sizes.cache_clear()
        try:
            yield
        finally:
            for owner, name, method in patched:
                setattr(owner, name, method)
            position._kept_geometry.cache_clear()  # they keep tensors without values
            position._kept_level_sizes.cache_clear()


def _any_pairs(matching: Matching) -> Matches:
    count = sum(min(boxes, matching.num_queries) for boxes in matching.counts)
    image, *rows = torch.zeros(1 + 2 * matching.num_layers, count, dtype=torch.long).split((1, matching.num_layers, matching.num_layers))
    return Matches(image[0], *rows, matching.labels, matching.boxes, matching.counts, matching.num_queries)


def _any_labels(count: int) -> dict[str, Tensor]:
    return {"scores": torch.zeros(count), "labels": torch.zeros(count, dtype=torch.long), "boxes": torch.zeros(count, 4)}


def state_tensors(learner: Learner, batches: Iterable[dict[str, Batch]]) -> Iterator[Tensor]:
    """What lives between two steps: weights, buffers, gradients, moments, the teacher and the data."""
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


def begin_moments(learner: Learner) -> None:
    """Let the optimiser make its state, which every step but the first finds there; no weight changes."""
    groups = learner.optimiser.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    learner.optimiser.step()
    learner.optimiser.zero_grad(set_to_none=True)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


class _FlashAttention(torch.autograd.Function):
    """What such a kernel makes and keeps, with any values: no matrix of queries by keys."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def as_on_cuda(networks: Sequence[nn.Module], values: bool) -> Iterator[None]:
    """While inside, operations that need other memory on a GPU than on the CPU take the GPU's.

    Autocast computes PyTorch's norms in float32 there, dropout keeps a mask of one byte an element, and attention (where ``values`` are not
    needed, or it would have to be computed) makes no matrix of queries by keys.
    """
    norms = [module for network in networks for module in network.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),)) for norm in norms if not isinstance(norm, LayerNorm)]
    dropout, attention = F.dropout, F.scaled_dot_product_attention
    F.dropout = lambda x, p=0.5, training=True, inplace=False: torch.native_dropout(x, p, training)[0] if training and p else x
    if not values:
        F.scaled_dot_product_attention = lambda query, key, value, *_, **__: _FlashAttention.apply(query, key, value)
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = dropout, attention
        for hook in hooks:
            hook.remove()
