"""Attention within packed rows of queries, keys and values that lie side by side.

The gradient is written side by side as well, as the joint product that made the operands needs it:
autograd would pad that of the values and copy all three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.models.kernels.operators import register
from bayeslora_cli.models.kernels.row_attention import row_attention as separate


def joint_row_attention(
    joint: Tensor,
    row_offsets: Tensor,
    reach: int,
    *,
    scaling: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Attend as `row_attention.relative_row_attention`.

    Args:
        joint: queries, keys and values (t + 2 reach, 3, h, d); the values behind the tokens are
            not used.
        seed: of the bits of dropout, (1,) int64, another one for each call; None: one is drawn.
    Returns:
        (t, h, d), contiguous
    """
    seed = separate.seed_of(dropout, seed, joint.device)
    out: Tensor = torch.ops.bayeslora.joint_row_attention(
        joint, row_offsets, seed, reach, scaling, dropout
    )[0]
    return out


def _parts(joint: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys (t + 2 reach, h, d) and values (t, h, d), no copy."""
    query, key, value = joint.unbind(1)
    return query, key, value[: len(joint) - 2 * reach]


def _given(
    joint: Tensor, row_offsets: Tensor, seed: Tensor | None, reach: int, scaling: float,
    dropout: float,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the arguments of `row_attention`'s operator."""
    return *_parts(joint, reach), row_offsets, seed, reach, reach, scaling, dropout, 0


def _forward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `row_attention` returns."""
    return separate.forward(*_given(*given))


def _backward(
    grad: Tensor, joint: Tensor, row_offsets: Tensor, out: Tensor, norm: Tensor, bias: Tensor,
    kept: Tensor, reach: int, scaling: float, dropout: float,
) -> Tensor:  # fmt: skip
    """Return the gradient of `joint`."""
    found = joint.new_empty(joint.shape)
    found[len(joint) - 2 * reach :, 2].zero_()
    separate.backward(
        grad, *_parts(joint, reach), row_offsets, out, norm, bias, kept, reach, reach, scaling,
        dropout, 0, into=_parts(found, reach),
    )  # fmt: skip
    return found


def _fake_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return separate.outputs(*_given(*given))


def _fake_backward(grad: Tensor, joint: Tensor, *_: Any) -> Tensor:
    return joint.new_empty(joint.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    joint, row_offsets, _, *ctx.sizes = inputs
    ctx.save_for_backward(joint, row_offsets, *output)
    ctx.set_materialize_grads(False)  # only the result has a gradient


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    found = torch.ops.bayeslora.joint_row_attention_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return found, *(None,) * 5


_SIZES = "SymInt reach, float scaling, float dropout"
register(
    "joint_row_attention",
    f"(Tensor joint, Tensor row_offsets, Tensor? seed, {_SIZES})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward, _fake_forward, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "joint_row_attention_backward",
    "(Tensor grad, Tensor joint, Tensor row_offsets, Tensor out, Tensor norm,"
    f" Tensor bias, Tensor kept, {_SIZES}) -> Tensor",
    _backward, _fake_backward,
)  # fmt: skip
