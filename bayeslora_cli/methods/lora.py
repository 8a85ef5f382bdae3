"""Plain LoRA: adapters of one fixed rank (Hu et al., ICLR 2022)."""

from __future__ import annotations

import math

import torch
from torch import nn

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.method import LayerMaker, Method
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear


def lora_linear(
    base: AdaptedLinear, rank: int, alpha: float, generator: torch.Generator
) -> LowRankLinear:
    """Build an initial LoRA adapter: A uniform as in PEFT, B = 0, scale alpha / r."""
    layer = LowRankLinear(base, rank, alpha / rank, singular_values=False)
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5), generator=generator)
    return layer


class Lora(Method):
    """Adapters B A without singular values; their rank is --target-rank throughout."""

    peft_type = "LORA"

    def layer_maker(self, config: RunConfig) -> LayerMaker:
        return lora_linear


LORA = Lora()
