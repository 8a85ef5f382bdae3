"""IVON on the flat bank."""

from __future__ import annotations

from typing import Any

import ivon
import torch
from torch import Tensor

from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank

CPU_PART = 2**15  # elements updated at a time on a CPU: the most that torch gives one thread


class BankIVON(ivon.IVON, BankOptimizer):  # type: ignore[misc]
    """IVON (Shen et al., ICML 2024): the official formulas on flat buffers.

    `ivon-opt` checks the arguments and computes the update; the bank samples and stores. The loop
    gives the step count for debiasing, which `ivon-opt` leaves out of its state.
    """

    posterior = True

    def __init__(
        self, bank: AdapterBank, *, generator: torch.Generator, **hyperparameters: Any
    ) -> None:
        """See `ivon.IVON` for the hyperparameters; `generator` draws the noise and nothing else."""
        self.bank = bank
        self.generator = generator
        # the formulas make a dozen temporaries: on a CPU those of a part stay in the cache (22M
        # elements:
        # 0.28 s per step in place of 2.1 s, MiniLM in full on two busy cores)
        end = bank.weights.stop
        size = CPU_PART if bank.mean.device.type == "cpu" else end
        self._parts = [slice(i, min(i + size, end)) for i in range(0, end, size)]
        super().__init__([bank.mean], **hyperparameters)
        self._decay = self.param_groups[0]["weight_decay"]
        self._prior_mean: Tensor | None = None

    def set_prior(self, mean: Tensor, sigma: Tensor) -> None:
        """Replace the prior N(0, 1 / (ess delta)) by N(mean_i, sigma_i^2), each (N,).

        delta becomes a vector, delta_i = 1 / (ess sigma_i^2); where sigma is 0 delta stays. With
        the posterior of earlier data as the prior this is variational continual learning (Nguyen et
        al., ICLR 2018, arXiv 1710.10628).
        """
        group = self.param_groups[0]
        own = torch.full_like(sigma, self._decay)
        group["weight_decay"] = torch.where(sigma > 0, 1 / (group["ess"] * sigma.square()), own)
        self._prior_mean = mean.clone()

    def _init_buffers(self) -> None:
        group = self.param_groups[0]
        group["momentum"] = torch.zeros_like(self.bank.mean)
        group["hess"] = torch.full_like(self.bank.mean, group["hess_init"])

    def sigma(self) -> Tensor:
        """Return 1 / sqrt(ess (h + delta)) for the weights and 0 for all other elements: (N,)."""
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
        ess, whole, initial = group["ess"], group["weight_decay"], group["hess_init"]
        debias = 1.0 - group["beta1"] ** (step + 1)
        for part in self._parts:
            decay = whole[part] if isinstance(whole, Tensor) else whole
            old = (group["momentum"][part], group["hess"][part], self.bank.mean[part])
            gradient, noise_gradient = self.bank.grad[:, part]
            momentum = self._new_momentum(gradient, old[0], group["beta1"])
            hessian = self._new_hess(
                "price", old[1], noise_gradient, None, slice(None), ess, group["beta2"], decay
            )
            slope = momentum
            if self._prior_mean is not None:  # delta (mean - prior's mean) in place of delta mean
                slope = momentum - debias * decay * self._prior_mean[part]
            mean = self._new_param_averages(
                old[2],
                hessian,
                slope,
                learning_rate * (initial + self._decay),
                decay,
                group["clip_radius"],
                debias,
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


def effective_sample_size(config: RunConfig, train_size: int) -> float:
    """Return IVON's effective sample size, in examples, for a run on `train_size` examples."""
    return config.ess or config.ess_per_example * train_size


def hessian_over_initial(sigma: float, config: RunConfig, train_size: int) -> float:
    """Return h / h0 of an element with standard deviation sigma: h = 1 / (ess sigma^2) - delta."""
    ess = effective_sample_size(config, train_size)
    return float((1 / (ess * sigma**2) - config.weight_decay) / config.hess_init)


def build(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankIVON:
    """Build IVON with the configuration's settings."""
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
