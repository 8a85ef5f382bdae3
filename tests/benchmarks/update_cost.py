"""What a step costs besides the backbone, against the number of adapted matrices.

    python tests/benchmarks/update_cost.py [--layers 12,24,48,100,200,400] [--device cuda]

Sampling, penalty, update and allocation of AdaLoRA + IVON with the SNR criterion, and of AdaLoRA +
AdamW with sensitivity: six matrices a layer (four of 768 x 768, one of 3072 x 768, one of 768 x
3072) at rank 3, a gradient of zeros in place of a backbone's. Ranks are allocated at every step.
Eager kernels, the wall clock's medians; on a GPU the device's own time stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from against import add_option, compared
from measure import describe, environment, synchronize, work_of
from torch import nn

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.adalora.orthogonality import orthogonality
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix

RANK, HIDDEN, INNER = 3, 768, 3072
SHAPES = [(HIDDEN, HIDDEN)] * 4 + [(INNER, HIDDEN), (HIDDEN, INNER)]  # (out, in) of a layer's
METHODS = {"IVON, snr": ("ivon", "snr"), "AdamW, sensitivity": ("adamw", "sensitivity")}
STEP = 2  # of the pretended run, pruning under way
ORTH_REG, LEARNING_RATE = 0.1, 1e-3


def bank_of(layers: int, *, posterior: bool, device: torch.device) -> AdapterBank:
    """A bank of random adapters without their backbone."""
    matrices = [
        Matrix(
            name=f"{layer}.{index}",
            a=nn.Parameter(0.02 * torch.randn(RANK, width)),
            b=nn.Parameter(0.02 * torch.randn(height, RANK)),
            e=nn.Parameter(0.02 * torch.randn(RANK, 1)),
        )
        for layer in range(layers)
        for index, (height, width) in enumerate(SHAPES)
    ]
    for matrix in matrices:
        for parameter in (matrix.a, matrix.b, matrix.e):
            assert parameter is not None
            parameter.data = parameter.data.to(device)
    return AdapterBank(matrices, [], posterior=posterior, device=device)


def parts_of(
    layers: int, optimizer: str, criterion: str, device: torch.device
) -> tuple[AdapterBank, dict[str, Callable[[], None]]]:
    """The bank, and what a step does with it, in order."""
    maker = OPTIMIZERS[optimizer]
    bank = bank_of(layers, posterior=maker.posterior, device=device)
    config = RunConfig(optimizer=optimizer, criterion=criterion, weight_decay=1e-8)
    optim = build_optimizer(config, bank, 2490, torch.Generator(device).manual_seed(0))
    triplets = len(bank.matrices) * RANK
    budget = RankBudget(
        initial=triplets, target=triplets * 2 // 3, t_init=0, t_final=1, delta_t=1, total=10
    )
    allocator = RankAllocator(bank, load_criterion(criterion), budget)
    good = torch.ones((), dtype=torch.bool, device=device)

    def sample() -> None:
        optim.sample(masked=False)
        bank.zero_local()

    def penalty() -> None:
        orthogonality(bank, ORTH_REG)
        bank.accumulate(1.0, first=True)

    def allocate() -> None:
        allocator.after_update(allocator.announce(STEP), optim.sigma(), good)

    return bank, {
        "sample": torch.no_grad()(sample),
        "penalty": torch.no_grad()(penalty),
        "update": lambda: optim.update(STEP, LEARNING_RATE, good),
        "allocate": torch.no_grad()(allocate),
    }


def median_ms(call: Callable[[], None], repeats: int, inner: int, device: torch.device) -> float:
    """Median over `repeats` of the mean of `inner` calls, in milliseconds."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(inner):
            call()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start) / inner)
    return statistics.median(times[1:])  # the first warms up


def main() -> None:
    """Print a table for each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layers", default=[12, 24, 48, 100, 200, 400],
        type=lambda text: [int(word) for word in text.split(",")],
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--inner", type=int, default=20, help="calls between two readings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    add_option(parser)
    options = parser.parse_args()
    if compared(__file__, options):
        return
    device = torch.device(options.device)
    found = environment(device)
    print(f"{describe(found)}\n`{' '.join(['python', *sys.argv])}`")
    results = []
    for name, (optimizer, criterion) in METHODS.items():
        print(
            f"\nAdaLoRA + {name}: milliseconds a step without a backbone\n\n"
            "| layers | matrices | M elements | all | sample | penalty | update | allocate "
            "| kernels | on the device |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        for layers in options.layers:
            torch.manual_seed(0)
            bank, parts = parts_of(layers, optimizer, criterion, device)

            def step(parts: dict[str, Callable[[], None]] = parts) -> None:
                for part in parts.values():
                    part()

            calls = {"all": step, **parts}
            ms = {
                part: median_ms(call, options.repeats, options.inner, device)
                for part, call in calls.items()
            }
            work = work_of(step, device)
            device_cells = f"{work.kernels} | {work.device_ms:.3f}" if work else "– | –"
            print(
                f"| {layers} | {len(bank.matrices)} | {bank.trainable() / 1e6:.2f} | "
                + " | ".join(f"{value:.3f}" for value in ms.values())
                + f" | {device_cells} |",
                flush=True,
            )
            results.append(
                {
                    "method": name, "layers": layers, "matrices": len(bank.matrices),
                    "elements": bank.trainable(), "ms": ms, "work": work and asdict(work),
                }
            )  # fmt: skip
    if options.json is not None:
        written = {"environment": found, "command": sys.argv, "results": results}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
