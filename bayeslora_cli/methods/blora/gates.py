"""B-LoRA's gates over ranks and bit widths (Meo et al., arXiv 2406.13046), all matrices at once.

Gates are hard-concrete (Louizos et al., ICLR 2018): random numbers in [0, 1], often exactly 0 or 1,
with one logit phi each. For n matrices of rank r with q quantized operands each and a ladder of L
widths the bank holds:

    gates.bits (n, q, L - 1)    logits: does a quantizer go beyond its first, second, … width
    gates.ranks (n, r - 1)      logits: does a matrix keep its second, third, … rank
    ranges (n, q)               ln of the quantizers' ranges
    signed (n, q)               1 where a range is [-beta, beta], 0 where it is [0, beta]; fixed

Nothing here reads a value from the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayeslora_cli.models.adapters.bank_layout import BankLayout
from bayeslora_cli.models.kernels.quantize import Quantizers, intervals, quantizers

TAU = 2 / 3  # temperature; with gamma and zeta Louizos et al., section 4, and Bayesian Bits
GAMMA, ZETA = -0.1, 1.1  # ends of the stretched interval
START = 6.0  # phi of a new gate: open with probability 0.9995
MARGIN = 1e-6  # kept from the ends of u, uniform in (0, 1): its logit must be finite
SHIFT = -TAU * math.log(-GAMMA / ZETA)  # 1.5986
# a gate is used as closed if its probability of being closed is at least this (Bayesian Bits)
CLOSED = 0.34
THRESHOLD = math.log((1 - CLOSED) / CLOSED) - SHIFT  # -0.9353

OPERANDS = ("A", "B", "E", "x", "a", "h")
"""Quantized operands: the weights, the adapter's input x, a = x A', and h = a diag(E)."""
BASE = "W"
"""The frozen weight, if it is quantized as well; its product then uses the quantized input."""
WEIGHTS = ("A", "B", "E", BASE)
BITS, RANKS, RANGES, SIGNED = "gates.bits", "gates.ranks", "ranges", "signed"
"""Names of the parameters in the bank."""


def sampled(phi: Tensor, u: Tensor) -> Tensor:
    """Sample gates z = clamp(sigmoid((logit(u) + phi) / tau) (zeta - gamma) + gamma, 0, 1).

    Args:
        u: uniform in (`MARGIN`, 1 - `MARGIN`), of phi's shape.
    """
    stretched = ((u.logit() + phi) / TAU).sigmoid() * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def probability(phi: Tensor) -> Tensor:
    """Compute q = P(z > 0) = sigmoid(phi - tau ln(-gamma / zeta))."""
    return (phi + SHIFT).sigmoid()


def is_open(phi: Tensor) -> Tensor:
    """Return whether a gate is used as open: if and only if 1 - q < 0.34."""
    return phi > THRESHOLD


def nested(gates: Tensor) -> Tensor:
    """Compute products z_1, z_1 z_2, … along the last axis: a closed gate closes all later ones.

    torch's own cumulative product reads from the device, to look for zeros, in its backward pass.
    """
    products: list[Tensor] = []
    for gate in gates.unbind(-1):
        products.append(products[-1] * gate if products else gate)
    return torch.stack(products, -1) if products else gates


class GatePlan(NamedTuple):
    """Which operands are quantized, at which widths, and whether ranks are gated."""

    bits: bool
    ranks: bool
    ladder: tuple[int, ...]
    base: bool
    """Whether the frozen weights are quantized as well."""

    @property
    def operands(self) -> tuple[str, ...]:
        """Quantized operands of each matrix."""
        if not self.bits:
            return ()
        return (*OPERANDS, BASE) if self.base else OPERANDS

    def parameters(
        self, matrices: int, rank: int, device: torch.device
    ) -> list[tuple[str, str, nn.Parameter]]:
        """Create each parameter (name, role, initial value): gates open, ranges 1, signed."""
        n, q, gates = matrices, len(self.operands), len(self.ladder) - 1
        found: list[tuple[str, str, Tensor]] = []
        if q and gates:
            found.append((BITS, "gate", torch.full((n, q, gates), START)))
        if self.ranks and rank > 1:
            found.append((RANKS, "gate", torch.full((n, rank - 1), START)))
        if q:
            found.append((RANGES, "range", torch.zeros(n, q)))
            found.append((SIGNED, "fixed", torch.ones(n, q)))
        return [
            (name, role, nn.Parameter(value.to(device), requires_grad=role != "fixed"))
            for name, role, value in found
        ]


class GateParameters:
    """Reads gates and ranges from a flat buffer (N,) of the bank's layout, during a run or after.

    The methods change nothing.
    """

    def __init__(self, plan: GatePlan, layout: BankLayout) -> None:
        """`layout`: the layout of the bank that holds the parameters of `plan`."""
        self.plan, self.matrices, self.rank = plan, len(layout.matrices), layout.rank
        self._segments = layout.segments

    @property
    def over_widths(self) -> bool:
        """Whether there are gates over widths: a ladder of one width has none."""
        return BITS in self._segments

    @property
    def over_ranks(self) -> bool:
        """Whether there are gates over ranks: the first rank has none."""
        return RANKS in self._segments

    def in_buffer(self, name: str, flat: Tensor) -> Tensor | None:
        """Return a parameter's view in a flat buffer; None: the plan has no such parameter."""
        segment = self._segments.get(name)
        return None if segment is None else segment.view(flat)

    def levels(self, flat: Tensor) -> Tensor:
        """Return the index of each operand's width in the ladder, at the thresholds: (n, q)."""
        bits = self.in_buffer(BITS, flat)
        if bits is None:  # a ladder of one width
            shape = (self.matrices, len(self.plan.operands))
            return torch.zeros(shape, dtype=torch.long, device=flat.device)
        return nested(is_open(bits).long()).sum(-1)

    def mask(self, flat: Tensor) -> Tensor:
        """Return 1 for ranks kept at the thresholds, 0 for the others: (n, r)."""
        ranks = self.in_buffer(RANKS, flat)
        if ranks is None:
            return torch.ones(self.matrices, self.rank, device=flat.device)
        first = torch.ones_like(ranks[..., :1])
        return torch.cat((first, nested(is_open(ranks).to(ranks.dtype))), -1)

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Return the bits of each quantized operand at the thresholds, by matrix.

        This reads from the device.
        """
        ladder, operands = self.plan.ladder, self.plan.operands
        return [
            dict(zip(operands, (ladder[i] for i in row), strict=True))
            for row in self.levels(flat).tolist()
        ]

    def thresholded(self, flat: Tensor) -> Quantizers:
        """Return the quantizers at the thresholds, one width each: (n, q, 2) and (n, q, 3)."""
        ranges, signed = self.in_buffer(RANGES, flat), self.in_buffer(SIGNED, flat)
        assert ranges is not None
        assert signed is not None
        divisors = torch.tensor(
            intervals(self.plan.ladder), dtype=torch.float32, device=flat.device
        )
        return quantizers(ranges, signed, divisors[self.levels(flat)][..., None])

    def expected_reach(self, flat: Tensor) -> Tensor | None:
        """Return P(a quantizer goes beyond its first, second, … width): (n, q, L - 1)."""
        bits = self.in_buffer(BITS, flat)
        return None if bits is None else nested(probability(bits))

    def expected_ranks(self, flat: Tensor) -> Tensor:
        """Return the probability that each rank is kept: (n, r)."""
        ranks = self.in_buffer(RANKS, flat)
        if ranks is None:
            return torch.ones(self.matrices, self.rank, device=flat.device)
        return torch.cat((torch.ones_like(ranks[:, :1]), nested(probability(ranks))), -1)
