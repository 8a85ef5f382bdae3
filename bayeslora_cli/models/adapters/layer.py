"""Forward passes of the adapters, and the one form that all of them can be folded to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayeslora_cli.models.kernels.low_rank_linear import low_rank_linear

RANK_EPSILON = 1e-5  # PEFT divides by (r_init + 1e-5): forward, merging and folding must agree
ADALORA_STD = 0.02  # of A and B at the start; E starts at 0 (PEFT's AdaLoRA)


def _features(base: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear, whose weight is (out, in), or a Conv1D, whose weight is (in, out)."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(base, nn.Linear) else (rows, columns)


class LowRankLinear(nn.Module):
    """A frozen linear layer plus scale * B diag(E) A; without E, plain LoRA.

    The scale and E are folded into A, so that nothing of the output's size is touched but by the
    last product, which adds into the base layer's output.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, *, singular_values: bool) -> None:
        super().__init__()
        width, height = _features(base)
        self.base_layer = base
        self.rank = rank
        self.scale = scale
        self.lora_A = nn.Parameter(torch.zeros(rank, width))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1)) if singular_values else None
        self.lora_B = nn.Parameter(torch.zeros(height, rank))

        self.down: Tensor | None = None
        """scale diag(E) A, (r, in), where somebody keeps it up to date; None: made at each pass."""
        self.up: Tensor | None = None
        """B, (out, r), likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        weight, bias = self.frozen()
        down, up = self.down, self.up
        if down is None or up is None:
            down = self.lora_A * (self.scale if self.lora_E is None else self.lora_E * self.scale)
            up = self.lora_B
        out = low_rank_linear(x.flatten(0, -2), weight, bias, down, up)
        return out.view(*x.shape[:-1], -1)

    def frozen(self) -> tuple[Tensor, Tensor | None]:
        """The base layer's weight, (out, in), and bias."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        return (weight if isinstance(self.base_layer, nn.Linear) else weight.t()), bias

    @torch.no_grad()
    def delta_weight(self, a: Tensor, e: Tensor | None, b: Tensor) -> Tensor:
        """What to add to the base weight, in the base weight's own orientation."""
        delta = self.scale * b @ (a if e is None else a * e)  # (out, in)
        return delta if isinstance(self.base_layer, nn.Linear) else delta.t()


class JointLinear:
    """Layers of one shape that see the same input, as one product: a layer's q, k and v.

    The base weights become views of one tensor, so that nothing is kept twice. What moves or casts
    a module afterwards parts them: join last.
    """

    def __init__(self, layers: Sequence[LowRankLinear]) -> None:
        """`layers`: of torch's Linear, all with a bias or none, where they are to stay."""
        self.layers = tuple(layers)
        self.weight, self.bias = (self._joined(name) for name in ("weight", "bias"))
        assert self.weight is not None
        self.down: Tensor | None = None
        """Of all layers, one below the other: (m r, in); somebody keeps it up to date."""
        self.up: Tensor | None = None
        """Of all layers, block-diagonal: (m out, m r), likewise."""

    def _joined(self, name: str) -> Tensor | None:
        """A parameter of all layers' bases, which become views of it."""
        parameters = [getattr(layer.base_layer, name) for layer in self.layers]
        if parameters[0] is None:
            return None
        joined = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, joined.chunk(len(parameters)), strict=True):
            parameter.data = view
        return joined

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(n, in) -> (n, out) for each layer."""
        assert self.weight is not None
        assert self.down is not None
        assert self.up is not None
        out = low_rank_linear(rows, self.weight, self.bias, self.down, self.up)
        return out.chunk(len(self.layers), -1)
