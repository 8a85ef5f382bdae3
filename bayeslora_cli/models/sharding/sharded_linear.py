"""`ShardedLinear`: a frozen weight of which each process holds a part of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bayeslora_cli.models.adapters.dense import FROZEN, DenseLinear


class ShardedLinear(DenseLinear):
    """Form whose weight and bias are whole only while the block that they belong to computes.

    `divide.divide_blocks` hands them to FSDP2, which gathers and frees them. Forms that are joined
    give their tensors to the joined one, which is a child of the first of them, and keep none.
    """

    def __init__(self, layer: nn.Module) -> None:
        """`layer`: as for `DenseLinear`; it loses its tensors, which would be second copies."""
        super().__init__(layer)
        for name in FROZEN:
            layer._parameters[name] = None
        self.members: tuple[ShardedLinear, ...] = ()
        """The forms that this one joins, top to bottom."""
        self._joined: tuple[ShardedLinear, int] | None = None

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self._joined is None:
            bias = None if self.bias is None else _whole(self.bias)
            return self.oriented(_whole(self.weight)), bias
        joint, start = self._joined
        weight, bias = joint.weight_and_bias()
        rows = slice(start, start + self.out_features)
        return weight[rows], None if bias is None else bias[rows]

    def dense(self) -> Tensor:
        """Return W; outside of the block's passes, when every process must ask for it, a copy."""
        return self.weight_and_bias()[0]

    def replace_dense(self, weight: Tensor) -> None:
        raise NotImplementedError("a divided weight is read once and stays as it is")

    def plain(self) -> nn.Module:
        """Return a layer of the replaced one's class, with copies outside of the block's passes."""
        layer = copy(self._layer[0])
        weight, bias = self.weight_and_bias()
        layer._parameters = {
            "weight": nn.Parameter(self.oriented(weight), requires_grad=False),
            "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
        }
        return layer

    @classmethod
    def join(cls, forms: Sequence[Self]) -> ShardedLinear | None:
        """Stack the weights vertically, before they are divided."""
        if any(form.transposed for form in forms) or len({form.bias is None for form in forms}) > 1:
            return None
        weights: list[Tensor] = [form.weight for form in forms]
        biases = [form.bias for form in forms if form.bias is not None]
        layer = nn.Linear(forms[0].in_features, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        if biases:
            layer.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        joint, start = cls(layer), 0
        joint.members = tuple(forms)
        for form in forms:
            for name in FROZEN:
                form._parameters[name] = None
            form._joined, start = (joint, start), start + form.out_features
        forms[0].add_module("joint", joint)  # so that its parameters are the block's
        return joint


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
