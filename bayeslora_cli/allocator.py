"""`RankAllocator`: observe gradients, score triplets, keep exactly the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora_cli.bank import AdapterBank
from bayeslora_cli.criteria import Criterion, ElementStatistics
from bayeslora_cli.schedules import RankBudget

SENSITIVITY_BETA1 = 0.85  # AdaLoRA, section 4.1; PEFT's beta1
SENSITIVITY_BETA2 = 0.85  # likewise, beta2


def largest(scores: Tensor, budget: int | Tensor) -> Tensor:
    """A mask of exactly the `budget` largest scores, ties by position: (n, r) -> (n, r) of 0, 1."""
    flat = scores.flatten()
    order = flat.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat)
    kept = torch.arange(flat.numel(), device=flat.device) < budget
    return mask.scatter_(0, order, kept.to(flat.dtype)).view(scores.shape)


class RankAllocator:
    """Applies the rank budget to the bank's mask; nothing here reads a device's value."""

    def __init__(self, bank: AdapterBank, criterion: Criterion, budget: RankBudget) -> None:
        """`bank` must be adaptive: all its matrices carry E."""
        self.bank = bank
        self.criterion = criterion
        self.budget = budget
        size = bank.adapter_end if criterion.needs_gradient else 0
        self.sensitivity = torch.zeros(size, device=bank.theta.device)
        self.uncertainty = torch.zeros(size, device=bank.theta.device)
        self.history: list[tuple[int, int, Tensor]] = []
        """(step, budget, ranks (n,) on the device) of allocations that nobody has fetched yet."""

    def after_update(self, step: int, sigma: Tensor | None, good: Tensor) -> Tensor:
        """What follows the optimizer's update at `step`, wherever `good` is true.

        Args:
            sigma: of all elements (N,), read at allocation steps alone; None without a posterior.
        Returns:
            `good`, and false as well where a score was not finite.
        """
        if self.criterion.needs_gradient and self.budget.observes(step):
            self._observe(good)
        if self.budget.allocates(step):
            return self._allocate(step, sigma, good)
        if self.budget.holds(step):
            self._apply(good)
        return good

    def scores(self, sigma: Tensor | None) -> Tensor:
        """The triplets' scores now: (n, r)."""
        statistics = ElementStatistics(
            mean=self.bank.adapters(self.bank.mean),
            sigma=None if sigma is None else self.bank.adapters(sigma),
            sensitivity=self.sensitivity,
            uncertainty=self.uncertainty,
        )
        return self.bank.triplet_scores(self.criterion.score(statistics))

    def _observe(self, good: Tensor) -> None:
        """I = |theta g|; I_bar <- b1 I_bar + (1-b1) I; U <- b2 U + (1-b2)|I - I_bar|."""
        bank = self.bank
        observed = (bank.adapters(bank.mean) * bank.adapters(bank.grad[0])).abs_()
        average = torch.lerp(observed, self.sensitivity, SENSITIVITY_BETA1)
        deviation = (observed - average).abs_()
        uncertainty = torch.lerp(deviation, self.uncertainty, SENSITIVITY_BETA2)
        torch.where(good, average, self.sensitivity, out=self.sensitivity)
        torch.where(good, uncertainty, self.uncertainty, out=self.uncertainty)

    def _allocate(self, step: int, sigma: Tensor | None, good: Tensor) -> Tensor:
        scores = self.scores(sigma)
        good = good & scores.isfinite().all()
        budget = self.budget(step)
        torch.where(good, largest(scores, budget), self.bank.mask, out=self.bank.mask)
        self.history.append((step, budget, self.bank.mask.sum(1)))
        self._apply(good)
        return good

    def _apply(self, good: Tensor) -> None:
        """Set the mean of every pruned triplet's E to 0."""
        values = self.bank.singular_values(self.bank.mean)
        torch.where(good, values * self.bank.mask, values, out=values)

    def fetch_history(self) -> list[tuple[int, int, list[int]]]:
        """(step, budget, rank of each matrix) since the last fetch: this reads the device."""
        if not self.history:
            return []
        ranks = torch.stack([r for _, _, r in self.history]).round().long().tolist()
        fetched = [(s, b, r) for (s, b, _), r in zip(self.history, ranks, strict=True)]
        self.history.clear()
        return fetched

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the future depends on besides the bank's mask."""
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}

    def scalars(self) -> dict[str, int]:
        """Nothing: fetch the history before saving."""
        assert not self.history, "a checkpoint would lose allocations that nobody has fetched"
        return {}

    def load_scalars(self, scalars: dict[str, int]) -> None:
        """Nothing to take."""
