"""Triton kernels of scores by relative positions (DeBERTa): a shift of lines, in both directions.

A tile of n own tokens meets the other tokens of its row at some n + m positions. Block b of n of
these positions is a product of n by n; in line a of the tile, element c of it belongs to the other
token n b + c + a - SHIFT. Reading and writing by that place turns positions into tokens.

Positions i - j of query i and key j lie behind the tokens of keys (for queries) and of queries (for
keys): place `width + i - j`, for -width <= i - j < width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayeslora_cli.models.kernels.row_attention.places_triton import own_tile, vectors

UNROLLED = 4
"""Partial sums that are read at once."""


@triton.jit  # type: ignore[untyped-decorator]
def position_rows(first, at, width, QUERIES: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the places of the positions of the block from `at` on, for the tile from `first` on.

    Blocks are whole: their positions are those of one tile of places.
    """
    column = tl.arange(0, TILE)
    if QUERIES:  # from the largest position to the smallest
        return width + first - at + TILE - 1 - column
    return width - first + at - TILE + column


@triton.jit  # type: ignore[untyped-decorator]
def other_tokens(at, QUERIES: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the other token of each element of a block: (TILE, TILE)."""
    own, column = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    if QUERIES:
        return at + column + own - (TILE - 1)
    return at + column + own - TILE


@triton.jit  # type: ignore[untyped-decorator]
def by_position(  # type: ignore[no-untyped-def]  # noqa: ANN201
    change, line, first, at, length, width, QUERIES: tl.constexpr, TILE: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Read a block of gradients that were written by own and other token."""
    own = first + tl.arange(0, TILE)
    other = other_tokens(at, QUERIES, TILE)
    inside = (own < length)[:, None] & (other >= 0) & (other < length)
    return tl.load(change + (line + own)[:, None] * width + other, inside, 0.0)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def score_positions(  # type: ignore[no-untyped-def]
    q, k, row_offsets, c2p, p2c, tokens, rows, q_token, q_head, k_token, k_head, width,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Compute c2p[i, j] = q_i K[i - j] for a tile of queries, or p2c[j, i] = k_j Q[i - j]."""
    start, length, first = own_tile(row_offsets, rows, ROWS, TILE)
    head = tl.program_id(1)
    if first < length:
        own = first + tl.arange(0, TILE)
        there = own < length
        line = head.to(tl.int64) * tokens + start
        if tl.program_id(2) == 0:
            x = vectors(q, start + own, head, there, q_token, q_head, D, DEPTH)
            for at in range(0, length + TILE, TILE):
                place = position_rows(first, at, width, True, TILE)
                row = vectors(k, tokens + place, head, place >= 0, k_token, k_head, D, DEPTH)
                found = tl.dot(x, tl.trans(row), input_precision=PRECISION)
                other = other_tokens(at, True, TILE)
                inside = there[:, None] & (other >= 0) & (other < length)
                to = c2p + (line + own)[:, None] * width + other
                tl.store(to, found.to(c2p.dtype.element_ty), inside)
        else:
            x = vectors(k, start + own, head, there, k_token, k_head, D, DEPTH)
            for at in range(0, length + TILE, TILE):
                place = position_rows(first, at, width, False, TILE)
                row = vectors(q, tokens + place, head, place >= 0, q_token, q_head, D, DEPTH)
                found = tl.dot(x, tl.trans(row), input_precision=PRECISION)
                other = other_tokens(at, False, TILE)
                inside = there[:, None] & (other >= 0) & (other < length)
                to = p2c + (line + own)[:, None] * width + other
                tl.store(to, found.to(p2c.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows", "shares"])  # type: ignore[untyped-decorator]
def to_positions(  # type: ignore[no-untyped-def]
    q, k, row_offsets, to_c2p, to_p2c, to_q, to_k, parts, done, tokens, rows, shares,  # noqa: ANN001
    q_token, q_head, k_token, k_head, heads, width, factor,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr, UNROLLED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Add one share of the rows of one block of positions; the last program adds the shares.

    `factor` is that of the scores.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    side, share = tl.program_id(2) % 2, tl.program_id(2) // 2
    column, lane = tl.arange(0, TILE), tl.arange(0, DEPTH)
    middle = block * TILE - width  # the block's first position
    found = tl.zeros((TILE, DEPTH), tl.float32)
    for row in range(share, rows, shares):
        start = tl.load(row_offsets + row)
        length = tl.load(row_offsets + row + 1) - start
        line = head.to(tl.int64) * tokens + start
        if side == 0:
            for first in range(
                tl.maximum(0, middle), tl.minimum(length, middle + length + TILE), TILE
            ):
                change = by_position(to_c2p, line, first, first - middle, length, width, True, TILE)
                own = first + column
                x = vectors(q, start + own, head, own < length, q_token, q_head, D, DEPTH)
                found = tl.dot(tl.trans(change), x, found, input_precision=PRECISION)
        else:
            for first in range(
                tl.maximum(0, -middle - TILE), tl.minimum(length, length - middle), TILE
            ):
                change = by_position(
                    to_p2c, line, first, first + middle + TILE, length, width, False, TILE
                )
                own = first + column
                x = vectors(k, start + own, head, own < length, k_token, k_head, D, DEPTH)
                found = tl.dot(tl.trans(change), x, found, input_precision=PRECISION)
    place = block * TILE + column
    if side == 0:
        place = block * TILE + TILE - 1 - column
    own = column[:, None] * DEPTH + lane[None, :]
    last = shares == 1
    total = found
    if shares > 1:
        group = (block * heads + head) * 2 + side
        parts += group.to(tl.int64) * shares * (TILE * DEPTH)
        tl.store(parts + share * (TILE * DEPTH) + own, found)
        tl.debug_barrier()  # all threads have written before one of them says so
        last = tl.atomic_add(done + group, 1, sem="acq_rel") == shares - 1
        if last:
            total = tl.zeros((TILE, DEPTH), tl.float32)
            for part in tl.range(0, shares, loop_unroll_factor=UNROLLED):
                # other programs wrote them: not from this multiprocessor's own cache
                total += tl.load(parts + part * (TILE * DEPTH) + own, cache_modifier=".cg")
            tl.store(done + group, 0)
    if last:
        to = ((tokens + place).to(tl.int64)[:, None] * heads + head) * D + lane[None, :]
        value = (total * factor).to(to_q.dtype.element_ty)
        if side == 0:
            tl.store(to_k + to, value, (lane < D)[None, :])
        else:
            tl.store(to_q + to, value, (lane < D)[None, :])
