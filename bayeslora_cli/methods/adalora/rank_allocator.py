"""`RankAllocator`: observe gradients, score triplets, keep exactly the budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayeslora_cli.bayes.criteria import Criterion, ElementStatistics
from bayeslora_cli.methods.schedules import Phase, RankBudget
from bayeslora_cli.models.adapters.bank import AdapterBank

SENSITIVITY_BETA1 = 0.85  # AdaLoRA, section 4.1; PEFT's beta1
SENSITIVITY_BETA2 = 0.85  # likewise, beta2
HISTORY = 1000  # allocations that the device remembers before somebody has to fetch them


def largest(scores: Tensor, budget: int | Tensor) -> Tensor:
    """A mask of exactly the `budget` largest scores, ties by position: (n, r) -> (n, r) of 0, 1."""
    flat = scores.flatten()
    order = flat.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat)
    kept = torch.arange(flat.numel(), device=flat.device) < budget
    return mask.scatter_(0, order, kept.to(flat.dtype)).view(scores.shape)


class Allocation(NamedTuple):
    """What the matrices have from a step on."""

    step: int
    budget: int
    """Triplets over all matrices."""
    ranks: list[int]
    bits: list[dict[str, int]] | None = None
    """Width of each quantized operand, by matrix; None: nothing is quantized."""


class Allocator(ABC):
    """What step and loop ask of who decides on ranks.

    A phase says whether it `allocates` (sigma is wanted), whether it `holds` (masked weights are
    not sampled), and by `passes` what else a forward pass depends on.
    """

    final_step: int
    """The last step at which the allocation changes."""

    @abstractmethod
    def announce(self, step: int) -> Any:
        """Prepare the device for `step`; returns its phase, which is hashable."""

    def before_passes(  # noqa: B027
        self, step: int, batches: Sequence[Mapping[str, Tensor]], good: Tensor
    ) -> None:
        """What has to be known before the passes of a step, if its batch says it.

        `batches`: this process's micro-batches, of which there may be none.
        """

    def regularise(self) -> Tensor | None:
        """Add a penalty's gradient at theta to `bank.local`; its value, or None: there is none."""
        return None

    @abstractmethod
    def after_update(self, phase: Any, sigma: Tensor | None, good: Tensor) -> Tensor:
        """What follows the optimizer's update of the step announced, wherever `good` is true.

        Args:
            sigma: of all elements (N,), where the phase allocates; None without a posterior.
        Returns:
            `good`, and false as well where something was not finite.
        """

    def compile(self) -> None:
        """Put what follows the update under torch.compile, where that makes fewer kernels of it."""
        self.after_update = torch.compile(self.after_update, dynamic=False)  # type: ignore[method-assign]

    @abstractmethod
    def scores(self, sigma: Tensor | None) -> Tensor:
        """The triplets' scores now: (n, r)."""

    @abstractmethod
    def facts(self, step: int) -> dict[str, Any]:
        """For a line of metrics.jsonl; this may read the device."""

    def result(self, mean: Tensor, mask: Tensor) -> dict[str, Any]:
        """For result.json, of the state that the run keeps."""
        return {}

    @abstractmethod
    def fetch_history(self) -> list[Allocation]:
        """The allocations since the last fetch: this reads the device."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the future depends on besides the bank."""

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """State that is no tensor; fetch the history before."""

    @abstractmethod
    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take `scalars()` of an earlier process."""


class RankAllocator(Allocator):
    """Applies the rank budget to the bank's mask; nothing here reads a device's value."""

    def __init__(self, bank: AdapterBank, criterion: Criterion, budget: RankBudget) -> None:
        """`bank` must be adaptive: all its matrices carry E."""
        self.bank = bank
        self.criterion = criterion
        self.budget = budget
        self.final_step = budget.final_step
        size = bank.adapter_end if criterion.needs_gradient else 0
        self.sensitivity = torch.zeros(size, device=bank.theta.device)
        self.uncertainty = torch.zeros(size, device=bank.theta.device)
        # what the host tells the device of a step: fixed places, as a captured step reads no others
        self._budget = torch.zeros((), dtype=torch.int64, device=bank.theta.device)
        self._row = torch.zeros(1, dtype=torch.int64, device=bank.theta.device)
        self._ranks = torch.zeros(HISTORY, len(bank.matrices), device=bank.theta.device)
        self._history: list[tuple[int, int]] = []  # (step, budget) of the rows of _ranks
        self._fetched: list[Allocation] = []

    def announce(self, step: int) -> Phase:
        """Prepare the device for `after_update` at `step`; returns what it will have to do."""
        phase = self.budget.phase(step)
        if phase.allocates:
            if len(self._history) == HISTORY:
                self._fetched = self.fetch_history()
            budget = self.budget(step)
            self._budget.fill_(budget)
            self._row.fill_(len(self._history))
            self._history.append((step, budget))
        return phase

    def after_update(self, phase: Phase, sigma: Tensor | None, good: Tensor) -> Tensor:
        if self.criterion.needs_gradient and phase.observes:
            self._observe(good)
        if phase.allocates:
            return self._allocate(sigma, good)
        if phase.holds:
            self._apply(good)
        return good

    def scores(self, sigma: Tensor | None) -> Tensor:
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

    def _allocate(self, sigma: Tensor | None, good: Tensor) -> Tensor:
        scores = self.scores(sigma)
        good = good & scores.isfinite().all()
        kept = largest(scores, self._budget)
        torch.where(good, kept, self.bank.mask, out=self.bank.mask)
        self._ranks.index_copy_(0, self._row, self.bank.mask.sum(1)[None])
        self._apply(good)
        return good

    def _apply(self, good: Tensor) -> None:
        """Set the mean of every pruned triplet's E to 0."""
        values = self.bank.singular_values(self.bank.mean)
        torch.where(good, values * self.bank.mask, values, out=values)

    def facts(self, step: int) -> dict[str, Any]:
        return {"budget": self.budget(step)}

    def fetch_history(self) -> list[Allocation]:
        ranks = self._ranks[: len(self._history)].round().long().tolist()
        fetched = [Allocation(s, b, r) for (s, b), r in zip(self._history, ranks, strict=True)]
        fetched = self._fetched + fetched
        self._fetched = []
        self._history.clear()
        return fetched

    def tensors(self) -> dict[str, Tensor]:
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}

    def scalars(self) -> dict[str, Any]:
        assert not self._history + self._fetched, (
            "a checkpoint would lose allocations that nobody has fetched"
        )
        return {}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Nothing to take: the bank's mask is all the state."""
