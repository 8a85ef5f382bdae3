"""A decoder block's gated MLP with its adapters: one operator forward and one backward.

y = V (silu(g) * u) with [g; u] = W x, where W (gate and up projection) and V (down projection) have
low-rank adapters, and an `Arithmetic` knows how they are stored. The operator keeps x and [g; u]
for the backward pass and computes silu(g) * u a second time: it is as wide as g, and to keep it
would cost a third more memory.

On a GPU the kernels of `gated_mlp_triton` compute everything between the large products in one pass
over [g; u] forward and one backward, the adapters' sums included.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.nn import functional as F

from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Frozen

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
    out: Tensor = torch.ops.bayeslora.gated_mlp(
        rows, *wide.frozen, wide.down, wide.up, *narrow.frozen, narrow.down, narrow.up, separate
    )[0]
    return out


_LIBRARY: Any = Library("bayeslora", "FRAGMENT")  # type: ignore[no-untyped-call]
_FORWARD, _BACKWARD = "gated_mlp", "gated_mlp_backward"
_LIBRARY.define(
    f"{_FORWARD}(Tensor rows, Tensor[] stored, int[] heights, str arithmetic, Tensor? bias, "
    "Tensor down, Tensor up, Tensor[] stored_2, int[] heights_2, str arithmetic_2, Tensor? bias_2, "
    "Tensor down_2, Tensor up_2, int separate)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"{_BACKWARD}(Tensor grad, Tensor rows, Tensor[] stored, int[] heights, str arithmetic, "
    "Tensor down, Tensor up, Tensor[] stored_2, int[] heights_2, str arithmetic_2, "
    "Tensor down_2, Tensor up_2, Tensor kept, Tensor h, Tensor h_2, int separate, bool needed)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, up: Tensor, stored_2: list[Tensor], heights_2: list[int], arithmetic_2: str,
    bias_2: Tensor | None, down_2: Tensor, up_2: Tensor, separate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y (n, out), what the backward pass keeps (n, 2 f), h (n, r) and h_2 (n, r_2).

    h and h_2 are the products of each layer's input with down'. What is kept is [g, u], on a GPU
    before the adapter's part is added: its kernels add that part wherever they read it.
    """
    h = F.linear(rows, down)
    kept = ARITHMETICS[arithmetic].multiply(rows, stored, heights, bias)
    if _is_fused(kept):
        from bayeslora_cli.models.kernels.decoder import gated_mlp_triton

        product, h_2 = gated_mlp_triton.forward(kept, h, up, down_2, separate)
    else:
        kept.addmm_(h, up.t())
        gate, other = kept.chunk(2, 1)
        product = F.silu(gate).mul_(other)
        h_2 = F.linear(product, down_2)
    out = ARITHMETICS[arithmetic_2].multiply(product, stored_2, heights_2, bias_2)
    return out.addmm_(h_2, up_2.t()), kept, h, h_2


def _backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, stored_2: list[Tensor], heights_2: list[int], arithmetic_2: str,
    down_2: Tensor, up_2: Tensor, kept: Tensor, h: Tensor, h_2: Tensor, separate: int,
    needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of rows (empty unless `needed`), down, up, down_2 and up_2."""
    to_h_2 = grad @ up_2
    to_up_2 = (h_2.t() @ grad).t()
    inner = kept.shape[1] // 2
    to_product = ARITHMETICS[arithmetic_2].multiply_back(grad, stored_2, heights_2, inner)
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
    to_h = to_kept @ up
    to_rows = grad.new_empty(0)
    if needed:
        to_rows = ARITHMETICS[arithmetic].multiply_back(to_kept, stored, heights, rows.shape[1])
        to_rows.addmm_(to_h, down)
    return to_rows, to_h.t() @ rows, to_up, to_down_2, to_up_2


def _is_fused(kept: Tensor) -> bool:
    # on fake tensors the operator's own shapes are taken, and this is never asked
    return HAS_TRITON and kept.is_cuda


def _fake_forward(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, up: Tensor, stored_2: list[Tensor], heights_2: list[int], arithmetic_2: str,
    bias_2: Tensor | None, down_2: Tensor, up_2: Tensor, separate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    count = rows.shape[0]
    widths = sum(heights_2), sum(heights), down.shape[0], down_2.shape[0]
    out, kept, h, h_2 = (rows.new_empty(count, width) for width in widths)
    return out, kept, h, h_2


def _fake_backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, stored_2: list[Tensor], heights_2: list[int], arithmetic_2: str,
    down_2: Tensor, up_2: Tensor, kept: Tensor, h: Tensor, h_2: Tensor, separate: int,
    needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    to_rows = rows.new_empty(rows.shape) if needed else grad.new_empty(0)
    to_up, to_up_2 = (x.new_empty(x.shape[1], x.shape[0]).t() for x in (up, up_2))
    return to_rows, down.new_empty(down.shape), to_up, down_2.new_empty(down_2.shape), to_up_2


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, stored, ctx.heights, ctx.arithmetic, _, down, up, *rest = inputs
    stored_2, ctx.heights_2, ctx.arithmetic_2, _, down_2, up_2, ctx.separate = rest
    ctx.counts = len(stored), len(stored_2)
    ctx.save_for_backward(rows, down, up, down_2, up_2, *output[1:], *stored, *stored_2)
    ctx.set_materialize_grads(False)  # only y has a gradient


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    rows, down, up, down_2, up_2, kept, h, h_2, *stored = ctx.saved_tensors
    first, second = ctx.counts
    to_rows, to_down, to_up, to_down_2, to_up_2 = torch.ops.bayeslora.gated_mlp_backward(
        grad, rows, stored[:first], ctx.heights, ctx.arithmetic, down, up,
        stored[first:], ctx.heights_2, ctx.arithmetic_2, down_2, up_2, kept, h, h_2,
        ctx.separate, needed,
    )  # fmt: skip
    wide, narrow = ([None] * first, None, None, None), ([None] * second, None, None, None)
    found = to_rows if needed else None
    return found, *wide, to_down, to_up, *narrow, to_down_2, to_up_2, None


for name, kernel, fake in (
    (_FORWARD, _forward, _fake_forward), (_BACKWARD, _backward, _fake_backward)
):  # fmt: skip
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    register_fake(f"bayeslora::{name}", fake, lib=_LIBRARY)
register_autograd(f"bayeslora::{_FORWARD}", _differentiate, setup_context=_keep, lib=_LIBRARY)
