"""Turns examples into token ids, once per split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_cli.config.catalogue import implementation
from bayeslora_cli.data.tokenised_split import TokenisedSplit, longest_part, row_sums
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.causal import PADDING
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.task import Examples

logger = logging.getLogger("bayeslora")
_ROWS_A_CALL = 1000  # enough to keep a fast tokenizer busy, few enough for its objects to be small
_CHARACTERS_A_CALL = 2_000_000  # a tokenizer takes some 180 bytes per character
_CHARACTERS_A_TOKEN = 32  # characters per token read at first; words are far shorter
_FEWEST_CHARACTERS = 2**13


def encode(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise each row as `tokenizer([first], [second], truncation=True, max_length=max_length)`.

    The lists keep a pair with an empty second sentence a pair: transformers would drop a bare "".

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer. Its `truncation=True` shortens the longer sentence of
            a pair first.
        max_length: largest number of tokens per row, special tokens included.

    Of a very long text only the part that fills the length is tokenised.

    Returns:
        `tokens`, `offsets`, `whole` and, if the tokenizer makes them, `token_types` of a
        `TokenisedSplit`.
    """
    tokens: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    lengths: list[int] = []
    whole: list[int] = []
    for rows in pieces([t for t in (examples.first, examples.second) if t], _CHARACTERS_A_CALL):
        texts = _Texts(examples, rows, tokenizer, max_length)
        encoded = tokenizer(
            *texts.shortened,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        found = [len(ids) for ids in encoded["input_ids"]]
        whole.extend(texts.tokens_before_truncation(found))
        lengths.extend(found)
        tokens.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        if "token_type_ids" in encoded:  # present if model_input_names lists it
            types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.int8))
    result = {
        "tokens": torch.from_numpy(np.concatenate(tokens)),
        "offsets": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
        "whole": torch.tensor(whole, dtype=torch.int64),
    }
    if types:
        result["token_types"] = torch.from_numpy(np.concatenate(types))
    return result


def pieces(columns: Sequence[Sequence[str]], limit: int) -> Iterator[slice]:
    """Split rows into pieces of about `limit` characters, which need little memory to tokenise."""
    start = characters = 0
    for row, texts in enumerate(zip(*columns, strict=True)):
        characters += sum(map(len, texts))
        if row + 1 - start == _ROWS_A_CALL or characters >= limit:
            yield slice(start, row + 1)
            start, characters = row + 1, 0
    if start < len(columns[0]):
        yield slice(start, len(columns[0]))


