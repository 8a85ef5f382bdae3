"""`QuantizedLinear`: forms whose frozen weight is stored in fewer bits than the computation has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.dense import joined
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Arithmetic, Frozen
from bayeslora_cli.models.kernels.frozen.product import frozen_product


class QuantizedLinear(AdaptedLinear):
    """Form with a stored weight, of which products are computed by an `Arithmetic`.

    The stored tensors are parameters of the types that the class chooses: the run's precision is
    that of the rows. They are never trained, and nothing is merged into them.
    """

    names: ClassVar[tuple[str, ...]]
    """Names of the stored tensors, in the order that the arithmetic takes."""
    arithmetic: str
    """The arithmetic's name in `ARITHMETICS`."""
    exact: ClassVar[str | None] = None
    """Name of an arithmetic on the same weights that does not quantize the rows; None: the usual
    one does not."""
    by_row: ClassVar[bool] = False
    """Whether each stored tensor has a row per output, so that those of several layers on one
    input can be one."""
    least_capability: ClassVar[tuple[int, int] | None] = None
    """Compute capability that a GPU must have; None: any."""
    of_itself: ClassVar[torch.dtype | None] = None
    """Type of a computation for which a dense weight is the same; None: there is none."""

    def __init__(
        self, layer: nn.Module, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        """Store the weight of a layer, or take what `streaming` has stored of it.

        Args:
            layer: a Linear or a Conv1D; its weight is freed.
            dtype: type of the computation, which backbones are told.
            device: where to quantize and to keep the weight; None: where it is.
        """
        super().__init__()
        assert isinstance(layer.weight, Tensor)
        self.transposed = not isinstance(layer, nn.Linear)
        weight = self.oriented(layer.weight.detach())
        self.out_features, self.in_features = weight.shape
        self.compute_dtype = dtype
        assert layer.bias is None or isinstance(layer.bias, nn.Parameter)
        self.bias = layer.bias
        found = layer.__dict__.pop("stored", None) or self.store(weight.to(device))
        for name in self.names:
            setattr(self, name, nn.Parameter(found[name], requires_grad=False))
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), False)
        # in a tuple, which hides it from torch: its parameters are listed once
        self._layer = (layer,)
        self.divided = False
        """Whether the stored tensors will be divided among processes: each then stays its own."""

    @classmethod
    @abstractmethod
    def quantize(cls, weight: Tensor) -> dict[str, Tensor]:
        """Return the tensors that store a weight (out, in), by name, on its device."""

    @classmethod
    @abstractmethod
    def layout(cls, height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of the tensors that `quantize` makes of a weight (out, in)."""

    @classmethod
    def refusal(cls, height: int, width: int) -> str | None:
        """Tell why weights (out, in) cannot be stored, as a clause on the layer; None: they can."""
        return None

    @classmethod
    def store(cls, weight: Tensor) -> dict[str, Tensor]:
        """Quantize a weight (out, in); of one on the meta device, only the shapes."""
        if weight.device.type != "meta":
            return cls.quantize(weight.contiguous())
        made = cls.layout(*weight.shape).items()
        return {n: torch.empty(shape, dtype=dtype, device="meta") for n, (shape, dtype) in made}

    def stored(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.names)

    def own_bias(self) -> nn.Parameter | None:
        """Return the bias, (out,); None: the layer has none."""
        assert self.bias is None or isinstance(self.bias, nn.Parameter)
        return self.bias

    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Compute y by one operator forward and one backward."""
        return frozen_product(rows, self.frozen(), down, up)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute x W' + bias: (n, in) -> (n, out)."""
        return frozen_product(rows, self.frozen())

    def frozen(self) -> Frozen:
        return Frozen(self.stored(), (self.out_features,), self.arithmetic, self.bias)

    def dense(self) -> Tensor:
        """Return a dense copy of W in fp32."""
        device = self.stored()[0].device
        out = torch.empty(self.out_features, self.in_features, device=device)
        if device.type != "meta":
            self._arithmetic().dequantize(self.stored(), out)
        return out

    @torch.no_grad()
    def replace_dense(self, weight: Tensor) -> None:
        found = self.store(weight.to(self.stored()[0].device))
        for name, tensor in zip(self.names, self.stored(), strict=True):
            tensor.copy_(found[name])

    def plain(self) -> nn.Module:
        """Return the replaced layer, with a dense copy of W in fp32 and a bias to match."""
        (layer,) = self._layer
        weight = self.oriented(self.dense()).contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)
        bias = None if self.bias is None else nn.Parameter(self.bias.detach().float(), False)
        layer.bias = bias  # type: ignore[assignment]
        return layer

    def layer(self) -> nn.Module:
        return FrozenLinear(self)

    def shown_weight(self) -> Tensor:
        """Return NaNs of the weight's shape, type and device, which take no memory."""
        device = self.stored()[0].device
        one = torch.full((), torch.nan, dtype=self.compute_dtype, device=device)
        return self.oriented(one.expand(self.out_features, self.in_features))

    @classmethod
    def join(cls, forms: Sequence[Self]) -> AdaptedLinear | None:
        """Join forms: those stored by row, on one process, get views of joint tensors.

        None: only some have a bias.
        """
        if len({form.bias is None for form in forms}) > 1:
            return None
        return JointQuantized(forms)

    def _arithmetic(self) -> Arithmetic:
        return ARITHMETICS[self.arithmetic]


