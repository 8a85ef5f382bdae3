"""Tokenised rows, the batches made of them, and the order in which they are seen."""

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
from bayeslora_cli.tasks.task import Examples

POOL = 50  # batches whose rows are grouped by length
_ROWS_A_CALL = 1000  # enough to keep a fast tokenizer busy, few enough for its objects to be small


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenisedSplit:
    """The tokens of n rows, one after the other without padding, on the CPU."""

    tokens: Tensor
    """(t,) int32: every row's token ids, concatenated."""
    offsets: Tensor
    """(n + 1,) int64: row i is `tokens[offsets[i]:offsets[i + 1]]`."""
    token_types: Tensor | None
    """(t,) int8: segment ids alongside `tokens`; None when the tokenizer makes none."""
    labels: Tensor | None
    """(n,) int64 class indices, or float32 scores; None when the split has no labels."""
    pad_id: int
    """The token id that fills a row up."""
    pad_type_id: int = 0
    """The segment id that fills a row up."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(n,) int64: tokens of each row."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> TokenisedSplit:
        """The same on a device."""
        held = {
            name: value.to(device)
            for name in ("tokens", "offsets", "token_types", "labels")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **held)

    def batch(self, indices: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """The rows `indices` (b,), padded on the right to `width`, or to the longest (w tokens).

        All on the split's device; given `width`, nothing is asked of it.

        Returns:
            `input_ids` and `attention_mask` (b, w) int64; `token_type_ids` (b, w) int64 and
            `labels` (b,) when there are any.
        """
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        columns = torch.arange(width or int(lengths.max()), device=lengths.device)
        inside = columns < lengths[:, None]  # (b, w)
        # a place beyond a row's end may lie beyond all tokens: read any, it is overwritten
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

    (A pair stays a pair when its second sentence is empty; called with a bare "", not in a list,
    transformers would drop it.)

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer. Pairs are truncated longest sentence first, which is
            its meaning of `truncation=True`.
        max_length: tokens a row at the most, special tokens included.

    Returns:
        `tokens`, `offsets` and, when the tokenizer makes them, `token_types` of a `TokenisedSplit`.
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
        if "token_type_ids" in encoded:  # made when model_input_names has it
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
    *,
    regression: bool,
    encode: Callable[[Examples, Any, int], dict[str, Tensor]] = encode,
) -> TokenisedSplit:
    """Tokens and labels of a split.

    Args:
        examples: n rows of text.
        tokenizer: a `transformers` tokenizer.
        max_length: tokens a row at the most, special tokens included.
        regression: whether labels are scores (float32) and not class indices (int64).
        encode: who makes the tokens: `encode` here, or `token_cache.encode_once`, which gives the
            same.

    Raises:
        UserError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token, which batches need: "
            "set pad_token in its tokenizer_config.json"
        )
    labels = None
    if examples.labels is not None:
        labels = torch.tensor(examples.labels, dtype=torch.float32 if regression else torch.int64)
    found = encode(examples, tokenizer, max_length)
    return TokenisedSplit(
        tokens=found["tokens"],
        offsets=found["offsets"],
        token_types=found.get("token_types"),
        labels=labels,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
    )


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimisation steps that see each of n rows once; the last batch may be short."""
    return -(-n // batch_size)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n rows in one epoch: (n,) int64, a function of its arguments alone.

    `seed` and `epoch` are non-negative. They are mixed by numpy's `SeedSequence`, since torch's
    CPU generator uses 32 bits of its seed and seeds such as `seed + epoch` would give run 1 in
    epoch 0 the order of run 0 in epoch 1.
    """
    return torch.randperm(n, generator=_draws(seed, epoch))


def _draws(*entropy: int) -> torch.Generator:
    mixed = np.random.SeedSequence(entropy).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def grouped(order: Tensor, lengths: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
    """An epoch's order (n,) in which rows of like length share a batch.

    Pools of `POOL` batches, as the order has them, are sorted by length; their batches come in
    drawn order. So each row is seen once an epoch and the batches come at random, but which rows
    share one does depend on their lengths. The last, short batch stays.
    """
    whole = len(order) - len(order) % batch_size
    parts = []
    for pool in torch.split(order[:whole], POOL * batch_size):
        batches = pool[torch.argsort(lengths[pool], stable=True)].view(-1, batch_size)
        parts.append(batches[torch.randperm(len(batches), generator=draws)].flatten())
    return torch.cat((*parts, order[whole:]))


class TrainOrder:
    """Which rows each optimisation step sees. It has no state but a cache: a resumed run needs
    nothing but the step's number."""

    def __init__(self, n: int, batch_size: int, seed: int, group_by: Tensor | None = None) -> None:
        """Order n rows in batches of `batch_size`, shuffled anew in each epoch.

        Args:
            group_by: (n,) lengths to group rows by; None: batches are drawn at random.
        """
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.group_by = group_by
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """The rows of step 0, 1, …, counted over all epochs: (batch_size,) int64, or what is left
        in the last batch of an epoch."""
        epoch, batch = divmod(step, steps_per_epoch(self.n, self.batch_size))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.n, self.seed, epoch)
            if self.group_by is not None:
                draws = _draws(self.seed, epoch, 1)
                self._order = grouped(self._order, self.group_by, self.batch_size, draws)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


def padded_width(length: int, longest: int) -> int:
    """Tokens to pad a batch to on a GPU: few different widths, as each is a graph to capture.

    A multiple of 8 up to 64, of 16 up to 128 and of 32 above, `longest` (of the split) at the most.
    """
    unit = 8 if length <= 64 else 16 if length <= 128 else 32
    return min(-(-length // unit) * unit, longest)


class Feed:
    """Training batches, made on the device, which holds all of the split: 4 bytes a token."""

    def __init__(self, split: TokenisedSplit, device: torch.device) -> None:
        self.lengths = split.lengths
        self.split = split.to(device)
        self.device = device
        self.longest = int(self.lengths.max())

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows `indices` (b,), which are on the CPU."""
        width = int(self.lengths[indices].max())
        if self.device.type == "cuda":
            width = padded_width(width, self.longest)
        rows = indices.to(self.device, non_blocking=True)
        return self.split.batch(rows, width)


def evaluation_order(split: TokenisedSplit, batch_size: int) -> list[Tensor]:
    """Batches of row indices, each (b,) int64, that hold every row once, the longest rows first.

    Rows of like length share a batch, so that little is padded, and memory peaks at the start.
    """
    order = torch.argsort(split.lengths, descending=True, stable=True)
    return list(torch.split(order, batch_size))
