"""What the kernels of attention within rows share: tiles of rows, and what of scores is dropped.

A row's tokens are cut into tiles. Tile 0 of row i is program `row_offsets[i] // TILE + i`; since a
row of n tokens then has at least n / TILE programs before the next row's first, no table of tiles
is made, and no size is read on the host. Programs without a tile do nothing. If no row has more
than a tile (`SINGLE`), program i is row i.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

WORD = 64
"""Keys whose bits lie in one integer."""


@triton.jit  # type: ignore[untyped-decorator]
def own_tile(  # type: ignore[no-untyped-def]  # noqa: ANN201
    row_offsets, rows, ROWS: tl.constexpr, SINGLE: tl.constexpr, TILE: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Return the start and the length of this program's row, and its tile's first place in it."""
    tile = tl.program_id(0)
    own = tile
    if not SINGLE:
        row = tl.arange(0, ROWS)
        first = tl.load(row_offsets + row, row < rows, 0) // TILE + row
        own = tl.sum(((first <= tile) & (row < rows)).to(tl.int32), 0) - 1
    start = tl.load(row_offsets + own)
    stop = tl.load(row_offsets + own + 1)
    first = 0
    if not SINGLE:
        first = (tile - start // TILE - own) * TILE
    return start, stop - start, first


@triton.jit  # type: ignore[untyped-decorator]
def seen_by(  # type: ignore[no-untyped-def]  # noqa: ANN201
    first, length, window, OWN: tl.constexpr, OTHER: tl.constexpr, WINDOWED: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Return the first place, of a tile of OTHER tokens, and the last that a tile meets."""
    begin, end = 0, length
    if WINDOWED:
        begin = tl.maximum(0, first - window + 1) // OTHER * OTHER
        end = tl.minimum(length, first + OWN - 1 + window)
    return begin, end


@triton.jit  # type: ignore[untyped-decorator]
def vectors(x, token, head, there, stride, of_head, D: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return a head's vectors of some tokens, (tokens, DEPTH); zeros where there is none."""
    lane = tl.arange(0, DEPTH)
    place = token.to(tl.int64)[:, None] * stride + head * of_head + lane[None, :]
    if D == DEPTH:
        found = tl.load(x + place, there[:, None], 0.0)
    else:
        found = tl.load(x + place, there[:, None] & (lane < D)[None, :], 0.0)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def put_vectors(  # type: ignore[no-untyped-def]
    x, value, token, head, there, stride, D: tl.constexpr, DEPTH: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    """Store a head's vectors of some tokens, (tokens, DEPTH), in (t, heads, D).

    `stride` leads from token to token; a token's heads lie side by side.
    """
    lane = tl.arange(0, DEPTH)
    place = token.to(tl.int64)[:, None] * stride + head * D + lane[None, :]
    value = value.to(x.dtype.element_ty)
    if D == DEPTH:
        tl.store(x + place, value, there[:, None])
    else:
        tl.store(x + place, value, there[:, None] & (lane < D)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def words_of(kept, query, key, words, there, WORD: tl.constexpr = WORD):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return, for each of some queries, the bits of the keys from place `key` of their row on."""
    found = tl.load(kept + query.to(tl.int64) * words + key // WORD, there, 0)
    return found >> (key % WORD)


@triton.jit  # type: ignore[untyped-decorator]
def kept_of(bits, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return whether the weights of each query's first TILE bits are kept: (queries, TILE)."""
    column = tl.arange(0, TILE)[None, :]
    if TILE <= 32:
        found = bits.to(tl.int32)[:, None]
    else:
        found = tl.where(
            column < 32, bits.to(tl.int32)[:, None], (bits >> 32).to(tl.int32)[:, None]
        )
    return (found & (1 << (column % 32))) != 0


def grid(row_offsets: Tensor, tokens: int, longest: int, tile: int) -> tuple[int, dict[str, Any]]:
    """Return how many programs hold the tiles of all rows, and how they find theirs."""
    rows = len(row_offsets) - 1
    single = longest <= tile
    slots = 1 if single else triton.next_power_of_2(rows)
    return rows if single else tokens // tile + rows, {"ROWS": slots, "SINGLE": single}
