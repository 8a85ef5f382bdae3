"""docs/serving.md: from a chat file to an export and its answer, with a tiny model of that name."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import bayeslora_cli as bl
from tests.frozen_runs import kept
from tests.support.chats import byte_tokenizer
from tests.test_readme import DOCS, blocks, words_of

SERVERS = ("vllm", "curl", "python", "llama-server", "llama-cli")


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    (row,) = map(json.loads, blocks(page, "json"))
    write_chats(tmp_path / "chats.jsonl", row)
    # a directory of the model's name is found before the hub is asked
    write_model(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    run = None
    for block in blocks(page, "bash"):
        if block.startswith(SERVERS):
            continue
        for command in words_of(block, tmp_path):
            said = kept.bayeslora(*(run if word == "RUN" else word for word in command[1:]))
            assert said.code == 0, f"{command}\n{said.err}"
            if command[1] == "train" and "--dry-run" not in command:
                run = said.out.splitlines()[-1]
    own, *others = blocks(page, "python")
    for name, code in zip(("vllm", "llama_cpp"), others, strict=True):
        assert name in code
        compile(code, "serving.md", "exec")  # in environments of their own: tests/serving
    (answer,) = bl.Run(run).generate(["What is 20+30?"], max_new_tokens=100)
    capsys.readouterr()
    exec(compile(own, "serving.md", "exec"), {})
    assert capsys.readouterr().out == answer.texts[0] + "\n"
    assert (tmp_path / "served" / "gguf" / "adapter.gguf").is_file()
    config = json.loads((tmp_path / "served" / "lora" / "adapter_config.json").read_text())
    ranks = [matrix.rank for matrix in bl.Run(run).ranks.matrices]
    assert config["r"] == config["lora_alpha"]
    assert config["r"] in (8, 16)
    assert config["r"] >= max(ranks)


def write_chats(path, row, count=40):
    """Chats like the page's."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = json.dumps(row).replace("12", str(number % 9)).replace("19", str(number % 9 + 7))
            file.write(text + "\n")


def write_model(directory):
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        tie_word_embeddings=False, initializer_range=0.5, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
