"""Names of backbones, dropout, code that comes with a model."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import BertConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.import_utils import is_tracing

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.loading import (
    check_architecture,
    load_backbone,
    load_tokenizer,
    unread,
)
from tests.conftest import DECODERS, KINDS
from tests.support.chats import byte_tokenizer
from tests.support.decoders import save_decoder
from tests.support.objectives import TWO_CLASSES


def load(directory, **changes):
    config = RunConfig(model=directory, **changes)
    module, _, _ = load_backbone(config, TWO_CLASSES, load_tokenizer(directory))
    return module


@pytest.mark.parametrize("kind", [*KINDS, *DECODERS])
def test_dropout_is_all_of_it(kind, backbone):
    """In training mode, logits repeat with none, and do not with the backbone's own."""
    ids = {"input_ids": torch.tensor([[2, 9, 17, 3]])}
    for dropout, same in ((None, False), (0.0, True), (0.4, False)):
        module = load(backbone(kind, 0.1), dropout=dropout).train()
        assert torch.equal(module(**ids).logits, module(**ids).logits) == same
    probabilities = {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}
    assert probabilities <= {0.4}


def test_code_of_a_model_is_not_run_unasked(backbone, tmp_path):
    ran = tmp_path / "ran"
    for file in (tmp_path.__class__(backbone("bert"))).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {
            "AutoConfig": "theirs.TheirConfig",
            "AutoModelForSequenceClassification": "theirs.TheirModel",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class TheirConfig(BertConfig):\n    model_type = 'of_its_own'\n"
        "class TheirModel(BertForSequenceClassification):\n    config_class = TheirConfig\n"
    )
    labels = TWO_CLASSES
    tokenizer = load_tokenizer(backbone("bert"))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_backbone(RunConfig(model=str(tmp_path)), labels, tokenizer)
    assert not ran.exists()
    module, _, _ = load_backbone(
        RunConfig(model=str(tmp_path), trust_remote_code=True), labels, tokenizer
    )
    assert ran.exists()
    assert type(module).__name__ == "TheirModel"


def test_on_a_gpu_masks_are_not_read():
    """As in a capture: of a batch without padding the mask stays."""
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    config._attn_implementation = "sdpa"
    found = []
    for device in ("cpu", "cuda"):
        with unread(torch.device(device)):
            found.append(
                create_bidirectional_mask(
                    config=config, inputs_embeds=torch.zeros(2, 3, 8),
                    attention_mask=torch.ones(2, 3, dtype=torch.long),
                )
            )  # fmt: skip
    assert found[0] is None
    assert found[1].shape == (2, 1, 3, 3)
    assert not is_tracing()


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("bert", "reads rows in both directions"),
        ("electra", "reads rows in both directions"),
        ("deberta-v2", "does not predict next tokens"),
        ("gpt2", None),
        ("llama", None),
    ],
)
def test_only_causal_models_predict_next_tokens(kind, problem, backbone):
    """An encoder would see the tokens that it is to predict."""
    name = backbone(kind)
    check_architecture(name, "AutoModelForSequenceClassification")
    if problem is None:
        check_architecture(name, "AutoModelForCausalLM")
        return
    with pytest.raises(ModelError, match=f"--model .*: {kind} {problem}"):
        check_architecture(name, "AutoModelForCausalLM")


def test_an_encoder_that_is_told_to_be_a_decoder(tmp_path):
    BertConfig(is_decoder=True).save_pretrained(tmp_path)
    check_architecture(str(tmp_path), "AutoModelForCausalLM")


def test_digits_stand_alone_where_the_tokenizers_file_says_so(tmp_path, caplog):
    """SmolLM2's: a Llama with GPT2Tokenizer, which transformers 5.24 cuts by GPT-2's rule."""
    caplog.set_level("INFO")
    save_decoder(tmp_path, vocab_size=300)
    tokenizer = byte_tokenizer(words=(" 17",))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_tokenizer(str(tmp_path))
    assert found.tokenize("x 17") == ["x", "Ġ", "1", "7"]
    assert (found.eos_token, found.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert found.chat_template == tokenizer.chat_template
    found.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_bytes((tmp_path / "config.json").read_bytes())
    caplog.clear()
    assert load_tokenizer(str(tmp_path / "saved")).tokenize("x 17") == ["x", "Ġ", "1", "7"]
    assert not caplog.records
