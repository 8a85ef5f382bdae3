"""B-LoRA's gates over ranks and bit widths (Meo et al., arXiv 2406.13046), all matrices at once.

n matrices of rank r, q quantized operands each, a ladder of L widths. Parameters, all in the bank:

    gates.bits (n, q, L - 1)    logits: does a quantizer go beyond its first, second, … width
    gates.ranks (n, r - 1)      logits: does a matrix keep its second, third, … rank
    ranges (n, q)               ln of the quantizers' ranges
    signed (n, q)               1 where a range is [-beta, beta], 0 where it is [0, beta]; fixed

What the layers take is computed here before each pass, a handful of kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora_cli.methods.blora.hard_concrete import (
    MARGIN,
    START,
    is_open,
    nested,
    probability,
    sampled,
)
from bayeslora_cli.methods.blora.layer import GatedLinear, Operands
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.published_factors import padded_rank
from bayeslora_cli.models.kernels.quantize import Quantizers, intervals, quantize, quantizers

OPERANDS = ("A", "B", "E", "x", "a", "h")
"""Quantized: the weights, the adapter's input, what A makes of it, and that times E."""
BASE = "W"
"""The frozen weight, where it is quantized as well; its product then takes the quantized input."""
WEIGHTS = ("A", "B", "E", BASE)
FLOAT, LEARNING, FIXED = "float", "learning", "fixed"
"""Modes: no quantizers and no gates; gates drawn; gates at their thresholds."""


class Plan(NamedTuple):
    """What is gated."""

    bits: bool
    ranks: bool
    ladder: tuple[int, ...]
    base: bool
    """The frozen weights are quantized as well."""

    @property
    def operands(self) -> tuple[str, ...]:
        """Of each matrix, what is quantized."""
        if not self.bits:
            return ()
        return (*OPERANDS, BASE) if self.base else OPERANDS


