"""IVON and AdamW on the flat bank; the only importer of `ivon`.

Both optimizers have one interface, `BankOptimizer`, and touch nothing but flat tensors. An update
is guarded by a device flag: where it is false every tensor keeps its value, and nobody reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_cli.bayes.adamw import BankAdamW
from bayeslora_cli.bayes.ivon import BankIVON, effective_sample_size
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank


class BankOptimizer(ABC):
    """What the step asks of an optimizer."""

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
        """Nothing: the step count is the loop's."""
        return {}

    def load_scalars(self, scalars: dict[str, int]) -> None:  # noqa: B027
        """Nothing to take."""


def _ivon(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankOptimizer:
    return BankIVON(
        bank,
        generator=noise,
        lr=config.lr,
        ess=effective_sample_size(config, train_size),
        hess_init=config.hess_init,
        beta1=config.ivon_beta1,
        beta2=config.ivon_beta2,
        weight_decay=config.weight_decay,
        clip_radius=config.clip_radius,
        mc_samples=config.train_samples,
    )


def _adamw(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankOptimizer:
    return BankAdamW(bank, weight_decay=config.weight_decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerMaker:
    """How to build an optimizer on a bank."""

    posterior: bool
    """What the bank must be built for."""
    build: Callable[[RunConfig, AdapterBank, int, torch.Generator], BankOptimizer]
    """(configuration, bank, number of training examples, noise generator)."""


OPTIMIZERS: dict[str, OptimizerMaker] = {
    "ivon": OptimizerMaker(posterior=True, build=_ivon),
    "adamw": OptimizerMaker(posterior=False, build=_adamw),
}
