"""An AdaLoRA adapter as a plain LoRA adapter: E, and what is left of the scale, folded into A.

AdaLoRA adds alpha / (r_init + 1e-5) * B diag(E) A to a weight, LoRA adds alpha / r * B A with the
r that is kept. Either r or alpha must be told apart by matrix, or the difference goes into A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFactors:
    """What a matrix's weight gains: alpha / r * B A."""

    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.a.shape[0]


def fold(a: Tensor, e: Tensor | None, b: Tensor, scale: float) -> LoraFactors:
    """scale * B diag(E) A as LoRA's factors, with alpha / r = scale; A in float64.

    Args:
        a: (r, in).
        e: (r, 1); None: all ones.
        b: (out, r).
    """
    folded = a.double() if e is None else a.double() * e.double()
    return LoraFactors(a=folded, b=b, alpha=scale * a.shape[0])


def pad(factors: LoraFactors, rank: int, alpha: float) -> LoraFactors:
    """The same product with `rank` rows, zeros added, and another alpha, the ratio folded into A.

    Factors of rank 0 have no scale and stay zero.
    """
    missing = rank - factors.rank
    assert missing >= 0
    ratio = (factors.alpha / factors.rank) / (alpha / rank) if factors.rank else 0.0
    a = F.pad(factors.a * ratio, (0, 0, 0, missing))
    return LoraFactors(a=a, b=F.pad(factors.b, (0, missing)), alpha=alpha)


def uniform(factors: Mapping[str, LoraFactors], alpha: float) -> dict[str, LoraFactors]:
    """All matrices at the largest rank among them and at one alpha."""
    rank = max(f.rank for f in factors.values())
    return {name: pad(f, rank, alpha) for name, f in factors.items()}


def without_empty(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """Matrices that kept any rank, all others add nothing.

    PEFT wants one at least: where none kept any, the first stays, with one row of zeros.
    """
    kept = {name: f for name, f in factors.items() if f.rank}
    if kept or not factors:
        return kept
    name, empty = next(iter(factors.items()))
    return {name: pad(empty, 1, 1.0)}


def plain_number(value: float) -> float:
    """A whole number as an int: some readers of an adapter take no other alpha."""
    return int(value) if float(value).is_integer() else value
