"""AdaLoRA (Zhang et al., ICLR 2023): what tells it from other methods."""

from __future__ import annotations

import torch
from torch import nn

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.adapters.layer import ADALORA_STD, RANK_EPSILON, LowRankLinear


def adalora_linear(
    base: nn.Module, rank: int, alpha: float, generator: torch.Generator
) -> LowRankLinear:
    """AdaLoRA's adapter at its start: A, B ~ N(0, 0.02^2), E = 0, scale alpha / (r + 1e-5)."""
    layer = LowRankLinear(base, rank, alpha / (rank + RANK_EPSILON), singular_values=True)
    with torch.no_grad():
        layer.lora_A.normal_(std=ADALORA_STD, generator=generator)
        layer.lora_B.normal_(std=ADALORA_STD, generator=generator)
    return layer


def rank_budget(config: RunConfig, matrices: int) -> RankBudget:
    """The rank budget of each step over all matrices; `config` with its schedule final."""
    assert config.schedule_steps is not None
    return RankBudget(
        initial=config.init_rank * matrices,
        target=config.target_rank * matrices,
        t_init=config.t_init,
        t_final=config.t_final,
        delta_t=config.delta_t,
        total=config.schedule_steps,
    )
