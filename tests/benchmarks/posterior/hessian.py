"""What moves IVON's Hessian in a run: gradients, Price's estimates and h, by role.

    python -m tests.benchmarks.posterior.hessian --model MINILM --data GLUE --steps 400 \\
        task=cola hess_init=1e-4 ivon_beta2=0.999 ess=1e8

NAME=VALUE are options of `bayeslora train`, values in JSON or as they are. Every `--every` steps a
row for each role: over those steps the quantiles of the mean g^2, and the mean of f = noise g (h +
delta) ess, which estimates the curvature, with its standard error; of h now the quantiles, and
what is predicted from the mean g^2 if h was h0 at the start and the curvature is `--batch` times
g^2 (`docs/evaluation.md`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayeslora_cli as bl
from bayeslora_cli.bayes.ivon import BankIVON
from bayeslora_cli.models.adapters.bank_layout import BankLayout


def roles(layout: BankLayout) -> dict[str, Tensor]:
    """Return the places of A's, B's, E's and the head's elements."""
    found = defaultdict(list)
    for segment in layout.segments.values():
        name = segment.name.rpartition(".lora_")[2] if segment.role == "adapter" else segment.role
        found[name].append(torch.arange(segment.offset, segment.stop))
    return {name: torch.cat(places) for name, places in found.items()}


def quantiles(values: Tensor) -> str:
    return " ".join(f"{values.quantile(q):9.1e}" for q in (0.05, 0.5, 0.95))


class Watched:
    """Sums of g^2, f and f^2 since the last report, and g^2's mean since the start."""

    def __init__(self, every: int, batch: int) -> None:
        self.every, self.batch = every, batch
        self.sums: list[Tensor] = []
        self.decayed: Tensor | None = None

    def see(self, optimizer: BankIVON, step: int) -> None:
        """Add a step's estimates before its update; report when it is time."""
        group, (g, noise_g) = optimizer.param_groups[0], optimizer.bank.grad
        f = noise_g * (group["hess"] + group["weight_decay"]) * group["ess"]
        if not self.sums:
            self.sums = [torch.zeros_like(g) for _ in range(3)]
        if self.decayed is None:
            self.decayed = torch.zeros_like(g)
        for total, value in zip(self.sums, (g * g, f, f * f), strict=True):
            total += value
        a = 1 - group["beta2"]
        at_rest = (self.batch + a * group["ess"] / 2) * g * g
        self.decayed.lerp_(at_rest, a)
        if (step + 1) % self.every == 0:
            self.report(optimizer, step + 1)
            self.sums = []

    def report(self, optimizer: BankIVON, step: int) -> None:
        group = optimizer.param_groups[0]
        assert self.decayed is not None
        predicted = self.decayed + group["hess_init"] * group["beta2"] ** step
        for role, places in roles(optimizer.bank.layout).items():
            squared, f, f2 = (total[places] / self.every for total in self.sums)
            error = (f2.sum() / self.every).sqrt() / len(places)
            h = group["hess"][places]
            ratio = (h + group["weight_decay"]).log() - predicted[places].log()
            print(
                f"{step:6} {role:5} g^2 {quantiles(squared)}  f {f.mean():9.1e} ± {error:.1e}  "
                f"h {quantiles(h)}  h over predicted {quantiles(ratio.exp())}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE")
    typed = parser.parse_args()
    options: dict[str, Any] = {}
    for option in typed.options:
        name, _, value = option.partition("=")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    watched, update = Watched(typed.every, typed.batch), BankIVON.update

    def seen(self: BankIVON, step: Any, learning_rate: Any, good: Tensor) -> None:
        watched.see(self, int(step))
        update(self, step, learning_rate, good)

    BankIVON.update = seen  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as output:
        run = bl.train(
            model=typed.model, data=typed.data, device=typed.device, max_steps=typed.steps,
            target_modules=["query", "key", "value", "dense"], eval_every=typed.steps,
            output=str(Path(output)), eager=True, **options,
        )  # fmt: skip
        print(json.dumps({name: run.result[name] for name in ("last", "posterior")}))


if __name__ == "__main__":
    main()
