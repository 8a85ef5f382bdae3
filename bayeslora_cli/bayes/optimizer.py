"""IVON and AdamW on the flat bank; the only importer of `ivon`.

Both optimizers have one interface, `BankOptimizer`, and touch nothing but flat tensors. An update
is guarded by a device flag: where it is false every tensor keeps its value, and nobody reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ivon
import torch
from torch import Tensor

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank

CPU_PART = 2**15  # elements of an update at a time on a CPU: the most that torch gives one thread


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


class BankIVON(ivon.IVON, BankOptimizer):  # type: ignore[misc]
    """IVON (Shen et al., ICML 2024), the official formulas on flat buffers.

    The constructor's checks and the update's mathematics are `ivon-opt`'s; sampling and storage are
    the bank's. The debiasing's step count, which `ivon-opt` leaves out of its state, is the loop's.
    """

    posterior = True

    def __init__(
        self, bank: AdapterBank, *, generator: torch.Generator, **hyperparameters: Any
    ) -> None:
        """See `ivon.IVON` for the hyperparameters; `generator` draws the noise and nothing else."""
        self.bank = bank
        self.generator = generator
        # the formulas make a dozen temporaries: on a CPU a part's stay in the cache (22M elements:
        # 0.28 s a step for 2.1 s at once, MiniLM in full on two busy cores)
        end = bank.weights.stop
        size = CPU_PART if bank.mean.device.type == "cpu" else end
        self._parts = [slice(i, min(i + size, end)) for i in range(0, end, size)]
        super().__init__([bank.mean], **hyperparameters)

    def _init_buffers(self) -> None:
        group = self.param_groups[0]
        group["momentum"] = torch.zeros_like(self.bank.mean)
        group["hess"] = torch.full_like(self.bank.mean, group["hess_init"])

    def sigma(self) -> Tensor:
        """1 / sqrt(ess (h + delta)) of the weights, 0 of all else: (N,)."""
        group = self.param_groups[0]
        hessian: Tensor = group["hess"]
        precision: Tensor = group["ess"] * (hessian + group["weight_decay"])
        sigma = precision.rsqrt()
        sigma[self.bank.weights.stop :].zero_()
        return sigma

    def sample(self, *, masked: bool) -> None:
        self.bank.noise.normal_(generator=self.generator).mul_(self.sigma())
        self.bank.perturb(masked=masked)

    @torch.no_grad()
    def update(self, step: int | Tensor, learning_rate: float | Tensor, good: Tensor) -> None:
        group = self.param_groups[0]
        ess, decay, initial = group["ess"], group["weight_decay"], group["hess_init"]
        for part in self._parts:
            old = (group["momentum"][part], group["hess"][part], self.bank.mean[part])
            gradient, noise_gradient = self.bank.grad[:, part]
            momentum = self._new_momentum(gradient, old[0], group["beta1"])
            hessian = self._new_hess(
                "price", old[1], noise_gradient, None, slice(None), ess, group["beta2"], decay
            )
            mean = self._new_param_averages(
                old[2],
                hessian,
                momentum,
                learning_rate * (initial + decay),
                decay,
                group["clip_radius"],
                1.0 - group["beta1"] ** (step + 1),
                initial,
            )
            for before, after in zip(old, (momentum, hessian, mean), strict=True):
                torch.where(good, after, before, out=before)

    def compile(self) -> None:
        self.update = torch.compile(self.update, dynamic=False)  # type: ignore[method-assign]

    def tensors(self) -> dict[str, Tensor]:
        group = self.param_groups[0]
        return {
            "momentum": group["momentum"],
            "hessian": group["hess"],
        }


class BankAdamW(BankOptimizer):
    """torch's fused AdamW (Loshchilov & Hutter, ICLR 2019) on the one flat parameter."""

    posterior = False

    def __init__(
        self, bank: AdapterBank, *, weight_decay: float, part: slice | None = None
    ) -> None:
        """`part`: of the buffers; None: the weights."""
        self.bank = bank
        part = bank.weights if part is None else part
        self._mean = mean = bank.mean[part]
        self._rate = torch.zeros((), device=mean.device)
        self.adamw = torch.optim.AdamW(
            [mean], lr=0.0, weight_decay=weight_decay, fused=True, capturable=mean.is_cuda
        )
        self.adamw.param_groups[0]["lr"] = self._rate
        mean.grad = bank.grad[0, part]
        # torch makes its state at the first step; made now it can be saved and restored before
        self.adamw.state[mean] = {
            "step": torch.zeros((), device=mean.device),
            "exp_avg": torch.zeros_like(mean),
            "exp_avg_sq": torch.zeros_like(mean),
        }

    def sample(self, *, masked: bool) -> None:
        self.bank.publish()

    def sigma(self) -> None:
        return None

    @torch.no_grad()
    def update(self, step: int | Tensor, learning_rate: float | Tensor, good: Tensor) -> None:
        # the fused kernel's own guard, made for gradient scalers: nothing moves where it is 1
        self.adamw.found_inf = (~good).float()  # type: ignore[attr-defined]
        self._rate.fill_(learning_rate)
        self.adamw.step()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.adamw.state[self._mean])


def effective_sample_size(config: RunConfig, train_size: int) -> float:
    """IVON's ess, in examples, of a run on `train_size` of them."""
    return config.ess or config.ess_per_example * train_size


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
