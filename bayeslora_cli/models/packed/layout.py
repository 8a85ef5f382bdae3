"""Rows of a packed batch as an attention computes them: by length on a CPU, padded on a GPU.

All functions take `row_offsets` (rows + 1,) int32: row i is the tokens from `row_offsets[i]` to
`row_offsets[i + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise

import torch
from torch import Tensor


def row_lengths(row_offsets: Tensor) -> list[int]:
    """Return the lengths of rows on a CPU, without those of no token, which only fill a batch."""
    return [stop - start for start, stop in pairwise(row_offsets.tolist()) if start < stop]


def equal_rows(lengths: list[int]) -> list[tuple[int, int]]:
    """Return (rows, length) of each run of rows of one length."""
    return [(len(list(rows)), length) for length, rows in groupby(lengths)]


def similar_rows(lengths: list[int], most: int) -> list[list[int]]:
    """Cut neighbouring rows into groups to be padded to their first row, which is their longest.

    Args:
        most: pairs of places that padding may add to a group.
    Returns:
        the lengths of each group's rows.
    """
    groups: list[list[int]] = []
    added = 0
    for length in lengths:
        more = groups[-1][0] ** 2 - length**2 if groups else -1
        if more < 0 or added + more > most:
            groups.append([])
            added = more = 0
        groups[-1].append(length)
        added += more
    return groups


def attend_by_length(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: list[tuple[int, int]],
) -> Tensor:
    """Compute attention of each group of neighbouring rows of one length, without padding.

    Args:
        attend: queries, keys and values (rows, h, length, d) -> (rows, h, length, d).
        query, key, value: (1, h, t, d).
        groups: (rows, length) of each group; their tokens are all t.
    Returns:
        (1, t, h, d)
    """
    sizes = [rows * length for rows, length in groups]
    # the gradients of parts of a split are laid side by side; those of slices would be added
    parts = zip(*(torch.split(x.squeeze(0), sizes, 1) for x in (query, key, value)), strict=True)
    found = []
    for (rows, length), part in zip(groups, parts, strict=True):
        q, k, v = (x.view(x.shape[0], rows, length, -1).transpose(0, 1) for x in part)
        found.append(attend(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(found).unsqueeze(0)


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


def attend_padded(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    length: int,
) -> Tensor:
    """Compute attention of rows padded to `length`, without reading the offsets.

    Behind a row's end lie tokens of others; what is computed for these places is not used.

    Args:
        attend: queries, keys and values (rows, h, length, d), and whether a place is a token of the
            row (rows, length) -> (rows, h, length, d).
        query, key, value: (1, h, t, d).
    Returns:
        (1, t, h, d)
    """
    tokens = query.shape[2]
    places, inside = places_of(row_offsets, tokens, length)
    q, k, v = (
        x.squeeze(0)
        .index_select(1, places.flatten())
        .view(x.shape[1], -1, length, x.shape[3])
        .transpose(0, 1)
        for x in (query, key, value)
    )
    back = places_back(row_offsets, tokens, length)
    out = attend(q, k, v, inside).transpose(1, 2).flatten(0, 1)
    return out.index_select(0, back).unsqueeze(0)
