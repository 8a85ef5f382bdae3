"""Frozen weights in fp8 (e4m3), a scale per row, and products of fp8 numbers.

The weights are quantized once, activations and gradients by row before each product. A GPU of
compute capability 8.9 or later multiplies them itself; elsewhere the same codes are multiplied in
the precision of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Arithmetic, Dequantizing
from bayeslora_cli.models.kernels.frozen.fp8_rows import (
    FP8,
    quantize_rows,
    scaled_product,
    transposed,
)

NAME, WEIGHTS_ONLY = "fp8", "fp8 weights only"
MULTIPLE = 16
"""What scaled products take the sizes in."""


class Fp8Linear(QuantizedLinear):
    """Form with codes of 8 bits, floating-point numbers, and a scale per row."""

    names = ("codes", "scale")
    arithmetic = NAME
    by_row = True
    exact = WEIGHTS_ONLY
    least_capability = (8, 9)

    @classmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        codes, scale = quantize_rows(weight)
        return {"codes": codes, "scale": scale[:, 0]}

    @classmethod
    def layout(cls, height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": ((height, width), FP8), "scale": ((height,), torch.float32)}

    @classmethod
    def refusal(cls, height: int, width: int) -> str | None:
        if height % MULTIPLE or width % MULTIPLE:
            return f"has {width} inputs and {height} outputs, which must be multiples of {MULTIPLE}"
        return None


class _Fp8(Arithmetic):
    parts = 2

    def multiply(
        self, rows: Tensor, stored: Sequence[Tensor], heights: Sequence[int], bias: Tensor | None
    ) -> Tensor:
        codes, scale = quantize_rows(rows)
        biases = [None] * len(heights) if bias is None else torch.split(bias, list(heights))
        found = [
            scaled_product(codes, scale, *weight, rows.dtype, own)
            for weight, own in zip(_layers(stored), biases, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def multiply_back(
        self, grad: Tensor, stored: Sequence[Tensor], heights: Sequence[int], width: int
    ) -> Tensor:
        """Compute g W: W's scales lie along the sum, so they multiply g before it is quantized.

        The product takes its second operand by columns: the codes are transposed for it, as a copy
        that is kept would cost as much as weights in bf16.
        """
        found: Tensor | None = None
        for part, (weight, of_weight) in zip(
            torch.split(grad, list(heights), 1), _layers(stored), strict=True
        ):
            codes, scale = quantize_rows(part, of_weight)
            one = scaled_product(codes, scale, *transposed(weight), grad.dtype)
            found = one if found is None else found.add_(one)
        assert found is not None
        return found

    def scratch(self, rows: int, height: int, width: int, itemsize: int) -> int:
        """Return the bytes of the codes of x, or of those of g and of W transposed."""
        return max(rows * width, height * (rows + width))

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        codes, scale = stored
        out.copy_(codes.float() * scale[:, None])


def _layers(stored: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(stored[::2], stored[1::2], strict=True))


class _Fp8Weights(Dequantizing):
    parts = 2

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        _Fp8().dequantize(stored, out)


ARITHMETICS[NAME], ARITHMETICS[WEIGHTS_ONLY] = _Fp8(), _Fp8Weights()
