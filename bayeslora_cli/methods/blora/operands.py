"""`OperandPublisher`: computes the operands of B-LoRA's layers before each pass.

A few kernels serve all layers. Nothing here reads a value from the device, except `widths`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.methods.blora.gates import (
    BASE,
    BITS,
    MARGIN,
    RANGES,
    RANKS,
    SIGNED,
    GateParameters,
    nested,
    sampled,
)
from bayeslora_cli.methods.blora.layer import GatedLinear, Joints, Operands
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.published_factors import PublishedFactors, padded_rank
from bayeslora_cli.models.kernels.quantize import Quantizers, intervals, quantize, quantizers

FLOAT, LEARNING, FIXED = "float", "learning", "fixed"
"""Modes: without quantizers and gates; with sampled gates; with gates at their thresholds."""


class OperandPublisher:
    """Gives every layer its operands for the next pass, in each mode.

    It replaces the bank's factors, and publishes those itself in the float phase.
    """

    def __init__(
        self,
        parameters: GateParameters,
        bank: AdapterBank,
        layers: Mapping[str, GatedLinear],
        dtype: torch.dtype,
    ) -> None:
        """Create views of the bank, which holds the parameters.

        Args:
            layers: by name, in the bank's order.
            dtype: type of the frozen weights and of the computation.
        """
        self.parameters, self.bank, self.dtype = parameters, bank, dtype
        self.plan, self.rank = parameters.plan, parameters.rank
        self.names, self.layers = tuple(layers), tuple(layers.values())
        self.mode = FIXED
        self.generator: torch.Generator | None = None
        """Draws the gates in the learning phase."""
        self.quantized = frozenset(self.plan.operands)
        """Operands whose quantizers are in use; an export may drop some."""
        assert isinstance(bank.factors, PublishedFactors)
        self._plain, bank.factors = bank.factors, self
        self.buffers = self._plain.buffers
        device = bank.theta.device
        self.bits, self.ranks = bank.parameters.get(BITS), bank.parameters.get(RANKS)
        self.ranges, self.signed = bank.parameters.get(RANGES), bank.parameters.get(SIGNED)
        self.computed_rank = padded_rank(self.rank, dtype, device)
        """Rank with the zeros that pad rows on a GPU, see `published_factors`."""
        # always fp32; their gradients are added to `bank.local` in place
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
        self._joints = Joints(self.layers, self._plain.joints, device)
        self._alone = [i for i in range(len(self.layers)) if i not in self._joints.members]
        """Indices of the layers in no joint."""
        self._apart = torch.tensor(self._alone, dtype=torch.long, device=device)
        self._divisors = torch.tensor(
            intervals(self.plan.ladder), dtype=torch.float32, device=device
        )
        self._places = torch.arange(len(self.plan.ladder), device=device)
        # on a GPU both phases with quantizers use the same kernels, and so the same compiled blocks
        self.mixture_of_widths = device.type == "cuda"
        gates = [p for p in (self.bits, self.ranks) if p is not None]
        self._u = torch.zeros(sum(p.numel() for p in gates), device=device)

    # ---- the bank calls these as its factors

    def publish(self) -> None:
        """Publish plain factors in the float phase; else `publish_operands` does it per pass."""
        if self.mode == FLOAT:
            self._plain.publish()

    def zero(self) -> None:
        """Drop the gradients of the plain factors."""
        self._plain.zero()

    def collect(self) -> None:
        """Collect gradients in the float phase; else autograd adds them to `local` itself."""
        if self.mode == FLOAT:
            self._plain.collect()

    # ---- the network calls these as its operands

    @property
    def branch(self) -> Hashable:
        """Key of the kernels that an evaluation runs, besides its inputs and tensors."""
        return self.mode == FLOAT, self.quantized

    def publish_operands(self, *, training: bool) -> None:
        """Give every layer its operands for the next pass.

        Args:
            training: sample the gates in the learning phase; else they are at their thresholds.
        """
        if self.mode == FLOAT:
            for layer in self.layers:
                layer.operands = None
            return
        draw = training and self.mode == LEARNING
        u = self._draw() if draw else {}
        by = None
        if self.plan.operands:
            by = self._quantizers(u.get("bits"), mixture=training and self.mixture_of_widths)
        parts = {} if by is None else self._by_operand(by)
        a, b = self._quantized("A", parts), self._quantized("B", parts)
        e = quantize(self._e, parts["E"]) if "E" in parts else self._e
        e = self._filled(e * self._rank_gates(u.get("ranks")), along=-1)
        joined = self._joints.publish(a, e, b, parts)
        rows = {
            name: self._rows(parts[name], joined) for name in ("x", "a", "h", BASE) if name in parts
        }
        none: list[None] = [None] * len(self.layers)
        for layer, *operands in zip(
            self.layers, a, self._per_layer(e, joined), b,
            *(rows.get(name, none) for name in ("x", "a", "h", BASE)), strict=True,
        ):  # fmt: skip
            layer.operands = Operands(*operands)

    def publish_shapes(self, device: torch.device) -> None:
        """Give every layer empty operands of the learning phase, which needs the most memory."""

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device, requires_grad=True)

        widths, rank = len(self.plan.ladder), padded_rank(self.rank, self.dtype, device)
        for layer in self.layers:
            by = {
                name: Quantizers(empty(1, 1 + widths), empty(1, 2 + widths).detach())
                for name in self.plan.operands
            }
            layer.operands = Operands(
                a=empty(rank, layer.lora_A.shape[1], dtype=self.dtype),
                e=empty(rank),
                b=empty(layer.lora_B.shape[0], rank, dtype=self.dtype),
                of_input=by.get("x"),
                of_a=by.get("a"),
                of_h=by.get("h"),
                of_base=by.get(BASE),
            )
        self._joints.stack()

    @torch.no_grad()
    def effective(self, flat: Tensor) -> Tensor:
        """Return parameters (N,) with A, B and E rounded by the thresholded quantizers."""
        if not self.plan.operands:
            return flat
        parts = self._by_operand(self.parameters.thresholded(flat))
        found = flat.clone()
        for group in self.bank.groups:
            members = list(group.members)
            for name, view in (("A", group.view_a(found)), ("B", group.view_b(found))):
                view.copy_(quantize(view, Quantizers(*(part[members] for part in parts[name]))))
        e = self.bank.singular_values(found)
        e.copy_(quantize(e, parts["E"]))
        return found

    @torch.no_grad()
    def effective_base(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the frozen weights rounded by the thresholded quantizers; {}: not quantized."""
        if not self.plan.base or BASE not in self.quantized:
            return {}
        thresholded = self.parameters.thresholded(flat.to(self.bank.theta.device))
        by = self._rows(self._by_operand(thresholded)[BASE], joined=False)
        return {
            name: quantize(layer.base_layer.dense()[None], own)[0]
            for name, layer, own in zip(self.names, self.layers, by, strict=True)
        }

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Return the bits of each quantized operand at the thresholds, by matrix.

        This reads from the device.
        """
        return self.parameters.widths(flat)

    # ---- parts of the above

    def _draw(self) -> dict[str, Tensor]:
        """Draw uniform numbers for all gates, in one call."""
        self._u.uniform_(MARGIN, 1 - MARGIN, generator=self.generator)
        u, start = {}, 0
        for name, logits in (("bits", self.bits), ("ranks", self.ranks)):
            if logits is not None:
                u[name] = self._u[start : start + logits.numel()].view(logits.shape)
                start += logits.numel()
        return u

    def _quantizers(self, u: Tensor | None, *, mixture: bool) -> Quantizers:
        """Return all quantizers: (n, q, 1 + L) and (n, q, 2 + L), L = 1 at the thresholds.

        Args:
            mixture: keep all L widths at the thresholds too, with shares of 0 and 1; the values
                are the same.
        """
        assert self.ranges is not None
        assert self.signed is not None
        if u is None and mixture:
            levels = self.parameters.levels(self.bank.theta)
            shares = (levels[..., None] == self._places).to(self.ranges.dtype)
            return quantizers(self.ranges, self.signed, self._divisors.expand(shares.shape), shares)
        if u is None:
            divisors = self._divisors[self.parameters.levels(self.bank.theta)][..., None]
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
            return self.parameters.mask(self.bank.theta)
        assert self.ranks is not None
        products = nested(sampled(self.ranks, u))
        return torch.cat((torch.ones_like(products[:, :1]), products), -1)

    def _quantized(self, name: str, parts: Mapping[str, Quantizers]) -> list[Tensor]:
        """Return quantized A or B of each matrix, in the model's order; B times the scale."""
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

    def _per_layer(self, values: Tensor, joined: bool) -> Sequence[Tensor]:
        """Split into one tensor per layer.

        Args:
            values: stacked, one for each layer.
            joined: joints compute their layers by stacked tensors. Views that nothing then uses
                are made one by one: of `unbind` each would have a gradient, filled with zeros.
        """
        if not joined:
            return values.unbind(0)
        alone = dict(zip(self._alone, values.index_select(0, self._apart).unbind(0), strict=True))
        return [alone[i] if i in alone else values[i] for i in range(len(values))]

    def _rows(self, by: Quantizers, joined: bool) -> list[Quantizers]:
        """Split into one quantizer per layer, each (1, 1 + L) and (1, 2 + L)."""
        parts = self._per_layer(by.learned, joined), by.constants.unbind(0)
        return [Quantizers(a[None], b[None]) for a, b in zip(*parts, strict=True)]

    def _filled(self, values: Tensor, *, along: int) -> Tensor:
        """Pad the ranks along an axis with zeros to `computed_rank`."""
        missing = self.computed_rank - self.rank
        return F.pad(values, (0, 0) * (-1 - along) + (0, missing)) if missing else values


def publisher_of(network: Network) -> OperandPublisher:
    """Return the operand publisher of a network that B-LoRA built."""
    assert isinstance(network.operands, OperandPublisher)
    return network.operands


class _Stacked(NamedTuple):
    """All A or all B of one shape, padding included, since autograd needs dense leaves."""

    leaf: Tensor
    """All elements with their padding, (G, k)."""
    shape: tuple[int, ...]
    """(G, r, in) or (G, out, r): shape of the rows without their padding."""


def _block(place: tuple[tuple[int, ...], tuple[int, ...], int], flat: Tensor) -> Tensor:
    """Return a group's part of a flat buffer (N,), padding included: (G, k)."""
    (count, *_), (size, *_), offset = place
    return flat[offset : offset + count * size].view(count, size)


def _leaf(values: Tensor, gradient: Tensor) -> Tensor:
    """Make a leaf of the autograd graph whose gradient is added in place to another tensor."""
    leaf = values.detach().requires_grad_()
    leaf.grad = gradient
    return leaf
