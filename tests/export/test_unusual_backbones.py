"""Backbones that are more than weights: their own code, another side of padding, experts."""

from __future__ import annotations

import json
import re
import shutil
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.backbone_trials import FORMATS, opened, rows, try_model
from tests.support.tiny_models import IDS, SIZES, save_tiny_model, tiny_tokenizer


def test_a_tokenizer_that_pads_on_the_left(tmp_path):
    """What the run pads on the right an export does too, whatever the backbone's tokenizer says."""
    save_tiny_model("gpt2", tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path / "model")
    outcome = try_model("gpt2", tmp_path, ("lora", "merged"))
    assert not outcome.wrong()
    assert not outcome.missing()
    assert outcome.padding <= outcome.bound
    (merged,) = tmp_path.glob("runs/**/export/merged")
    own = AutoTokenizer.from_pretrained(merged)
    assert own.padding_side == "right"
    model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    texts = [text for text, _ in rows(8)]
    with torch.no_grad():
        padded = model(**own(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**own([text], return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_tokenizer_without_the_end_token_that_the_head_reads(kind, tmp_path):
    save_tiny_model(kind, tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    tokenizer.save_pretrained(tmp_path / "model")
    assert re.fullmatch(
        r"(T5|Bart)ForSequenceClassification does not take these rows: "
        r"(index -1 is out of bounds.*|"  # older transformers
        ".*; its tokenizer has to put its end token behind each text)",
        str(try_model(kind, tmp_path, ()).refused),
    )


CONFIGURATION = """
    from transformers import PretrainedConfig

    class BagConfig(PretrainedConfig):
        model_type = "bag_of_words"

        def __init__(self, vocab_size=300, hidden_size=32, **kwargs):
            self.vocab_size, self.hidden_size = vocab_size, hidden_size
            super().__init__(**kwargs)
"""
MODEL = """
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    from .configuration_bag import BagConfig

    class BagForSequenceClassification(PreTrainedModel):
        config_class = BagConfig
        base_model_prefix = "bag"

        def __init__(self, config):
            super().__init__(config)
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
            self.up = nn.Linear(config.hidden_size, 48)
            self.down = nn.Linear(48, config.hidden_size)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
            self.post_init()

        def forward(self, input_ids, attention_mask, **kwargs):
            x = self.embed(input_ids)
            x = x + self.down(torch.relu(self.up(x)))
            mask = attention_mask.unsqueeze(-1).to(x.dtype)
            return SequenceClassifierOutput(
                logits=self.classifier((x * mask).sum(1) / mask.sum(1))
            )
"""


def test_a_local_model_with_code_of_its_own(tmp_path, monkeypatch):
    """Each export, and the run's adapter, brings the code; the cards open them."""
    model = tmp_path / "model"
    tiny_tokenizer().save_pretrained(model)
    (model / "configuration_bag.py").write_text(dedent(CONFIGURATION))
    (model / "modeling_bag.py").write_text(dedent(MODEL))
    config = {
        "model_type": "bag_of_words",
        "architectures": ["BagForSequenceClassification"],
        "vocab_size": SIZES["vocab_size"],
        "pad_token_id": IDS["pad"],
        "auto_map": {
            "AutoConfig": "configuration_bag.BagConfig",
            "AutoModelForSequenceClassification": "modeling_bag.BagForSequenceClassification",
        },
    }
    (model / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    drawn = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(model, trust_remote_code=True), trust_remote_code=True
    )
    state = {n: v for n, v in drawn.state_dict().items() if not n.startswith("classifier")}
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})

    refused = try_model("bag", tmp_path).refused
    assert refused is not None
    assert "--trust-remote-code runs it, if you trust its author" in refused
    outcome = try_model("bag", tmp_path, trust_remote_code=True)
    assert outcome.refused is None
    assert not outcome.wrong()
    assert not outcome.missing()
    assert outcome.exports.keys() == {"adapter", *FORMATS}
    assert outcome.effect > 10 * outcome.bound
    (merged,) = tmp_path.glob("runs/**/export/merged")
    shutil.move(merged, tmp_path / "elsewhere")
    shutil.rmtree(model)
    assert opened(tmp_path / "elsewhere")["model"].config.model_type == "bag_of_words"


@pytest.mark.filterwarnings("ignore")  # of PEFT, about these experts
def test_experts_that_peft_cannot_adapt_name_the_form_that_holds_them(tmp_path):
    """PEFT 0.21 takes plain LoRA on shared experts for one on the others, without an error."""
    save_tiny_model("deepseek_v3", tmp_path / "model")
    options = {"method": "lora", "criterion": None, "lr": 0.3}
    outcome = try_model("deepseek_v3", tmp_path, ("lora", "merged"), **options)
    assert "merged" not in outcome.missing() | outcome.wrong()
    (run,) = (path.parent for path in tmp_path.glob("runs/**/result.json"))
    if outcome.exports["adapter"] > outcome.bound:
        (said,) = (line for line in outcome.warned if line.startswith("adapter/"))
        assert said.endswith("`bayeslora export --format merged` holds it")
        assert said in (run / "README.md").read_text(encoding="utf-8")
        assert outcome.missing()["lora"].endswith("; --format merged needs no PEFT")
    else:  # another version of PEFT
        assert "lora" not in outcome.missing() | outcome.wrong()
