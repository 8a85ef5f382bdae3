"""Finds what is not finite in a first step of AdaLoRA + IVON, with weights drawn at random.

python tests/benchmarks/where_not_finite.py --size llama70b --base-precision nf4 [--layers 8]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from decoder_sizes import SIZES
from drawn_weights import drawn_backbone
from torch import Tensor, nn

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.methods import building
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.step import TrainStep
from tests.support.decoders import token_rows


def watched(module: nn.Module, name: str, seen: list[str]) -> None:
    """Note the first time that a layer's output, or its gradient, is not finite."""

    def note(what: str, x: Any) -> None:
        x = x[0] if isinstance(x, tuple) else x
        if isinstance(x, Tensor) and x.is_floating_point():
            largest = float(x.detach().abs().amax())
            if largest != largest or largest == float("inf"):
                seen.append(f"{name}: {what}")
            elif name.endswith(("layers.0", "9")):
                print(f"  {name}: {what}, largest {largest:.3g}")

    module.register_forward_hook(lambda _, __, out: note("output", out))
    module.register_full_backward_hook(lambda _, __, grad: note("gradient of its output", grad))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="llama70b")
    parser.add_argument("--base-precision")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    size, device = SIZES[given.size], torch.device(given.device)
    options = size.options | ({"num_hidden_layers": given.layers} if given.layers else {})
    with (
        TemporaryDirectory() as directory,
        patch.object(building, "load_backbone", drawn_backbone),
    ):
        replace(size, options=options).config().save_pretrained(directory)
        config = RunConfig(
            task="custom", train_file="x", model=directory, precision="bf16", init_rank=12,
            target_rank=8, max_length=size.tokens, t_init=2, t_final=2, schedule_steps=8,
            base_precision=given.base_precision,
        )  # fmt: skip
        network = building.build_network(
            config, build_objective("causal", ()), SimpleNamespace(pad_token_id=0),
            posterior=True, device=device,
        )  # fmt: skip
    noise = torch.Generator(device).manual_seed(0)
    step = TrainStep(
        network, build_optimizer(config, network.bank, 50_000, noise),
        find_method(config.method).allocator(config, network, noise),
        learning_rate=lambda t: 1e-3, orth_reg=0.1, samples=1,
    )  # fmt: skip
    bank, seen = network.bank, list[str]()
    network.module.train()
    for name, child in network.module.named_modules():
        if ".layers." in name and name.count(".") <= 3:
            watched(child, name, seen)
    batch = Feed(token_rows((size.tokens,) * size.rows), device).batch(torch.arange(size.rows))
    step(0, [batch])
    print(f"loss and penalty {bank.losses.tolist()}, bad step: {step.bad_step()}")
    for segment in bank.segments.values():
        for what, values in zip(("gradient", "noise times gradient"), bank.grad, strict=True):
            found = segment.view(values)
            if not bool(found.isfinite().all()):
                seen.append(f"{segment.name}: {what}, {int((~found.isfinite()).sum())} elements")
    print(f"sum of all gradients {float(bank.grad.sum()):.4g}, largest {largest(bank.grad):.4g}")
    print("\n".join(seen[:40]) or "everything is finite")


def largest(x: Tensor) -> float:
    return float(x.abs().amax())


if __name__ == "__main__":
    main()
