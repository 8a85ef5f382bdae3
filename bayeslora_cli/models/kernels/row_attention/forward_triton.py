"""Triton kernel of attention within rows: the result, and what the backward pass needs.

A program computes the result of one tile of a row's tokens as queries, over all keys of the row
(Dao, FlashAttention-2, 2023). Scores of relative positions lie in memory, by `positions_triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayeslora_cli.models.kernels.row_attention.places_triton import (
    kept_of,
    own_tile,
    put_vectors,
    seen_by,
    vectors,
    words_of,
)


@triton.jit(do_not_specialize=["rows", "window"])  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]
    q, k, v, c2p, p2c, kept, row_offsets, out, norm, tokens, rows,  # noqa: ANN001
    q_token, q_head, k_token, k_head, v_token, v_head, heads, width, words,  # noqa: ANN001
    scale, gain, window,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, RELATIVE: tl.constexpr, DROPS: tl.constexpr,
    WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Compute one tile of queries of one head.

    `c2p` holds queries times positions by query and key, `p2c` keys times positions by key and
    query; their sum is stored in place of `c2p`. `norm` gets log2 of the sum of 2^score, where
    `scale` holds log2(e).
    """
    start, length, first = own_tile(row_offsets, rows, ROWS, SINGLE, OWN)
    head = tl.program_id(1)
    if first < length:
        own = first + tl.arange(0, OWN)
        there = own < length
        query = vectors(q, start + own, head, there, q_token, q_head, D, DEPTH)
        line = head.to(tl.int64) * tokens + start
        most = tl.full((OWN,), float("-inf"), tl.float32)
        total = tl.zeros((OWN,), tl.float32)
        found = tl.zeros((OWN, DEPTH), tl.float32)
        begin, end = seen_by(first, length, window, OWN, OTHER, WINDOWED)
        for at in range(begin, end, OTHER):
            other = at + tl.arange(0, OTHER)
            inside = other < length
            key = vectors(k, start + other, head, inside, k_token, k_head, D, DEPTH)
            value = vectors(v, start + other, head, inside, v_token, v_head, D, DEPTH)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            if RELATIVE:
                # whole lines, also behind the row's end, so that the loads are wide
                place = (line + own)[:, None] * width + other[None, :]
                back = (line + other)[:, None] * width + own[None, :]
                bias = tl.load(c2p + place, there[:, None], 0.0).to(tl.float32)
                bias += tl.trans(tl.load(p2c + back, inside[:, None], 0.0)).to(tl.float32)
                bias = bias.to(c2p.dtype.element_ty)
                tl.store(c2p + place, bias, there[:, None])
                score += bias.to(tl.float32)
            seen = inside[None, :]
            if WINDOWED:
                seen = seen & (tl.abs(own[:, None] - other[None, :]) < window)
            score = tl.where(seen, score * scale, float("-inf"))
            higher = tl.maximum(most, tl.max(score, 1))
            if WINDOWED:  # a query may see nothing of a tile
                higher = tl.maximum(higher, -1e30)
            weight = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(most - higher)
            total = total * shrink + tl.sum(weight, 1)
            most = higher
            if DROPS:
                bits = words_of(kept, line + own, at, words, there)
                keeps = kept_of(bits, OTHER)
                weight = tl.where(keeps, weight, 0.0)
            found = found * shrink[:, None]
            found = tl.dot(weight.to(value.dtype), value, found, input_precision=PRECISION)
        found = found * (gain / total)[:, None]
        put_vectors(out, found, start + own, head, there, heads * D, D, DEPTH)
        tl.store(norm + line + own, most + tl.log2(total), there)
