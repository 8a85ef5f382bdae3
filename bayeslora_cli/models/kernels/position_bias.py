"""Turns products with relative positions into scores by a shift of memory."""

from __future__ import annotations

from torch import Tensor


def skew(x: Tensor, offset: int) -> Tensor:
    """Return y[i, j] = x[i, offset - i + j], (..., L, 2L) -> (..., L, L), a view of contiguous x.

    Read with rows that are one element shorter, each row starts one place further left.
    """
    length = x.shape[-2]
    width = 2 * length - 1
    flat = x.flatten(-2)[..., offset : offset + length * width]
    return flat.view(*flat.shape[:-1], length, width)[..., :length]


def position_bias(c2p: Tensor, p2c: Tensor) -> Tensor:
    """Compute bias[i, j] = c2p[i, L - 1 - i + j] + p2c[j, L - j + i].

    Args:
        c2p: queries times positions from the largest to the smallest, (..., L, 2L), contiguous.
        p2c: keys times positions from the smallest to the largest, (..., L, 2L), contiguous.
    Returns:
        (..., L, L)
    """
    length = c2p.shape[-2]
    return skew(c2p, length - 1) + skew(p2c, length).mT
