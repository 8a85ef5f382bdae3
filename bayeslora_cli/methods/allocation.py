"""What the training step and loop ask of the object that allocates ranks: `Allocator`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

HISTORY = 1000  # allocations that the device keeps before the host must fetch them


class Allocation(NamedTuple):
    """Ranks, and widths if any, of all matrices from a step on."""

    step: int
    budget: int
    """Triplets over all matrices."""
    ranks: list[int]
    bits: list[dict[str, int]] | None = None
    """Width of each quantized operand, by matrix; None: nothing is quantized."""


class Allocator(ABC):
    """Decides on ranks during the run; the training step and the loop call it.

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
        """Measure what must be known before the passes of a step, on its batch.

        Args:
            batches: this process's micro-batches, of which there may be none.
            good: a scalar bool on the device; where it is false nothing may change.
        """

    def regularise(self) -> Tensor | None:
        """Add a penalty's gradient at theta to `bank.local`; return its value, None without one."""
        return None

    @abstractmethod
    def after_update(self, phase: Any, sigma: Tensor | None, good: Tensor) -> Tensor:
        """Do what follows the optimizer's update of the announced step, wherever `good` is true.

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
