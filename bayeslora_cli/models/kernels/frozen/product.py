"""A product with a frozen weight that is stored in few bits, and a low-rank product beside it.

One operator forward and one backward. torch's compiler does not look into them, so that no dense
copy of a weight is kept from the forward to the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, Frozen
from bayeslora_cli.models.kernels.operators import register


def frozen_product(
    rows: Tensor, frozen: Frozen, down: Tensor | None = None, up: Tensor | None = None
) -> Tensor:
    """Compute x W' + bias + (x down') up', differentiable in x, down and up; W, bias are frozen.

    Args:
        rows: x, (n, in).
        frozen: W and bias.
        down: (r, in); None: there is no adapter.
        up: (out, r), likewise.
    Returns:
        (n, out)
    """
    if down is None or up is None:
        down, up = rows.new_empty(0, rows.shape[1]), rows.new_empty(sum(frozen.heights), 0)
    out: Tensor = torch.ops.bayeslora.frozen_product(rows, *frozen, down, up)[0]
    return out


def _forward(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, up: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y (n, out) and h (n, r)."""
    h = F.linear(rows, down)
    out = ARITHMETICS[arithmetic].multiply(rows, stored, heights, bias)
    return out.addmm_(h, up.t()) if len(down) else out, h


def _backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, h: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of rows (empty unless `needed`), of down and of up."""
    to_h, to_rows = grad @ up, grad.new_empty(0)
    if needed:
        to_rows = ARITHMETICS[arithmetic].multiply_back(grad, stored, heights, rows.shape[1])
        if len(down):
            to_rows.addmm_(to_h, down)
    return to_rows, to_h.t() @ rows, (h.t() @ grad).t()


def _fake_forward(
    rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str, bias: Tensor | None,
    down: Tensor, up: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return rows.new_empty(rows.shape[0], up.shape[0]), rows.new_empty(rows.shape[0], down.shape[0])


def _fake_backward(
    grad: Tensor, rows: Tensor, stored: list[Tensor], heights: list[int], arithmetic: str,
    down: Tensor, up: Tensor, h: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    to_rows = rows.new_empty(rows.shape) if needed else grad.new_empty(0)
    return to_rows, down.new_empty(down.shape), up.new_empty(up.shape[1], up.shape[0]).t()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, stored, ctx.heights, ctx.arithmetic, _, down, up = inputs
    ctx.save_for_backward(rows, down, up, output[1], *stored)
    ctx.set_materialize_grads(False)  # h has no gradient of its own


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    rows, down, up, h, *stored = ctx.saved_tensors
    to_rows, to_down, to_up = torch.ops.bayeslora.frozen_product_backward(
        grad, rows, stored, ctx.heights, ctx.arithmetic, down, up, h, needed
    )
    frozen = [None] * len(stored)
    return to_rows if needed else None, frozen, None, None, None, to_down, to_up


register(
    "frozen_product",
    "(Tensor rows, Tensor[] stored, int[] heights, str arithmetic, Tensor? bias,"
    " Tensor down, Tensor up) -> (Tensor, Tensor)",
    _forward, _fake_forward, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "frozen_product_backward",
    "(Tensor grad, Tensor rows, Tensor[] stored, int[] heights, str arithmetic,"
    " Tensor down, Tensor up, Tensor h, bool needed) -> (Tensor, Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
