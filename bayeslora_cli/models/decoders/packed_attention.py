"""Causal attention on packed rows: rows one after the other in one sequence, none sees another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.packed.layout import attend_by_length, attend_padded, row_lengths

varlen_attn: Any
"""torch's kernel for rows of any length; None: torch before 2.10 has none."""
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None
HALVED = (torch.bfloat16, torch.float16)
"""Types that it takes."""
# torch 2.11 takes shared key heads as they are, later ones ask for this
_SHARED_HEADS = (
    {"enable_gqa": True}
    if varlen_attn is not None and "enable_gqa" in signature(varlen_attn).parameters
    else {}
)

_PACKED: ContextVar[bool] = ContextVar("packed", default=False)


@contextmanager
def without_masks() -> Iterator[None]:
    """Tell the makers of attention masks, inside the block, that none is needed: rows are packed.

    Only the beginning of a forward pass asks; blocks that gradient checkpointing runs again get the
    masks that were made then.
    """
    token = _PACKED.set(True)
    try:
        yield
    finally:
        _PACKED.reset(token)


def needs_no_mask() -> bool:
    """Return whether the present forward pass is on packed rows."""
    return _PACKED.get()


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    longest: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend within each row, to the token itself and those before it.

    In bf16 or fp16 on a GPU torch's kernel for rows of any length computes it, or, in half of the
    time, cuDNN's for rows of one length; they have no dropout and no softcap. With these, and in
    fp32, a GPU pads the rows for the attention only. A CPU goes row by row.

    Args:
        query: (1, h, t, d).
        key: (1, k, t, d), where k divides h.
        value: (1, k, t, d).
        row_offsets: (rows + 1,) int32: row i is the tokens from `row_offsets[i]` to
            `row_offsets[i + 1]`.
        longest: on a GPU a tensor of shape (0, n): no row is longer than n tokens; (1, n): every
            row has n tokens, and `has_even_kernel`.
        scaling: factor of the scores; None: 1 / sqrt(d).
        dropout: probability of dropping a weight.
        window: number of tokens that a token sees, itself included; None: all.
        softcap: c of c tanh(score / c); None: scores as they are.
    Returns:
        (1, t, h, d)
    """
    if not query.is_cuda:
        return _row_by_row(query, key, value, row_offsets, scaling, dropout, window, softcap)
    assert longest is not None
    even, most = longest.shape
    halved = query.dtype in HALVED
    if varlen_attn is None or not halved or dropout or softcap is not None:
        return _padded(query, key, value, row_offsets, most, scaling, dropout, window, softcap)
    fits = query.shape[3] % 8 == 0 and query.shape[3] <= 128
    if even and fits and (window is None or window >= most):
        return _even(query, key, value, most, scaling)
    out: Tensor = varlen_attn(
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        row_offsets,
        row_offsets,
        most,
        most,
        scale=scaling,
        window_size=(-1 if window is None or window >= most else window - 1, 0),
        **(_SHARED_HEADS if key.shape[1] != query.shape[1] else {}),
    )
    return out.unsqueeze(0)


def has_even_kernel(device: torch.device) -> bool:
    """Return whether rows of one length have a faster kernel on this GPU; it is not repeatable."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))
        and bool(torch.backends.cudnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
        and not torch.are_deterministic_algorithms_enabled()
    )


def _even(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float | None) -> Tensor:
    """Compute `packed_attention` of rows that all have `length` tokens, by cuDNN."""
    rows = (
        x.squeeze(0).view(x.shape[1], -1, length, x.shape[3]).transpose(0, 1)
        for x in (query, key, value)
    )
    # named, since torch would take another kernel; log-sum-exp wanted, no dropout, causal
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *rows, None, True, 0.0, True, False, scale=scaling
    )[0]
    return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute `packed_attention` on a CPU, which reads the offsets."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _causal(q, k, v, scaling, dropout, window, softcap)

    groups = [(1, length) for length in row_lengths(row_offsets)]
    return attend_by_length(attend, query, key, value, groups)


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_offsets: Tensor,
    length: int,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute `packed_attention` of rows padded to `length`, without reading the offsets.

    No token of a row sees what lies behind the row's end, as that comes later.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        return _causal(q, k, v, scaling, dropout, window, softcap)

    return attend_padded(attend, query, key, value, row_offsets, length)


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attend to the token itself and those before it: (b, h, t, d)."""
    tokens = query.shape[2]
    if softcap is not None or (window is not None and window < tokens):
        place = torch.arange(tokens, device=query.device)
        mask = place[:, None] >= place
        if window is not None:
            mask &= place[:, None] - place < window
        return masked_attention(query, key, value, mask, scaling, dropout, softcap)
    if query.is_cuda:
        key, value = _for_each_head(query, key, value)
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


def _for_each_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat shared key heads, which kernels for masks, and for fp32 on a GPU, do not take."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attend where `mask` is true; see `packed_attention` for the other arguments.

    Args:
        query: (b, h, t, d).
        key, value: (b, k, s, d).
        mask: bool, (t, s) or (b, 1, t, s).
    Returns:
        (b, h, t, d)
    """
    key, value = _for_each_head(query, key, value)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, scale=scaling
        )
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    # padding may see nothing: with -inf its weights would be NaN
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value
