"""`Allocator`: the interface through which the training step and loop use a rank allocator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HISTORY = 1000  # allocations that the device keeps before the host must fetch them


class Allocation(NamedTuple):
    """Ranks, and bit widths if any, that all matrices have from a step on."""

    step: int
    budget: int
    """Triplets over all matrices."""
    ranks: list[int]
    bits: list[dict[str, int]] | None = None
    """Width of each quantized operand, by matrix; None: nothing is quantized."""


class Allocator(ABC):
    """Decides on ranks during the run; the training step and the loop call it.

    A phase tells whether it `allocates` (then `after_update` gets sigma) and whether it `holds`
    (then masked weights are not sampled); `passes` is the part of it that forward passes depend on.
    """

    final_step: int
    """The last step at which the allocation changes."""

    @abstractmethod
    def announce(self, step: int) -> Any:
        """Prepare the device for `step`; returns its phase, which is hashable."""

    def before_passes(  # noqa: B027
        self, step: int, batches: Sequence[Mapping[str, Tensor]], good: Tensor
    ) -> None:
        """Measure on the batch of a step what its passes need.

        Args:
            batches: this process's micro-batches; there may be none.
            good: a scalar bool on the device; if it is false, nothing may change.
        """

    def regularise(self) -> Tensor | None:
        """Add a penalty's gradient at theta to `bank.local`; return its value, None without one."""
        return None

    @abstractmethod
    def after_update(self, phase: Any, sigma: Tensor | None, good: Tensor) -> Tensor:
        """Do what follows the optimizer's update of the announced step, wherever `good` is true.

        Args:
            sigma: of all elements (N,), if the phase allocates; None without a posterior.
        Returns:
            `good`, or false if a value was not finite.
        """

    def compile(self) -> None:
        """Compile what follows the update by torch.compile, if that results in fewer kernels."""
        self.after_update = torch.compile(self.after_update, dynamic=False)  # type: ignore[method-assign]

    @abstractmethod
    def scores(self, sigma: Tensor | None) -> Tensor:
        """Return the present scores of the triplets: (n, r)."""

    @abstractmethod
    def facts(self, step: int) -> dict[str, Any]:
        """Return entries for a line of metrics.jsonl; this may read from the device."""

    def result(self, mean: Tensor, mask: Tensor) -> dict[str, Any]:
        """Return entries for result.json, about the state that the run keeps."""
        return {}

    @abstractmethod
    def fetch_history(self) -> list[Allocation]:
        """Return the allocations since the last fetch; this reads from the device."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the state tensors of a checkpoint; the bank saves its own."""

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """Return the state that is not in tensors; the caller must fetch the history first."""

    @abstractmethod
    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore what `scalars()` returned in an earlier process."""
