"""B-LoRA's adapter: a forward pass whose operands are quantized and whose ranks are gated."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.layer import ADALORA_STD, LowRankLinear
from bayeslora_cli.models.kernels.gated_linear import gated_product
from bayeslora_cli.models.kernels.quantize import Quantizers, is_fused, quantize


class Operands(NamedTuple):
    """Tensors that a forward pass uses instead of the layer's parameters, quantized or not."""

    a: Tensor
    """A, (r, in)."""
    e: Tensor
    """E times the ranks' gates, (r,) fp32."""
    b: Tensor
    """B times the scale, (out, r)."""
    of_input: Quantizers | None = None
    of_a: Quantizers | None = None
    """Quantizer of x A'; None: not quantized."""
    of_h: Quantizers | None = None
    """Quantizer of x A' diag(E), likewise."""
    of_base: Quantizers | None = None
    """Quantizer of the frozen weight, whose product then uses the quantized input."""


class GatedLinear(LowRankLinear):
    """Layer h = Qa(Qx(x) A') * E * g; out = base(x) + (alpha / r) Qh(h) B', A, E, B quantized.

    While `operands` is None it computes what its base class does: plain low-rank adaptation.
    """

    def __init__(self, base: AdaptedLinear, rank: int, scale: float) -> None:
        super().__init__(base, rank, scale, singular_values=True)
        self.operands: Operands | None = None
        """Operands of the next pass, which `OperandPublisher` sets for all layers at once."""
        self.observed_extremes: list[Tensor] | None = None
        """Smallest and largest elements of x, x A' and x A' diag(E) at each call, while ranges are
        measured; else None."""

    def extremes(self) -> Tensor:
        """Return the extremes over all calls: (3, 2). DeBERTa calls a layer twice per pass."""
        assert self.observed_extremes
        found = torch.stack(self.observed_extremes).view(-1, 3, 2)
        return torch.stack((found[..., 0].amin(0), found[..., 1].amax(0)), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer: x (..., in) -> (..., out)."""
        if self.observed_extremes is not None:
            self._measure(x.flatten(0, -2), self.observed_extremes)
        by = self.operands
        if by is None:
            return super().forward(x)
        rows = x.flatten(0, -2)
        out = self._whole(rows, by)
        if out is None:
            taken = rows if by.of_input is None else _quantized(rows, by.of_input)
            h = F.linear(taken, by.a)  # (rows, r)
            if by.of_a is not None:
                h = _quantized(h, by.of_a)
            h = h * by.e.to(h.dtype)
            if by.of_h is not None:
                h = _quantized(h, by.of_h)
            out = self._base(rows, taken, by) + F.linear(h, by.b)
        return out.view(*x.shape[:-1], -1)

    def _whole(self, rows: Tensor, by: Operands) -> Tensor | None:
        """Compute the layer by one operator; None: there is none for these operands."""
        if by.of_base is not None:
            return None
        of_x, of_a, of_h = by.of_input, by.of_a, by.of_h
        if of_x is None and of_a is None and of_h is None:
            return self.base_layer.product(rows, by.a * by.e[:, None].to(by.a.dtype), by.b)
        frozen = self.base_layer.weight_and_bias()
        if of_x is None or of_a is None or of_h is None or not is_fused(rows) or frozen is None:
            return None
        return gated_product(rows, *frozen, by.a, by.e, by.b, of_x, of_a, of_h)

    def _base(self, rows: Tensor, quantized: Tensor, by: Operands) -> Tensor:
        base = self.base_layer
        if by.of_base is None:
            found: Tensor = base(rows)
            return found
        # quantized in memory order, which the sums over the elements follow
        weight = base.oriented(_quantized(base.oriented(base.dense()), by.of_base))
        return F.linear(quantized, weight, base.bias)

    @torch.no_grad()
    def _measure(self, rows: Tensor, extremes: list[Tensor]) -> None:
        assert self.lora_E is not None
        a = F.linear(rows.float(), self.lora_A)
        for value in (rows, a, a * self.lora_E[:, 0]):
            extremes += value.float().aminmax()


def _quantized(x: Tensor, by: Quantizers) -> Tensor:
    """Quantize a whole tensor by one quantizer."""
    # no [None] and [0]: the gradient of [0] would allocate a second tensor and fill it with zeros
    return quantize(x.reshape(1, -1), by).view(x.shape)


def gated_linear(
    base: AdaptedLinear, rank: int, alpha: float, generator: torch.Generator
) -> GatedLinear:
    """Build an initial B-LoRA adapter: A, B ~ N(0, 0.02^2), E = 0, scale alpha / r."""
    layer = GatedLinear(base, rank, alpha / rank)
    with torch.no_grad():
        layer.lora_A.normal_(std=ADALORA_STD, generator=generator)
        layer.lora_B.normal_(std=ADALORA_STD, generator=generator)
    return layer
