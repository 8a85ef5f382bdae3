"""Dropout, residual sum and norm in one kernel: which modules have it, and what it is given."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from bayeslora_cli.models.encoders.fused import residual_norms
from bayeslora_cli.models.encoders.fused.residual_norms import (
    ResidualNorm,
    fuse_residual_norms,
    share_seeds,
)

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "layer_norm_eps": 1e-3,
}  # fmt: skip
KINDS = ["bert", "roberta", "xlm-roberta", "electra", "deberta-v2"]
CPU = torch.device("cpu")


def encoder(kind):
    torch.manual_seed(0)
    module = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES), dtype=torch.float32)
    for name, parameter in module.named_parameters():
        if "LayerNorm" in name:
            torch.nn.init.normal_(parameter)
    return module.requires_grad_(False).eval()


def written_out(x, residual, weight, bias, *, eps, seed, dropout):
    """In place of the kernel."""
    assert seed.shape == (1,)
    return F.layer_norm(F.dropout(x, dropout) + residual, x.shape[-1:], weight, bias, eps)


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_names_stay(kind, with_kernel, monkeypatch):
    module = encoder(kind)
    ids = torch.randint(1, 40, (2, 7))
    expected, names = module(input_ids=ids)[0], list(module.state_dict())
    assert fuse_residual_norms(module) == 4
    share_seeds(module, CPU)
    if with_kernel:
        monkeypatch.setattr(residual_norms, "has_kernel", lambda _: True)
        monkeypatch.setattr(residual_norms, "residual_norm", written_out)
    torch.testing.assert_close(module(input_ids=ids)[0], expected)
    assert list(module.state_dict()) == names


def test_norms_that_are_trained_stay():
    module = encoder("bert").requires_grad_(True)
    assert fuse_residual_norms(module) == 0


def test_seeds_are_drawn_for_each_training_pass():
    module = encoder("bert")
    fuse_residual_norms(module)
    share_seeds(module, CPU)
    users = [m for m in module.modules() if isinstance(m, ResidualNorm)]

    def seeds():
        module(input_ids=torch.ones(1, 3, dtype=torch.long))
        return [int(user.seed) for user in users]

    assert seeds() == [0] * 4
    module.train()
    first, second = seeds(), seeds()
    assert len({*first, *second}) == 8
