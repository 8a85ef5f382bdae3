"""A decoder block's gated MLP with its adapters: three operators forward and two backward.

y = V (silu(g) * u) with [g; u] = W x, where W (gate and up projection) and V (down projection) have
low-rank adapters, and an `Arithmetic` knows how they are stored. The operators keep x and [g; u]
for the backward pass and compute silu(g) * u a second time: it is as wide as g, and to keep it
would cost a third more memory.

The last operator, the product with V, keeps nothing, and no gradient needs its result: a block that
is recomputed (`methods.recomputation`) leaves it out. Its gradients are computed by the operator
before it, which hands it a tensor without memory, `slot`, whose gradient is that of y.

On a GPU the kernels of `gated_mlp_triton` compute everything between the large products in one pass
over [g; u] forward and one backward, the adapters' sums included.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Frozen
from bayeslora_cli.models.kernels.operators import register

HAS_TRITON = find_spec("triton") is not None


class Adapted(NamedTuple):
    """Operands of an adapted layer x W' + bias + (x down') up'; W and bias are frozen."""

    frozen: Frozen
    """W (out, in) and bias (out,)."""
    down: Tensor
    """(r, in)."""
    up: Tensor
    """(out, r), fastest as a transposed view of contiguous (r, out)."""


def gated_mlp(rows: Tensor, wide: Adapted, narrow: Adapted, separate: int = 0) -> Tensor:
    """Compute narrow(silu(g) * u) with [g, u] = wide(rows), differentiable in rows and factors.

    Args:
        rows: (n, in).
        wide: the gate and the up projection, stacked: (2 f, in).
        narrow: the down projection: (out, f).
        separate: s: of the wide layer's ranks, 0 to s belong to the gate only and s to 2 s to the
            up projection, so that the rest of its up factor is 0, and has any gradient; 0: all
            belong to both.
    Returns:
        (n, out)
    """
    operators = torch.ops.bayeslora
    kept, h = operators.gated_mlp_wide(rows, *wide.frozen, wide.down, wide.up)
    stored, heights, arithmetic, bias = narrow.frozen
    given = stored, heights, arithmetic
    slot, product, h_2 = operators.gated_mlp_middle(
        kept, h, wide.up, *given, narrow.down, narrow.up, separate
    )
    out: Tensor = operators.gated_mlp_narrow(slot, product, h_2, *given, bias, narrow.up)
    return out


