"""`BankOptimizer`: an optimizer on the flat bank.

Optimizers touch only flat tensors. A flag on the device guards each update: where it is false every
tensor keeps its value. The host never reads it during a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bayeslora_cli.config.catalogue import OPTIMIZERS, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank


class BankOptimizer(ABC):
    """Samples and moves the bank's weights; the training step calls it."""

    posterior: bool
    """Whether it keeps a posterior, so that theta is sampled and sigma known."""

    @abstractmethod
    def sample(self, *, masked: bool) -> None:
        """Draw theta for one pass; `masked`: pruned triplets stay at their mean."""

    @abstractmethod
    def update(self, step: int | Tensor, learning_rate: float | Tensor, good: Tensor) -> None:
        """Step number `step`, from 0, from `bank.grad`, wherever the scalar bool `good` is true.

        As tensors, float64 and fp32, `step` and `learning_rate` stay on the device.
        """

    @abstractmethod
    def sigma(self) -> Tensor | None:
        """Standard deviation of each element (N,), or None for a point estimate."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """State tensors, in place."""

    def compile(self) -> None:  # noqa: B027
        """Put the update under torch.compile, where that makes fewer kernels of it."""

    def scalars(self) -> dict[str, int]:
        """Nothing: the loop counts the steps."""
        return {}

    def load_scalars(self, scalars: dict[str, int]) -> None:  # noqa: B027
        """Nothing to take."""


def build_optimizer(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankOptimizer:
    """The configuration's optimizer on a bank.

    Args:
        train_size: number of training examples.
        noise: generator of the posterior samples, on the bank's device.
    """
    build = implementation(OPTIMIZERS[config.optimizer].implementation)
    found: BankOptimizer = build(config, bank, train_size, noise)
    return found
