"""Attention within packed rows, in both directions: no row sees another."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.decoders.packed_attention import HALVED, varlen_attn
from bayeslora_cli.models.encoders.packed_rows import Rows


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Attend to all tokens of a token's own row.

    A CPU goes row by row. In bf16 or fp16 on a GPU torch's kernel for rows of any length computes
    it; with dropout, which that kernel lacks, and in fp32 a GPU pads the rows for the attention
    only.

    Args:
        query, key, value: (1, h, t, d).
        rows: where the rows begin.
        scaling: factor of the scores; None: 1 / sqrt(d).
        dropout: probability of dropping a weight.
        window: a token sees those fewer than `window` places away; None: all.
    Returns:
        (1, t, h, d)
    """
    row_offsets, longest = rows
    if longest is None:
        return _row_by_row(query, key, value, row_offsets, scaling, dropout, window)
    most = longest.shape[1]
    if varlen_attn is None or query.dtype not in HALVED or dropout:
        return _padded(query, key, value, row_offsets, most, scaling, dropout, window)
    reach = -1 if window is None or window >= most else window - 1
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out: Tensor = varlen_attn(
        q, k, v, row_offsets, row_offsets, most, most, scale=scaling, window_size=(reach, reach)
    )
    return out.unsqueeze(0)


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Compute `row_attention` on a CPU, which reads the offsets."""
    lengths = row_lengths(row_offsets)
    found = []
    # the gradients of parts of a split are laid side by side; those of slices would be added
    for q, k, v in zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True):
        seen = None
        if window is not None and window < q.shape[2]:
            place = torch.arange(q.shape[2], device=q.device)
            seen = (place - place[:, None]).abs() < window
        found.append(
            F.scaled_dot_product_attention(q, k, v, seen, dropout_p=dropout, scale=scaling)
        )
    return torch.cat(found, 2).transpose(1, 2)


def row_lengths(row_offsets: Tensor) -> list[int]:
    """Return the lengths of rows on a CPU, without those of no token, which only fill a batch."""
    return [stop - start for start, stop in pairwise(row_offsets.tolist()) if start < stop]


def places_of(row_offsets: Tensor, tokens: int, length: int) -> tuple[Tensor, Tensor]:
    """Return where the tokens of rows lie in rows padded to `length`, without reading the offsets.

    Returns:
        places (rows, length) in the packed tokens, any of them behind a row's end; and whether a
        place is a token of the row (rows, length).
    """
    columns = torch.arange(length, device=row_offsets.device)
    places = row_offsets[:-1, None] + columns
    return places.clamp(max=tokens - 1), places < row_offsets[1:, None]


def places_back(row_offsets: Tensor, tokens: int, length: int) -> Tensor:
    """Return where packed tokens lie in flattened rows padded to `length`: (t,)."""
    token = torch.arange(tokens, device=row_offsets.device, dtype=row_offsets.dtype)
    row = torch.searchsorted(row_offsets[1:].contiguous(), token, right=True)
    return row * length + token - row_offsets[row]


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    length: int,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Compute `row_attention` of rows padded to `length`, without reading the offsets."""
    tokens = query.shape[2]
    places, inside = places_of(row_offsets, tokens, length)
    q, k, v = (
        x.squeeze(0)
        .index_select(1, places.flatten())
        .view(x.shape[1], -1, length, x.shape[3])
        .transpose(0, 1)
        for x in (query, key, value)
    )
    column = torch.arange(length, device=query.device)
    seen = inside[:, None, None]
    if window is not None and window < length:
        near = (column - column[:, None]).abs() < window
        # a place behind the row's end sees itself: a row of a softmax needs a key
        seen = (seen & near) | (column == column[:, None])
    seen = seen.expand(-1, 1, length, length)
    out = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=dropout, scale=scaling)
    back = places_back(row_offsets, tokens, length)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, back).unsqueeze(0)
