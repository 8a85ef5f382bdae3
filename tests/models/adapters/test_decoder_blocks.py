"""Joint projections and gated MLPs in decoders: the values and gradients of separate layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.decoder_blocks import GatedMlp, join_blocks
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.adapters.published_factors import PublishedFactors

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    # joints and gated MLPs of two blocks
    "llama": (4, 2), "mistral": (4, 2), "qwen2": (4, 2), "qwen3": (4, 2), "olmo2": (4, 2),
    "granite": (4, 2), "smollm3": (4, 2), "gemma2": (4, 0), "gemma3_text": (4, 0),
    "phi3": (0, 2), "phi": (2, 0), "gpt_neox": (0, 0), "gpt2": (0, 0),
}  # fmt: skip


def decoder(kind, *, targets=None):
    """A tiny decoder with adapters on all linear layers of its blocks, or on the named ones."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    module.requires_grad_(False)
    layers = {}
    for name, child in list(module.named_modules()):
        last = name.rpartition(".")[2]
        if not isinstance(child, torch.nn.Linear) or name == "lm_head" or "embed_out" in name:
            continue
        if targets is not None and last not in targets:
            continue
        layer = LowRankLinear(DenseLinear(child), 2, 0.5, singular_values=True)
        for parameter in (layer.lora_A, layer.lora_B, layer.lora_E):
            parameter.data = 0.4 * torch.randn_like(parameter)
        setattr(module.get_submodule(name.rpartition(".")[0]), last, layer)
        layers[name] = layer
    return module, layers


def loss_of(module):
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    return module(input_ids=ids, use_cache=False).logits.sin().sum()


def published(module, layers):
    """The bank of a joined decoder."""
    joints = join_blocks(module)
    matrices = [Matrix(name=name, a=x.lora_A, b=x.lora_B, e=x.lora_E) for name, x in layers.items()]
    bank = AdapterBank(matrices, [], posterior=False)
    bank.factors = PublishedFactors(bank, list(layers.values()), torch.float32, joints)
    return bank, joints


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_separate_layers(kind):
    module, layers = decoder(kind)
    if not layers:
        pytest.skip("no layer of torch's class")
    expected = loss_of(module)
    expected.backward()
    plain = {f"{n}.{p}": getattr(x, p).grad for n, x in layers.items()
             for p in ("lora_A", "lora_B", "lora_E")}  # fmt: skip
    module, layers = decoder(kind)
    bank, joints = published(module, layers)
    mlps = [child for child in module.modules() if isinstance(child, GatedMlp)]
    assert (len(joints), len(mlps)) == KINDS[kind]
    for _ in range(2):
        bank.zero_local()
        found = loss_of(module)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        found.backward()
        bank.collect()
    for segment in bank.segments.values():
        found, wanted = segment.view(bank.local), plain[segment.name]
        assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-5, segment.name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # in torch's tracing
def test_a_block_is_one_compiled_graph():
    module, layers = decoder("llama")
    bank, _ = published(module, layers)
    expected = loss_of(module)
    expected.backward()
    bank.collect()
    wanted = bank.local.clone()
    torch._dynamo.reset()
    for block in module.model.layers:
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    bank.zero_local()
    found = loss_of(module)
    found.backward()
    bank.collect()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank.local, wanted, rtol=1e-4, atol=1e-4)
    assert not any(layer.shared and layer.shared.x is not None for layer in layers.values())


def test_layers_called_with_different_inputs_are_right():
    """Then each call computes all of them."""
    module, layers = decoder("llama", targets=["q_proj", "v_proj"])
    first, second = torch.randn(2, 3, 16)
    q, v = [*layers.values()][:2]
    expected = [q(first), v(second), q(second), v(second)]
    _, joints = published(module, layers)
    assert [len(joint.layers) for joint in joints] == [2, 2]
    found = [q(first), v(second), q(second), v(second)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