class JointQuantized(AdaptedLinear):
    """Quantized layers on the same input; their biases are views of one tensor."""

    transposed = False

    def __init__(self, forms: Sequence[QuantizedLinear]) -> None:
        super().__init__()
        self.in_features = forms[0].in_features
        self.heights = [form.out_features for form in forms]
        self.out_features = sum(self.heights)
        self.bias = joined([form.own_bias() for form in forms])
        # in a tuple, which hides them from torch: their parameters are listed once
        self._forms = tuple(forms)
        stacked = forms[0].by_row and not forms[0].divided
        self._joint: tuple[str, ...] = forms[0].names if stacked else ()
        for name in self._joint:
            setattr(self, name, _stacked([getattr(form, name) for form in forms]))
        self._layers = (self.out_features,) if self._joint else tuple(self.heights)

    def stored(self) -> tuple[Tensor, ...]:
        if self._joint:
            return tuple(getattr(self, name) for name in self._joint)
        return tuple(tensor for form in self._forms for tensor in form.stored())

    def product(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return frozen_product(rows, self.frozen(), down, up)

    def forward(self, rows: Tensor) -> Tensor:
        return frozen_product(rows, self.frozen())

    def frozen(self) -> Frozen:
        return Frozen(self.stored(), self._layers, self._forms[0].arithmetic, self.bias)

    def dense(self) -> Tensor:
        return torch.cat([form.dense() for form in self._forms])

    def replace_dense(self, weight: Tensor) -> None:
        for form, part in zip(self._forms, torch.split(weight, self.heights), strict=True):
            form.replace_dense(part)

    def plain(self) -> nn.Module:
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.dense(), requires_grad=False)
        bias = None if self.bias is None else nn.Parameter(self.bias.detach().float(), False)
        layer.bias = bias  # type: ignore[assignment]
        return layer


def _stacked(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """Stack stored tensors, which become views of the stack."""
    # bytes: torch concatenates no fp8
    parts = [parameter.detach() for parameter in parameters]
    whole = torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    views = torch.split(whole, [len(part) for part in parts])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view
    return nn.Parameter(whole, requires_grad=False)


def quantizing_rows(module: nn.Module) -> list[QuantizedLinear]:
    """Return the forms of a network whose products quantize the rows too."""
    return [m for m in module.modules() if isinstance(m, QuantizedLinear) and m.exact is not None]


def quantize_only_weights(forms: Sequence[QuantizedLinear]) -> None:
    """Have the products of `quantizing_rows` take the rows as they are."""
    for form in forms:
        assert form.exact is not None
        form.arithmetic = form.exact


class FrozenLinear(nn.Linear):
    """A layer without an adapter whose weight a form stores.

    It is a Linear for those who ask; its weight is only `shown_weight`.
    """

    def __init__(self, form: AdaptedLinear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = form.in_features, form.out_features
        self.form = form

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """NaNs of the weight's shape (out, in), type and device."""
        return self.form.oriented(self.form.shown_weight())

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The frozen bias, (out,); None: there is none."""
        return self.form.bias

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer: (..., in) -> (..., out)."""
        out: Tensor = self.form(input.flatten(0, -2))
        return out.view(*input.shape[:-1], -1)
