"""Which layers of a backbone are adapted."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig

from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.targets import head_modules, is_adaptable, match_targets
from tests.conftest import KINDS
from tests.support.networks import build

DEFAULTS = {  # by PEFT's AdaLoRA mapping; all linear layers outside the head where it has none
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    "bert": ["query", "value"],
    "roberta": ["query", "key", "value", "dense"],
    "mpnet": ["q", "k", "v", "o", "dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "pre_classifier"],
    "electra": ["query", "key", "value", "dense", "embeddings_project"],
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_default_targets(kind, backbone):
    network, _ = build(backbone(kind))
    endings = {name.rpartition(".")[2] for name in network.adapters}
    assert endings == set(DEFAULTS[kind])
    assert not any(name.startswith("classifier") for name in network.adapters)


def test_deberta_has_the_papers_matrices(backbone):
    """6 a layer and the pooler: 73 at 12 layers."""
    network, _ = build(backbone("deberta-v2"))
    assert len(network.adapters) == 2 * 6 + 1
    assert "pooler.dense" in network.adapters


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "roberta"])
def test_targets_are_pefts(kind, backbone):
    """The same layers as PEFT's AdaLoRA adapts, without its match inside RoBERTa's head."""
    network, _ = build(backbone(kind))
    module = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    peft = get_peft_model(module, AdaLoraConfig(task_type=TaskType.SEQ_CLS, total_step=10))
    theirs = [n for n in peft.base_model.targeted_module_names if not n.startswith("classifier")]
    assert list(network.adapters) == theirs


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("nonsense",), "no layer of bert matches; it has dense, key, query, value"),
        (("LayerNorm",), "is not a linear layer"),
        (("classifier",), "no layer of bert matches"),
    ],
)
def test_targets_that_cannot_be(wanted, message, backbone):
    with pytest.raises(ModelError, match=message):
        build(backbone("bert"), target_modules=wanted)


def test_all_linear(backbone):
    network, _ = build(backbone("bert"), target_modules=("all-linear",))
    assert len(network.adapters) == 2 * 6 + 1


def test_match_targets_names_what_there_is(backbone):
    module = AutoModel.from_pretrained(backbone("bert"))
    with pytest.raises(ModelError, match="dense, key, query, value"):
        match_targets(module, (), ["q_proj"])


class SameLinear(nn.Linear):
    """Computes what torch's does, with code of its own, as FalconLinear."""

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class HalvedLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Pair(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.config = BertConfig()
        self.one, self.two = layers


def test_a_subclass_that_computes_the_same_is_adapted():
    before = torch.random.get_rng_state()
    for bias in (True, False):
        layer = SameLinear(7, 9, bias=bias)
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        torch.random.set_rng_state(before)
        assert is_adaptable(layer)
        assert is_adaptable(layer.to("meta"))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert {n: v.shape for n, v in layer.state_dict().items()} == {
            n: v.shape for n, v in state.items()
        }
    assert not is_adaptable(HalvedLinear(7, 9))
    assert not is_adaptable(nn.LayerNorm(7))


def test_one_layer_that_cannot_be_adapted_does_not_stop_the_others(caplog):
    module = Pair(SameLinear(4, 4), HalvedLinear(4, 4))
    with caplog.at_level("WARNING", "bayeslora"):
        assert match_targets(module, (), ["all-linear"]) == ["one"]
    assert "not adapted: 1 layers" in caplog.text
    assert "two" in caplog.text
    with pytest.raises(ModelError, match=r"two is not a linear layer with torch's own forward"):
        match_targets(module, (), ["one", "two"])
    with pytest.raises(ModelError, match="--method full"):
        match_targets(Pair(HalvedLinear(4, 4), HalvedLinear(4, 4)), (), ["all-linear"])


def test_xlms_head_is_found_and_xlnets_refused():
    xlm = AutoConfig.for_model("xlm", vocab_size=64, emb_dim=16, n_layers=1, n_heads=2)
    xlnet = AutoConfig.for_model("xlnet", vocab_size=64, d_model=16, n_layer=1, n_head=2)
    assert head_modules(AutoModelForSequenceClassification.from_config(xlm)) == (
        "sequence_summary",
    )
    with pytest.raises(ModelError, match="last position, which is padding"):
        head_modules(AutoModelForSequenceClassification.from_config(xlnet))
