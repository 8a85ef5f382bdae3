"""Tiny causal language models, and rows whose tokens they predict."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora_cli.data.tokenised_split import TokenisedSplit, row_sums
from bayeslora_cli.tasks.objectives.objective import build_objective
from tests.conftest import VOCABULARY, tiny_tokenizer

CAUSAL = build_objective("causal", ())
SIZES = {
    "vocab_size": VOCABULARY + 8,  # some tokenizers of transformers bring tokens of their own
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def save_decoder(directory: Path, kind: str = "llama", *, seed: int = 7, **sizes) -> str:
    """A random causal language model with its output layer, and its tokenizer."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **SIZES | sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def token_rows(lengths=(5, 9, 3, 12, 2, 7), *, packed=True, seed=3) -> TokenisedSplit:
    """Random rows; the second half of each counts."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    position = torch.cat([torch.arange(n) for n in lengths])
    counted = 2 * position >= torch.repeat_interleave(sizes, sizes)
    tokens = torch.randint(4, VOCABULARY, (len(position),), generator=generator)
    return TokenisedSplit(
        tokens=tokens.int(),
        offsets=offsets,
        token_types=None,
        labels=torch.zeros(len(sizes), dtype=torch.int64),
        counts=row_sums(counted, offsets),
        counted=counted,
        packed=packed,
        pad_id=0,
    )


def write_prompts(path: Path, rows: int, *, seed: int = 0) -> str:
    """Prompts of words whose completion is the word after the last one, and that one again."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            words = generator.choices(range(60), k=generator.randint(1, 7))
            answer = [(words[-1] + 1) % 60, words[-1]][: generator.randint(1, 2)]
            row = {
                "prompt": " ".join(f"w{word}" for word in words),
                "completion": "".join(f" w{word}" for word in answer),
            }
            file.write(json.dumps(row) + "\n")
    return str(path)
