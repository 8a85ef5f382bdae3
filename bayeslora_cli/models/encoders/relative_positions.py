"""Which row of DeBERTa's relative embeddings belongs to a relative position."""

from __future__ import annotations

import torch
from torch import Tensor


def position_rows(reach: int, span: int, buckets: int, longest: int) -> Tensor:
    """Return the row of the relative embeddings for each relative position -reach ... reach - 1.

    Position r is query minus key. Up to m = buckets // 2 it is its own bucket; beyond, buckets are
    logarithmic: sign(r) (m + ceil((m - 1) ln(|r| / m) / ln((longest - 1) / m))). Row 0 is
    position -span; positions beyond the first or the last row use that row.

    Args:
        span: half the number of rows.
        buckets: twice m; not positive: every position is its own bucket.
        longest: the largest position, which the last bucket holds.
    Returns:
        (2 reach,) int64, never decreasing, on the CPU.
    """
    position = torch.arange(-reach, reach, device="cpu")
    if buckets > 0 and longest > 0:
        middle = buckets // 2
        # fp32, as in transformers: exactly at a bucket's edge the rounding decides
        ratio = position.abs().clamp(min=middle).float() / middle
        full = torch.tensor((longest - 1) / middle, dtype=torch.float32, device="cpu")
        bucket = torch.ceil(ratio.log() / full.log() * (middle - 1)) + middle
        position = torch.where(
            position.abs() <= middle, position, (bucket * position.sign()).long()
        )
    return (position + span).clamp(0, 2 * span - 1)


def nearest(rows: Tensor | None, length: int) -> Tensor | None:
    """Return the rows of positions -length ... length - 1 among those of more (2n, ...)."""
    middle = 0 if rows is None else len(rows) // 2
    return None if rows is None else rows[middle - length : middle + length]