def _wide(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, up: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what the backward pass keeps (n, 2 f), and h = x down' (n, r).

    What is kept is [g, u], on a GPU before the adapter's part is added: its kernels add that part
    wherever they read it.
    """
    h = F.linear(rows, down)
    kept = ARITHMETICS[arithmetic].multiply(rows, stored, heights, bias)
    return kept if _is_fused(kept) else kept.addmm_(h, up.t()), h


def _wide_backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, needed: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of rows (empty unless `needed`) and of down, from that of [g, u]."""
    to_h, to_rows = grad @ up, grad.new_empty(0)
    if needed:
        to_rows = ARITHMETICS[arithmetic].multiply_back(grad, stored, heights, rows.shape[1])
        to_rows.addmm_(to_h, down)
    return to_rows, to_h.t() @ rows


def _middle(
    kept: Tensor, h: Tensor, up: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down_2: Tensor, up_2: Tensor, separate: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the slot (n, out), silu(g) * u (n, f), and its product with down_2', h_2 (n, r_2)."""
    if _is_fused(kept):
        from bayeslora_cli.models.kernels.decoder import gated_mlp_triton

        product, h_2 = gated_mlp_triton.forward(kept, h, up, down_2, separate)
    else:
        gate, other = kept.chunk(2, 1)
        product = F.silu(gate).mul_(other)
        h_2 = F.linear(product, down_2)
    return _slot(kept, heights), product, h_2


def _middle_backward(
    grad: Tensor, kept: Tensor, h: Tensor, up: Tensor, stored: list[Tensor], heights: list[int],
    arithmetic: str, down_2: Tensor, up_2: Tensor, h_2: Tensor, separate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of [g, u], up, down_2 and up_2, from that of y."""
    to_h_2 = grad @ up_2
    to_up_2 = (h_2.t() @ grad).t()
    inner = kept.shape[1] // 2
    to_product = ARITHMETICS[arithmetic].multiply_back(grad, stored, heights, inner)
    if _is_fused(kept):
        from bayeslora_cli.models.kernels.decoder import gated_mlp_triton

        to_kept, to_up, to_down_2 = gated_mlp_triton.backward(
            to_product, to_h_2, kept, h, up, down_2, separate
        )
    else:
        to_product.addmm_(to_h_2, down_2)
        gate, other = kept.chunk(2, 1)
        share = torch.sigmoid(gate)
        silu = gate * share
        to_down_2 = to_h_2.t() @ (silu * other)
        # silu' = s + g s (1 - s)
        slope = torch.addcmul(share, silu, 1 - share)
        to_kept = torch.cat((slope.mul_(other).mul_(to_product), silu.mul_(to_product)), 1)
        to_up = (h.t() @ to_kept).t()
    return to_kept, to_up, to_down_2, to_up_2


def _narrow(
    slot: Tensor, product: Tensor, h_2: Tensor, stored: list[Tensor], heights: list[int],
    arithmetic: str, bias: Tensor | None, up_2: Tensor,
) -> Tensor:  # fmt: skip
    """Return y (n, out)."""
    out = ARITHMETICS[arithmetic].multiply(product, stored, heights, bias)
    return out.addmm_(h_2, up_2.t())


def _slot(kept: Tensor, heights: list[int]) -> Tensor:
    return kept.new_empty_strided((kept.shape[0], sum(heights)), (0, 0))


def _is_fused(kept: Tensor) -> bool:
    # on fake tensors the operators' own shapes are taken, and this is never asked
    return HAS_TRITON and kept.is_cuda


def _fake_wide(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, _: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count = rows.shape[0]
    return rows.new_empty(count, sum(heights)), rows.new_empty(count, down.shape[0])


def _fake_wide_backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, needed: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return rows.new_empty(rows.shape if needed else 0), down.new_empty(down.shape)


def _fake_middle(
    kept: Tensor, h: Tensor, up: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down_2: Tensor, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, both = kept.shape
    return (
        _slot(kept, heights), kept.new_empty(rows, both // 2),
        kept.new_empty(rows, down_2.shape[0]),
    )  # fmt: skip


def _fake_middle_backward(
    grad: Tensor, kept: Tensor, h: Tensor, up: Tensor, stored: list[Tensor], heights: list[int],
    arithmetic: str, down_2: Tensor, up_2: Tensor, h_2: Tensor, separate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    to_up, to_up_2 = (x.new_empty(x.shape[1], x.shape[0]).t() for x in (up, up_2))
    return kept.new_empty(kept.shape), to_up, down_2.new_empty(down_2.shape), to_up_2


def _fake_narrow(slot: Tensor, product: Tensor, *_: Any) -> Tensor:
    return product.new_empty(slot.shape)


def _keep_wide(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, stored, ctx.heights, ctx.arithmetic, _, down, up = inputs
    ctx.save_for_backward(rows, down, up, *stored)
    ctx.set_materialize_grads(False)  # only [g, u] has a gradient


def _differentiate_wide(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    rows, down, up, *stored = ctx.saved_tensors
    to_rows, to_down = torch.ops.bayeslora.gated_mlp_wide_backward(
        grad, rows, stored, ctx.heights, ctx.arithmetic, down, up, needed
    )
    found = to_rows if needed else None
    return found, [None] * len(stored), None, None, None, to_down, None


def _keep_middle(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    kept, h, up, stored, ctx.heights, ctx.arithmetic, down_2, up_2, ctx.separate = inputs
    ctx.save_for_backward(kept, h, up, down_2, up_2, output[2], *stored)
    ctx.set_materialize_grads(False)  # only the slot has a gradient


def _differentiate_middle(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    kept, h, up, down_2, up_2, h_2, *stored = ctx.saved_tensors
    to_kept, to_up, to_down_2, to_up_2 = torch.ops.bayeslora.gated_mlp_middle_backward(
        grad, kept, h, up, stored, ctx.heights, ctx.arithmetic, down_2, up_2, h_2, ctx.separate
    )
    # h's gradient is computed from that of [g, u]
    return to_kept, None, to_up, [None] * len(stored), None, None, to_down_2, to_up_2, None


def _keep_narrow(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.stored = len(inputs[3])


def _differentiate_narrow(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, None, None, [None] * ctx.stored, None, None, None, None


_STORED = "Tensor[] stored, int[] heights, str arithmetic"
register(
    "gated_mlp_wide",
    f"(Tensor rows, {_STORED}, Tensor? bias, Tensor down, Tensor up) -> (Tensor, Tensor)",
    _wide, _fake_wide, keep=_keep_wide, differentiate=_differentiate_wide,
)  # fmt: skip
register(
    "gated_mlp_wide_backward",
    f"(Tensor grad, Tensor rows, {_STORED}, Tensor down, Tensor up, bool needed)"
    " -> (Tensor, Tensor)",
    _wide_backward, _fake_wide_backward,
)  # fmt: skip
register(
    "gated_mlp_middle",
    f"(Tensor kept, Tensor h, Tensor up, {_STORED}, Tensor down_2, Tensor up_2, int separate)"
    " -> (Tensor, Tensor, Tensor)",
    _middle, _fake_middle, keep=_keep_middle, differentiate=_differentiate_middle,
)  # fmt: skip
register(
    "gated_mlp_middle_backward",
    f"(Tensor grad, Tensor kept, Tensor h, Tensor up, {_STORED}, Tensor down_2, Tensor up_2,"
    " Tensor h_2, int separate) -> (Tensor, Tensor, Tensor, Tensor)",
    _middle_backward, _fake_middle_backward,
)  # fmt: skip
register(
    "gated_mlp_narrow",
    f"(Tensor slot, Tensor product, Tensor h_2, {_STORED}, Tensor? bias, Tensor up_2) -> Tensor",
    _narrow, _fake_narrow, keep=_keep_narrow, differentiate=_differentiate_narrow,
)  # fmt: skip
