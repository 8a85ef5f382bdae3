"""Tiny backbones whose frozen weights are quantized, and their counterparts in other libraries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from tests.conftest import VOCABULARY, tiny_tokenizer

QUANTIZED = ("int8", "nf4", "fp8")
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_llama(directory, *, width=64, seed=3):
    """Save a Llama of two layers, `width` wide: bitsandbytes' own layers need multiples of 64."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "proj" in name:
                parameter.mul_(5)
    module.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def network_of(directory, base, *, kind="causal", classes=(), device="cpu", **options):
    """Build the network of a run with frozen weights in `base`."""
    options = {"method": "lora", "optimizer": "adamw", "criterion": None, "init_rank": 4,
               "target_rank": 4} | options  # fmt: skip
    config = RunConfig(model=str(directory), base_precision=base, **options)
    return build_network(
        config, build_objective(kind, classes), load_tokenizer(str(directory)), posterior=False,
        device=torch.device(device),
    )  # fmt: skip


def dense_twin(directory, network, **options):
    """Build the same network with dense weights that are the quantized ones' values, in fp32."""
    twin = network_of(directory, None, **options)
    for name, layer in network.adapters.items():
        twin.adapters[name].base_layer.replace_dense(layer.base_layer.dense())
    twin.bank.mean.copy_(network.bank.mean)
    twin.bank.publish()
    return twin


def moved(network, seed=1):
    """Give all trained parameters values that are not those of a start; return the network."""
    draws = torch.Generator().manual_seed(seed)
    network.bank.mean.add_(0.05 * torch.randn(network.bank.size, generator=draws))
    network.bank.publish()
    return network


def tokens(rows=3, width=10, seed=0):
    """Draw inputs of the backbone."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, width), generator=draws)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def next_token_loss(logits, ids):
    """Compute the mean loss of the next tokens."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradient_of(network, batch):
    """Return the loss and the flat gradient of the trained parameters."""
    bank = network.bank
    bank.zero_local()
    loss = next_token_loss(network.model_logits(batch), batch["input_ids"])
    loss.backward()
    bank.collect()
    return loss.detach(), bank.local.clone().flatten()


def as_near(codes: Tensor, others: Tensor, x: Tensor, scale: Tensor) -> bool:
    """Tell whether codes are as near to x / scale as others are, to fp32's rounding.

    Halfway between two codes either is the nearest one.

    Args:
        codes, others, x: (n, k).
        scale: (n, 1).
    """
    wanted = x.double() / scale.double()
    far, most = ((found.double() - wanted).abs() for found in (codes, others))
    return bool((far <= most + 1e-6 * wanted.abs()).all())


def check_spoilt_rows(form, device="cpu", dtype=torch.float32):
    """A row that is not finite has such a result and gradient, and the others keep theirs."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, form.in_features, generator=generator).to(device, dtype)
    expected = form(x)
    assert form(x[:0]).shape == (0, form.out_features)
    for value in (torch.nan, torch.inf):
        spoilt = x.clone()
        spoilt[1, 5] = value
        out = form(spoilt.requires_grad_())
        assert not out[1].isfinite().all()
        assert torch.equal(out[[0, 2, 3]], expected[[0, 2, 3]])
        (to_x,) = torch.autograd.grad(out, spoilt, torch.full_like(out, value))
        assert not to_x.isfinite().any()
