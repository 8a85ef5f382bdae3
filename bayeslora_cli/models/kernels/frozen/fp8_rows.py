"""Rows in fp8 (e4m3) with a scale each, and their scaled product."""

from __future__ import annotations

from functools import cache
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
    codes: Tensor, scale: Tensor, weight: Tensor, of_weight: Tensor, dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute (scale codes) (of_weight weight)' + bias, summed in fp32.

    Args:
        codes: (n, k), fp8.
        scale: (n, 1), fp32.
        weight: (m, k), fp8, contiguous.
        of_weight: (m,), fp32.
        dtype: type of the result; a GPU rounds it to bf16 first.
        bias: (m,).
    Returns:
        (n, m), a tensor of its own.
    """
    if codes.is_cuda and len(codes):
        within = bias if bias is not None and _takes(bias) else None
        out = torch._scaled_mm(
            codes, weight.t(), scale_a=scale, scale_b=of_weight[None], bias=within,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ).to(dtype)  # fmt: skip
        bias = bias if within is None else None
    else:
        wide = torch.promote_types(dtype, torch.float32)
        left, right = codes.to(wide) * scale, weight.to(wide) * of_weight[:, None]
        out = (left @ right.t()).to(dtype)
    return out if bias is None else out.add_(bias)


def _takes(bias: Tensor) -> bool:
    """Tell whether a scaled product on a bias's device can add it."""
    return bias.dtype == torch.bfloat16 and _takes_bias(bias.device)


@cache
def _takes_bias(device: torch.device) -> bool:
    """Try: which products have a bias differs between releases of cuBLAS."""
    codes = torch.zeros(16, 16, device=device).to(FP8)
    ones, bias = (torch.ones(16, device=device, dtype=t) for t in (torch.float32, torch.bfloat16))
    try:
        out = torch._scaled_mm(
            codes, codes.t(), scale_a=ones[:, None], scale_b=ones[None], bias=bias,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
    except RuntimeError:
        return False
    return bool((out == 1).all())


def transposed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return a transposed copy of codes, (m, k) -> (k, m), and scales of 1 for it, (k,), fp32."""
    if HAS_TRITON and codes.is_cuda and codes.is_contiguous():
        from bayeslora_cli.models.kernels.frozen import fp8_rows_triton

        return fp8_rows_triton.transposed(codes)
    return codes.t().contiguous(), torch.ones(codes.shape[1], device=codes.device)