class _Texts:
    """Texts of some rows, shortened as far as their first `max_length` tokens allow.

    A tokenizer reads a text word by word, so that the text after a long beginning does not change
    the beginning's tokens. In a truncated pair the longer text loses most; after both are shortened
    here, the longer one is still the longer one.
    """

    def __init__(self, examples: Examples, rows: slice, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.columns = [texts[rows] for texts in (examples.first, examples.second) if texts]
        self.shortened = [list(texts) for texts in self.columns]
        self.limit = max(_FEWEST_CHARACTERS, _CHARACTERS_A_TOKEN * max_length)
        longest = max(max(map(len, texts)) for texts in self.columns)
        if longest <= 2 * self.limit:
            return
        for row in range(len(self.columns[0])):
            lengths = [len(texts[row]) for texts in self.columns]
            for texts, length in zip(self.shortened, lengths, strict=True):
                if length > 2 * self.limit:
                    texts[row] = self._beginning(
                        texts[row], self.limit * (2 if length == max(lengths) else 1)
                    )

    def _beginning(self, text: str, characters: int) -> str:
        """Return the shortest beginning of a text, by doubling `characters`, that has `max_length`
        tokens; or the shortest end, if the tokenizer truncates on the left."""
        at_end = self.tokenizer.truncation_side == "left"
        while characters < len(text):
            part = text[-characters:] if at_end else text[:characters]
            (tokens,) = self._lengths([part])
            if tokens > self.max_length + self.tokenizer.num_special_tokens_to_add():
                return part
            characters *= 2
        return text

    def _lengths(self, *columns: list[str]) -> list[int]:
        """Count the tokens of each row, without truncation."""
        encoded = self.tokenizer(
            *columns, truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def tokens_before_truncation(self, lengths: Sequence[int]) -> list[int]:
        """Return each row's tokens without truncation, given those with; counts only full rows."""
        found = list(lengths)
        full = [row for row, length in enumerate(lengths) if length >= self.max_length]
        if not full:
            return found
        counts = self._lengths(*([texts[row] for row in full] for texts in self.shortened))
        for row, count in zip(full, counts, strict=True):
            before, kept = (
                sum(len(texts[row]) for texts in columns)
                for columns in (self.columns, self.shortened)
            )
            found[row] = count if before == kept else round(count * before / kept)
        # a tokenizer is saved with the settings of its last call
        self.tokenizer([""], truncation=True, max_length=self.max_length)
        return found


def _none_empty(found: dict[str, Tensor], tokenizer: Any) -> dict[str, Tensor]:
    """Give rows of no tokens the padding token; `found` is as `encode` returns it."""
    lengths = found["offsets"].diff()
    empty = (lengths == 0).nonzero().flatten()
    if not len(empty):
        return found
    logger.warning(
        "%d of %d rows have no tokens, row %d for one: each is taken as one padding token",
        len(empty), len(lengths), int(empty[0]) + 1,
    )  # fmt: skip
    offsets = torch.cat([found["offsets"][:1], lengths.clamp(min=1).cumsum(0)])
    kept = torch.ones(int(offsets[-1]), dtype=torch.bool)
    kept[offsets[empty]] = False
    filled = found | {"offsets": offsets, "whole": found["whole"].clamp(min=1)}
    pads = {
        "tokens": tokenizer.pad_token_id,
        "token_types": tokenizer.pad_token_type_id,
        "counted": False,
    }
    for name, pad in pads.items():
        if name in found:
            filled[name] = torch.full((len(kept),), pad, dtype=found[name].dtype)
            filled[name][kept] = found[name]
    return filled


def tokenise(
    examples: Examples,
    tokenizer: Any,
    max_length: int,
    objective: Objective,
    *,
    encode: Callable[[Examples, Any, int], dict[str, Tensor]] | None = None,
    packed: bool = False,
) -> TokenisedSplit:
    """Make the tokens and labels of a split.

    A row without any token, as an empty text gives where the tokenizer adds none of its own, gets
    the padding token as its one token: what it predicts then depends on no other row.

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per row, special tokens included.
        objective: turns the labels into one tensor.
        encode: makes the tokens: None: the function that the kind of task names in the catalogue;
            or `token_cache.encode_once`, which returns the same.
        packed: whether the backbone takes packed rows, and the kind of task has such.

    Raises:
        UserError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token, which batches need: "
            "set pad_token in its tokenizer_config.json"
        )
    make = encode or implementation(objective.entry.encode)
    found = _none_empty(make(examples, tokenizer, max_length), tokenizer)
    counted, items, cells, parts = (
        found.get(name) for name in ("counted", "items", "cells", "parts")
    )
    labels = counts = tags = None
    if items is not None:
        assert counted is not None
        tags = torch.full((len(counted),), PADDING)
        if cells is not None and len(cells) == len(items):
            cells = None  # no row is divided
    if examples.labels is not None:
        labels = objective.label_tensor(examples.labels)
        of_rows = None if counted is None else row_sums(counted, found["offsets"])
        counts = objective.counts(labels, found["offsets"].diff(), of_rows)
        if tags is not None and counted is not None:
            tags[counted] = objective.truth(labels)
    return TokenisedSplit(
        tokens=found["tokens"],
        offsets=found["offsets"],
        token_types=found.get("token_types"),
        whole=found["whole"] if parts is None else longest_part(found["whole"], parts),
        labels=labels,
        counts=counts,
        counted=counted,
        cells=cells,
        tags=tags,
        items=items,
        parts=parts,
        most_parts=1 if parts is None else int(parts.max()),
        scored=found.get("scored"),
        packed=packed,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
    )
