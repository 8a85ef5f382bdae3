"""Adapters for llama.cpp: names, the order of rows, what the file says, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from bayeslora_cli.errors import ModelError, UserError
from bayeslora_cli.export.formats.format import kept_factors
from bayeslora_cli.export.formats.gguf_adapter import (
    ARCHITECTURES,
    GGUF,
    GGUF_FILE,
    gguf_tensors,
    interleaved,
)
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.models.adapters.plain_lora import LoraFactors
from tests.export.formats.test_language_models import export
from tests.support.decoders import CAUSAL, save_decoder
from tests.support.networks import LABELS, build, config_for, randomise

ADAPTER = ExportOptions(format="gguf")
CHANGES = {
    "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8}, "gemma3_text": {"head_dim": 8},
    "qwen3": {"head_dim": 8}, "qwen2": {"tie_word_embeddings": True},
}  # fmt: skip


def read(directory):
    """Fields and tensors, by the format's own reader."""
    reader = GGUFReader(directory / GGUF_FILE)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def trained(directory, kind="llama", **changes):
    network, config = build(
        save_decoder(directory, kind, **CHANGES.get(kind, {})), CAUSAL, **changes
    )
    randomise(network)
    return network, config


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_transformers_reader_finds_every_update_in_its_place(kind, tmp_path):
    """The reopened base has the run's logits: names, rows and columns are right."""
    network, config = trained(tmp_path / "model", kind)
    check = export(network, config, ADAPTER, tmp_path / "export")
    assert check.largest_logit > 0.05, "logits near zero would prove nothing"
    fields, _ = read(tmp_path / "export")
    assert fields["general.architecture"] == ARCHITECTURES[kind]


def test_the_file_holds_the_factors_to_the_bit(tmp_path):
    """Rank 0 is left out, rows of q and k are moved, nothing else changes."""
    network, config = trained(tmp_path / "model", "llama")
    bank = network.bank
    factors = kept_factors(network, bank.mean, bank.mask)
    export(network, config, ADAPTER, tmp_path / "export")
    fields, tensors = read(tmp_path / "export")
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 8
    assert fields["general.description"] == "; ".join(GGUF.serving(config, None, {}))
    places = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    kept = 0
    for name, (a, e, b) in factors.items():
        _, _, layer, matrix = name.split(".", 3)
        place = f"blk.{layer}.{places[matrix]}.weight"
        if not len(a):
            assert f"{place}.lora_a" not in tensors
            continue
        kept += 1
        found_a, found_b = tensors[f"{place}.lora_a"], tensors[f"{place}.lora_b"]
        assert found_a.dtype == found_b.dtype == np.float32
        rank = len(a)
        assert np.array_equal(found_a[:rank], a.numpy())
        assert not found_a[rank:].any()
        assert not found_b[:, rank:].any()
        whole = b.double() * (network.adapters[name].scale * e.double().T)
        rows = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(matrix)
        expected = whole.float() if rows is None else permuted(whole.float(), rows)
        assert np.array_equal(found_b[:, :rank], expected.numpy())
    assert len(tensors) == 2 * kept
    assert 0 < kept < len(factors), "some matrix has rank 0"


