"""Frozen weights in bf16, as most checkpoints have them, under a computation in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Dequantizing

NAME = "bf16"


class Bf16Linear(QuantizedLinear):
    """Form that rounds the weight to bf16."""

    names = ("codes",)
    arithmetic = NAME
    by_row = True
    of_itself = torch.bfloat16

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        return {"codes": weight.to(torch.bfloat16)}

    @classmethod
    def layout(cls, height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": ((height, width), torch.bfloat16)}


class _Bf16(Dequantizing):
    parts = 1

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        out.copy_(stored[0])


ARITHMETICS[NAME] = _Bf16()
