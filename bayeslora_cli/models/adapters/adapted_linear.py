"""`AdaptedLinear`: the product of an adapted layer, and where its frozen weight lies in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn


class AdaptedLinear(nn.Module, ABC):
    """The whole product of an adapted layer: y = x W' + bias + (x down') up'.

    W (out, in) and bias (out,) are frozen; down (r, in) and up (out, r) are the published factors,
    scale, singular values and padding included. With h = x down' (n, r) and the gradient g (n, out)
    of y, the backward pass gives

        dx = g W + (g up) down (n, in),    d(down) = (g up)' x (r, in),    d(up) = g' h (out, r).

    How W and the factors lie in memory, and by which kernels the products run, is a form's own
    affair. Today there is `dense.DenseLinear`, with separate operands. One joint buffer
    [[W, up], [down, 0]], 8 or 4 bits, fp8, or W sharded over processes and gathered for each
    product are other forms. The rest of the program sees only what stands here: the bank holds A,
    E and B in fp32 whatever the form is, methods choose start values and factors, and the step
    calls autograd.

    To add a form, write a subclass in a file of its own and pass its constructor to
    `methods.building.build_network(form=…)`. A form keeps its frozen tensors as buffers: a
    network's parameters are cast to the precision of the run, buffers are only moved.
    """

    in_features: int
    out_features: int
    transposed: bool
    """Whether the layer in whose place this is keeps its weight as (in, out), as Conv1D does."""
    bias: Tensor | None
    """(out,)."""

    @abstractmethod
    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """y, differentiable in rows, down and up; nothing flows to W and bias.

        Args:
            rows: x, (n, in).
            down: (r, in), at the place that `place_factors` gave it.
            up: (out, r), likewise.
        Returns:
            (n, out)
        """

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """x W' + bias, without the adapter, differentiable in x: (n, in) -> (n, out)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """W as numbers, (out, in): to merge, to quantize and to compare. May be a copy."""

    @abstractmethod
    def replace_dense(self, weight: Tensor) -> None:
        """Take another W (out, in), in place, rounded to what the form can hold."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """The layer that this took the place of, with W and bias as they are now.

        Its weight is a parameter, oriented as `oriented` says, which may be changed in place.
        """

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None] | None:
        """W (out, in) and bias where they lie, for operators that take a whole layer.

        None where W does not lie there as such: callers then compose `forward` with their own.
        """
        return None

    def oriented(self, matrix: Tensor) -> Tensor:
        """(out, in) as the replaced layer keeps its weight, and back: no copy."""
        return matrix.t() if self.transposed else matrix

    @classmethod
    def join(cls, forms: Sequence[Self]) -> AdaptedLinear | None:
        """One product for forms of one shape on the same input, outputs one after the other.

        None: they are computed one by one. A joined form shares its memory with the others.
        """
        return None

    @classmethod
    def place_factors(
        cls, forms: Sequence[Self], rank: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Zeros, where the published factors of U forms of one shape lie.

        One kernel publishes the factors of all U. A form with a joint buffer returns views of it.

        Returns:
            down (U, rank, in) and up (U, out, rank); the memory is the caller's to write to.
        """
        one = forms[0]
        down = torch.zeros(len(forms), rank, one.in_features, device=device, dtype=dtype)
        # rows of up' are what products walk along
        up = torch.zeros(len(forms), rank, one.out_features, device=device, dtype=dtype).mT
        return down, up
