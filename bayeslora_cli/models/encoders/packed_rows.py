"""The packed batch that an encoder computes, for the parts of it that must know its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

Rows = tuple[Tensor, Tensor | None]
"""`row_offsets` and `longest` of `data.packing.token_batch`. It takes the place of the attention
mask, which the blocks of encoders hand on to their attention as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """What of a packed batch is no input of the backbone."""

    rows: Rows
    first_tokens: Tensor | None
    """(b,) int64: place of each row's first token; further rows only fill the batch. None: the head
    reads every token, so nothing is pooled."""


_present: PackedBatch | None = None  # no context variable: torch's compiler cannot read one


@contextmanager
def packed_rows(batch: PackedBatch) -> Iterator[None]:
    """Tell the makers of attention masks and the pooling, inside the block, where rows begin.

    Only the beginning and the end of a forward pass ask; blocks that gradient checkpointing runs
    again get the same `Rows` as before.
    """
    global _present
    before, _present = _present, batch
    try:
        yield
    finally:
        _present = before


def present_batch() -> PackedBatch | None:
    """Return the batch of the present forward pass; None: its rows are padded."""
    return _present
