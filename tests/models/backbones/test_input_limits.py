"""What a backbone can take: positions, token ids, token types."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.input_limits import check_ids, refuse_rows, unused_positions
from tests.conftest import SIZES

TOKENS = torch.tensor([2, 5, 63, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("kind", "options", "unused"),
    [
        ("roberta", {"pad_token_id": 1}, 2),
        ("roberta", {"pad_token_id": 3}, 4),
        ("esm", {"pad_token_id": 1, "position_embedding_type": "absolute"}, 2),
        ("esm", {"pad_token_id": 1, "position_embedding_type": "rotary"}, 0),
        ("mpnet", {"pad_token_id": 3}, 2),
        ("bert", {"pad_token_id": 3}, 0),
    ],
)
def test_positions_that_no_token_uses(kind, options, unused):
    """Where there are any, the longest text that the model takes is shorter by them."""
    sizes = {**SIZES, "mask_token_id": 4, "attention_dropout": 0.0, **options}
    config = AutoConfig.for_model(kind, **sizes)
    assert unused_positions(config) == unused
    if options.get("position_embedding_type") == "rotary":
        return
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = SIZES["max_position_embeddings"] - unused
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))


def model_of(kind, **options):
    config = AutoConfig.for_model(kind, **SIZES | options)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("rows", "largest"), [(63, "a token of the rows"), (64, "its padding token")]
)
def test_ids_without_a_row(rows, largest):
    module = model_of("llama", vocab_size=rows, num_key_value_heads=1)
    pad = 64 if largest == "its padding token" else 0
    with pytest.raises(ModelError, match=rf"--model x: .*{largest}.* embeddings {rows} rows"):
        check_ids(module, "x", TOKENS, pad, None)
    check_ids(model_of("llama", vocab_size=65, num_key_value_heads=1), "x", TOKENS, pad, None)


class Refusing(torch.nn.Module):
    """Raises what it is told to."""

    def forward(self, error):
        raise error


def raised_by(module, error):
    try:
        module(error)
    except type(error) as raised:
        refuse_rows(module, raised)


def test_a_backbones_own_refusal_is_one_message(monkeypatch):
    """Where transformers' code raises it; not an error of ours, nor a lack of memory."""
    module = Refusing()
    raised_by(module, ValueError("ours"))
    for name in ("transformers.models.t5.modeling_t5", "transformers_modules.own.code"):
        monkeypatch.setitem(globals(), "__name__", name)
        with pytest.raises(ModelError, match=r"^Refusing does not take these rows: no <eos>; its"):
            raised_by(module, ValueError("no <eos>\nhere"))
        with pytest.raises(ModelError, match=r"^Refusing does not take these rows: KeyError$"):
            raised_by(module, KeyError())
        raised_by(module, RuntimeError("CUDA out of memory"))


def test_token_types_without_a_row():
    types = torch.tensor([0, 0, 1, 1], dtype=torch.int8)
    with pytest.raises(ModelError, match=r"token types up to 1, .*token_type_embeddings 1 row;"):
        check_ids(model_of("roberta", type_vocab_size=1), "x", TOKENS, 1, types)
    check_ids(model_of("roberta", type_vocab_size=1), "x", TOKENS, 1, types * 0)
    check_ids(model_of("roberta", type_vocab_size=2), "x", TOKENS, 1, types)
