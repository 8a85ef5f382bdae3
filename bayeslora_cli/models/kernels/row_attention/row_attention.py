"""Attention within packed rows on a GPU, with dropout, and with DeBERTa's relative positions.

Operators that torch's compiler does not look into. Rows are given by their offsets, so that no
place is padded; every sum has a fixed order.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.models.kernels.low_rank.tiles import extent, gpu_of
from bayeslora_cli.models.kernels.operators import register
from bayeslora_cli.models.kernels.row_attention import tiles

WIDTH = 64
"""Number of which the reach of positions is a multiple: lines of scores are whole tiles."""
ABLE = (8, 0)
"""The first GPUs whose matrix units compute all the types."""
HAVE_TRITON = find_spec("triton") is not None


def has_kernel(x: Tensor, size: int) -> bool:
    """Return whether the kernels compute heads of `size` on a tensor's device, in its type."""
    known = x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return x.is_cuda and known and size <= tiles.WIDEST and is_able(x.device)


def is_able(gpu: torch.device) -> bool:
    """Return whether a GPU runs the kernels."""
    return HAVE_TRITON and torch.version.cuda is not None and _matrix_units(gpu) >= ABLE


def _matrix_units(device: torch.device) -> tuple[int, int]:
    # torch's compiler takes these properties for constants, but not `get_device_capability`; of a
    # cache here it would warn, and torch has one of its own
    found = torch.cuda.get_device_properties(device)
    return found.major, found.minor


