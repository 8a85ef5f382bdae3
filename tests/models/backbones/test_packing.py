"""Packed rows against separate rows, for each architecture of the allow-list; padded ones too."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from bayeslora_cli.data.packing import collate, token_batch
from bayeslora_cli.models.backbones.packing import (
    ATTENTION,
    BY_OFFSETS,
    BY_POSITIONS,
    ENCODERS,
    prepare_for_packing,
    takes_packed_rows,
)
from bayeslora_cli.models.decoders import packed_attention
from bayeslora_cli.models.decoders.scores import PADDED, log_likelihoods
from tests.support.decoders import SIZES, token_rows
from tests.support.warm_process import ROOT

CPU = torch.device("cpu")
WINDOW = {"sliding_window": 4}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
# what differs from `SIZES`; GPT-2's relatives name everything otherwise
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66, "bos_token_id": 2,
        "eos_token_id": 3, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}  # fmt: skip
_NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
OWN = {
    "bloom": {"n_layer": 2, "n_head": 4, **_NO_DROPOUT},
    "codegen": {**_GPT, "rotary_dim": 8},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, **WINDOW},
    "falcon": {"alibi": True, "multi_query": True, **_NO_DROPOUT},
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 1.0},
    "gemma3_text": {**HEADS, **WINDOW, "query_pre_attn_scalar": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "glm": HEADS,
    "glm4": HEADS,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": 4, "embed_dropout": 0.0, "resid_dropout": 0.0, **_NO_DROPOUT},
    "gpt_neox": _NO_DROPOUT,
    "gpt_oss": {**HEADS, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": {**_GPT, "rotary_dim": 8},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0,
                "residual_multiplier": 0.5},
    "granitemoe": EXPERTS,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "ministral": {**HEADS, **WINDOW},
    "mistral": WINDOW,
    "mixtral": {"num_local_experts": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 66},
    "olmo3": {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 48, "dropout": 0.0, "word_embed_proj_dim": 32},
    "phi3": WINDOW,
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16},
    "qwen3": HEADS,
    "qwen3_moe": {**HEADS, **EXPERTS, "moe_intermediate_size": 16},
    "seed_oss": {**HEADS, "residual_dropout": 0.0, **_NO_DROPOUT},
    "starcoder2": {**WINDOW, "residual_dropout": 0.0, "embedding_dropout": 0.0},
}  # fmt: skip
UNKNOWN = "bitnet"  # of no list here: the model itself computes its logits


def build(kind, **changes):
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    config = AutoConfig.for_model(kind, **SIZES | OWN.get(kind, {}) | changes)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # usual ones are too small to tell rows apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    if kind == "gemma2":  # transformers 5.17 takes SDPA, which leaves out its softcap
        model.set_attn_implementation("eager")
    return model


def separate(model, rows):
    """Log-likelihoods by transformers' own logits, each row on its own."""
    found = []
    for i in range(len(rows)):
        inside = slice(int(rows.offsets[i]), int(rows.offsets[i + 1]))
        ids = rows.tokens[inside].long()
        aims = rows.counted[inside].nonzero().squeeze(1)
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        found.append(logits.log_softmax(-1)[aims - 1].gather(1, ids[aims, None]).squeeze(1))
    return torch.cat(found)


def batch_of(rows, indices=None):
    indices = torch.arange(len(rows)) if indices is None else indices
    return token_batch(rows, indices, int(rows.lengths.max()), CPU)


def gradients(model, values):
    """All gradients of the mean, on one scale: by each largest one of the model."""
    model.zero_grad()
    values.mean().neg().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in found.values())
    return {name: gradient / largest for name, gradient in found.items()}


def assert_same(model, rows, *, ours):
    for training in (False, True):
        model.train(training)
        want = separate(model, rows)
        expected = gradients(model, want)
        ours(model)
        got = log_likelihoods(model, batch_of(rows))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        found = gradients(model, got)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", sorted(BY_OFFSETS | BY_POSITIONS))
def test_packed_rows_are_separate_rows(kind):
    model, rows = build(kind), token_rows()
    assert_same(model, rows, ours=prepare_for_packing)
    # with what fills a batch on a GPU
    model.eval()
    with torch.no_grad():
        batch = collate(rows, torch.arange(len(rows)), 0, fixed=True)
        got, want = log_likelihoods(model, batch), log_likelihoods(model, batch_of(rows))
    torch.testing.assert_close(got[: len(want)], want, rtol=1e-5, atol=1e-5)
    assert (got[len(want) :] == 0).all()


@pytest.mark.parametrize("kind", sorted(BY_OFFSETS - {"codegen", "gptj"}))
def test_our_attention_is_used(kind):
    """The two left out take a function for attention since transformers 5.2x; before, positions
    keep their rows apart."""
    model = build(kind)
    prepare_for_packing(model)
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("kind", [*sorted(PADDED), UNKNOWN, "llama", "gemma2", "mistral", "gpt2"])
def test_padded_rows_are_separate_rows(kind):
    assert takes_packed_rows(kind) == (kind not in {*PADDED, UNKNOWN})
    assert_same(build(kind), token_rows(packed=False), ours=prepare_for_packing)


def test_transformers_own_attention_reads_the_positions():
    """As in a copy of the model that another library has opened."""
    model, rows = build("qwen2"), token_rows()
    model.set_attn_implementation("sdpa")
    assert_same(model, rows, ours=lambda model: None)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_rows_padded_for_the_attention_alone(kind, monkeypatch):
    """As a GPU computes fp32, dropout and softcaps; here on the CPU, with what fills a batch."""

    def padded(query, key, value, row_offsets, *more):
        return packed_attention._padded(query, key, value, row_offsets, 64, *more)

    monkeypatch.setattr(packed_attention, "_row_by_row", padded)
    model, rows = build(kind).train(), token_rows()
    want = separate(model, rows)
    expected = gradients(model, want)
    prepare_for_packing(model)
    batch = collate(rows, torch.arange(len(rows)), 0, fixed=True)
    got = log_likelihoods(model, batch)[: len(want)]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, got).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_rows_do_not_depend_on_the_others():
    model, rows = build("mistral"), token_rows()
    prepare_for_packing(model.eval())
    with torch.no_grad():
        alone = [log_likelihoods(model, batch_of(rows, torch.tensor([i]))) for i in range(6)]
        turned = log_likelihoods(model, batch_of(rows, torch.arange(5, -1, -1)))
    torch.testing.assert_close(torch.cat(alone[::-1]), turned, rtol=1e-5, atol=1e-5)


def test_dropout_of_attention_weights():
    """It is drawn, and a fixed seed repeats it."""
    model, rows = build("gpt2", attn_pdrop=0.5), token_rows()
    prepare_for_packing(model.train())
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(log_likelihoods(model, batch_of(rows)).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("kind", ["llama", *sorted(BY_POSITIONS)])
def test_gradient_checkpointing_keeps_rows_apart(kind):
    rows = token_rows()
    found = []
    for checkpointing in (False, True):
        model = build(kind).train()
        prepare_for_packing(model)
        if checkpointing:
            # transformers 5.23 renamed the method
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        found.append(gradients(model, log_likelihoods(model, batch_of(rows))))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_the_page_lists_what_packs():
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    section = page.partition("## Packed rows\n")[2].partition("\n## ")[0]
    lists = [part for part in section.split("\n- **") if " that pack**" in part]
    found = [set(re.findall("`([^`]+)`", part)) - {"conv_kernel_size"} for part in lists]
    assert found == [set(ENCODERS), set(BY_OFFSETS), set(BY_POSITIONS)]
