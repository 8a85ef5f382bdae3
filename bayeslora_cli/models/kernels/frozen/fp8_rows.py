"""Rows in fp8 (e4m3) with a scale each, and their scaled product."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest e4m3 number."""
LEAST_SCALE = 1e-12
"""Scale of a row of zeros."""
HAS_TRITON = find_spec("triton") is not None


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize each row by its own largest absolute value.

    Args:
        x: (n, k).
        columns: (k,), fp32, multiplies the rows first; None: ones.
    Returns:
        Codes (n, k), contiguous, and scales (n, 1), fp32.
    """
    if HAS_TRITON and x.is_cuda and x.stride(1) == 1:
        from bayeslora_cli.models.kernels.frozen import fp8_rows_triton

        return fp8_rows_triton.quantize_rows(x, columns, FP8)
    wide = x.float() if columns is None else x.float() * columns
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp_min(LEAST_SCALE)
    return (wide / scale).to(FP8), scale


def scaled_product(
    codes: Tensor, scale: Tensor, weight: Tensor, of_weight: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute (scale codes) (of_weight weight)', summed in fp32.

    Args:
        codes: (n, k), fp8.
        scale: (n, 1), fp32.
        weight: (m, k), fp8, contiguous.
        of_weight: (m,), fp32.
        dtype: type of the result; a GPU rounds it to bf16 first.
    Returns:
        (n, m)
    """
    if codes.is_cuda:
        out = torch._scaled_mm(
            codes, weight.t(), scale_a=scale, scale_b=of_weight[None], out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )  # fmt: skip
        return out.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return ((codes.to(wide) * scale) @ (weight.to(wide) * of_weight[:, None]).t()).to(dtype)


def transposed(codes: Tensor) -> Tensor:
    """Return a transposed copy of codes: (m, k) -> (k, m)."""
    if HAS_TRITON and codes.is_cuda and codes.is_contiguous():
        from bayeslora_cli.models.kernels.frozen import fp8_rows_triton

        return fp8_rows_triton.transposed(codes)
    return codes.t().contiguous()