def reach_of(longest: int) -> int:
    """Return how far positions must reach for rows of at most `longest` tokens."""
    return -(-longest // WIDTH) * WIDTH


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    longest: int,
    *,
    scaling: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Attend to all tokens of a token's own row.

    Args:
        query, key, value: (t, h, d).
        row_offsets: (rows + 1,) int32, from 0 to t.
        longest: no row has more tokens.
        scaling: factor of the scores.
        dropout: probability of dropping a weight; the bits come from torch's generator.
        window: a token sees those fewer than `window` places away; None: all.
    Returns:
        (t, h, d), contiguous
    """
    near = 0 if window is None or window >= longest else window
    return _attend(query, key, value, row_offsets, longest, 0, scaling, dropout, near)


def relative_row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    reach: int,
    *,
    scaling: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Attend as `row_attention` with scores (q_i k_j + q_i K[i - j] + k_j Q[i - j]) scaling.

    Args:
        query: (t + 2 reach, h, d): behind the tokens Q of the positions -reach ... reach - 1.
        key: (t + 2 reach, h, d): likewise K.
        value: (t, h, d).
        reach: a multiple of `WIDTH`; no row has more tokens.
        seed: of the bits of dropout, (1,) int64, another one for each call; None: one is drawn.
    Returns:
        (t, h, d), contiguous
    """
    return _attend(query, key, value, row_offsets, reach, reach, scaling, dropout, 0, seed)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, row_offsets: Tensor, longest: int, reach: int,
    scaling: float, dropout: float, window: int, seed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    seed = seed_of(dropout, seed, query.device)
    out: Tensor = torch.ops.bayeslora.row_attention(
        query, key, value, row_offsets, seed, longest, reach, scaling, dropout, window
    )[0]
    return out


def seed_of(dropout: float, given: Tensor | None, device: torch.device) -> Tensor | None:
    """Return the seed of the bits of dropout, drawn unless one is given; None without dropout."""
    if not dropout:
        return None
    return torch.randint(2**62, (1,), device=device) if given is None else given


def forward(
    query: Tensor, key: Tensor, value: Tensor, row_offsets: Tensor, seed: Tensor | None,
    longest: int, reach: int, scaling: float, dropout: float, window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the result, log2 of the sums of 2^score (h, t), the positions' scores, kept bits."""
    from bayeslora_cli.models.kernels.row_attention import forward_triton, kept_triton
    from bayeslora_cli.models.kernels.row_attention import places_triton as places
    from bayeslora_cli.models.kernels.row_attention import positions_triton as positions

    query, key, value = _by_lines(query), _by_lines(key), _by_lines(value)
    out, norm, bias, kept = outputs(
        query, key, value, row_offsets, seed, longest, reach, scaling, dropout, window
    )
    plan = _plan(value)
    (tokens, heads, size), rows = value.shape, len(row_offsets) - 1
    shape = {"D": size, "DEPTH": extent(size), "PRECISION": _precision(query.dtype)}
    gain = 1.0
    if seed is not None:
        kept = kept_triton.keep_weights(seed, tokens, heads, longest, dropout)
        gain = kept_triton.shares(dropout)[1]
    p2c = bias
    if reach:
        p2c = torch.empty_like(bias)
        cut = plan.positions
        count, tile = places.grid(row_offsets, tokens, longest, cut.own)
        positions.score_positions[(count, heads, 2)](
            query, key, row_offsets, bias, p2c, tokens, rows, *_strides(query, key), reach,
            **shape, **tile, TILE=cut.own, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    cut = plan.forward
    count, tile = places.grid(row_offsets, tokens, longest, cut.own)
    forward_triton.attend[(count, heads)](
        query, key, value, bias, p2c, kept, row_offsets, out, norm, tokens, rows,
        *_strides(query, key, value), heads, reach, kept.shape[-1],
        scaling * math.log2(math.e), gain, window,
        **shape, **tile, OWN=cut.own, OTHER=cut.other, RELATIVE=reach > 0, DROPS=seed is not None,
        WINDOWED=window > 0, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out, norm, bias, kept


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, row_offsets: Tensor, out: Tensor,
    norm: Tensor, bias: Tensor, kept: Tensor, longest: int, reach: int, scaling: float,
    dropout: float, window: int, into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value.

    Args:
        into: where they are to lie, of equal steps from token to token; None: in new tensors.
    """
    from bayeslora_cli.models.kernels.row_attention import backward_triton, kept_triton
    from bayeslora_cli.models.kernels.row_attention import places_triton as places
    from bayeslora_cli.models.kernels.row_attention import positions_triton as positions

    query, key, value = _by_lines(query), _by_lines(key), _by_lines(value)
    grad = grad.contiguous()
    to_q, to_k, to_v = _gradients_like(query, key, value) if into is None else into
    plan = _plan(value)
    (tokens, heads, size), rows = value.shape, len(row_offsets) - 1
    drops = kept.numel() > 0
    shape = {"D": size, "DEPTH": extent(size), "PRECISION": _precision(query.dtype)}
    flags = {
        "RELATIVE": reach > 0, "DROPS": drops, "WINDOWED": window > 0, "WIDTH": WIDTH,
    }  # fmt: skip
    numbers = (
        tokens, rows, *_strides(query, key, value), to_q.stride(0), heads, reach, kept.shape[-1],
        scaling * math.log2(math.e), scaling, kept_triton.shares(dropout)[1], window,
    )  # fmt: skip
    slope = torch.empty_like(norm)
    to_c2p, to_p2c = (bias.new_empty(heads, tokens, 2 * reach) for _ in range(2))
    cut = plan.to_queries
    count, tile = places.grid(row_offsets, tokens, longest, cut.own)
    backward_triton.to_queries[(count, heads)](
        grad, query, key, value, out, norm, bias, kept, row_offsets, to_q, to_c2p, slope, *numbers,
        **shape, **tile, **flags, OWN=cut.own, OTHER=cut.other, num_warps=cut.warps,
        num_stages=cut.stages,
    )  # fmt: skip
    cut = plan.to_keys
    count, tile = places.grid(row_offsets, tokens, longest, cut.own)
    backward_triton.to_keys[(count, heads)](
        grad, query, key, value, norm, bias, kept, row_offsets, to_k, to_v, to_p2c, slope,
        *numbers, **shape, **tile, **flags, OWN=cut.own, OTHER=cut.other, num_warps=cut.warps,
        num_stages=cut.stages,
    )  # fmt: skip
    if reach:
        cut = plan.positions
        blocks = 2 * reach // cut.own
        shares = tiles.shares_of(rows, 2 * blocks * heads)
        parts = torch.empty(
            2 * blocks * heads * shares * cut.own * extent(size),
            device=query.device, dtype=torch.float32,
        )  # fmt: skip
        positions.to_positions[(blocks, heads, 2 * shares)](
            query, key, row_offsets, to_c2p, to_p2c, to_q, to_k, parts,
            _done(query.device, 2 * blocks * heads), tokens, rows, shares,
            *_strides(query, key), to_q.stride(0), heads, reach, scaling, **shape, TILE=cut.own,
            UNROLLED=positions.UNROLLED, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return to_q, to_k, to_v


def outputs(
    query: Tensor, key: Tensor, value: Tensor, row_offsets: Tensor, seed: Tensor | None,
    longest: int, reach: int, scaling: float, dropout: float, window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what the forward pass fills, without values."""
    tokens, heads, _ = value.shape
    words = 0 if seed is None else -(-longest // 64)
    return (
        value.new_empty(value.shape),
        value.new_empty(heads, tokens, dtype=torch.float32),
        value.new_empty(heads, tokens, reach),
        value.new_empty(heads, tokens, words, dtype=torch.int64),
    )


def _gradients_like(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _fake_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients_like(query, key, value)


def _by_lines(x: Tensor) -> Tensor:
    """Return (t, h, d) whose last elements lie side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Return, for each of (t, h, d), the steps from token to token and from head to head."""
    return tuple(x.stride(i) for x in tensors for i in range(2))


def _plan(value: Tensor) -> tiles.Plan:
    return tiles.plan_of(value.shape[2], value.itemsize, gpu_of(value.device))


def _precision(dtype: torch.dtype) -> str:
    """Return how products are computed: those of fp32 as three of TF32, as exact as fp32's."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


@cache
def _done(device: torch.device, count: int) -> Tensor:
    """Return how many programs of each sum have finished: 0 before and after every launch."""
    return torch.zeros(count, device=device, dtype=torch.int32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, row_offsets, _, *ctx.sizes = inputs
    ctx.save_for_backward(query, key, value, row_offsets, *output)
    ctx.set_materialize_grads(False)  # only the result has a gradient


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    found = torch.ops.bayeslora.row_attention_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return *found, *(None,) * 7


_SIZES = "SymInt longest, SymInt reach, float scaling, float dropout, SymInt window"
register(
    "row_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor row_offsets, Tensor? seed,"
    f" {_SIZES}) -> (Tensor, Tensor, Tensor, Tensor)",
    forward, outputs, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "row_attention_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor row_offsets,"
    f" Tensor out, Tensor norm, Tensor bias, Tensor kept, {_SIZES}) -> (Tensor, Tensor, Tensor)",
    backward, _fake_backward,
)  # fmt: skip
