"""The forward and the backward pass of `quantize` as one Triton kernel each.

In torch's own kernels the codes of L widths go through a GPU's memory L times in each direction,
and a quantizer takes some fifteen launches per step. torch.compile fuses those, but into sums that
it does not spread over the GPU: the step takes ten times as long as with plain adapters.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Elements per program, and per partial sum of the backward pass."""
WARPS = 8
NEAREST = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and subtracted again, it rounds an fp32 below 2^22 to the nearest integer, ties
to even, as torch does. Codes are below 2^16."""
_UNALIGNED = {"do_not_specialize_on_alignment": ["learned", "constants"]}  # rows of larger tensors


@triton.jit  # type: ignore[untyped-decorator]
def clipped(value: tl.tensor, constants: tl.tensor) -> tl.tensor:
    """Clip a tile to a quantizer's range, in fp32."""
    return tl.clamp(
        value, tl.load(constants), tl.load(constants + 1), propagate_nan=tl.PropagateNan.ALL
    )


@triton.jit  # type: ignore[untyped-decorator]
def code(clipped: tl.tensor, constants: tl.tensor, n: tl.constexpr) -> tl.tensor:
    """Compute the integer codes of a clipped tile at one width.

    Markstein's correction (IBM J. Res. Dev. 34, 1990) gives the exact quotient of a division with a
    third of its instructions. Steps are above 2^-128, whose inverse is finite.
    """
    step = tl.load(constants + 2 + n)
    return rounded(clipped, step, tl.div_rn(1.0, step))


@triton.jit  # type: ignore[untyped-decorator]
def rounded(clipped: tl.tensor, step: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """Compute `code` for a step and its inverse, which a loop should not compute again."""
    quotient = clipped * inverse
    quotient = tl.fma(tl.fma(quotient, -step, clipped), inverse, quotient)
    return (quotient + NEAREST) - NEAREST


@triton.jit  # type: ignore[untyped-decorator]
def steps_of(learned, constants, L: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Load a quantizer's L steps and factors f_n, and compute the steps' inverses: three tuples."""
    steps = (tl.load(constants + 2),)
    inverses = (tl.div_rn(1.0, steps[0]),)
    factors = (tl.load(learned + 1),)
    for n in tl.static_range(1, L):
        step = tl.load(constants + 2 + n)
        steps += (step,)  # type: ignore[assignment]
        inverses += (tl.div_rn(1.0, step),)  # type: ignore[assignment]
        factors += (tl.load(learned + 1 + n),)  # type: ignore[assignment]
    return steps, inverses, factors


@triton.jit  # type: ignore[untyped-decorator]
def mixed(
    clipped: tl.tensor, learned: tl.tensor, constants: tl.tensor, L: tl.constexpr
) -> tl.tensor:
    """Compute the quantized tile, the sum over all widths."""
    found = tl.zeros_like(clipped)
    for n in tl.static_range(L):
        found += code(clipped, constants, n) * tl.load(learned + 1 + n)
    return found


@triton.jit(**_UNALIGNED)  # type: ignore[untyped-decorator]
def _forward(
    x: tl.tensor, learned: tl.tensor, constants: tl.tensor, out: tl.tensor, size: tl.tensor,
    L: tl.constexpr, SIZE: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(1)
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = places < size
    start = row.to(tl.int64) * size
    learned += row * (L + 1)
    constants += row * (L + 2)
    value = tl.load(x + start + places, inside, 0.0).to(tl.float32)
    found = mixed(clipped(value, constants), learned, constants, L)
    tl.store(out + start + places, found.to(out.dtype.element_ty), inside)


@triton.jit(**_UNALIGNED)  # type: ignore[untyped-decorator]
def _backward(
    x: tl.tensor, grad: tl.tensor, constants: tl.tensor, of_x: tl.tensor, sums: tl.tensor,
    size: tl.tensor, L: tl.constexpr, SIZE: tl.constexpr,
) -> None:  # fmt: skip
    row, block = tl.program_id(1), tl.program_id(0)
    places = block * SIZE + tl.arange(0, SIZE)
    inside = places < size
    start = row.to(tl.int64) * size
    constants += row * (L + 2)
    sums += (row * tl.num_programs(0) + block) * (L + 1)
    value = tl.load(x + start + places, inside, 0.0).to(tl.float32)
    slope = tl.load(grad + start + places, inside, 0.0).to(tl.float32)
    value_in = clipped(value, constants)
    passed = slope * (value_in == value).to(tl.float32)
    tl.store(of_x + start + places, passed.to(of_x.dtype.element_ty), inside)
    tl.store(sums, tl.sum(passed * value_in))
    for n in tl.static_range(L):
        tl.store(sums + 1 + n, tl.sum(code(value_in, constants, n) * slope))


@torch.library.custom_op(
    "bayeslora::quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor learned, Tensor constants) -> Tensor",
)
def forward(x: Tensor, learned: Tensor, constants: Tensor) -> Tensor:
    """Quantize x (G, K)."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, size = x.shape
    _forward[triton.cdiv(size, BLOCK), rows](
        x, learned.contiguous(), constants.contiguous(), out, size,
        L=learned.shape[1] - 1, SIZE=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@torch.library.custom_op(
    "bayeslora::quantize_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor grad, Tensor constants) -> (Tensor, Tensor)",
)
def backward(x: Tensor, grad: Tensor, constants: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x (G, K) and of `learned` (G, 1 + L).

    Each block is summed first, then the blocks: every repetition gives the same bits.
    """
    x, grad = x.contiguous(), grad.contiguous()
    rows, size = x.shape
    widths, blocks = constants.shape[1] - 2, triton.cdiv(size, BLOCK)
    of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty(rows, blocks, 1 + widths, device=x.device)
    _backward[blocks, rows](
        x, grad, constants.contiguous(), of_x, sums, size,
        L=widths, SIZE=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return of_x, sums.sum(1)


@forward.register_fake
def _(x: Tensor, learned: Tensor, constants: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@backward.register_fake
def _(x: Tensor, grad: Tensor, constants: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), constants.new_empty(x.shape[0], constants.shape[1] - 1)
