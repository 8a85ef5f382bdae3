"""Turns examples of several sequences each into token ids: a question with each of its choices."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.data import tokenization
from bayeslora_cli.tasks.task import Examples


def encode_choices(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise each choice of a row, behind the row's question, as `tokenization.encode` does.

    Args:
        examples: n rows; `second` holds their choices, as JSON.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per sequence, special tokens included.
    Returns:
        What `tokenization.encode` returns for all sequences, and `parts` of a `TokenisedSplit`.
    """
    assert examples.second is not None
    choices: list[list[str]] = [json.loads(text) for text in examples.second]
    questions = [text for text, own in zip(examples.first, choices, strict=True) for _ in own]
    sequences = replace(
        examples, first=questions, second=[choice for own in choices for choice in own]
    )
    found = tokenization.encode(sequences, tokenizer, max_length)
    return {**found, "parts": torch.tensor(list(map(len, choices)))}


def encode_pairs(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise each text of a row by itself, the first one in front.

    Args:
        examples: n rows; `second` holds their other texts, as JSON; None: they have none.
        tokenizer, max_length: as for `encode_choices`.
    Returns:
        What `encode_choices` returns.
    """
    others = (
        [[] for _ in examples.first]
        if examples.second is None
        else map(json.loads, examples.second)
    )
    texts = [[first, *own] for first, own in zip(examples.first, others, strict=True)]
    sequences = replace(examples, first=[text for own in texts for text in own], second=None)
    found = tokenization.encode(sequences, tokenizer, max_length)
    return {**found, "parts": torch.tensor(list(map(len, texts)))}
