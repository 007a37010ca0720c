"""engine.compile and engine.checkpointing change nothing but speed and memory."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from test_plain_step import STAGES, assert_same, batches_of, config, make_learner, set_thresholds
from torch import nn

from mrt.domains import TARGET
from mrt.engine import compiling
from mrt.engine.compiling import Compiler
from mrt.engine.report import Watcher
from mrt.engine.step import training_step
from mrt.errors import MrtError
from mrt.models.backbone import build_backbone
from mrt.models.fast.precision import as_products_take_it
from mrt.models.transformer import EncoderLayer


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def fresh():
    """Nothing is compiled yet, and nothing stays."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def take_steps(batches, compiler: Compiler | None = None, checkpointing: bool = False, **changes):
    learner = make_learner(config("demo's kind", **changes), STAGES["teach+mae"])
    learner.student.detector.set_checkpointing(checkpointing)
    if compiler is not None:
        learner.compiler = compiler
        compiler.compile(learner.student, learner.teacher.module)
    set_thresholds(learner, batches[0][0][TARGET])
    torch.manual_seed(1)
    return learner, [training_step(learner, micro, 0.8, 0.7) for micro in batches]


def compiled_frames() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_is_eager(fresh):
    """The whole step, domains of two sizes. Traced and differentiated as for inductor, without its kernels,
    which take minutes.
    """
    batches = batches_of("two sizes")
    compiler = Compiler("on", torch.device("cpu"), backend="aot_eager")
    assert_same(take_steps(batches, compiler), take_steps(batches))
    assert compiled_frames() >= 10 and not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
def test_inductors_kernels_are_eager(fresh, amp):
    """An encoder layer, its gradients, and the masked values of the autoencoder's pass."""
    settings = {
        "hidden_dim": 16,
        "num_levels": 2,
        "num_heads": 2,
        "num_points": 2,
        "feedforward_dim": 32,
        "dropout": 0.0,
    }
    layer = EncoderLayer(**settings)
    with torch.no_grad():
        layer.self_attn.sampling_offsets.bias.add_(0.3)  # off the cells' borders, where gradients jump
    shapes, cells = ((4, 6), (2, 3)), 30
    cotangent = torch.randn(
        2, cells, 16
    )  # not the output's squares: a norm's have the same sum whatever it sees
    inputs = (
        torch.randn(2, cells, 16),
        torch.randn(1, cells, 16),
        torch.rand(2, cells, 2, 2),
        shapes,
        torch.rand(2, cells) < 0.5,
    )

    def run() -> list[torch.Tensor]:
        layer.zero_grad()
        tokens = inputs[0].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = layer(as_products_take_it(tokens), as_products_take_it(inputs[1]), *inputs[2:])
        (output.float() * cotangent).sum().backward()
        return [output.detach(), tokens.grad, *(parameter.grad.clone() for parameter in layer.parameters())]

    plain = run()
    Compiler("on", torch.device("cpu")).compile(SimpleNamespace(compile_regions=lambda: [layer]))
    compiled = run()
    assert compiled_frames() == 2, "this layer, and the one that the compiler is tried on"
    assert not torch._dynamo.utils.counters["graph_break"]
    for mine, other in zip(compiled, plain, strict=True):
        assert mine.dtype == other.dtype
        assert (mine - other).norm() <= (0.1 if amp else 1e-5) * other.norm() + 1e-5


def test_sizes_beyond_the_first_run_uncompiled_and_it_is_said_once(fresh, monkeypatch):
    monkeypatch.setattr(compiling, "SIZES", 1)
    watcher = Listener()
    compiler = Compiler("on", torch.device("cpu"), watcher, backend="aot_eager")
    mixed = [
        micro
        for sizes in ("one size", "padded target", "two sizes", "one size")
        for micro in batches_of(sizes, steps=1)
    ]
    one, two = take_steps(mixed, compiler), take_steps(mixed)
    assert_same(one, two)
    assert len(watcher.said) == 1 and "run uncompiled" in watcher.said[0] and "64x64" in watcher.said[0]
    assert {network: len(sizes) for network, sizes in compiler.sizes.items()} == {"student": 1, "teacher": 1}


def test_a_compiled_network_is_copied_and_saved_as_any_other(fresh):
    learner = make_learner(config("demo's kind"), STAGES["source"])
    keys = list(learner.student.state_dict())
    Compiler("on", torch.device("cpu"), backend="aot_eager").compile(learner.student)
    assert list(learner.student.state_dict()) == keys
    clone = copy.deepcopy(learner.student)
    layers = [module for module in clone.modules() if type(module).__name__ == "EncoderLayer"]
    assert layers and all(layer._compiled_call_impl is None for layer in layers)


def test_trying_the_compiler_draws_no_random_number(fresh):
    """Else a compiled run would see other masks and dropout than an uncompiled one."""
    before = torch.get_rng_state()
    assert Compiler("on", torch.device("cpu")).active
    assert torch.equal(before, torch.get_rng_state())


def test_auto_compiles_on_gpus_only():
    assert not Compiler("auto", torch.device("cpu")).active
    assert not Compiler("off", torch.device("cpu")).active


def test_without_a_working_compiler(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nmore of it")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(MrtError, match="does not work here: no C\\+\\+ compiler"):
        Compiler("on", torch.device("cpu"))
    watcher = Listener()
    cuda = type("Device", (), {"type": "cuda"})()
    monkeypatch.setattr(compiling, "_problem", lambda device: "no C++ compiler")
    assert not Compiler("auto", cuda, watcher).active
    assert "uncompiled (no C++ compiler)" in watcher.said[0]


def test_checkpointing_gives_the_same_gradients():
    """With dropout: what is computed again draws the same random numbers."""
    batches = batches_of("padded alike")
    assert_same(
        take_steps(batches, checkpointing=True, **{"model.dropout": 0.1}),
        take_steps(batches, **{"model.dropout": 0.1}),
    )


def test_checkpointing_keeps_less(monkeypatch):
    def kept(checkpointing: bool) -> int:
        learner = make_learner(config("demo's kind", **{"model.backbone": "resnet18"}), STAGES["source"])
        learner.student.detector.set_checkpointing(checkpointing)
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            learner.student.detector(torch.randn(2, 3, 96, 128))
        return sum(sizes.values())

    assert kept(True) < 0.6 * kept(False)


def test_a_backbone_that_cannot_checkpoint_says_so():
    backbone = build_backbone("tf_efficientnet_lite0", weights="none")
    backbone.set_checkpointing(True)  # timm's can
    backbone.body = nn.Identity()
    with pytest.raises(MrtError, match="cannot compute its activations twice"):
        backbone.set_checkpointing(True)
