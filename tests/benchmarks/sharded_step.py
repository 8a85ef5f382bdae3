"""Tokens per second and memory of a step on divided weights, beside one process with whole ones.

python tests/benchmarks/sharded_step.py
torchrun --nproc-per-node 2 tests/benchmarks/sharded_step.py [--profile]

Random weights by configuration: Qwen2.5-32B, bf16, four rows of 1,024 tokens on each process,
AdaLoRA + IVON + snr, kernel by kernel.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.execution.launch_environment import joined, place
from bayeslora_cli.execution.processes import Processes
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.methods import building
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.step import TrainStep
from tests.support.decoders import token_rows

SIZE: dict[str, Any] = {
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
    "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip
ROWS, TOKENS, WARM_UP, TIMED = 4, 1024, 3, 5


class DrawnWeights:
    """Random numbers in place of `StoredWeights`."""

    def __init__(self, module: Any) -> None:
        self.shapes = {name: p.shape for name, p in module.named_parameters()}

    def tensor(self, name: str) -> Tensor:
        return torch.zeros(1)

    def rows(self, names: Iterable[str], start: int, stop: int, *, like: Tensor) -> Tensor:
        shape = (stop - start, *self.shapes[next(iter(names))][1:])
        found = torch.empty(shape, device=like.device, dtype=like.dtype)
        return found.normal_(std=0.02) if len(shape) > 1 else found.fill_(1)


def build(config: RunConfig, processes: Processes, device: torch.device) -> TrainStep:
    from accelerate import init_empty_weights

    architecture = AutoConfig.from_pretrained(config.model)

    def whole(config: RunConfig, *_: Any, dtype: torch.dtype, **__: Any) -> Any:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(architecture, dtype=dtype), (), set()

    def divided(*_: Any) -> Any:
        with init_empty_weights(False):
            module = AutoModelForCausalLM.from_config(architecture)
        return module, (), set(), DrawnWeights(module)

    with (
        patch.object(building, "load_backbone", whole),
        patch.object(building, "load_to_divide", divided),
    ):
        network = building.build_network(
            config, build_objective("causal", ()), SimpleNamespace(pad_token_id=0),
            posterior=True, device=device,
            mesh=processes.mesh(device) if processes.world > 1 else None,
        )  # fmt: skip
    noise = torch.Generator(device).manual_seed(processes.seed(0))
    network.module.train()
    return TrainStep(
        network, build_optimizer(config, network.bank, 10_000, noise),
        find_method(config.method).allocator(config, network, noise, processes),
        learning_rate=lambda t: 1e-3, orth_reg=0.1, samples=1, processes=processes,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", action="store_true", help="kernels of one step by stream")
    parser.add_argument("--layers", type=int, default=SIZE["num_hidden_layers"])
    given = parser.parse_args()
    at = place()
    with joined(at, Stop()) as processes, TemporaryDirectory() as directory:
        device = processes.assign_device(torch.device("cuda"))
        sizes = SIZE | {"num_hidden_layers": given.layers}
        AutoConfig.for_model("qwen2", **sizes).save_pretrained(directory)
        config = RunConfig(
            task="custom", train_file="x", model=directory, precision="bf16", init_rank=12,
            target_rank=8, max_length=TOKENS, t_init=2, t_final=2, schedule_steps=WARM_UP + TIMED,
            shard=processes.world > 1,
        )  # fmt: skip
        step = build(config, processes, device)
        feed, world = Feed(token_rows((TOKENS,) * ROWS * processes.world), device), processes.world
        held = torch.cuda.memory_allocated(device)

        def one(t: int) -> None:
            rows = processes.share(torch.arange(ROWS * world), feed.counts)
            step(t, [feed.batch(rows)])

        for t in range(WARM_UP):
            one(t)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for t in range(WARM_UP, WARM_UP + TIMED):
            one(t)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / TIMED
        if given.profile and processes.first:
            kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=kinds) as found:
                one(WARM_UP)
                torch.cuda.synchronize()
            found.export_chrome_trace("sharded_step.json")
        elif given.profile:
            one(WARM_UP)
        if processes.first:
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            tokens = world * ROWS * TOKENS / seconds
            print(f"{world} processes: {1e3 * seconds:.0f} ms, {tokens:,.0f} tokens/s; each card "
                  f"{held / 2**30:.1f} GiB held, {peak:.1f} at the peak", flush=True)  # fmt: skip
    at.exit(0)


if __name__ == "__main__":
    main()
