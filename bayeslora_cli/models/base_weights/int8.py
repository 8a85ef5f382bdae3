"""Frozen weights in 8 bits, a scale per row: bitsandbytes' codes (Dettmers et al., LLM.int8(),
arXiv 2208.07339), with activations that are not quantized."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from bayeslora_cli.models.base_weights.bitsandbytes_codes import to_int8
from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Dequantizing

NAME = "int8"
HAS_TRITON = find_spec("triton") is not None


class Int8Linear(QuantizedLinear):
    """Form with integer codes of 8 bits and a scale per row."""

    names = ("codes", "scale")
    arithmetic = NAME
    by_row = True

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        return dict(zip(cls.names, to_int8(weight), strict=True))

    @classmethod
    def layout(cls, height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": ((height, width), torch.int8), "scale": ((height,), torch.float32)}


class _Int8(Dequantizing):
    parts = 2

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        codes, scale = stored
        if HAS_TRITON and codes.is_cuda and codes.is_contiguous() and out.is_contiguous():
            from bayeslora_cli.models.kernels.frozen import int8_rows_triton

            int8_rows_triton.dequantize(codes, scale, out)
        else:  # one kernel too, but torch's own takes five times as long
            torch.mul(codes, scale[:, None], out=out)


ARITHMETICS[NAME] = _Int8()
