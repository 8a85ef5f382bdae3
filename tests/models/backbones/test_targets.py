"""Which layers of a backbone are adapted."""

from __future__ import annotations

import pytest
from peft import AdaLoraConfig, TaskType, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.targets import match_targets
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
        (("LayerNorm",), "is no linear layer"),
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
