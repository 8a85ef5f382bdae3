"""B-LoRA's adapter: a forward pass whose operands are quantized and whose ranks are gated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.methods.blora.gates import BASE
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.layer import ADALORA_STD, JointLinear, LowRankLinear
from bayeslora_cli.models.kernels.gated.gated_base import gated_base_product
from bayeslora_cli.models.kernels.gated.gated_linear import gated_product
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


class JointOperands(NamedTuple):
    """Operands of m layers that see the same input, as one operator takes them."""

    a: Tensor
    """(m, r, in)."""
    e: Tensor
    """(m, r) fp32."""
    b: Tensor
    """(outputs of all layers, r)."""
    of_input: Quantizers
    """One for each layer, (m, 1 + L) and (m, 2 + L); so are the next two."""
    of_a: Quantizers
    of_h: Quantizers
    of_base: Quantizers | None = None

    def product(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, heights: Sequence[int]
    ) -> Tensor:
        """Compute the layers, of `heights` outputs, by one operator: (n, in) -> (n, outputs)."""
        a, e, b, of_x, of_a, of_h, of_base = self
        if of_base is None:
            return gated_product(rows, weight, bias, a, e, b, of_x, of_a, of_h, heights)
        return gated_base_product(rows, weight, bias, a, e, b, of_x, of_a, of_h, of_base, heights)


class GatedJoint(JointLinear):
    """One frozen product, and one reading of the input, for layers that see the same input.

    While its layers have no operands, it computes what its base class does.
    """

    layers: tuple[GatedLinear, ...]
    operands: JointOperands | None = None
    """Those of the next pass, stacked; None: the layers are computed one by one."""

    @property
    def computes_all(self) -> bool:
        first = self.layers[0]
        if first.observed_extremes is not None:  # each layer measures the input that is its own
            return False
        return first.operands is None or self.operands is not None

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Compute all layers: (n, in) -> (n, out) for each."""
        if self.layers[0].operands is None or self._has_operator(rows):
            return super().__call__(rows)
        return tuple(layer.gated(rows) for layer in self.layers)

    def whole(self, rows: Tensor) -> Tensor:
        """Compute all layers, their outputs side by side: (n, in) -> (n, all outputs)."""
        if self.layers[0].operands is None:
            return super().whole(rows)
        if not self._has_operator(rows):
            return torch.cat([layer.gated(rows) for layer in self.layers], -1)
        by, frozen = self.operands, self.base_layer.weight_and_bias()
        assert by is not None
        assert frozen is not None
        return by.product(rows, *frozen, [layer.out_features for layer in self.layers])

    def _has_operator(self, rows: Tensor) -> bool:
        stored = self.base_layer.weight_and_bias() is not None
        return self.operands is not None and stored and is_fused(rows)


class GatedLinear(LowRankLinear):
    """Layer h = Qa(Qx(x) A') * E * g; out = base(x) + (alpha / r) Qh(h) B', A, E, B quantized.

    While `operands` is None it computes what its base class does: plain low-rank adaptation.
    """

    joined: ClassVar[type[JointLinear]] = GatedJoint

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
        if self.operands is None or self.shared is not None:
            return super().forward(x)
        return self.gated(x.flatten(0, -2)).view(*x.shape[:-1], -1)

    def gated(self, rows: Tensor) -> Tensor:
        """Compute the layer by its operands: (n, in) -> (n, out)."""
        by = self.operands
        assert by is not None
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
        return out

    def _whole(self, rows: Tensor, by: Operands) -> Tensor | None:
        """Compute the layer by one operator; None: there is none for these operands."""
        of_x, of_a, of_h = by.of_input, by.of_a, by.of_h
        if of_x is None and of_a is None and of_h is None and by.of_base is None:
            return self.base_layer.product(rows, by.a * by.e[:, None].to(by.a.dtype), by.b)
        frozen = self.base_layer.weight_and_bias()
        if of_x is None or of_a is None or of_h is None or not is_fused(rows) or frozen is None:
            return None
        if by.of_base is not None and not frozen[0].is_contiguous():
            return None
        whole = JointOperands(by.a[None], by.e[None], by.b, of_x, of_a, of_h, by.of_base)
        return whole.product(rows, *frozen, [self.out_features])

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


class Joints:
    """The joints among a network's gated layers, and the stacking of their operands."""

    def __init__(
        self, layers: Sequence[GatedLinear], joints: Iterable[JointLinear], device: torch.device
    ) -> None:
        number = {id(layer): index for index, layer in enumerate(layers)}
        self._joints = [joint for joint in joints if isinstance(joint, GatedJoint)]
        self._members = [[number[id(layer)] for layer in x.layers] for x in self._joints]
        """Indices of each joint's layers."""
        self.members = frozenset(index for ids in self._members for index in ids)
        self._order = torch.tensor(
            [index for ids in self._members for index in ids], dtype=torch.long, device=device
        )

    def publish(
        self, a: list[Tensor], e: Tensor, b: list[Tensor], parts: Mapping[str, Quantizers]
    ) -> bool:
        """Stack the operands of the next pass, by a few kernels for all joints.

        Return whether joints compute their layers; else no operator takes operands stacked.

        Args:
            a, e, b: of each layer.
            parts: the quantizers in use, by operand.
        """
        by = [parts.get(name) for name in ("x", "a", "h")]
        if BASE in parts:
            by.append(parts[BASE])
        if not self._joints or not is_fused(e) or None in by:
            for joint in self._joints:
                joint.operands = None
            return False
        sizes = [len(ids) for ids in self._members]
        per_layer = [e, *(part for own in by if own is not None for part in own)]
        rows = [torch.split(part.index_select(0, self._order), sizes) for part in per_layer]
        downs, ups = self._side_by_side(a), self._side_by_side(b)
        for joint, count, down, up, own_e, *own in zip(
            self._joints, sizes, downs, ups, *rows, strict=True
        ):
            joint.operands = JointOperands(
                down.view(count, own_e.shape[1], -1), own_e, up.view(-1, own_e.shape[1]),
                *map(Quantizers, own[::2], own[1::2]),
            )  # fmt: skip
        return True

    def _side_by_side(self, matrices: list[Tensor]) -> tuple[Tensor, ...]:
        """Copy each joint's matrices one after the other: a flat tensor for each joint."""
        sizes = [sum(matrices[index].numel() for index in ids) for ids in self._members]
        flat = torch.cat([matrices[index].flatten() for ids in self._members for index in ids])
        return torch.split(flat, sizes)

    def stack(self) -> None:
        """Stack the operands that the layers have."""
        for joint in self._joints:
            joint.operands = _stacked([x.operands for x in joint.layers if x.operands is not None])


def _stacked(operands: Sequence[Operands]) -> JointOperands | None:
    """Stack the operands of several layers; None: no operator takes such."""
    if not operands:
        return None
    quantizers = []
    for by in zip(*((x.of_input, x.of_a, x.of_h, x.of_base) for x in operands), strict=True):
        found = [own for own in by if own is not None]
        stacked = Quantizers(*map(torch.cat, zip(*found, strict=True))) if found else None
        quantizers.append(stacked)
    *activations, of_base = quantizers
    of_x, of_a, of_h = activations
    if of_x is None or of_a is None or of_h is None:
        return None
    return JointOperands(
        torch.stack([x.a for x in operands]),
        torch.stack([x.e for x in operands]),
        torch.cat([x.b for x in operands]),
        of_x, of_a, of_h, of_base,
    )  # fmt: skip


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
