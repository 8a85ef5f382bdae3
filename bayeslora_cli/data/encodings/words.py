"""Turns rows of words into token ids, of which the first token of each word tells its tag."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.task import Examples

logger = logging.getLogger("bayeslora")
_WORDS_A_CALL = 10_000


def encode(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise rows of words; rows that are too long are divided, so that every word has a place.

    Each word is tokenised as it is behind a space, the first word as it is at the beginning. A word
    that gives no token, as one of control characters may, gets the token for unknown words.

    Args:
        examples: n rows; `first` holds their words, as JSON.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per sequence, special tokens included.
    Returns:
        `tokens`, `offsets`, `whole`, `counted` (the first token of each word), `cells` and `items`
        of a `TokenisedSplit`, and `token_types` if the tokenizer makes them.
    Raises:
        UserError: `max_length` leaves no room for a word.
    """
    rows: list[list[str]] = [json.loads(text) for text in examples.first]
    before, after, space = _around(tokenizer)
    room = max_length - len(before) - len(after)
    if room < 1:
        raise UserError(f"--max-length {max_length}: leaves no room for a word; raise it")
    inner = _tokens_of({space + word for row in rows for word in row[1:]}, tokenizer)
    first = _tokens_of({row[0] for row in rows}, tokenizer)
    tokens: list[int] = []
    counted: list[bool] = []
    lengths: list[int] = []
    whole: list[int] = []
    cells: list[int] = []

    def end(own: list[int], marks: list[bool], row: int, uncut: int) -> None:
        tokens.extend((*before, *own, *after))
        counted.extend((*[False] * len(before), *marks, *[False] * len(after)))
        lengths.append(len(before) + len(own) + len(after))
        whole.append(lengths[-1] + uncut - len(own))
        cells.append(row)

    for row, words in enumerate(rows):
        own: list[int] = []
        marks: list[bool] = []
        uncut = 0
        for place, word in enumerate(words):
            ids = inner[space + word] if place else first[word]
            if own and len(own) + len(ids) > room:
                end(own, marks, row, uncut)
                own, marks, uncut = [], [], 0
            own += ids[:room]
            marks += [True, *[False] * (len(ids[:room]) - 1)]
            uncut += len(ids)
        end(own, marks, row, uncut)
    divided = len(cells) - len(set(cells))
    if divided:
        logger.info(
            "rows of more than --max-length %d tokens are divided between words: %d rows are %d",
            max_length, len(rows), len(cells),
        )  # fmt: skip
    found = {
        "tokens": torch.tensor(tokens, dtype=torch.int32),
        "offsets": torch.tensor([0, *lengths]).cumsum(0),
        "whole": torch.tensor(whole),
        "counted": torch.tensor(counted),
        "cells": torch.tensor(cells)[:, None],
        "items": torch.tensor([len(words) for words in rows]),
    }
    if "token_type_ids" in tokenizer.model_input_names:
        found["token_types"] = torch.zeros(len(tokens), dtype=torch.int8)
    return found


def _tokens_of(words: set[str], tokenizer: Any) -> Mapping[str, list[int]]:
    """Return the tokens of each word, at least one."""
    names = sorted(words)
    unknown = tokenizer.unk_token_id
    found: dict[str, list[int]] = {}
    for start in range(0, len(names), _WORDS_A_CALL):
        part = names[start : start + _WORDS_A_CALL]
        encoded = tokenizer(part, add_special_tokens=False, truncation=False, verbose=False)
        for word, ids in zip(part, encoded["input_ids"], strict=True):
            found[word] = ids or [tokenizer.pad_token_id if unknown is None else unknown]
    return found


def _around(tokenizer: Any) -> tuple[Sequence[int], Sequence[int], str]:
    """Return the special tokens before and after a row, and what a word within it has in front: a
    space if the tokenizer tells words at the beginning from others, else nothing."""

    def ids(text: str, *, special: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    both, one, other = ids("a b"), ids("a"), ids("b")
    space = " " if both != one + other and both == one + ids(" b") else ""
    whole = ids("a", special=True)
    for start in range(len(whole) - len(one) + 1):
        if one and whole[start : start + len(one)] == one:
            return whole[:start], whole[start + len(one) :], space
    return [], [], space
