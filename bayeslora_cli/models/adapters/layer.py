"""Adapted layers: the parameters of a low-rank adapter beside a frozen linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear

RANK_EPSILON = 1e-5  # PEFT divides by (r_init + 1e-5): forward, merging and folding must agree
ADALORA_STD = 0.02  # of A and B at the start; E starts at 0 (PEFT's AdaLoRA)


class JointLinear:
    """One product for layers that see the same input, such as q, k and v."""

    def __init__(self, layers: Sequence[LowRankLinear], base: AdaptedLinear) -> None:
        """`base`: the joined form of all layers."""
        self.layers = tuple(layers)
        self.base_layer = base
        self.down: Tensor | None = None
        """Down factors of the m layers, stacked: (m r, in), refreshed by `PublishedFactors`."""
        self.up: Tensor | None = None
        """Up factors of the m layers, block-diagonal: (all outputs, m r), likewise."""

    @property
    def computes_all(self) -> bool:
        """Whether one product computes all layers in the next pass; False: one for each does."""
        return True

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Compute all layers: (n, in) -> (n, out) for each, views of one tensor."""
        return torch.split(self.whole(rows), [layer.out_features for layer in self.layers], -1)

    def whole(self, rows: Tensor) -> Tensor:
        """Compute all layers, their outputs side by side: (n, in) -> (n, all outputs)."""
        assert self.down is not None
        assert self.up is not None
        return self.base_layer.product(rows, self.down, self.up)


class LowRankLinear(nn.Module):
    """A frozen linear layer plus scale * B diag(E) A; without E, plain LoRA.

    The scale and E are folded into A, so that only the last product touches a tensor of the
    output's size: it adds into the base layer's output.
    """

    joined: ClassVar[type[JointLinear]] = JointLinear
    """What layers of this class are together, where they see the same input."""

    def __init__(
        self, base: AdaptedLinear, rank: int, scale: float, *, singular_values: bool
    ) -> None:
        """Create A, B and E as zeros; `base` computes the products."""
        super().__init__()
        self.base_layer = base
        self.rank = rank
        self.scale = scale
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1)) if singular_values else None
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

        self.down: Tensor | None = None
        """scale diag(E) A, (r, in), refreshed by `PublishedFactors.publish`; None: computed in
        every forward pass."""
        self.up: Tensor | None = None
        """B, (out, r), likewise."""
        self.shared: SharedCall | None = None
        """Computes this layer together with others that see the same input; None: there are none
        such."""
        self.preceding: Preceding | None = None
        """Computes this layer together with the one before it; None: it is computed by itself."""

    @property
    def weight(self) -> Tensor:
        """The frozen weight, oriented as in the replaced layer: backbones ask for its dtype."""
        return self.base_layer.shown_weight()

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, (out,), likewise."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Size of an input."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Size of an output."""
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer: x (..., in) -> (..., out)."""
        if self.shared is not None:
            return self.shared(self, x)
        if self.preceding is not None and self.preceding.passes():
            return self.preceding.both(x)
        down, up = self.down, self.up
        if down is None or up is None:
            down = self.lora_A * (self.scale if self.lora_E is None else self.lora_E * self.scale)
            # both are fp32; layers of a joint come here where each is computed by itself
            down, up = down.to(x.dtype), self.lora_B.to(x.dtype)
        out = self.base_layer.product(x.flatten(0, -2), down, up)
        return out.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def delta_weight(self, a: Tensor, e: Tensor | None, b: Tensor) -> Tensor:
        """Return the update to the base weight, in the orientation of the base layer's class."""
        delta = self.scale * b @ (a if e is None else a * e)  # (out, in)
        return self.base_layer.oriented(delta)


class Preceding(Protocol):
    """Computes a layer together with the one before it, whose input it gets."""

    def passes(self) -> bool:
        """Return whether the layer before passed its own input on."""

    def both(self, x: Tensor) -> Tensor:
        """Compute both layers: (..., in) -> (..., out)."""


class SharedCall:
    """Lets a backbone call the layers of a joint one by one, as its own code does.

    The first layer that sees an input computes all of them; the others then get their outputs if
    they are called with that very tensor. Called with another one, a layer computes all again. The
    input and the outputs that no layer has asked for are held until the next call.
    """

    def __init__(self, joint: JointLinear, copied: int | None = None) -> None:
        """Make the joint's layers use it.

        Args:
            copied: the layer whose output is kept for the backward pass, and would keep those of
                all others with it: a copy is returned.
        """
        self.joint = joint
        self.copied = copied
        self.x: Tensor | None = None
        self.outputs: list[Tensor | None] = []
        for layer in joint.layers:
            layer.shared = self

    def __call__(self, layer: LowRankLinear, x: Tensor) -> Tensor:
        """Compute one of the layers: x (..., in) -> (..., out)."""
        place = next(i for i, other in enumerate(self.joint.layers) if other is layer)
        found = self.outputs[place] if self.x is x else None
        if found is None:
            outputs = self.joint(x.flatten(0, -2))
            views = [out.view(*x.shape[:-1], -1) for out in outputs]
            if self.copied is not None:
                views[self.copied] = views[self.copied].contiguous()
            self.x, self.outputs = x, [*views]
            found = self.outputs[place]
        self.outputs[place] = None
        if all(out is None for out in self.outputs):  # keep no activation longer than is needed
            self.x = None
        assert found is not None
        return found


def join(layers: Sequence[LowRankLinear]) -> JointLinear | None:
    """Join layers that see the same input, on the device where they will stay.

    None: the layers are of several classes, or their forms are or cannot be joined.
    """
    forms = {type(layer.base_layer) for layer in layers}
    if len({type(layer) for layer in layers}) > 1 or len(forms) > 1:
        return None
    (form,) = forms
    base = form.join([layer.base_layer for layer in layers])
    return None if base is None else layers[0].joined(layers, base)
