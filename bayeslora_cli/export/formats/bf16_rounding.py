"""What is left of an adapter in a merged model whose weights are rounded to bf16.

bf16 has 8 bits of precision, and updates are small beside the weights that they are added to: most
may be lost, so what is left is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptUpdate:
    """How much of the updates W -> W + D is left after rounding to bf16."""

    relative_error: float
    """||(round(W + D) - round(W)) - D|| / ||D||, of all matrices together.

    At most about 1 if W is in bf16 already: what is too small is lost. If W is not, weights that
    lie halfway between two numbers of bf16 jump by all their distance: a small update becomes
    noise, and this may be far above 1.
    """
    unchanged: float
    """Share of their elements for which round(W + D) = round(W)."""
    worst: str
    """The matrix with the largest relative error."""
    worst_relative_error: float
    worst_unchanged: float

    def __str__(self) -> str:
        return (
            "rounded to bf16, the adapter's update has a relative error of "
            f"{self.relative_error:.2g}, and {self.unchanged:.0%} of the adapted weights are as "
            f"without it (most in "
            f"{self.worst}: {self.worst_relative_error:.2g}, {self.worst_unchanged:.0%})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """A network whose weights have been merged and rounded to bf16."""

    update: KeptUpdate | None
    """What is left of the adapters' updates; None: there were none."""


@dataclass(kw_only=True, slots=True)
class UpdateMeter:
    """Measures a `KeptUpdate` matrix by matrix."""

    error: float = 0.0
    size: float = 0.0
    same: int = 0
    elements: int = 0
    matrices: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Relative error, and share of unchanged elements, by matrix."""

    def add(self, name: str, weight: Tensor, update: Tensor) -> None:
        """Measure one matrix; one whose update is zero does not count."""
        size = float(update.double().square().sum())
        if not size:
            return
        before, after = bf16(weight), bf16(weight + update)
        error = float((after.double() - before.double() - update.double()).square().sum())
        same = int((before == after).sum())
        self.error += error
        self.size += size
        self.same += same
        self.elements += weight.numel()
        self.matrices[name] = ((error / size) ** 0.5, same / weight.numel())

    def result(self) -> KeptUpdate | None:
        """Return what was measured; None: no matrix was updated."""
        if not self.matrices:
            return None
        worst = max(self.matrices, key=lambda name: self.matrices[name])
        return KeptUpdate(
            relative_error=(self.error / self.size) ** 0.5,
            unchanged=self.same / self.elements,
            worst=worst,
            worst_relative_error=self.matrices[worst][0],
            worst_unchanged=self.matrices[worst][1],
        )


def bf16(value: Tensor) -> Tensor:
    """Round to the nearest bf16 number; the type stays."""
    return value.to(torch.bfloat16).to(value.dtype)
