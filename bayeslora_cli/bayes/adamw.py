"""AdamW on the flat bank."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import ALIGNMENT


class BankAdamW(BankOptimizer):
    """torch's fused AdamW (Loshchilov & Hutter, ICLR 2019) on the one flat parameter."""

    posterior = False

    def __init__(
        self,
        bank: AdapterBank,
        *,
        weight_decay: float,
        matrices_only: bool = False,
        max_norm: float | None = None,
        part: slice | None = None,
    ) -> None:
        """Allocate the optimizer's state.

        Args:
            matrices_only: leave parameters of one dimension, biases and those of norms, undecayed.
            max_norm: scale the gradient down to this norm where it is larger; None: never.
            part: the slice of the buffers to train; None: the weights.
        """
        self.bank, self.max_norm = bank, max_norm
        part = bank.weights if part is None else part
        self._mean = mean = bank.mean[part]
        self._rate = torch.zeros((), device=mean.device)
        self._decay = weight_decay if matrices_only else 0.0
        self._decayed = decayed_runs(bank, part) if self._decay else []
        self.adamw = torch.optim.AdamW(
            [mean], lr=0.0, weight_decay=0.0 if matrices_only else weight_decay, fused=True,
            capturable=mean.is_cuda,
        )  # fmt: skip
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
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_([self._mean], self.max_norm)
        if self._decayed:
            torch._foreach_mul_(self._decayed, 1 - self._rate * self._decay * good)
        self.adamw.step()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.adamw.state[self._mean])


def decayed_runs(bank: AdapterBank, part: slice) -> list[Tensor]:
    """View parameters of two or more dimensions in `bank.mean`, neighbours as one: (n,) each."""
    runs: list[list[int]] = []
    for segment in bank.segments.values():
        if len(segment.shape) < 2 or not part.start <= segment.offset < part.stop:
            continue
        if runs and segment.offset - runs[-1][1] < ALIGNMENT:  # only padding lies between
            runs[-1][1] = segment.stop
        else:
            runs.append([segment.offset, segment.stop])
    return [bank.mean[start:stop] for start, stop in runs]


def build(
    config: RunConfig, bank: AdapterBank, train_size: int, noise: torch.Generator
) -> BankAdamW:
    """Build AdamW with the configuration's settings."""
    return BankAdamW(
        bank,
        weight_decay=config.weight_decay,
        matrices_only=config.weight_decay_of == "matrices",
        max_norm=config.max_grad_norm,
    )