def permuted(weight, heads):
    """Row by row: what is rotated together, i and i + d / 2 of a head, becomes 2i and 2i + 1."""
    size = len(weight) // heads
    found = torch.empty_like(weight)
    for head in range(heads):
        for i in range(size // 2):
            for half in range(2):
                row = weight[head * size + i + half * (size // 2)]
                found[head * size + 2 * i + half] = row
    return found


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_a_permuted_sum_is_the_sum_of_permuted_parts(heads, half, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * half * heads
    weight, a, b = (
        torch.randint(-9, 9, shape, generator=generator).double()
        for shape in ((rows, 5), (rank, 5), (rows, rank))
    )
    whole = interleaved(weight + b @ a, heads)
    assert torch.equal(whole, permuted(weight + b @ a, heads))
    assert torch.equal(whole, interleaved(weight, heads) + interleaved(b, heads) @ a)


@pytest.mark.parametrize("kind", ["phi3", "gpt2"])
def test_fused_layers_stay_fused(kind, tmp_path):
    """GPT-2's are stored transposed in transformers; here A reads inputs as everywhere."""
    network, config = trained(tmp_path / "model", kind)
    network.bank.mask.fill_(1)
    export(network, config, ADAPTER, tmp_path / "export")
    _, tensors = read(tmp_path / "export")
    shapes = {name: t.shape for name, t in tensors.items() if "blk.0.attn_qkv" in name}
    out = 64 if kind == "phi3" else 96  # heads 4, key-value heads 2, of 8; GPT-2 has 4 of each
    assert shapes == {
        "blk.0.attn_qkv.weight.lora_a": (8, 32), "blk.0.attn_qkv.weight.lora_b": (out, 8),
    }  # fmt: skip


def test_a_run_that_kept_no_rank_is_an_adapter_of_zeros(tmp_path):
    network, config = trained(tmp_path / "model")
    network.bank.mask.fill_(0)
    export(network, config, ADAPTER, tmp_path / "export")
    _, tensors = read(tmp_path / "export")
    assert tensors
    assert not any(t.any() for name, t in tensors.items() if name.endswith("lora_b"))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapted_output_layer(tied, tmp_path):
    model = save_decoder(tmp_path / "model", "llama", tie_word_embeddings=tied)
    network, config = build(model, CAUSAL, target_modules=("q_proj", "lm_head"))
    randomise(network)
    network.bank.mask.fill_(1)
    if tied:
        with pytest.raises(ModelError, match="lm_head is the embeddings' weight"):
            export(network, config, ADAPTER, tmp_path / "export")
        return
    export(network, config, ADAPTER, tmp_path / "export")
    assert "output.weight.lora_a" in read(tmp_path / "export")[1]


def test_other_architectures_are_refused_in_one_message(tmp_path):
    model = save_decoder(tmp_path / "model", "gpt_neox")
    with pytest.raises(UserError, match=r"--format gguf: not known for gpt_neox, only for gemma, "):
        GGUF.check(config_for(model))


def test_a_head_has_no_place(backbone, tmp_path):
    network, config = build(backbone("llama"), LABELS)
    with pytest.raises(ModelError, match=r"llama\.cpp has no place for score"):
        GGUF.write(tmp_path, network, config, None, ADAPTER)
    assert not list(tmp_path.iterdir())


def test_a_module_without_a_name_is_refused():
    settings = AutoConfig.for_model("llama", num_hidden_layers=1)
    factors = {"model.adapter": LoraFactors(a=torch.zeros(1, 2), b=torch.zeros(2, 1), alpha=1)}
    with pytest.raises(ModelError, match=r"GGUF has no name for model\.adapter"):
        gguf_tensors(factors, settings)


BASES = {
    "models/tiny.gguf": ("llama-server --lora adapter.gguf --model models/tiny.gguf",),
    "owner/name/q4/tiny.gguf": (
        "llama-server --lora adapter.gguf --hf-repo owner/name --hf-file q4/tiny.gguf",
    ),
    "owner/name": (
        "python convert_hf_to_gguf.py --remote owner/name --outfile base.gguf",
        "llama-server --lora adapter.gguf --model base.gguf",
    ),
    "package:a_package/tiny.gguf": (
        "llama-server --lora adapter.gguf --model "
        "\"$(python -c 'from importlib.resources import files; "
        'print(files("a_package") / "tiny.gguf")\')"',
    ),
}


@pytest.mark.parametrize("model", BASES)
def test_how_it_is_served(model, tmp_path, monkeypatch):
    """With the very file that the run was trained on, if it was one."""
    monkeypatch.chdir(tmp_path)
    if model.startswith("models/"):
        (tmp_path / "models").mkdir()
        (tmp_path / model).touch()
    assert GGUF.serving(config_for(model), None, {}) == BASES[model]
