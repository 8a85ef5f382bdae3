"""Tiny networks with adapters, batches for them, and some trained state."""

from __future__ import annotations

import torch

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective

CPU = torch.device("cpu")
LABELS = build_objective("classification", ("no", "yes", "perhaps"))


def config_for(model, **changes):
    options = {"task": "mnli", "model": model, "criterion": "snr", "schedule_steps": 10} | changes
    return RunConfig(**options)


def build(model, labels=LABELS, **changes):
    config = config_for(model, **changes)
    tokenizer = load_tokenizer(model)
    network = build_network(config, labels, tokenizer, posterior=False, device=CPU)
    return network, config


def batch_of(seed=0, rows=5, length=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def randomise(network, seed=3):
    """Some trained state: every element moved, ranks from 0 to full."""
    generator = torch.Generator().manual_seed(seed)
    bank = network.bank
    bank.mean.add_(torch.empty(bank.size).normal_(std=0.2, generator=generator))
    bank.mask.copy_(torch.randint(0, 2, bank.mask.shape, generator=generator))
    bank.mask[0], bank.mask[1] = 0, 1
    bank.publish()


def logits(network, batch):
    network.module.eval()
    with torch.no_grad(), network.bank.at_mean():
        return network.logits(batch)
