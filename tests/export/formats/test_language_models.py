"""Exports of language models: logits of tokens agree, tied and untied, fused layers, experts."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bayeslora_cli.export.formats.peft_adapter import PeftAdapter
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.export.verification import (
    LAST_TOKENS,
    batches_of,
    beginnings,
    compared,
    drop_unsupported_quantizers,
)
from bayeslora_cli.models.adapters.plain_lora import kind_of
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.task import Task
from tests.support import written_exports
from tests.support.decoders import CAUSAL, save_decoder, token_rows
from tests.support.networks import build, randomise

TASK = Task(
    name="custom", text_columns=("messages",), label_column="", classes=(),
    metrics=("perplexity",), selecting="nll", objective="causal",
)  # fmt: skip
MODELS = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gpt2": {},
    "phi3": {},
    "gemma2": {"head_dim": 8},
    "mixtral": {"num_local_experts": 2},
}
FORMS = {
    "adalora": ExportOptions(format="adalora"),
    "lora": ExportOptions(format="lora"),
    "lora-patterns": ExportOptions(format="lora", patterns=True),
    "merged": ExportOptions(format="merged"),
}


export = partial(written_exports.export, task=TASK, rows=6)


@pytest.mark.parametrize("kind", MODELS)
def test_every_format_opens_in_plain_peft_or_transformers(kind, tmp_path):
    model = save_decoder(tmp_path / "model", kind, **MODELS[kind])
    for name, options in FORMS.items():
        network, config = build(model, CAUSAL)
        randomise(network)
        check = export(network, config, options, tmp_path / name)
        assert check.rows == 6
        assert check.largest_logit > 0.05, "logits near zero would prove nothing"


RANKS = st.one_of(
    st.lists(st.integers(0, 4), min_size=14, max_size=14),
    # kinds of matrices that are all empty
    st.lists(st.integers(0, 4), min_size=7, max_size=7).map(lambda kinds: 2 * kinds),
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A network of 14 matrices, of which the adapter formats change nothing."""
    model = save_decoder(tmp_path_factory.mktemp("model"), "llama", tie_word_embeddings=True)
    network, config = build(model, CAUSAL, init_rank=4)
    randomise(network)
    return network, config


@settings(max_examples=3, deadline=None)
@given(RANKS)
@example([0] * 14)
@example([4, 0, 4, 0, 1, 2, 3] * 2)
@example([0] * 13 + [1])
def test_any_ranks_survive_in_the_forms_that_servers_read(adapted, ranks):
    network, config = adapted
    for row, rank in zip(network.bank.mask, ranks, strict=True):
        row.copy_(torch.arange(4).flip(0) < rank)
    kept = {kind_of(n) for n, rank in zip(network.adapters, ranks, strict=True) if rank}
    with tempfile.TemporaryDirectory() as directory:
        for name in ("lora", "gguf"):
            export(network, config, ExportOptions(format=name), Path(directory) / name)
        written = json.loads((Path(directory) / "lora" / "adapter_config.json").read_text())
        tensors = load_file(Path(directory) / "lora" / "adapter_model.safetensors")
        read = GGUFReader(Path(directory) / "gguf" / "adapter.gguf").tensors
    assert (written["r"], written["lora_alpha"]) == (8, 8)
    assert written["rank_pattern"] == written["alpha_pattern"] == {}
    if kept:
        assert set(written["target_modules"]) == kept, "one name per kind, if it has any rank"
        assert len(read) == 2 * sum(map(bool, ranks)), "zeros would cost llama.cpp time"
    assert len(tensors) == 4 * len(written["target_modules"]), "zeros where a rank is 0"


def stored(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("changes", [{}, {"method": "full", "criterion": None, "init_rank": None}])
def test_a_tied_weight_is_stored_once(changes, tmp_path):
    """And stays tied: it is trained as one (`full`), or not at all."""
    model = save_decoder(tmp_path / "model", "qwen2", tie_word_embeddings=True)
    if changes:
        changes = {"method": "full", "optimizer": "adamw", "criterion": None}
    network, config = build(model, CAUSAL, **changes)
    assert network.module.lm_head.weight is network.module.model.embed_tokens.weight
    if changes:
        generator = torch.Generator().manual_seed(1)
        network.bank.mean.add_(torch.empty(network.bank.size).normal_(std=0.1, generator=generator))
        network.bank.publish()
    else:
        randomise(network)
    export(network, config, FORMS["merged"], tmp_path / "export")
    assert "lm_head.weight" not in stored(tmp_path / "export")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert found.config.tie_word_embeddings
    assert found.config.use_cache
    assert found.lm_head.weight is found.model.embed_tokens.weight


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")  # older PEFT
def test_an_adapted_output_layer_is_untied_by_a_merge(tmp_path):
    """Its adapter is not the embeddings'; in PEFT's form it stays an adapter."""
    model = save_decoder(tmp_path / "model", "llama", tie_word_embeddings=True)
    for name, options in FORMS.items():
        network, config = build(model, CAUSAL, target_modules=("q_proj", "lm_head"))
        randomise(network)
        network.bank.mask.fill_(1)
        export(network, config, options, tmp_path / name)
    assert "lm_head.weight" in stored(tmp_path / "merged")
    assert not AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


def test_only_the_last_tokens_of_a_row_are_compared():
    logits = torch.arange(3 * 12 * 2.0).view(3, 12, 2)
    lengths = torch.tensor([12, 9, 3])
    mask = (torch.arange(12) < lengths[:, None]).long()
    found = compared(logits, {"attention_mask": mask})
    rows = [logits[i, max(0, n - LAST_TOKENS) : n] for i, n in enumerate(lengths.tolist())]
    assert torch.equal(found, torch.cat(rows))
    assert compared(logits[:, 0], {"attention_mask": mask}).shape == (3, 2)


def test_choices_of_quantized_operands_are_not_counted_as_decisions(tmp_path):
    """The logits that are compared are of words."""
    network, _ = build(
        save_decoder(tmp_path), build_objective("choice", ("A", "B")), method="blora",
        optimizer="adamw", criterion=None, init_rank=4, target_rank=4,
    )  # fmt: skip
    network.operands.mode = "fixed"
    batches = batches_of(beginnings(token_rows(packed=False), network.objective))
    loss = drop_unsupported_quantizers(network, PeftAdapter.keeps, batches)
    assert (loss.rows, loss.changed) == (6, None)
