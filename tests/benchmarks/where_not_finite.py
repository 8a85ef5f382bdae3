"""Finds the first block whose output or gradient is not finite, with weights drawn at random.

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

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.methods import building
from bayeslora_cli.tasks.objectives.objective import build_objective
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
    bank, seen = network.bank, list[str]()
    network.module.train()
    bank.publish()
    for name, child in network.module.named_modules():
        if ".layers." in name and name.count(".") <= 3:
            watched(child, name, seen)
    batch = Feed(token_rows((size.tokens,) * size.rows), device).batch(torch.arange(size.rows))
    batch.pop("count", None)
    bank.zero_local()
    loss = network.objective.loss(network.logits(batch), batch)
    print(f"loss {float(loss.detach()):.4f}")
    loss.backward()  # type: ignore[no-untyped-call]
    bank.collect()
    for segment in bank.segments.values():
        found = segment.view(bank.local)
        if not bool(found.isfinite().all()):
            seen.append(f"{segment.name}: {int((~found.isfinite()).sum())} gradients")
    print("\n".join(seen[:40]) or "everything is finite")


if __name__ == "__main__":
    main()
