"""`BankOptimizer`: an optimizer on the flat bank.

Optimizers touch only flat tensors. A flag on the device guards each update: if it is false, every
tensor keeps its value. The host never reads the flag during a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bayeslora_cli.config.catalogue import OPTIMIZERS, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank


class BankOptimizer(ABC):
    """Samples and updates the bank's weights; the training step calls it."""

    posterior: bool
    """Whether it keeps a posterior, so that theta is sampled and sigma is known."""

    @abstractmethod
    def sample(self, *, masked: bool) -> None:
        """Draw theta for one pass; `masked`: pruned triplets stay at their mean."""

    @abstractmethod
    def update(self, step: int | Tensor, learning_rate: float | Tensor, good: Tensor) -> None:
        """Update the weights from `bank.grad` if the scalar bool `good` is true.

        `step` counts from 0. If `step` (float64) and `learning_rate` (fp32) are tensors, the host
        does not read them.
        """

    @abstractmethod
    def sigma(self) -> Tensor | None:
        """Return the standard deviation of each element (N,), or None for a point estimate."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the state tensors themselves, not copies."""

    def compile(self) -> None:  # noqa: B027
        """Compile the update by torch.compile, if that results in fewer kernels."""

    def scalars(self) -> dict[str, int]:
        """Return no scalars: the loop counts the steps."""
        return {}

    def load_scalars(self, scalars: dict[str, int]) -> None:  # noqa: B027
        """Do nothing: there are no scalars."""


def build_optimizer(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankOptimizer:
    """Build the configuration's optimizer on a bank.

    Args:
        train_size: number of training examples.
        noise: generator of the posterior samples, on the bank's device.
    """
    build = implementation(OPTIMIZERS[config.optimizer].implementation)
    found: BankOptimizer = build(config, bank, train_size, noise)
    return found
