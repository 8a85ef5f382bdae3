"""Converts adapters to plain LoRA: folds AdaLoRA's E and the scale into the factors.

AdaLoRA adds alpha / (r_init + 1e-5) * B diag(E) A to a weight, LoRA adds alpha / r * B A with the
r that is kept. Either r or alpha is stored per matrix (`fold`), or a factor absorbs the scale
(`fold_into_b`), and all matrices are padded to one rank (`uniform`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves memory for (`--max-lora-rank`), but 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFactors:
    """Plain LoRA factors of one matrix: its weight gains alpha / r * B A."""

    a: Tensor
    """A, (r, in)."""
    b: Tensor
    """B, (out, r)."""
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.a.shape[0]


def fold(a: Tensor, e: Tensor | None, b: Tensor, scale: float) -> LoraFactors:
    """Convert scale * B diag(E) A to LoRA's factors, with alpha / r = scale; A in float64.

    Args:
        a: (r, in).
        e: (r, 1); None: all ones.
        b: (out, r).
    """
    folded = a.double() if e is None else a.double() * e.double()
    return LoraFactors(a=folded, b=b, alpha=scale * a.shape[0])


def fold_into_b(a: Tensor, e: Tensor | None, b: Tensor, scale: float) -> LoraFactors:
    """Convert scale * B diag(E) A to LoRA's factors, with alpha = r; B in float64.

    A stays as it was trained, about 1 / sqrt(in) per element, and B gets the length of the update.
    In fp32 and bf16, whose exponents have 8 bits, the product is as exact however the scale is
    split; in fp16, elements of B below 6e-5 lose bits.

    Args:
        a: (r, in).
        e: (r, 1); None: all ones.
        b: (out, r).
    """
    folded = b.double() * (scale if e is None else scale * e.double().T)
    return LoraFactors(a=a, b=folded, alpha=float(a.shape[0]))


def pad(factors: LoraFactors, rank: int) -> LoraFactors:
    """Pad the factors with zeros to `rank`; alpha / r stays, and is 1 where r was 0."""
    missing = rank - factors.rank
    assert missing >= 0
    return LoraFactors(
        a=F.pad(factors.a, (0, 0, 0, missing)),
        b=F.pad(factors.b, (0, missing)),
        alpha=factors.alpha * rank / factors.rank if factors.rank else float(rank),
    )


def uniform(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """Pad all matrices to one rank: the next one that servers take, or the largest above those.

    Args:
        factors: all of one scale alpha / r.
    """
    largest = max(f.rank for f in factors.values())
    rank = next((rank for rank in SERVED_RANKS if rank >= largest), largest)
    return {name: pad(f, rank) for name, f in factors.items()}


def without_empty(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """Leave out matrices of rank 0, which add nothing.

    PEFT needs at least one matrix: if all have rank 0, the first stays, with one row of zeros.
    """
    kept = {name: f for name, f in factors.items() if f.rank}
    if kept or not factors:
        return kept
    name, empty = next(iter(factors.items()))
    return {name: pad(empty, 1)}


def without_empty_kinds(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """Leave out kinds of matrices, such as all `k_proj`, of which none has a rank above 0.

    Readers are told the kinds, and find each matrix of these, some of them perhaps zero.
    """
    kinds = {kind_of(name) for name in without_empty(factors)}
    return {name: f for name, f in factors.items() if kind_of(name) in kinds}


def kind_of(name: str) -> str:
    """Return the last part of a module's name, such as `q_proj`."""
    return name.rpartition(".")[2]


def plain_number(value: float) -> float:
    """Return a whole number as an int: some readers of an adapter accept no other alpha."""
    return int(value) if float(value).is_integer() else value
