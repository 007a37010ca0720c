"""Count the memory and the work of a training step without a GPU.

Memory: every storage that an operation makes is added when it appears and subtracted when it is freed. So the
peak is exact for all tensors, including parameters, gradients and optimiser state. Other memory of a GPU is
not counted: the CUDA context, the rounding and gaps of the caching allocator, and workspace inside kernels,
mostly cuDNN's.

Work: every operation except views is counted to read its inputs and write its outputs once. Matrix products
and convolutions also have floating-point operations.

A step can be counted while it really runs on the CPU, or with shapes only (:func:`shapes_only`). Then nothing
is computed or stored, and any batch is counted in seconds on any machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
from mrt.engine import build
from mrt.engine.live_bytes import networks_of
from mrt.engine.step import Learner
from mrt.losses import Matches, Matching
from mrt.models import position
from mrt.models.fast.precision import LayerNorm


@dataclass(frozen=True)
class Operation:
    """One call of an operation.

    Attributes:
        name: of the operation.
        dtype: of its (first) result.
        bytes: read and written.
        flops: floating-point operations, of products only.
        samples: of deformable attention, the values that it interpolates (N * Q * M * L * P * D), else 0.
    """

    name: str
    dtype: torch.dtype
    bytes: int
    flops: int
    samples: int = 0


NO_KERNEL = re.compile(r"aten::(empty|new_empty|_local_scalar_dense|is_pinned)")
# These write their first argument without reading it.
ONLY_WRITES = re.compile(r"aten::(copy_|fill_|zero_|bernoulli_|uniform_|normal_|random_)$")


class Work(TorchDispatchMode):
    """Inside this context, lists each operation for which a GPU would run a kernel, in ``operations``.

    Some run several kernels. These are the operations that make a new tensor or write to one; views do
    neither. The floating-point operations of the gradients of grouped convolutions are those of PyTorch's
    counter, which counts too many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result, kwargs = function(*args, **(kwargs or {})), kwargs or {}
        name, parameters = function._schema.name, function._schema.arguments
        given = list(zip(parameters, args, strict=False))
        given += [(item, kwargs[item.name]) for item in parameters if item.name in kwargs]
        outputs = [value for item, value in given if item.alias_info is not None and item.alias_info.is_write]
        written = _tensors(outputs)
        read = _tensors((args[1:] if ONLY_WRITES.match(name) else args, kwargs))
        known = {tensor.untyped_storage()._cdata for tensor in (*read, *written)}
        new = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known]
        made = new + written
        if not made or NO_KERNEL.match(name):
            return result
        flops = samples = 0
        if name in ("aten::linear", "aten::conv2d"):  # like the next, only seen as a whole without gradients
            flops = 2 * made[0].numel() * args[1][0].numel()
        elif name in ("aten::matmul", "aten::_addmm_activation"):
            flops = 2 * made[0].numel() * args[name == "aten::_addmm_activation"].shape[-1]
        elif function.overloadpacket in flop_registry:
            flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=result)
        elif name.startswith("mrt::ms_deform_attn_fused"):
            value, logits = (args[1], args[5]) if name.endswith("backward") else (args[0], args[4])
            samples = logits.numel() * value.shape[-1]
        moved = sum(map(_bytes, (*read, *made)))
        self.operations.append(Operation(name, made[0].dtype, moved, flops, samples))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    # The storage of an expanded tensor is smaller than its number of elements suggests.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def shapes_only(learner: Learner, labels: int) -> Iterator[None]:
    """Inside this context, tensors have shapes but no values.

    That includes the tensors of the learner, which is unusable afterwards. Two parts of a step depend on
    values. The assignment always has the same number of pairs, so any pairs are right; the number of pseudo
    labels is assumed to be ``labels`` per image.
    """
    networks = networks_of(learner)
    patched = [(Matching, "result", Matching.result), (PendingLabels, "result", PendingLabels.result)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made: dict[int, Tensor] = {}

        def emptied(tensor: Tensor) -> Tensor:
            if id(tensor) not in made:
                empty = mode.from_tensor(tensor.detach())
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                made[id(tensor)] = empty
            return made[id(tensor)]

        modules = [module for network in networks for module in network.modules()]
        tables = [table for module in modules for table in (module._parameters, module._buffers)]
        # Kept until all are replaced: the id of a freed tensor could be that of another one.
        originals = [dict(table) for table in tables]
        for table in tables:
            table.update({name: emptied(tensor) for name, tensor in table.items() if tensor is not None})
        originals.clear()
        device = learner.world.device
        learner.optimiser = build.build_optimiser(learner.config, learner.stage, learner.student, device)

        def any_labels(pending: PendingLabels) -> list[dict[str, Tensor]]:
            return [_any_labels(labels) for _ in range(len(pending._rows.result()))]

        Matching.result, PendingLabels.result = _any_pairs, any_labels
        position._kept_geometry.cache_clear()
        position._kept_level_sizes.cache_clear()
        try:
            yield
        finally:
            for owner, name, method in patched:
                setattr(owner, name, method)
            position._kept_geometry.cache_clear()  # the caches hold tensors without values
            position._kept_level_sizes.cache_clear()


def _any_pairs(matching: Matching) -> Matches:
    count = sum(min(boxes, matching.num_queries) for boxes in matching.counts)
    layers = matching.num_layers
    image, *rows = torch.zeros(1 + 2 * layers, count, dtype=torch.long).split((1, layers, layers))
    return Matches(image[0], *rows, matching.labels, matching.boxes, matching.counts, matching.num_queries)


def _any_labels(count: int) -> dict[str, Tensor]:
    return {
        "scores": torch.zeros(count),
        "labels": torch.zeros(count, dtype=torch.long),
        "boxes": torch.zeros(count, 4),
    }


def begin_moments(learner: Learner) -> None:
    """Let the optimiser make its state, as it is after the first step, without changing any weight."""
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
    """Makes the tensors of a flash attention kernel, with arbitrary values; no queries x keys matrix."""

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
    """Inside this context, operations that take other memory on a GPU than on a CPU take that of the GPU.

    On a GPU autocast computes PyTorch's norms in float32, dropout keeps a mask of one byte per element, and
    attention makes no queries x keys matrix. Attention is only replaced if ``values`` are not needed, because
    its replacement does not compute them.
    """
    hooks = []
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and not isinstance(module, LayerNorm):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),)))

    def masked_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if training and p else x

    def flash_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _FlashAttention.apply(query, key, value)

    dropout, attention = F.dropout, F.scaled_dot_product_attention
    F.dropout = masked_dropout
    if not values:
        F.scaled_dot_product_attention = flash_attention
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = dropout, attention
        for hook in hooks:
            hook.remove()
