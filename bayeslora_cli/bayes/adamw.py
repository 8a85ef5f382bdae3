"""AdamW on the flat bank."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank


class BankAdamW(BankOptimizer):
    """torch's fused AdamW (Loshchilov & Hutter, ICLR 2019) on the one flat parameter."""

    posterior = False

    def __init__(
        self, bank: AdapterBank, *, weight_decay: float, part: slice | None = None
    ) -> None:
        """`part`: the slice of the buffers to train; None: the weights."""
        self.bank = bank
        part = bank.weights if part is None else part
        self._mean = mean = bank.mean[part]
        self._rate = torch.zeros((), device=mean.device)
        self.adamw = torch.optim.AdamW(
            [mean], lr=0.0, weight_decay=weight_decay, fused=True, capturable=mean.is_cuda
        )
        self.adamw.param_groups[0]["lr"] = self._rate
        mean.grad = bank.grad[0, part]
        # torch creates its state at the first step; created now, it can be saved and restored
        # earlier
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
        # the fused kernel's guard, made for gradient scalers: at 1 it updates nothing
        self.adamw.found_inf = (~good).float()  # type: ignore[attr-defined]
        self._rate.fill_(learning_rate)
        self.adamw.step()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.adamw.state[self._mean])


def build(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankAdamW:
    """Build AdamW with the configuration's settings."""
    return BankAdamW(bank, weight_decay=config.weight_decay)
