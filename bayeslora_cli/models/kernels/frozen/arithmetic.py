"""How products with frozen weights are computed, by the form in which the weights are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Frozen(NamedTuple):
    """The frozen weights and bias of m layers on the same input, as operators take them."""

    stored: tuple[Tensor, ...]
    """The tensors that store the weights, those of the first layer first."""
    heights: tuple[int, ...]
    """Number of outputs of each layer."""
    arithmetic: str
    """A name in `ARITHMETICS`."""
    bias: Tensor | None
    """(out,), of all layers."""


class Arithmetic(ABC):
    """How a product with stored weights is computed. The objects hold no state.

    The weights of m layers on the same input are given as one list, the tensors of the first layer
    first; the result is that of W (sum of heights, in), all layers stacked.
    """

    parts: int
    """Number of stored tensors of one layer."""

    @abstractmethod
    def multiply(
        self, rows: Tensor, stored: Sequence[Tensor], heights: Sequence[int], bias: Tensor | None
    ) -> Tensor:
        """Compute x W' + bias, a tensor of its own: (n, in) -> (n, out)."""

    @abstractmethod
    def multiply_back(
        self, grad: Tensor, stored: Sequence[Tensor], heights: Sequence[int], width: int
    ) -> Tensor:
        """Compute g W, a tensor of its own: (n, out) -> (n, in)."""

    @abstractmethod
    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        """Write the dense weight of one layer into `out` (out, in), in the type of `out`."""

    @abstractmethod
    def scratch(self, rows: int, height: int, width: int, itemsize: int) -> int:
        """Return the bytes that either product needs besides its operands and its result.

        Args:
            rows: n.
            height: out, of all layers.
            width: in.
            itemsize: bytes of an element of x.
        """


class Dense(Arithmetic):
    """Weights that are stored as they are, in the type of the rows."""

    parts = 1

    def multiply(
        self, rows: Tensor, stored: Sequence[Tensor], heights: Sequence[int], bias: Tensor | None
    ) -> Tensor:
        (weight,) = stored
        return F.linear(rows, weight, bias)

    def multiply_back(
        self, grad: Tensor, stored: Sequence[Tensor], heights: Sequence[int], width: int
    ) -> Tensor:
        (weight,) = stored
        return grad @ weight

    def dequantize(self, stored: Sequence[Tensor], out: Tensor) -> None:
        out.copy_(stored[0])

    def scratch(self, rows: int, height: int, width: int, itemsize: int) -> int:
        return 0


class Dequantizing(Arithmetic):
    """Makes a dense copy of the weights, in the type of the rows, for each product."""

    def multiply(
        self, rows: Tensor, stored: Sequence[Tensor], heights: Sequence[int], bias: Tensor | None
    ) -> Tensor:
        return F.linear(rows, self._dense(rows, stored, heights, rows.shape[1]), bias)

    def multiply_back(
        self, grad: Tensor, stored: Sequence[Tensor], heights: Sequence[int], width: int
    ) -> Tensor:
        return grad @ self._dense(grad, stored, heights, width)

    def scratch(self, rows: int, height: int, width: int, itemsize: int) -> int:
        return height * width * itemsize

    def _dense(
        self, like: Tensor, stored: Sequence[Tensor], heights: Sequence[int], width: int
    ) -> Tensor:
        whole = like.new_empty(sum(heights), width)
        for index, out in enumerate(torch.split(whole, list(heights))):
            self.dequantize(stored[index * self.parts : (index + 1) * self.parts], out)
        return whole


DENSE = "dense"
ARITHMETICS: dict[str, Arithmetic] = {DENSE: Dense()}
"""By name; a form of the frozen weights enters its own."""
