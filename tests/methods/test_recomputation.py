"""What is computed a second time in the backward pass, and what is kept."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bayeslora_cli.data.batching import Feed
from tests.support.decoders import CAUSAL, token_rows
from tests.support.networks import LABELS, batch_of, build

CPU = torch.device("cpu")


class Counting(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["off", "blocks", "selective"])
def test_selective_recomputes_attention_and_norms_but_no_products(what, backbone):
    network, _ = build(
        backbone("llama"), CAUSAL, criterion="snr",
        gradient_checkpointing=what,
    )  # fmt: skip
    network.module.train()
    batch = Feed(token_rows(), CPU).batch(torch.arange(4))
    batch.pop("count")
    network.bank.zero_local()
    with Counting() as counting:
        network.objective.loss(network.logits(batch), batch).backward()
    found, blocks = counting.found, network.module.config.num_hidden_layers
    twice = {"off": 1, "blocks": 2, "selective": 1}[what]
    assert found["bayeslora::gated_mlp_wide"] == twice * blocks
    # what is between the products is cheap; nothing needs the result of the second one again
    assert found["bayeslora::gated_mlp_middle"] == (1 if what == "off" else 2) * blocks
    assert found["bayeslora::gated_mlp_narrow"] == blocks
    assert found["bayeslora::low_rank_linear"] == twice * 2 * blocks  # q, k and v together, and o
    norms = 2 * blocks + 1  # the last one is in no block
    assert found["aten::rsqrt"] == norms + (what != "off") * 2 * blocks


@pytest.mark.parametrize("what", ["blocks", "selective"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_first_block_computes_no_gradient_of_its_input(kind, what, backbone):
    """As without recomputation: nothing before it is trained, and the kernels are the same."""
    causal = kind == "llama"
    network, _ = build(
        backbone(kind), CAUSAL if causal else LABELS, gradient_checkpointing=what
    )  # fmt: skip
    name = "model.layers.0" if causal else "bert.encoder.layer.0"
    asked = []
    network.module.get_submodule(name).register_forward_pre_hook(
        lambda _, args: asked.append(args[0].requires_grad)
    )
    batch = Feed(token_rows(), CPU).batch(torch.arange(4)) if causal else batch_of()
    batch.pop("count", None)
    network.bank.zero_local()
    network.module.train()
    network.logits(batch).float().sum().backward()
    assert set(asked) == {False}
