"""Plain LoRA: adapters of one fixed rank."""

from __future__ import annotations

import math

import torch
from torch import nn

from bayeslora_cli.models.adapters.layer import LowRankLinear


def lora_linear(
    base: nn.Module, rank: int, alpha: float, generator: torch.Generator
) -> LowRankLinear:
    """LoRA's adapter at its start: A uniform as PEFT draws it, B = 0, scale alpha / r."""
    layer = LowRankLinear(base, rank, alpha / rank, singular_values=False)
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5), generator=generator)
    return layer
