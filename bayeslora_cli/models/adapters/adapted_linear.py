"""`AdaptedLinear`: the product of an adapted layer, and the memory of its frozen weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from bayeslora_cli.models.kernels.frozen.arithmetic import Frozen


class AdaptedLinear(nn.Module, ABC):
    """The whole product of an adapted layer: y = x W' + bias + (x down') up'.

    W (out, in) and bias (out,) are frozen; down (r, in) and up (out, r) are the published factors,
    scale, singular values and padding included. With h = x down' (n, r) and the gradient g (n, out)
    of y, the backward pass gives

        dx = g W + (g up) down (n, in),    d(down) = (g up)' x (r, in),    d(up) = g' h (out, r).

    Each subclass, called a form, decides how W and the factors lie in memory and which kernels
    compute the products. The only form today is `dense.DenseLinear`, with separate operands.
    Others are possible: one joint buffer [[W, up], [down, 0]], 8 or 4 bits, fp8, or W sharded over
    processes and gathered for each product. The rest of the program uses only the methods of this
    class: the bank holds A, E and B in fp32 with every form, methods choose the initial values and
    the factors, and the step calls autograd.

    To add a form, write a subclass in a file of its own and pass its constructor to
    `methods.building.build_network(form=…)`. A form keeps its frozen tensors as buffers: a
    network's parameters are cast to the precision of the run, buffers are only moved.
    """

    in_features: int
    out_features: int
    transposed: bool
    """Whether the replaced layer stores its weight as (in, out), as Conv1D does."""
    bias: Tensor | None
    """The frozen bias, (out,); None: the layer has none."""

    @abstractmethod
    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Compute y, differentiable in rows, down and up; W and bias get no gradient.

        Args:
            rows: x, (n, in).
            down: (r, in), in the memory that `place_factors` returned.
            up: (out, r), likewise.
        Returns:
            (n, out)
        """

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Compute x W' + bias, without the adapter, differentiable in x: (n, in) -> (n, out)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return W (out, in) as a dense tensor, for merging, quantizing and comparing.

        It may be a copy.
        """

    @abstractmethod
    def replace_dense(self, weight: Tensor) -> None:
        """Overwrite W (out, in) in place, rounded to what the form can hold."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """Return the layer that this object replaced, with the present W and bias.

        Its weight is a parameter in the orientation that `oriented` gives; callers may change it
        in place.
        """

    def layer(self) -> nn.Module:
        """Return a layer that computes `forward`, for other libraries to adapt.

        It may be `plain`'s; its weight need not hold numbers.
        """
        return self.plain()

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None] | None:
        """Return W (out, in) and bias without a copy, for operators that compute a whole layer.

        None if the form does not store W densely: callers then use `forward` and add their own
        products.
        """
        return None

    def frozen(self) -> Frozen | None:
        """Return W and bias as stored, for operators that compute a layer and what lies around it.

        None: no `Arithmetic` multiplies what is stored; callers then use `product`.
        """
        return None

    def shown_weight(self) -> Tensor:
        """Return what backbones see as the weight, oriented as in the replaced layer.

        They ask only for its type, shape and device.
        """
        return self.oriented(self.dense())

    def stored(self) -> tuple[Tensor, ...]:
        """Return the parameters that keep a type of their own, whatever the run's precision."""
        return ()

    def oriented(self, matrix: Tensor) -> Tensor:
        """Turn (out, in) into the orientation of the replaced layer's weight, or back; no copy."""
        return matrix.t() if self.transposed else matrix

    @classmethod
    def join(cls, forms: Sequence[Self]) -> AdaptedLinear | None:
        """Join forms that see the same input; their outputs are concatenated.

        None: the form cannot be joined, and each product is computed on its own. The joined form
        shares its memory with the others.
        """
        return None

    @classmethod
    def place_factors(
        cls, forms: Sequence[Self], rank: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Allocate the published factors of U forms of one shape, filled with zeros.

        One kernel publishes the factors of all U. A form with a joint buffer returns views of it.

        Returns:
            down (U, rank, in) and up (U, out, rank); the caller writes to them.
        """
        one = forms[0]
        down = torch.zeros(len(forms), rank, one.in_features, device=device, dtype=dtype)
        # products read rows of up'
        up = torch.zeros(len(forms), rank, one.out_features, device=device, dtype=dtype).mT
        return down, up
