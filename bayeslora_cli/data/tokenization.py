"""Turns examples into token ids, once per split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_cli.config.catalogue import implementation
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.task import Examples

logger = logging.getLogger("bayeslora")
_ROWS_A_CALL = 1000  # enough to keep a fast tokenizer busy, few enough for its objects to be small
_CHARACTERS_A_CALL = 2_000_000  # a tokenizer takes some 180 bytes per character
_CHARACTERS_A_TOKEN = 32  # characters per token read at first; words are far shorter
_FEWEST_CHARACTERS = 2**13


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
    whole: Tensor | None = None
    """(n,) int64: number of tokens of each row before truncation, estimated for rows of many
    thousand characters; always on the CPU."""
    counted: Tensor | None = None
    """(t,) bool alongside `tokens`: whether the loss counts the prediction of this token, which is
    never a row's first; None: the kind of task predicts no tokens. Always on the CPU."""
    scored: Tensor | None = None
    """(t, 2) int64 alongside `tokens`: the column of the row's outputs that a counted token belongs
    to, and how many places before it that stands which predicts it; None: 0 and 1. On the CPU."""
    packed: bool = False
    """Whether batches hold the rows one after the other (`packing.pack`) instead of padded."""
    cells: Tensor | None = None
    """(n, ...) int64, on the CPU: what each row belongs to, if examples, to which `labels` belong,
    have several rows, as `Objective.arranged` takes it; None: row i is example i."""
    weights: Tensor | None = None
    """(n,) fp32: factor of each row's loss; None: 1 each."""
    left_out: int = 0
    """Number of rows that were left out, as nothing of them counts in the loss."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def examples(self, rows: Tensor | None = None) -> int:
        """Count the examples to which rows (n,) bool belong, which may have several; None: all."""
        if self.cells is None:
            return len(self) if rows is None else int(rows.sum())
        return len(set((self.cells if rows is None else self.cells[rows])[:, 0].tolist()))

    def truncated(self) -> tuple[int, int]:
        """Return the number of examples that were cut, and the tokens of the longest row."""
        if self.whole is None:
            return 0, 0
        return self.examples(self.whole > self.lengths.cpu()), int(self.whole.max())

    @property
    def made_on_cpu(self) -> bool:
        """Whether `packing.token_batch` makes the batches, on the CPU, where sizes are known."""
        return self.packed or self.counted is not None

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row: (n,) int64."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> TokenisedSplit:
        """Copy the split to a device; one that is `made_on_cpu` stays where it is."""
        if self.made_on_cpu:
            return self
        names = ("tokens", "offsets", "token_types", "labels", "weights")
        held = {n: x.to(device) for n in names if (x := getattr(self, n)) is not None}
        return replace(self, **held)

    def aims(self, places: Tensor, aims: Tensor) -> dict[str, Tensor]:
        """Return `predicting`, `targets` and the columns of `scored` for counted tokens, each (c,).

        `places` and `aims` (c,) are where they stand in `tokens` and in the flattened batch.
        """
        # not `x[places]`, which starts all threads from 3,000 places on
        targets = self.tokens.index_select(0, places).long()
        if self.scored is None:
            return {"predicting": aims - 1, "targets": targets}
        columns, back = self.scored.index_select(0, places).unbind(1)
        return {"predicting": aims - back, "targets": targets, "columns": columns}

    def batch(self, indices: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """Return the rows `indices` (b,), padded on the right to `width`, or to the longest row.

        All tensors are on the split's device; with `width` the host reads nothing from it.

        Returns:
            `input_ids` and `attention_mask` (b, width) int64; `token_type_ids` (b, width) int64 and
            `labels` (b, ...) if there are any. If tokens are predicted, instead of labels
            `predicting` (c,), places in the flattened `input_ids` whose next token counts, and
            `targets` (c,), those next tokens, both int64.
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
        if self.counted is not None:
            aims = (inside & self.counted[places]).flatten().nonzero().squeeze(1)
            batch |= self.aims(places.flatten()[aims], aims)
        elif self.labels is not None:
            batch["labels"] = self.labels[indices]
        if self.weights is not None:
            batch["weights"] = self.weights[indices]
        return batch


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
    filled = {"offsets": offsets, "whole": found["whole"].clamp(min=1)}
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


def row_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum values (t,) over each row: (n,) int64; row i begins at `offsets[i]`, (n + 1,)."""
    before = torch.cat((torch.zeros(1, dtype=torch.int64), values.long().cumsum(0)))
    return before[offsets].diff()


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
    counted, labels, counts = found.get("counted"), None, None
    if examples.labels is not None:
        labels = objective.label_tensor(examples.labels)
        of_rows = None if counted is None else row_sums(counted, found["offsets"])
        counts = objective.counts(labels, found["offsets"].diff(), of_rows)
    return TokenisedSplit(
        tokens=found["tokens"],
        offsets=found["offsets"],
        token_types=found.get("token_types"),
        whole=found["whole"],
        labels=labels,
        counts=counts,
        counted=counted,
        cells=found.get("cells"),
        scored=found.get("scored"),
        packed=packed,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
    )
