"""Frozen weights in 4 bits: NF4 with double quantization (Dettmers et al., QLoRA, arXiv
2305.14314)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_cli.models.base_weights.bitsandbytes_codes import (
    BLOCK,
    SECOND_BLOCK,
    Codes,
    from_nf4,
    to_nf4,
)
from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Dequantizing

NAME = "nf4"


class Nf4Linear(QuantizedLinear):
    """Form with codes of 4 bits, and absolute maxima of blocks of 64 in codes of 8 bits.

    The codes are a matrix of rows where the number of inputs is even, so that they can be sharded
    by row; their memory is that of `quant_storage`.
    """

    names = ("codes", "absmax", "absmax_scale", "absmax_offset")
    arithmetic = NAME
    quant_storage = torch.uint8
    """Type that the bytes of the codes are shown as."""

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        codes, *rest = to_nf4(weight)
        shape, dtype = cls.layout(*weight.shape)["codes"]
        return dict(zip(cls.names, (codes.view(dtype).view(shape), *rest), strict=True))

    @classmethod
    def layout(cls, height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        size, storage = -(-height * width // 2), cls.quant_storage
        if size % storage.itemsize:
            storage = torch.uint8
        size //= storage.itemsize
        blocks = -(-height * width // BLOCK)
        return {
            "codes": ((height, size // height) if size % height == 0 else (size, 1), storage),
            "absmax": ((blocks,), torch.uint8),
            "absmax_scale": ((-(-blocks // SECOND_BLOCK),), torch.float32),
            "absmax_offset": ((), torch.float32),
        }

    @classmethod
    def refusal(cls, height: int, width: int) -> str | None:
        if height * width % 2:
            return f"has {height} x {width} weights, an odd number, and two share a byte"
        return None


class _Nf4(Dequantizing):
    parts = 4

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        codes, *rest = stored
        from_nf4(Codes(codes.view(torch.uint8).view(-1, 1), *rest), out)


ARITHMETICS[NAME] = _Nf4()
