"""Feed-forward layers as one operator: the values and gradients of separate layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.adapters.published_factors import PublishedFactors
from bayeslora_cli.models.encoders.fused import feed_forward
from bayeslora_cli.models.encoders.fused.feed_forward import PassedOn, join_feed_forward

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
KINDS = ["bert", "roberta", "electra", "mpnet", "deberta-v2"]


def encoder(kind, *, targets=("dense",), **changes):
    """A tiny encoder with adapters on its named layers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    module = AutoModel.from_config(config, dtype=torch.float32).eval()
    module.requires_grad_(False)
    layers = {}
    for name, child in list(module.encoder.named_modules()):
        if isinstance(child, nn.Linear) and name.rpartition(".")[2] in targets:
            layer = LowRankLinear(DenseLinear(child), 2, 0.5, singular_values=True)
            for parameter in (layer.lora_A, layer.lora_B, layer.lora_E):
                parameter.data = 0.4 * torch.randn_like(parameter)
            module.encoder.get_submodule(name.rpartition(".")[0]).dense = layer
            layers[name] = layer
    return module, layers


def published(layers):
    matrices = [Matrix(name=name, a=x.lora_A, b=x.lora_B, e=x.lora_E) for name, x in layers.items()]
    bank = AdapterBank(matrices, [], posterior=False)
    bank.factors = PublishedFactors(bank, list(layers.values()), torch.float32)
    return bank


def outcome(module, bank):
    """The result, and the gradients in the bank."""
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    bank.zero_local()
    out = module(input_ids=ids)[0]
    out.sin().sum().backward()
    bank.collect()
    return [out.detach(), bank.local.clone()]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Join on a CPU as well."""
    monkeypatch.setattr(feed_forward, "_is_on_a_gpu", lambda _: True)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_separate_layers(kind, as_on_a_gpu):
    module, layers = encoder(kind)
    expected = outcome(module, published(layers))
    module, layers = encoder(kind)
    names = [name for name, _ in module.named_parameters()]
    state = list(module.state_dict())
    assert join_feed_forward(module) == 2
    bank = published(layers)
    assert [name for name, _ in module.named_parameters()] == names
    torch.testing.assert_close(outcome(module, bank), expected, rtol=1e-4, atol=1e-5)
    assert list(module.state_dict()) == state


def test_other_layers_in_their_place_are_called(as_on_a_gpu):
    """As where an export puts merged layers, or PEFT its own."""
    module, layers = encoder("bert")
    join_feed_forward(module)
    bank = published(layers)
    expected = outcome(module, bank)
    wide, narrow = (next(x for n, x in layers.items() if n.endswith(end)) for end in (
        "0.intermediate.dense", "0.output.dense"
    ))  # fmt: skip
    for layer, name in ((wide, "intermediate"), (narrow, "output")):
        plain = nn.Linear(layer.in_features, layer.out_features)
        plain.weight.data = layer.weight + layer.up @ layer.down
        plain.bias.data = layer.bias
        getattr(module.encoder.layer[0], name).dense = plain
        with torch.no_grad():
            found = module(input_ids=torch.ones(1, 3, dtype=torch.long))[0]
        getattr(module.encoder.layer[0], name).dense = layer
        with torch.no_grad():
            same = module(input_ids=torch.ones(1, 3, dtype=torch.long))[0]
        torch.testing.assert_close(found, same, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcome(module, bank), expected)


@pytest.mark.parametrize(
    ("changes", "targets"),
    [({"hidden_act": "relu"}, ["dense"]), ({"hidden_act": "gelu_new"}, ["dense"]), ({}, ["query"])],
)
def test_others_stay_as_they_are(changes, targets, as_on_a_gpu):
    module, _ = encoder("bert", targets=targets, **changes)
    assert join_feed_forward(module) == 0


def test_nothing_changes_on_a_cpu():
    module, layers = encoder("bert")
    assert join_feed_forward(module) == 0
    assert not any(isinstance(child, PassedOn) for child in module.modules())
    assert all(layer.preceding is None for layer in layers.values())
