"""Turns examples into token ids, once per split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.task import Examples

_ROWS_A_CALL = 1000  # enough to keep a fast tokenizer busy, few enough for its objects to be small


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenisedSplit:
    """The tokens of n rows, concatenated without padding, on the CPU until `to` moves them."""

    tokens: Tensor
    """(t,) int32: every row's token ids, concatenated."""
    offsets: Tensor
    """(n + 1,) int64: row i is `tokens[offsets[i]:offsets[i + 1]]`."""
    token_types: Tensor | None
    """(t,) int8: segment ids alongside `tokens`; None when the tokenizer makes none."""
    labels: Tensor | None
    """(n, ...) as `Objective.label_tensor` makes them; None when the split has no labels."""
    pad_id: int
    """Token id used for padding."""
    pad_type_id: int = 0
    """Segment id used for padding."""
    counts: Tensor | None = None
    """(n,) int64, `Objective.counts`; always on the CPU."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row: (n,) int64."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> TokenisedSplit:
        """Copy the split to a device."""
        held = {
            name: value.to(device)
            for name in ("tokens", "offsets", "token_types", "labels")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **held)

    def batch(self, indices: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """Return the rows `indices` (b,), padded on the right to `width`, or to the longest row.

        All tensors are on the split's device; with `width` the host reads nothing from it.

        Returns:
            `input_ids` and `attention_mask` (b, width) int64; `token_type_ids` (b, width) int64 and
            `labels` (b, ...) if there are any.
        """
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        columns = torch.arange(width or int(lengths.max()), device=lengths.device)
        inside = columns < lengths[:, None]  # (b, w)
        # a place beyond a row's end may lie beyond all tokens: read any token, it is overwritten
        places = torch.where(inside, starts[:, None] + columns, 0)
        batch = {
            "input_ids": torch.where(inside, self.tokens[places].long(), self.pad_id),
            "attention_mask": inside.long(),
        }
        if self.token_types is not None:
            batch["token_type_ids"] = torch.where(
                inside, self.token_types[places].long(), self.pad_type_id
            )
        if self.labels is not None:
            batch["labels"] = self.labels[indices]
        return batch


def encode(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise each row as `tokenizer([first], [second], truncation=True, max_length=max_length)`.

    The lists keep a pair with an empty second sentence a pair: transformers would drop a bare "".

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer. Its `truncation=True` shortens the longer sentence of
            a pair first.
        max_length: largest number of tokens per row, special tokens included.

    Returns:
        `tokens`, `offsets` and, if the tokenizer makes them, `token_types` of a `TokenisedSplit`.
    """
    tokens: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    lengths: list[int] = []
    for start in range(0, len(examples), _ROWS_A_CALL):
        rows = slice(start, start + _ROWS_A_CALL)
        encoded = tokenizer(
            examples.first[rows],
            None if examples.second is None else examples.second[rows],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )
        lengths.extend(len(ids) for ids in encoded["input_ids"])
        tokens.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        if "token_type_ids" in encoded:  # present if model_input_names lists it
            types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.int8))
    found = {
        "tokens": torch.from_numpy(np.concatenate(tokens)),
        "offsets": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
    }
    if types:
        found["token_types"] = torch.from_numpy(np.concatenate(types))
    return found


def tokenise(
    examples: Examples,
    tokenizer: Any,
    max_length: int,
    objective: Objective,
    *,
    encode: Callable[[Examples, Any, int], dict[str, Tensor]] = encode,
) -> TokenisedSplit:
    """Make the tokens and labels of a split.

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per row, special tokens included.
        objective: turns the labels into one tensor.
        encode: makes the tokens: `encode` of this file, or `token_cache.encode_once`, which returns
            the same.

    Raises:
        UserError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token, which batches need: "
            "set pad_token in its tokenizer_config.json"
        )
    found = encode(examples, tokenizer, max_length)
    labels = counts = None
    if examples.labels is not None:
        labels = objective.label_tensor(examples.labels)
        counts = objective.counts(labels, found["offsets"].diff())
    return TokenisedSplit(
        tokens=found["tokens"],
        offsets=found["offsets"],
        token_types=found.get("token_types"),
        labels=labels,
        counts=counts,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
    )
