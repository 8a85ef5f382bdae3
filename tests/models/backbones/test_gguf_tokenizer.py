"""How a GGUF file's tokenizer cuts text."""

from __future__ import annotations

import pytest
import transformers

from bayeslora_cli.models.backbones.loading import load_tokenizer
from tests.support.gguf_models import write_gguf
from tests.support.smollm import SMOLLM, needs_smollm

TEXT = "x    17 w"


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [("smollm", ["x", "    ", "1", "7", " w"]), ("qwen2", ["x", "   ", " ", "1", "7", " w"]),
     ("gpt-2", ["x", "   ", " 17", " w"])],
)  # fmt: skip
def test_the_files_own_rule_cuts_text(rule, pieces, tmp_path, caplog):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, rule=rule)
    tokenizer = load_tokenizer(str(path))
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[a:b] for _, (a, b) in found] == pieces
    assert not caplog.records
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


@pytest.mark.skipif(
    not hasattr(transformers, "GgufConfig"),
    reason="before 5.17 transformers takes the architecture's rule",
)
def test_an_unknown_rule_is_said(tmp_path, caplog):
    write_gguf(tmp_path / "tiny.gguf", rule="of-tomorrow")
    load_tokenizer(str(tmp_path / "tiny.gguf"))
    assert "tiny.gguf: text is cut by GPT-2's rule, as the file's own, 'of-tomorrow'" in caplog.text


@needs_smollm
@pytest.mark.realmodel
def test_smollm_reads_four_spaces_as_one_token():
    assert load_tokenizer(SMOLLM).tokenize("    1 one") == ["ĠĠĠĠ", "1", "Ġone"]
