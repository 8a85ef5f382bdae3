"""What backbones may ask of an adapted layer, as of the layer that it replaces."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from tests.conftest import VOCABULARY, tiny_tokenizer
from tests.support.networks import build, logits


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), Conv1D(3, 5)])
def test_weight_bias_and_sizes_are_the_layers(layer):
    adapted = LowRankLinear(DenseLinear(layer), 2, 1.0, singular_values=True)
    assert adapted.weight.data_ptr() == layer.weight.data_ptr()
    assert adapted.weight.shape == layer.weight.shape
    assert adapted.bias is layer.bias
    assert (adapted.in_features, adapted.out_features) == (5, 3)
    assert set(dict(adapted.named_parameters())) >= {"lora_A", "base_layer.weight"}
    assert "weight" not in dict(adapted.named_parameters())


def test_t5_which_asks_for_its_weights_type_is_adapted_with_the_defaults(tmp_path):
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    T5ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    network, _ = build(str(tmp_path))
    assert {n.rpartition(".")[2] for n in network.adapters} == {"q", "k", "v", "o", "wi", "wo"}
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    found = logits(network, {"input_ids": ids, "attention_mask": (ids != 0).long()})
    assert found.shape == (2, 3)
    assert found.isfinite().all()
