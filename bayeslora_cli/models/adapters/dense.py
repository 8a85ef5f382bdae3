"""`DenseLinear`: the frozen weight and the published factors as separate dense operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.kernels.frozen.arithmetic import DENSE, Frozen
from bayeslora_cli.models.kernels.low_rank import split_linear as split
from bayeslora_cli.models.kernels.low_rank.low_rank_linear import low_rank_linear

FROZEN = ("weight", "bias")


class DenseLinear(AdaptedLinear):
    """Form that keeps the layer's weight and bias, under the same names, in the run's precision."""

    def __init__(self, layer: nn.Module) -> None:
        """`layer`: a Linear, whose weight is (out, in), or a Conv1D, whose weight is (in, out)."""
        super().__init__()
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, nn.Parameter)
        assert bias is None or isinstance(bias, nn.Parameter)
        self.weight, self.bias = weight, bias
        self.transposed = not isinstance(layer, nn.Linear)
        self.out_features, self.in_features = self.oriented(weight).shape
        # in a tuple, which hides it from torch: its parameters are listed once
        self._layer = (layer,)
        self._stacked: tuple[DenseLinear, ...] = ()  # hidden likewise
        self.halves: split.Halves | None = None
        """W in two halves of fp16, which a GPU multiplies fast; None: they are not used."""

    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Compute y by one operator forward and one backward, which add into the large products."""
        weight, bias = self.weight_and_bias()
        if self.halves is not None:
            return split.split_linear(rows, weight, self.halves, bias, down, up)
        return low_rank_linear(rows, weight, bias, down, up)

    def keep_halves(self) -> bool:
        """Compute products of fp32 by halves, if a GPU is fast that way; return whether it is.

        Call it on the device where the layer stays, when layers have been joined.
        """
        weight = self.dense()
        if self.halves is None and split.is_able(weight):
            self.halves = split.halves_of(weight)
        return self.halves is not None

    def forward(self, rows: Tensor) -> Tensor:
        """Compute x W' + bias: (n, in) -> (n, out)."""
        return F.linear(rows, *self.weight_and_bias())

    def dense(self) -> Tensor:
        """Return W itself, not a copy."""
        return self.oriented(self.weight)

    @torch.no_grad()
    def replace_dense(self, weight: Tensor) -> None:
        self.dense().copy_(weight)
        for form in (self, *self._stacked):
            if form.halves is not None:
                form.halves.take(split.halves_of(form.dense()))

    def plain(self) -> nn.Module:
        """Return the replaced layer itself: it shares weight and bias with this form."""
        (layer,) = self._layer
        for name in FROZEN:  # moving this module may have created new parameters
            setattr(layer, name, getattr(self, name))
        return layer

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        return self.dense(), self.bias

    def frozen(self) -> Frozen:
        weight, bias = self.weight_and_bias()
        return Frozen((weight,), (self.out_features,), DENSE, bias)

    @classmethod
    def join(cls, forms: Sequence[Self]) -> DenseLinear | None:
        """Stack the weights vertically; the weights of `forms` become views of the stack.

        Join last: moving or casting a module afterwards separates them again. Layers of which only
        some have a bias, and those that store (in, out), are not joined.
        """
        if any(form.transposed for form in forms) or len({form.bias is None for form in forms}) > 1:
            return None
        weight, bias = (joined([getattr(form, name) for form in forms]) for name in FROZEN)
        assert weight is not None
        height, width = weight.shape
        layer = nn.Linear(width, height, bias=bias is not None, device="meta")
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        stack = cls(layer)
        for form in forms:
            form._stacked = (stack,)
        return stack


def joined(parameters: Sequence[nn.Parameter | None]) -> nn.Parameter | None:
    """Stack several parameters, which become views of the stack; None if all are None."""
    found = [parameter for parameter in parameters if parameter is not None]
    if not found:
        return None
    joined = torch.cat([parameter.detach() for parameter in found])
    for parameter, view in zip(found, torch.split(joined, [len(p) for p in found]), strict=True):
        parameter.data = view
    return nn.Parameter(joined, requires_grad=False)
