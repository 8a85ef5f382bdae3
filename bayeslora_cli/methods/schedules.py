"""Schedules over the steps of a run: step -> learning rate, step -> rank budget.

Steps are counted from 0 to `total` - 1. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _linear(peak: float, left: int, span: int) -> float:
    return peak * left / span


def _cosine(peak: float, left: int, span: int) -> float:
    return peak * (1 - math.cos(math.pi * left / span)) / 2


def _constant(peak: float, left: int, span: int) -> float:
    return peak


DECAYS: dict[str, Callable[[float, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "boost": _linear,
}
"""By a name in `config.catalogue.LR_SCHEDULES`: (peak, steps that are left of the decay, its steps)
-> learning rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """Warm-up, an optional plateau at its own height, then the decay, to 0 at step `total`."""

    peak: float
    """Learning rate from which the decay starts."""
    total: int
    """T, steps of the run."""
    warmup: int
    """w, number of warm-up steps."""
    boost: float | None = None
    """Height of the plateau that the warm-up leads to; None: no plateau."""
    boost_until: int = 0
    """s, the step at which the plateau ends and the decay starts."""
    decay: str = "linear"
    """A key of `DECAYS`; constant: there is no decay."""

    def __call__(self, step: int) -> float:
        """Return the learning rate of `step`.

        linear: peak t/w for t < w, then peak (T - t)/(T - w);
        cosine: then peak (1 + cos(pi (t - w)/(T - w)))/2; constant: then peak;
        boost: boost t/w for t < w, boost for t < s, then peak (T - t)/(T - max(s, w)).
        """
        height = self.peak if self.boost is None else self.boost
        start = self.warmup if self.boost is None else max(self.warmup, self.boost_until)
        if step < self.warmup:
            return height * step / self.warmup
        if step < start:
            return height
        return DECAYS[self.decay](self.peak, self.total - step, self.total - start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """How a step treats the allocation."""

    observes: bool
    """Whether gradient statistics are averaged: only before the final phase."""
    allocates: bool
    """Whether the budget is applied: at every delta_t-th step, and at T - t_final."""
    holds: bool
    """Whether the allocation is fixed, so that pruned triplets stay pruned."""

    @property
    def passes(self) -> bool:
        """The part of the phase that a forward pass depends on."""
        return self.holds


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBudget:
    """AdaLoRA's cubic budget (Zhang et al., ICLR 2023, eq. 12), in triplets over all matrices."""

    initial: int
    """b0 = initial rank * number of matrices."""
    target: int
    """bT = target rank * number of matrices."""
    t_init: int
    """Steps up to which the budget stays at b0."""
    t_final: int
    """Steps at the end with the allocation fixed."""
    delta_t: int
    """Steps between two allocations."""
    total: int
    """T, steps of the run."""

    @property
    def final_step(self) -> int:
        """Step of the last allocation, T - t_final; afterwards the masks are fixed."""
        return self.total - self.t_final

    def __call__(self, step: int) -> int:
        """Return the triplets kept after `step`: the last allocation's budget, b0 before any."""
        at_budget = step >= self.final_step
        return self.target if at_budget else self.scheduled(step - step % self.delta_t)

    def scheduled(self, step: int) -> int:
        """Return the budget b(t), whether or not `step` allocates."""
        if step >= self.final_step:
            return self.target
        if step <= self.t_init:
            return self.initial
        remaining = 1 - (step - self.t_init) / (self.final_step - self.t_init)
        return int((self.initial - self.target) * remaining**3 + self.target)

    def phase(self, step: int) -> Phase:
        """Return the phase of `step`."""
        between = self.t_init < step < self.final_step and step % self.delta_t == 0
        return Phase(
            observes=step < self.final_step,
            allocates=between or step == self.final_step,
            holds=step > self.final_step,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRanks(RankBudget):
    """The budget of a run whose ranks are fixed from the first step on; `target` triplets."""

    @property
    def final_step(self) -> int:
        """The step before the first."""
        return -1

    def __call__(self, step: int) -> int:
        """Return the number of triplets."""
        return self.target

    def phase(self, step: int) -> Phase:
        """Return the only phase: pruned triplets stay pruned."""
        return Phase(observes=True, allocates=False, holds=True)
