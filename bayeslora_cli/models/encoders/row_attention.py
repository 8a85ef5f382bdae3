"""Attention within packed rows, in both directions: no row sees another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.decoders.packed_attention import HALVED, varlen_attn
from bayeslora_cli.models.encoders.packed_rows import Rows
from bayeslora_cli.models.kernels.row_attention import row_attention as kernel
from bayeslora_cli.models.packed.layout import (
    attend_by_length,
    attend_padded,
    equal_rows,
    row_lengths,
)


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend to all tokens of a token's own row.

    A CPU computes neighbouring rows of one length together. In bf16 or fp16 on a GPU torch's kernel
    for rows of any length computes it; with dropout, which that kernel lacks, and in fp32 our own
    does. A GPU without Triton pads the rows for the attention only.

    Args:
        query, key, value: (1, h, t, d).
        rows: where the rows begin.
        scaling: factor of the scores; None: 1 / sqrt(d).
        dropout: probability of dropping a weight.
        window: a token sees those fewer than `window` places away; None: all.
        bias: added to the scores of places in a row (1, h, n, n), no row longer than n; where there
            is one, a GPU pads the rows.
    Returns:
        (1, t, h, d)
    """
    row_offsets, longest = rows

    def attend(q: Tensor, k: Tensor, v: Tensor, inside: Tensor | None = None) -> Tensor:
        seen = _seen(q, inside, window)
        if bias is not None:
            own = bias[:, :, : q.shape[2], : q.shape[2]]
            seen = own if seen is None else own.masked_fill(~seen, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, seen, dropout_p=dropout, scale=scaling)

    if longest is None:
        groups = equal_rows(row_lengths(row_offsets))
        return attend_by_length(attend, query, key, value, groups)
    most = longest.shape[1]
    if bias is not None:
        return attend_padded(attend, query, key, value, row_offsets, most)
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if varlen_attn is None or query.dtype not in HALVED or dropout:
        if not kernel.has_kernel(q, q.shape[2]):
            return attend_padded(attend, query, key, value, row_offsets, most)
        factor = q.shape[2] ** -0.5 if scaling is None else scaling
        return kernel.row_attention(
            q, k, v, row_offsets, most, scaling=factor, dropout=dropout, window=window
        ).unsqueeze(0)
    reach = -1 if window is None or window >= most else window - 1
    out: Tensor = varlen_attn(
        q, k, v, row_offsets, row_offsets, most, most, scale=scaling, window_size=(reach, reach)
    )
    return out.unsqueeze(0)


def _seen(query: Tensor, inside: Tensor | None, window: int | None) -> Tensor | None:
    """Return which places see which, of queries (b, h, t, d): (t, t) or (b, 1, t, t); None: all.

    Args:
        inside: whether a place is a token of its row (b, t); None: all are.
    """
    length = query.shape[2]
    seen = None if inside is None else inside[:, None, None]
    if window is not None and window < length:
        place = torch.arange(length, device=query.device)
        near = (place - place[:, None]).abs() < window
        # a place behind the row's end sees itself: a row of a softmax needs a key
        seen = near if seen is None else (seen & near) | (place == place[:, None])
    return seen if seen is None or inside is None else seen.expand(-1, 1, length, length)
