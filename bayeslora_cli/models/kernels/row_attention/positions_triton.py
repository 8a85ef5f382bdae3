"""Triton kernels of scores by relative positions (DeBERTa): a shift of lines, in both directions.

Own token a of a tile and another token b of its row meet at place `width + b - a` of a line of
2 width places. Blocks of these places are products of tiles; where an element is written or read by
a place, and by b on the other side, the shift is made.

Positions i - j of query i and key j lie behind the tokens of keys (for queries) and of queries (for
keys), in the order of -width ... width - 1. For keys, a = j and b = i, that is the order of places;
for queries the reverse one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayeslora_cli.models.kernels.row_attention.places_triton import own_tile, vectors

UNROLLED = 4
"""Partial sums that are read at once."""


@triton.jit  # type: ignore[untyped-decorator]
def positions_of(places, width, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return which positions are meant by places, counted from -width.

    Place 0 is nobody's, as position `width` is too far; for queries it gets a position that exists.
    """
    if QUERIES:
        return tl.where(places > 0, 2 * width - places, 0)
    return places


@triton.jit  # type: ignore[untyped-decorator]
def by_place(change, line, own, at, length, width, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Read the block of gradients from place `at` on: (own, TILE)."""
    places = (line + own)[:, None] * (2 * width) + (at + tl.arange(0, TILE))[None, :]
    return tl.load(change + places, (own < length)[:, None], 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def put_by_place(to, change, line, own, other, there, width) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Write a tile of gradients (own, other) to its places."""
    places = (line + own)[:, None] * (2 * width) + width - own[:, None] + other[None, :]
    tl.store(to + places, change, there[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def add_positions(  # type: ignore[no-untyped-def]  # noqa: ANN201
    found, gradients, y, line, own, first, length, tokens, head, y_token, y_head, width,  # noqa: ANN001
    QUERIES: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the products of a tile's gradients by place with the positions behind the tokens of y."""
    for at in range(width - first - TILE, width - first + length, TILE):
        change = by_place(gradients, line, own, at, length, width, TILE)
        places = at + tl.arange(0, TILE)
        row = tokens + positions_of(places, width, QUERIES)
        other = vectors(y, row, head, places >= 0, y_token, y_head, D, DEPTH)
        found = tl.dot(change, other, found, input_precision=PRECISION)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def clear(change, line, own, first, length, width, WIDTH: tl.constexpr) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Fill the outer blocks of a tile's lines with zeros.

    What the tile meets fills the others and parts of these. Whoever reads blocks of at most
    `WIDTH` places finds zeros where nothing is met.
    """
    begin = width - first // WIDTH * WIDTH - WIDTH
    end = begin + (length + WIDTH - 1) // WIDTH * WIDTH
    zeros = tl.zeros((own.shape[0], WIDTH), change.dtype.element_ty)
    there = (own < length)[:, None]
    places = (line + own)[:, None] * (2 * width) + tl.arange(0, WIDTH)[None, :]
    tl.store(change + places + begin, zeros, there)
    tl.store(change + places + end, zeros, there)
    if end - WIDTH > begin:
        tl.store(change + places + end - WIDTH, zeros, there)
    tl.debug_barrier()  # what is met is written after the zeros


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def score_positions(  # type: ignore[no-untyped-def]
    q, k, row_offsets, c2p, p2c, tokens, rows, q_token, q_head, k_token, k_head, width,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Compute c2p[i, j] = q_i K[i - j] for a tile of queries, or p2c[j, i] = k_j Q[i - j]."""
    start, length, first = own_tile(row_offsets, rows, ROWS, SINGLE, TILE)
    head = tl.program_id(1)
    if first < length:
        own = first + tl.arange(0, TILE)
        there = own < length
        line = head.to(tl.int64) * tokens + start
        if tl.program_id(2) == 0:
            x = vectors(q, start + own, head, there, q_token, q_head, D, DEPTH)
            for at in range(width - first - TILE, width - first + length, TILE):
                places = at + tl.arange(0, TILE)
                row = tokens + positions_of(places, width, True)
                y = vectors(k, row, head, places >= 0, k_token, k_head, D, DEPTH)
                found = tl.dot(x, tl.trans(y), input_precision=PRECISION)
                other = own[:, None] + places[None, :] - width
                inside = there[:, None] & (other >= 0) & (other < length)
                to = c2p + (line + own)[:, None] * width + other
                tl.store(to, found.to(c2p.dtype.element_ty), inside)
        else:
            x = vectors(k, start + own, head, there, k_token, k_head, D, DEPTH)
            for at in range(width - first - TILE, width - first + length, TILE):
                places = at + tl.arange(0, TILE)
                row = tokens + positions_of(places, width, False)
                y = vectors(q, row, head, places >= 0, q_token, q_head, D, DEPTH)
                found = tl.dot(x, tl.trans(y), input_precision=PRECISION)
                other = own[:, None] + places[None, :] - width
                inside = there[:, None] & (other >= 0) & (other < length)
                to = p2c + (line + own)[:, None] * width + other
                tl.store(to, found.to(p2c.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows", "shares"])  # type: ignore[untyped-decorator]
def to_positions(  # type: ignore[no-untyped-def]
    q, k, row_offsets, to_c2p, to_p2c, to_q, to_k, parts, done, tokens, rows, shares,  # noqa: ANN001
    q_token, q_head, k_token, k_head, to_token, heads, width, factor,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr, UNROLLED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Add one share of the rows of one block of positions; the last program adds the shares.

    `factor` is that of the scores.
    """
    head = tl.program_id(1)
    side, share = tl.program_id(2) % 2, tl.program_id(2) // 2
    block, column, lane = tl.program_id(0), tl.arange(0, TILE), tl.arange(0, DEPTH)
    at = block * TILE
    found = tl.zeros((TILE, DEPTH), tl.float32)
    for row in range(share, rows, shares):
        start = tl.load(row_offsets + row)
        length = tl.load(row_offsets + row + 1) - start
        line = head.to(tl.int64) * tokens + start
        # the tiles of the row that meet the block
        begin, end = tl.maximum(0, width - TILE - at), tl.minimum(length, width + length - at)
        if side == 0:
            for first in range(begin, end, TILE):
                own = first + column
                change = by_place(to_c2p, line, own, at, length, width, TILE)
                x = vectors(q, start + own, head, own < length, q_token, q_head, D, DEPTH)
                found = tl.dot(tl.trans(change), x, found, input_precision=PRECISION)
        else:
            for first in range(begin, end, TILE):
                own = first + column
                change = by_place(to_p2c, line, own, at, length, width, TILE)
                x = vectors(k, start + own, head, own < length, k_token, k_head, D, DEPTH)
                found = tl.dot(tl.trans(change), x, found, input_precision=PRECISION)
    place = at + column
    if side == 0:
        place = positions_of(place, width, True)
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
        to = (tokens + place).to(tl.int64)[:, None] * to_token + head * D + lane[None, :]
        value = (total * factor).to(to_q.dtype.element_ty)
        if side == 0:
            tl.store(to_k + to, value, (lane < D)[None, :])
        else:
            tl.store(to_q + to, value, (lane < D)[None, :])
