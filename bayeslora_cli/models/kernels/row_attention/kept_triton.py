"""Triton kernel that draws which attention weights dropout keeps: a bit for each.

A bit compares 16 bits of Philox-4x32-10 (Salmon et al., SC 2011), whose counter is the place of the
bit's word and whose key is the seed, with the share to drop. Forward and backward passes read the
same bits, 1/16 of the memory of weights in bf16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayeslora_cli.models.kernels.row_attention.places_triton import WORD

WORDS, WARPS = 256, 4
"""Integers that a program makes, and its warps."""
CALLS = 8
"""Calls of Philox for a word: each gives 4 times 32 bits."""


@triton.jit(do_not_specialize=["dropped", "count"])  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    kept, seed, dropped, count, WORDS: tl.constexpr, CALLS: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    key = tl.load(seed)
    found = tl.zeros((WORDS,), tl.int64)
    for call in tl.static_range(CALLS):
        drawn = tl.randint4x(key, word * CALLS + call)
        for part in tl.static_range(4):
            bits = drawn[part].to(tl.uint32, bitcast=True)
            low = ((bits & 0xFFFF) >= dropped).to(tl.int64)
            high = ((bits >> 16) >= dropped).to(tl.int64)
            found |= (low << (8 * call + 2 * part)) | (high << (8 * call + 2 * part + 1))
    tl.store(kept + word, found, word < count)


def keep_weights(seed: Tensor, tokens: int, heads: int, longest: int, dropout: float) -> Tensor:
    """Draw bits: (heads, t, ceil(longest / 64)) int64; 1: the weight of that key is kept.

    Args:
        seed: (1,) int64, on the device.
        longest: no row has more tokens.
        dropout: share of the weights to drop; rounded to multiples of 2^-16, see `shares`.
    """
    kept = torch.empty(heads, tokens, -(-longest // WORD), device=seed.device, dtype=torch.int64)
    grid = (triton.cdiv(kept.numel(), WORDS),)
    _draw[grid](kept, seed, shares(dropout)[0], kept.numel(), WORDS, CALLS, num_warps=WARPS)
    return kept


def shares(dropout: float) -> tuple[int, float]:
    """Return how many of 2^16 numbers drop a weight, and the factor of the weights that stay."""
    dropped = round(dropout * 2**16)
    return dropped, 2**16 / (2**16 - dropped)
