"""A run's adapter is opened by plain PEFT when it is written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayeslora_cli.export import adapter_check
from bayeslora_cli.export.adapter_check import adapter_problem
from bayeslora_cli.export.formats.peft_adapter import save_peft_adapter
from bayeslora_cli.models.adapters.decoder_blocks import GatedMlp
from tests.support.decoders import CAUSAL, save_decoder, token_rows
from tests.support.networks import batch_of, build, logits, randomise


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "roberta", "gpt2"])
@pytest.mark.parametrize("method", ["adalora", "lora"])
def test_a_right_adapter_passes_and_a_wrong_one_is_told(kind, method, backbone, tmp_path):
    changes = {"criterion": None, "init_rank": 2} if method == "lora" else {}
    network, config = build(backbone(kind), method=method, **changes)
    randomise(network)
    if method == "lora":
        network.bank.mask.fill_(1)
    bank, batch = network.bank, batch_of()
    at = SimpleNamespace(mean=bank.mean.clone(), mask=bank.mask.clone())
    save_peft_adapter(network, config, at.mean, at.mask, tmp_path)
    before, state = logits(network, batch), torch.random.get_rng_state()
    assert adapter_problem(network, at, tmp_path, batch) is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(network, batch), before)
    bank.check_views()
    assert all(p.requires_grad for p in bank.parameters.values())

    file = tmp_path / "adapter_model.safetensors"
    tensors = {name: value + 0.1 for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert "with other predictions" in adapter_problem(network, at, tmp_path, batch)


@pytest.mark.parametrize("mode", ["both", "rank", "quant"])
def test_an_adapter_of_learned_widths(mode, backbone, tmp_path):
    """What it cannot hold, quantized inputs, is left out; afterwards all is quantized again."""
    network, config = build(
        backbone("bert"), method="blora", optimizer="adamw", criterion=None, init_rank=4,
        target_rank=4, blora_mode=mode,
    )  # fmt: skip
    randomise(network)
    network.operands.mode = "fixed"
    network.bank.mask.fill_(1)
    quantized, batch = network.operands.quantized, batch_of()
    at = SimpleNamespace(mean=network.bank.mean.clone(), mask=network.bank.mask.clone())
    save_peft_adapter(network, config, at.mean, at.mask, tmp_path)
    network.module.eval()
    before = logits(network, batch)
    assert adapter_problem(network, at, tmp_path, batch) is None
    assert network.operands.quantized == quantized
    assert torch.equal(logits(network, batch), before)
    file = tmp_path / "adapter_model.safetensors"
    save_file({n: v + 0.1 for n, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert "with other predictions" in adapter_problem(network, at, tmp_path, batch)


def test_few_tokens_are_compared():
    ids = torch.arange(8 * 90).view(8, 90)
    few = adapter_check._beginnings({"input_ids": ids, "labels": torch.zeros(8), "mask": ids + 1})
    assert few.keys() == {"input_ids", "mask"}
    assert torch.equal(few["input_ids"], ids[:2, :32])
    packed = {"input_ids": ids.view(1, -1), "offsets": torch.arange(9)}
    assert adapter_check._beginnings(packed).keys() == packed.keys()
    assert torch.equal(adapter_check._beginnings(packed)["offsets"], torch.arange(9))
    square = {"input_ids": torch.zeros(8, 8), "predicting": torch.arange(8)}  # a place in each row
    assert adapter_check._beginnings(square).keys() == square.keys()


def test_an_adapter_that_peft_does_not_open(backbone, tmp_path, monkeypatch):
    network, _ = build(backbone("bert"))
    at = SimpleNamespace(mean=network.bank.mean, mask=network.bank.mask)

    def refuses(*_):
        raise ValueError("no such target")

    monkeypatch.setattr(adapter_check, "adapted", refuses)
    found = adapter_problem(network, at, tmp_path, batch_of())
    assert "does not open it on this backbone: no such target" in found


@pytest.mark.parametrize("targets", [None, ("gate_proj", "up_proj", "down_proj", "lm_head")])
@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_a_decoders_adapter(kind, targets, tmp_path):
    """Its joint products and gated MLPs are not in what PEFT opens; an adapted output layer is."""
    if kind == "phi3" and targets is not None:
        targets = ("gate_up_proj", *targets[2:])
    network, config = build(save_decoder(tmp_path / "model", kind), CAUSAL, target_modules=targets)
    assert any(isinstance(m, GatedMlp) for m in network.module.modules())
    randomise(network)
    at = SimpleNamespace(mean=network.bank.mean.clone(), mask=network.bank.mask.clone())
    save_peft_adapter(network, config, at.mean, at.mask, tmp_path)
    batch = token_rows(packed=False).batch(torch.arange(4))
    before = logits(network, batch)
    beside = {"columns": torch.zeros_like(batch["targets"])}
    assert adapter_problem(network, at, tmp_path, batch | beside) is None
    empty = {name: batch[name][:0] for name in ("predicting", "targets")}  # nothing counts
    assert adapter_problem(network, at, tmp_path, batch | empty) is None
    assert torch.equal(logits(network, batch), before)
    network.bank.check_views()
