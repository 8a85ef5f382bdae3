"""Adapter files against PEFT itself."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from bayeslora_cli.export.formats.peft_adapter import save_peft_adapter
from bayeslora_cli.models.backbones.loading import load_tokenizer
from tests.conftest import KINDS
from tests.support.networks import batch_of, build, logits, randomise


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("method", ["adalora", "lora"])
def test_the_adapter_opens_in_plain_peft_with_the_same_logits(kind, method, backbone, tmp_path):
    """Whatever the checkpoint lacked: the base is drawn again under another seed."""
    criterion = "snr" if method == "adalora" else None
    network, config = build(
        backbone(kind), method=method, criterion=criterion, init_rank=2 if criterion is None else 3
    )
    randomise(network)
    if method == "lora":
        network.bank.mask.fill_(1)
    expected = logits(network, batch_of())
    save_peft_adapter(network, config, network.bank.mean, network.bank.mask, tmp_path / "adapter")

    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = model(**batch_of()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1, "logits near zero would prove nothing"


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
def test_adapter_files_have_pefts_own_keys(kind, backbone, tmp_path):
    """What PEFT itself saves for the same model has the same tensor names and shapes."""
    from safetensors import safe_open

    # a whole checkpoint, so that nothing but the head is saved whole
    whole = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    whole.save_pretrained(tmp_path / "whole")
    load_tokenizer(backbone(kind)).save_pretrained(tmp_path / "whole")
    network, config = build(str(tmp_path / "whole"))
    save_peft_adapter(network, config, network.bank.mean, network.bank.mask, tmp_path / "ours")
    peft = get_peft_model(whole, AdaLoraConfig(task_type=TaskType.SEQ_CLS, init_r=3, total_step=10))
    peft.save_pretrained(tmp_path / "theirs")

    def shapes(directory):
        with safe_open(directory / "adapter_model.safetensors", "pt") as file:
            return {k: tuple(file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118

    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")
