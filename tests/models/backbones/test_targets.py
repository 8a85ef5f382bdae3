"""Which layers of a backbone are adapted."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
)

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

    def get_output_embeddings(self):
        return None


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


# ---- language models

DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
OF_THE_BLOCKS = {
    "llama": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
    "qwen2": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


def language_model(kind, **sizes):
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **DECODER | sizes)
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", OF_THE_BLOCKS)
def test_default_targets_of_a_language_model(kind, caplog):
    """All linear layers of its blocks: not the output layer, nor OPT's projections before them."""
    module = language_model(kind, **({"word_embed_proj_dim": 16} if kind == "opt" else {}))
    names = match_targets(module, (), None)
    assert {n.rpartition(".")[2] for n in names} == set(OF_THE_BLOCKS[kind])
    assert len({n.split(".1.")[0] for n in names if ".1." in n}) == 1
    assert not caplog.records
    linear = match_targets(module, (), ["all-linear"])
    assert set(linear) - set(names) == (
        {"model.decoder.project_in", "model.decoder.project_out"} if kind == "opt" else set()
    )
    output = module.get_output_embeddings()
    (name,) = (n for n, layer in module.named_modules() if layer is output)  # mostly lm_head
    assert match_targets(module, (), [name]) == [name]


@pytest.mark.parametrize(
    ("kind", "sizes", "owner", "router", "shared"),
    [
        ("mixtral", {"num_local_experts": 4}, "mlp", "gate", []),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, "mlp", "router", []),
        ("qwen2_moe", {"num_experts": 4}, "mlp", "gate", ["gate_proj", "up_proj", "down_proj"]),
        ("llama4_text", {"num_local_experts": 2, "head_dim": 8}, "feed_forward", "router",
         ["gate_proj", "up_proj", "down_proj"]),
    ],
)  # fmt: skip
def test_experts_and_routers_are_said(kind, sizes, owner, router, shared, caplog):
    names = match_targets(language_model(kind, **sizes), (), None)
    assert {n.rpartition(".")[2] for n in names} == {*ATTENTION, *shared}
    assert f"not adapted: 4 tensors that hold all experts of a layer, model.layers.0.{owner}.exp" \
        in caplog.text  # fmt: skip
    routers = 4 if kind == "qwen2_moe" else 2  # one of the shared expert
    assert f"{routers} routers, model.layers.0.{owner}.{router} for one" in caplog.text
    assert len(caplog.records) == 1
