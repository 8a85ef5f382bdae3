"""Converts an AdaLoRA adapter to plain LoRA: folds E, and the rest of the scale, into A.

AdaLoRA adds alpha / (r_init + 1e-5) * B diag(E) A to a weight, LoRA adds alpha / r * B A with the
r that is kept. Either r or alpha must be stored per matrix, or A must absorb the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


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


def pad(factors: LoraFactors, rank: int, alpha: float) -> LoraFactors:
    """Pad the factors with zeros to `rank` and change alpha, folding the ratio into A.

    The product stays the same. Factors of rank 0 have no scale and stay zero.
    """
    missing = rank - factors.rank
    assert missing >= 0
    ratio = (factors.alpha / factors.rank) / (alpha / rank) if factors.rank else 0.0
    a = F.pad(factors.a * ratio, (0, 0, 0, missing))
    return LoraFactors(a=a, b=F.pad(factors.b, (0, missing)), alpha=alpha)


def uniform(factors: Mapping[str, LoraFactors], alpha: float) -> dict[str, LoraFactors]:
    """Pad all matrices to the largest rank among them, with one alpha."""
    rank = max(f.rank for f in factors.values())
    return {name: pad(f, rank, alpha) for name, f in factors.items()}


def without_empty(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """Leave out matrices of rank 0, which add nothing.

    PEFT needs at least one matrix: if all have rank 0, the first stays, with one row of zeros.
    """
    kept = {name: f for name, f in factors.items() if f.rank}
    if kept or not factors:
        return kept
    name, empty = next(iter(factors.items()))
    return {name: pad(empty, 1, 1.0)}


def plain_number(value: float) -> float:
    """Return a whole number as an int: some readers of an adapter accept no other alpha."""
    return int(value) if float(value).is_integer() else value
