"""Blocks that are compiled with their recomputation: what the second pass leaves out."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.methods.recomputation import recompute_blocks
from bayeslora_cli.models.kernels.decoder.gated_mlp import Adapted, gated_mlp
from bayeslora_cli.models.kernels.frozen.arithmetic import DENSE, Frozen

WIDTH, INNER = 8, 12


class Block(nn.Module):
    """A norm and a gated MLP, with what transformers' `GradientCheckpointingLayer` has."""

    gradient_checkpointing = False

    def __init__(self):
        super().__init__()
        shapes = {"wide": (2 * INNER, WIDTH), "narrow": (WIDTH, INNER)}
        self.frozen, self.factors = nn.ParameterDict(), nn.ParameterDict()
        for name, (height, width) in shapes.items():
            self.frozen[name] = nn.Parameter(torch.randn(height, width), requires_grad=False)
            self.factors[f"{name}_down"] = nn.Parameter(torch.randn(2, width))
            self.factors[f"{name}_up"] = nn.Parameter(torch.randn(height, 2))

    def layer(self, name):
        weight = self.frozen[name]
        frozen = Frozen((weight,), (len(weight),), DENSE, None)
        return Adapted(frozen, self.factors[f"{name}_down"], self.factors[f"{name}_up"])

    def compute(self, x):
        normed = nn.functional.rms_norm(x, x.shape[-1:])
        return x + gated_mlp(normed, self.layer("wide"), self.layer("narrow"))


class Newer(Block):
    """Recomputes inside of `forward`, as transformers 5.24 does."""

    def forward(self, x):
        if self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.compute, x)
        return self.compute(x)


class Older(Block):
    """Recomputes around its call, as transformers 5.17 does."""

    def __call__(self, x):
        if self.gradient_checkpointing:
            return self._gradient_checkpointing_func(partial(super().__call__), x)
        return super().__call__(x)

    def forward(self, x):
        return self.compute(x)


class Model(nn.Module):
    """Blocks, and the methods that `recompute_blocks` calls."""

    def __init__(self, kind):
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def gradient_checkpointing_enable(self, options):
        for layer in self.layers:
            layer.gradient_checkpointing = True
            call = partial(torch.utils.checkpoint.checkpoint, **options)
            layer._gradient_checkpointing_func = call

    def disable_input_require_grads(self):
        """Nothing: no embedding asks for a gradient."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("what", ["blocks", "selective"])
@pytest.mark.parametrize("kind", [Newer, Older])
def test_the_last_product_is_left_out(kind, what, monkeypatch):
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def listed(graph, _):
        graphs.append(Counter(str(n.target).removeprefix("bayeslora.") for n in graph.graph.nodes))
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=listed, bw_compiler=listed, partition_fn=min_cut_rematerialization_partition
    )
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: original(*a, **k, backend=backend))
    torch.manual_seed(0)
    model, x = Model(kind).train(), torch.randn(5, WIDTH)
    leaves = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(model(x).square().sum(), leaves)
    recompute_blocks(model, what, torch.device("cuda"))  # a CPU's dropout is not compiled
    torch._dynamo.reset()
    compile_blocks(model, dynamic=None)
    found = torch.autograd.grad(model(x).square().sum(), leaves)
    torch._dynamo.reset()
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    forward, backward = graphs  # both blocks share them
    assert forward["gated_mlp_narrow.default"] == 1
    again = {name.removeprefix("gated_mlp_"): n for name, n in backward.items() if "mlp" in name}
    assert again.pop("wide_backward.default") == again.pop("middle_backward.default") == 1
    assert again == ({"wide.default": 1, "middle.default": 1} if what == "blocks" else {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["dropout", "attention_dropout"])
def test_blocks_with_dropout_are_recomputed_outside_of_the_compiled_code(name):
    model = Model(Older)
    setattr(model.layers[0], name, nn.Dropout(0.1) if name == "dropout" else 0.1)
    recompute_blocks(model, "blocks", torch.device("cuda"))
    before = [layer._gradient_checkpointing_func for layer in model.layers]
    compile_blocks(model, dynamic=None)
    assert [layer._gradient_checkpointing_func for layer in model.layers] == before
    assert not torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint
