"""Triton kernels of the gradients of attention within rows.

One kernel has a program for each tile of queries, the other for each tile of keys; both compute the
scores again. Every sum is a program's own and in a fixed order, so that a repetition gives the same
bits. Products of the scores' gradients with relative positions are the program's last part: it
wrote the gradients by place (`positions_triton`), and reads them back in whole blocks.
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
from bayeslora_cli.models.kernels.row_attention.positions_triton import (
    add_positions,
    clear,
    put_by_place,
)


@triton.jit(do_not_specialize=["rows", "window"])  # type: ignore[untyped-decorator]
def to_queries(  # type: ignore[no-untyped-def]
    grad, q, k, v, out, norm, bias, kept, row_offsets, to_q, to_c2p, slope, tokens, rows,  # noqa: ANN001
    q_token, q_head, k_token, k_head, v_token, v_head, to_token, heads, width, words,  # noqa: ANN001
    scale, factor, gain, window,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, RELATIVE: tl.constexpr, DROPS: tl.constexpr,
    WINDOWED: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Compute a tile of the queries' gradient, and `slope`, the sum of result times gradient.

    `scale` is `factor`, the factor of the scores, times log2(e); `to_token` leads from token to
    token in the gradients. `to_c2p` gets the gradient of the scores, by query and place.
    """
    start, length, first = own_tile(row_offsets, rows, ROWS, SINGLE, OWN)
    head = tl.program_id(1)
    if first < length:
        own = first + tl.arange(0, OWN)
        there = own < length
        line = head.to(tl.int64) * tokens + start
        query = vectors(q, start + own, head, there, q_token, q_head, D, DEPTH)
        by = vectors(grad, start + own, head, there, heads * D, D, D, DEPTH)
        result = vectors(out, start + own, head, there, heads * D, D, D, DEPTH)
        mean = tl.sum(by.to(tl.float32) * result.to(tl.float32), 1)
        tl.store(slope + line + own, mean, there)
        level = tl.load(norm + line + own, there, 0.0)
        found = tl.zeros((OWN, DEPTH), tl.float32)
        if RELATIVE:
            clear(to_c2p, line, own, first, length, width, WIDTH)
        begin, end = seen_by(first, length, window, OWN, OTHER, WINDOWED)
        for at in range(begin, end, OTHER):
            other = at + tl.arange(0, OTHER)
            inside = other < length
            key = vectors(k, start + other, head, inside, k_token, k_head, D, DEPTH)
            value = vectors(v, start + other, head, inside, v_token, v_head, D, DEPTH)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            place = (line + own)[:, None] * width + other[None, :]
            if RELATIVE:
                score += tl.load(bias + place, there[:, None], 0.0).to(tl.float32)
            seen = there[:, None] & inside[None, :]
            if WINDOWED:
                seen = seen & (tl.abs(own[:, None] - other[None, :]) < window)
            weight = tl.where(seen, tl.exp2(score * scale - level[:, None]), 0.0)
            change = tl.dot(by, tl.trans(value), input_precision=PRECISION)
            if DROPS:
                bits = words_of(kept, line + own, at, words, there)
                keeps = kept_of(bits, OTHER)
                change = tl.where(keeps, change, 0.0) * gain
            change = (weight * (change - mean[:, None])).to(key.dtype)
            found = tl.dot(change, key, found, input_precision=PRECISION)
            if RELATIVE:
                put_by_place(to_c2p, change, line, own, other, there, width)
        if RELATIVE:
            tl.debug_barrier()  # all threads have written before one of them reads
            found = add_positions(
                found, to_c2p, k, line, own, first, length, tokens, head, k_token, k_head,
                width, True, D, DEPTH, OWN, PRECISION,
            )  # fmt: skip
        put_vectors(to_q, found * factor, start + own, head, there, to_token, D, DEPTH)


@triton.jit(do_not_specialize=["rows", "window"])  # type: ignore[untyped-decorator]
def to_keys(  # type: ignore[no-untyped-def]
    grad, q, k, v, norm, bias, kept, row_offsets, to_k, to_v, to_p2c, slope, tokens, rows,  # noqa: ANN001
    q_token, q_head, k_token, k_head, v_token, v_head, to_token, heads, width, words,  # noqa: ANN001
    scale, factor, gain, window,  # noqa: ANN001
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, RELATIVE: tl.constexpr, DROPS: tl.constexpr,
    WINDOWED: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Compute a tile of the gradients of keys and values; see `to_queries`, which ran before."""
    start, length, first = own_tile(row_offsets, rows, ROWS, SINGLE, OWN)
    head = tl.program_id(1)
    if first < length:
        own = first + tl.arange(0, OWN)
        there = own < length
        line = head.to(tl.int64) * tokens + start
        key = vectors(k, start + own, head, there, k_token, k_head, D, DEPTH)
        value = vectors(v, start + own, head, there, v_token, v_head, D, DEPTH)
        found = tl.zeros((OWN, DEPTH), tl.float32)
        of_value = tl.zeros((OWN, DEPTH), tl.float32)
        if RELATIVE:
            clear(to_p2c, line, own, first, length, width, WIDTH)
        begin, end = seen_by(first, length, window, OWN, OTHER, WINDOWED)
        for at in range(begin, end, OTHER):
            other = at + tl.arange(0, OTHER)
            inside = other < length
            query = vectors(q, start + other, head, inside, q_token, q_head, D, DEPTH)
            by = vectors(grad, start + other, head, inside, heads * D, D, D, DEPTH)
            level = tl.load(norm + line + other, inside, float("inf"))
            mean = tl.load(slope + line + other, inside, 0.0)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            if RELATIVE:
                back = (line + other)[:, None] * width + own[None, :]
                score += tl.load(bias + back, inside[:, None], 0.0).to(tl.float32)
            # 0 behind the row's end, whose level is infinite; own tokens there are not stored
            weight = tl.exp2(score * scale - level[:, None])
            if WINDOWED:
                near = tl.abs(own[None, :] - other[:, None]) < window
                weight = tl.where(near, weight, 0.0)
            change = tl.dot(by, tl.trans(value), input_precision=PRECISION)
            kept_weight = weight
            if DROPS:
                bits = words_of(kept, line + other, first, words, inside)
                keeps = kept_of(bits, OWN)
                change = tl.where(keeps, change, 0.0) * gain
                kept_weight = tl.where(keeps, weight, 0.0)
            of_value = tl.dot(
                tl.trans(kept_weight.to(by.dtype)), by, of_value, input_precision=PRECISION
            )
            change = tl.trans((weight * (change - mean[:, None])).to(query.dtype))
            found = tl.dot(change, query, found, input_precision=PRECISION)
            if RELATIVE:
                put_by_place(to_p2c, change, line, own, other, there, width)
        put_vectors(to_v, of_value * gain, start + own, head, there, to_token, D, DEPTH)
        if RELATIVE:
            tl.debug_barrier()  # all threads have written before one of them reads
            found = add_positions(
                found, to_p2c, q, line, own, first, length, tokens, head, q_token, q_head,
                width, False, D, DEPTH, OWN, PRECISION,
            )  # fmt: skip
        put_vectors(to_k, found * factor, start + own, head, there, to_token, D, DEPTH)
