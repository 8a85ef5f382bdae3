"""Has an encoder's blocks compute dropout, residual sum and norm in one kernel, on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.models.encoders.relative_attention import RelativeAttention
from bayeslora_cli.models.kernels.residual_norm.residual_norm import has_kernel, residual_norm

KNOWN = frozenset({
    "BertOutput", "BertSelfOutput", "DebertaV2Output", "DebertaV2SelfOutput", "ElectraOutput",
    "ElectraSelfOutput", "RobertaOutput", "RobertaSelfOutput", "XLMRobertaOutput",
    "XLMRobertaSelfOutput",
})  # fmt: skip
"""Classes of transformers that compute LayerNorm(dropout(dense(x)) + residual). A test holds each
against it (`tests/models/encoders/fused/test_residual_norms.py`)."""


class ResidualNorm(nn.Module):
    """Takes the place of a module of `KNOWN`, whose children it has under their names."""

    dense: nn.Module
    dropout: nn.Dropout
    LayerNorm: nn.LayerNorm

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._modules = replaced._modules  # both see the same children, whatever they become
        self.training = replaced.training
        self.seed: Tensor | None = None
        """The present pass's, (1,), from `share_seeds`."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Compute the module: (..., in) and (..., out) -> (..., out)."""
        x, norm = self.dense(hidden_states), self.LayerNorm
        drop = self.dropout.p if self.training else 0.0
        if self.seed is None or drop >= 1 or not has_kernel(x) or x.dtype != norm.weight.dtype:
            found: Tensor = norm(self.dropout(x) + input_tensor)
            return found
        return residual_norm(
            x, input_tensor, norm.weight, norm.bias, eps=norm.eps, seed=self.seed, dropout=drop
        )


def fuse_residual_norms(module: nn.Module) -> int:
    """Replace the modules of `KNOWN` whose norms are frozen; count them."""
    found = 0
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if type(child).__name__ in KNOWN and _is_frozen(child):
                setattr(owner, name, ResidualNorm(child))
                found += 1
    return found


def share_seeds(module: nn.Module, device: torch.device) -> None:
    """Have one kernel draw the seeds of all our kernels with dropout, at each forward pass."""
    users = [
        found for found in module.modules() if isinstance(found, ResidualNorm | RelativeAttention)
    ]
    if not users:
        return
    seeds = torch.zeros(len(users), dtype=torch.int64, device=device)
    for user, seed in zip(users, torch.split(seeds, 1), strict=True):
        user.seed = seed

    def draw(drawn: nn.Module, _: Any) -> None:
        if drawn.training:
            seeds.random_(2**62)

    module.register_forward_pre_hook(draw)


def _is_frozen(module: Any) -> bool:
    return not any(p.requires_grad for p in module.LayerNorm.parameters())
