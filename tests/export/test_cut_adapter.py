"""An adapter from elsewhere is cut by its products' singular values; PEFT reads the result."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import bayeslora_cli as bl


def model(backbone):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(backbone("bert"), num_labels=2).eval()


CONFIGS = {
    "lora": LoraConfig(
        r=4, lora_alpha=6, target_modules=["query", "dense"], task_type="SEQ_CLS",
        rank_pattern={"query": 3}, alpha_pattern={"query": 5}, exclude_modules=["pooler.dense"],
    ),
    "rslora": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["query"], task_type="SEQ_CLS"
    ),
    "adalora": AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, target_modules=["query"], total_step=10,
        task_type="SEQ_CLS",
    ),
}  # fmt: skip


@pytest.fixture
def adapter(backbone, tmp_path):
    def make(kind):
        whole = get_peft_model(model(backbone), CONFIGS[kind]).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                if ".lora_" in name and "ranknum" not in name:
                    parameter.normal_(std=0.3)
        whole.save_pretrained(tmp_path / kind)
        return whole, tmp_path / kind

    return make


def updates(whole):
    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in whole.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_cut(kind, adapter, backbone, tmp_path):
    whole, directory = adapter(kind)
    before = updates(whole)
    found = bl.cut_adapter(directory, 2, tmp_path / "cut")
    assert sum(found["ranks"].values()) == 2 * len(before) == 2 * found["matrices"]
    values = torch.cat([torch.linalg.svdvals(p) for p in before.values()])
    kept = values.sort(descending=True).values[: 2 * len(before)].square().sum()
    assert found["kept"] == pytest.approx(float(kept / values.square().sum()), rel=1e-4)
    again = PeftModel.from_pretrained(model(backbone), tmp_path / "cut")
    after = updates(again)
    error = sum((after[name] - before[name]).square().sum() for name in before)
    torch.testing.assert_close(error, values.square().sum() - kept, rtol=1e-3, atol=1e-4)
    head = {n: p for n, p in whole.named_parameters() if "classifier" in n and "modules_to" in n}
    others = dict(again.named_parameters())
    assert head
    assert all(torch.equal(value, others[name]) for name, value in head.items())


def test_refused(adapter, tmp_path):
    _, directory = adapter("rslora")
    for rank, message in ((0, "at least 1"), (5, "give 4 or less")):
        with pytest.raises(bl.errors.UserError, match=message):
            bl.cut_adapter(directory, rank, tmp_path / "cut")
    with pytest.raises(bl.errors.UserError, match="exists"):
        bl.cut_adapter(directory, 1, directory, overwrite=True)
    with pytest.raises(bl.errors.UserError, match="is no adapter"):
        bl.cut_adapter(tmp_path / "none", 1, tmp_path / "cut")
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(bl.errors.UserError, match="of kind IA3"):
        bl.cut_adapter(directory, 1, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