class Gates:
    """The parameters, and what the layers take in each mode."""

    def __init__(self, plan: Plan, layers: Mapping[str, GatedLinear], rank: int) -> None:
        """Parameters at their start, which the bank moves; `attach` comes next."""
        self.plan, self.rank = plan, rank
        self.names, self.layers = tuple(layers), tuple(layers.values())
        self.mode = FIXED
        self.generator: torch.Generator | None = None
        """Draws the gates, where they are learned."""
        self.quantized = frozenset(plan.operands)
        """Operands whose quantizers are in use: an export may lose some."""
        n, q, device = len(layers), len(plan.operands), self.layers[0].lora_A.device
        found: dict[str, tuple[str, Tensor]] = {}
        if q and len(plan.ladder) > 1:
            found["gates.bits"] = "gate", torch.full((n, q, len(plan.ladder) - 1), START)
        if plan.ranks and rank > 1:
            found["gates.ranks"] = "gate", torch.full((n, rank - 1), START)
        if q:
            found["ranges"] = "range", torch.zeros(n, q)
            found["signed"] = "fixed", torch.ones(n, q)
        self.parameters = [
            (name, role, nn.Parameter(p.to(device), requires_grad=role != "fixed"))
            for name, (role, p) in found.items()
        ]

    def attach(self, bank: AdapterBank, dtype: torch.dtype) -> None:
        """Take views of the bank, which holds the parameters now, and the place of its factors.

        Those stay what the layers compute with in the float phase.

        Args:
            dtype: of the frozen weights and what is computed in.
        """
        self.bank, self.dtype = bank, dtype
        assert bank.factors is not None
        self._plain, bank.factors = bank.factors, self
        self.buffers = self._plain.buffers
        device = bank.theta.device
        own = {name: parameter for name, _, parameter in self.parameters}
        self.bits, self.ranks = own.get("gates.bits"), own.get("gates.ranks")
        self.ranges, self.signed = own.get("ranges"), own.get("signed")
        self.computed_rank = padded_rank(self.rank, dtype, device)
        """With the zeros that fill up rows on a GPU, see `factors`."""
        # fp32 whatever the layers see; their gradients are added to `bank.local` in place
        self._e = _leaf(bank.singular_values(bank.theta), bank.singular_values(bank.local))
        self._factors = {
            part: [
                _Stacked(_leaf(_block(own, bank.theta), _block(own, bank.local)), own[0])
                for own in places
            ]
            for part, places in (
                ("A", [group.a for group in bank.groups]),
                ("B", [group.b for group in bank.groups]),
            )
        }
        members = [index for group in bank.groups for index in group.members]
        self._order = torch.tensor(members, dtype=torch.long, device=device)
        self._members, self._sizes = members, [len(group.members) for group in bank.groups]
        self._divisors = torch.tensor(
            intervals(self.plan.ladder), dtype=torch.float32, device=device
        )
        self._places = torch.arange(len(self.plan.ladder), device=device)
        # the same kernels, and so the same compiled blocks, in both phases that have quantizers
        self.one_form = device.type == "cuda"
        gates = [p for p in (self.bits, self.ranks) if p is not None]
        self._u = torch.zeros(sum(p.numel() for p in gates), device=device)

    # ---- as the bank's factors

    def publish(self) -> None:
        """What is made of theta in other phases is made before each pass, by `dress`."""
        if self.mode == FLOAT:
            self._plain.publish()

    def zero(self) -> None:
        """Forget the gradients."""
        self._plain.zero()

    def collect(self) -> None:
        """In other phases autograd has added the gradients to `local` itself."""
        if self.mode == FLOAT:
            self._plain.collect()

    # ---- the gates themselves

    def levels(self, bits: Tensor) -> Tensor:
        """Place in the ladder at the thresholds, of logits (..., L - 1): (...) int64."""
        return nested(is_open(bits).long()).sum(-1)

    def mask(self, ranks: Tensor) -> Tensor:
        """1 for the ranks kept at the thresholds, of logits (..., r - 1): (..., r)."""
        first = torch.ones_like(ranks[..., :1])
        return torch.cat((first, nested(is_open(ranks).to(ranks.dtype))), -1)

    def in_buffer(self, name: str, flat: Tensor) -> Tensor | None:
        """A parameter in a flat buffer (N,); None: the plan has none of it."""
        segment = self.bank.segments.get(name)
        return None if segment is None else segment.view(flat)

    def levels_in(self, flat: Tensor) -> Tensor:
        """`levels` of a flat buffer (N,): (n, q)."""
        bits = self.in_buffer("gates.bits", flat)
        shape = (len(self.layers), len(self.plan.operands))
        if bits is None:  # a ladder of one width
            return torch.zeros(shape, dtype=torch.long, device=flat.device)
        return self.levels(bits)

    def mask_in(self, flat: Tensor) -> Tensor:
        """`mask` of a flat buffer (N,): (n, r)."""
        ranks = self.in_buffer("gates.ranks", flat)
        if ranks is None:
            return torch.ones(len(self.layers), self.rank, device=flat.device)
        return self.mask(ranks)

    def thresholded(self, flat: Tensor) -> Quantizers:
        """The quantizers of a flat buffer (N,), one width each: (n, q, 2) and (n, q, 3)."""
        ranges, signed = self.in_buffer("ranges", flat), self.in_buffer("signed", flat)
        assert ranges is not None
        assert signed is not None
        divisors = self._divisors.to(flat.device)[self.levels_in(flat)][..., None]
        return quantizers(ranges, signed, divisors)

    @torch.no_grad()
    def dequantized(self, flat: Tensor) -> Tensor:
        """Parameters (N,) with A, B and E as the thresholded quantizers leave them."""
        if not self.plan.operands:
            return flat
        parts = self._by_operand(self.thresholded(flat))
        found = flat.clone()
        for group in self.bank.groups:
            members = list(group.members)
            for name, view in (("A", group.view_a(found)), ("B", group.view_b(found))):
                view.copy_(quantize(view, Quantizers(*(part[members] for part in parts[name]))))
        e = self.bank.singular_values(found)
        e.copy_(quantize(e, parts["E"]))
        return found

    @torch.no_grad()
    def quantized_base(self, flat: Tensor) -> dict[str, Tensor]:
        """The frozen weights as the thresholded quantizers leave them; none, if they are not."""
        if not self.plan.base or BASE not in self.quantized:
            return {}
        by = _rows(self._by_operand(self.thresholded(flat.to(self.bank.theta.device)))[BASE])
        return {
            name: quantize(layer.base_layer.weight[None], own)[0]  # type: ignore[index]
            for name, layer, own in zip(self.names, self.layers, by, strict=True)
        }

    # ---- what the layers take

    def dress(self, *, training: bool) -> None:
        """Give every layer its operands for the next pass.

        Args:
            training: draw the gates, where they are learned; else they are at their thresholds.
        """
        if self.mode == FLOAT:
            for layer in self.layers:
                layer.operands = None
            return
        draw = training and self.mode == LEARNING
        u = self._draw() if draw else {}
        by = None
        if self.plan.operands:
            by = self._quantizers(u.get("bits"), whole=training and self.one_form)
        parts = {} if by is None else self._by_operand(by)
        a, b = self._quantized("A", parts), self._quantized("B", parts)
        e = quantize(self._e, parts["E"]) if "E" in parts else self._e
        e = self._filled(e * self._rank_gates(u.get("ranks")), along=-1)
        rows = {name: _rows(parts[name]) for name in ("x", "a", "h", BASE) if name in parts}
        none: list[None] = [None] * len(self.layers)
        for layer, *operands in zip(
            self.layers, a, e.unbind(0), b,
            *(rows.get(name, none) for name in ("x", "a", "h", BASE)), strict=True,
        ):  # fmt: skip
            layer.operands = Operands(*operands)

    def _draw(self) -> dict[str, Tensor]:
        """Uniform numbers for all gates, in one call."""
        self._u.uniform_(MARGIN, 1 - MARGIN, generator=self.generator)
        u, start = {}, 0
        for name, logits in (("bits", self.bits), ("ranks", self.ranks)):
            if logits is not None:
                u[name] = self._u[start : start + logits.numel()].view(logits.shape)
                start += logits.numel()
        return u

    def _quantizers(self, u: Tensor | None, *, whole: bool) -> Quantizers:
        """Of all operands: (n, q, 1 + L) and (n, q, 2 + L), L = 1 at the thresholds.

        Args:
            whole: all widths at the thresholds, too, with shares of 0 and 1: the same values.
        """
        assert self.ranges is not None
        assert self.signed is not None
        if u is None and whole:
            levels = self.levels_in(self.bank.theta)
            shares = (levels[..., None] == self._places).to(self.ranges.dtype)
            return quantizers(self.ranges, self.signed, self._divisors.expand(shares.shape), shares)
        if u is None:
            divisors = self._divisors[self.levels_in(self.bank.theta)][..., None]
            return quantizers(self.ranges, self.signed, divisors)
        assert self.bits is not None
        first = torch.ones_like(self.ranges)[..., None]
        reached = torch.cat((first, nested(sampled(self.bits, u))), -1)  # (n, q, L)
        shares = torch.cat((reached[..., :-1] - reached[..., 1:], reached[..., -1:]), -1)
        return quantizers(self.ranges, self.signed, self._divisors.expand(shares.shape), shares)

    def _by_operand(self, by: Quantizers) -> dict[str, Quantizers]:
        parts = zip(self.plan.operands, *(part.unbind(1) for part in by), strict=True)
        return {name: Quantizers(*rest) for name, *rest in parts if name in self.quantized}

    def _rank_gates(self, u: Tensor | None) -> Tensor:
        if u is None:
            return self.mask_in(self.bank.theta)
        assert self.ranks is not None
        products = nested(sampled(self.ranks, u))
        return torch.cat((torch.ones_like(products[:, :1]), products), -1)

    def _quantized(self, name: str, parts: Mapping[str, Quantizers]) -> list[Tensor]:
        """A or B of each matrix, in the model's order, B times the scale."""
        sizes = [
            torch.split(part.index_select(0, self._order), self._sizes)
            for part in parts.get(name, ())
        ]
        found: list[Tensor] = []
        for index, (leaf, shape) in enumerate(self._factors[name]):
            values = leaf
            if sizes:
                values = quantize(leaf, Quantizers(*(size[index] for size in sizes)))
            values = (values * self.layers[0].scale if name == "B" else values).to(self.dtype)
            values = values[:, : shape[1] * shape[2]].view(shape)
            found += self._filled(values, along=-2 if name == "A" else -1).unbind(0)
        order = sorted(range(len(found)), key=self._members.__getitem__)
        return [found[place] for place in order]

    def _filled(self, values: Tensor, *, along: int) -> Tensor:
        """Ranks along an axis filled up with zeros to `computed_rank`."""
        missing = self.computed_rank - self.rank
        return F.pad(values, (0, 0) * (-1 - along) + (0, missing)) if missing else values

    # ---- what is expected

    def expected_reach(self, flat: Tensor) -> Tensor | None:
        """Probabilities that quantizers go beyond their first, second, … width: (n, q, L - 1)."""
        bits = self.in_buffer("gates.bits", flat)
        return None if bits is None else nested(probability(bits))

    def expected_ranks(self, flat: Tensor) -> Tensor:
        """Probability that each rank is kept: (n, r)."""
        ranks = self.in_buffer("gates.ranks", flat)
        if ranks is None:
            return torch.ones(len(self.layers), self.rank, device=flat.device)
        return torch.cat((torch.ones_like(ranks[:, :1]), nested(probability(ranks))), -1)


class _Stacked(NamedTuple):
    """All A or all B of one shape, with the padding between them: autograd wants dense leaves."""

    leaf: Tensor
    """(G, k)."""
    shape: tuple[int, ...]
    """(G, r, in) or (G, out, r), of the beginning of each row."""


def _block(place: tuple[tuple[int, ...], tuple[int, ...], int], flat: Tensor) -> Tensor:
    """A group's part of a flat buffer (N,), padding included: (G, k)."""
    (count, *_), (size, *_), offset = place
    return flat[offset : offset + count * size].view(count, size)


def _leaf(values: Tensor, gradient: Tensor) -> Tensor:
    """A tensor of a graph's beginning, whose gradient is added in place to another."""
    leaf = values.detach().requires_grad_()
    leaf.grad = gradient
    return leaf


def _rows(by: Quantizers) -> list[Quantizers]:
    """One quantizer a matrix, of tensors that it sees whole: (1, 1 + L) and (1, 2 + L)."""
    return [Quantizers(a[None], b[None]) for a, b in zip(*(p.unbind(0) for p in by), strict=True)]
