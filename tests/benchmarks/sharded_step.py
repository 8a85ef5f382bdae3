"""Tokens per second and memory of a step on divided weights, beside one process with whole ones.

    python tests/benchmarks/sharded_step.py
    torchrun --nproc-per-node 2 tests/benchmarks/sharded_step.py --profile
    torchrun --nproc-per-node 2 tests/benchmarks/sharded_step.py --size tiny --device cpu

Random weights by configuration (Qwen2.5-32B), bf16, four rows of 1,024 tokens on each process,
AdaLoRA + IVON + snr, kernel by kernel. `--profile`: how much of the time in which weights are
gathered other kernels run too, and the dearest kernels. `--estimate 1,2,4`: the dry run's peak on
so many processes too. `--symmetric`: gather through NCCL's symmetric memory; with NCCL_CTA_POLICY=2
the copy engines do it, and no multiprocessor. `--pull`: without FSDP2 and NCCL, by copies from the
other processes' memory (`pulled_weights.py`). `--slots 3`: two blocks ahead in place of one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import init_empty_weights
from decoder_sizes import SIZES
from drawn_weights import drawn_backbone
from gpu_step import peak_memory_of
from measure import synchronize
from pulled_weights import pull_blocks
from torch import Tensor
from torch.autograd import DeviceType
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed, largest_batch
from bayeslora_cli.execution.launch_environment import joined, place
from bayeslora_cli.execution.processes import Processes
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.methods import building
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.models.sharding.divide import blocks_of, divide_blocks
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.memory.alternatives import _with_shards
from bayeslora_cli.training.memory.estimate import estimate
from bayeslora_cli.training.step import TrainStep
from tests.support.decoders import token_rows

WARM_UP, TIMED = 3, 5


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


def build(
    config: RunConfig, processes: Processes, device: torch.device, divide: Any = divide_blocks
) -> TrainStep:
    architecture = AutoConfig.from_pretrained(config.model)

    def divided(*_: Any) -> Any:
        with init_empty_weights(False):
            module = AutoModelForCausalLM.from_config(architecture)
        return module, (), set(), DrawnWeights(module)

    with (
        patch.object(building, "load_backbone", drawn_backbone),
        patch.object(building, "load_to_divide", divided),
        patch.object(building, "divide_blocks", divide),
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


def estimated(config: RunConfig, rows: int, device: torch.device, among: list[int]) -> str:
    """Return the dry run's peak on each number of processes, with `rows` rows on each."""
    network = building.build_network(
        replace(config, shard=False), build_objective("causal", ()),
        SimpleNamespace(pad_token_id=0), posterior=True, device=torch.device("meta"),
    )  # fmt: skip
    assert config.max_length is not None
    batch = largest_batch(token_rows((config.max_length,) * rows), rows, device)
    batch.pop("count", None)
    whole = estimate(network, config, batch=batch, device=device, whole_step=True).peak
    assert whole is not None
    cells = []
    for processes in among:
        both = _with_shards(network, "off", None, whole, 0, processes)
        cells.append(f"{both[processes > 1].bytes / 2**30:.2f} GiB on {processes}")
    return f"; the dry run: {', '.join(cells)}"


def fetch_ahead(module: Any, number: int) -> None:
    """Have FSDP2 gather so many blocks ahead, forward and backward."""
    blocks = list(blocks_of(module))
    for index, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 1 + number])
        block.set_modules_to_backward_prefetch(blocks[max(0, index - number) : index][::-1])


def overlap(found: torch.profiler.profile) -> str:
    """Tell for how long the exchange ran, and for how much of it other kernels ran as well."""
    exchange, others = [], []
    for event in found.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kind = exchange if "nccl" in event.name.lower() else others
            kind.append((event.time_range.start, event.time_range.end))
    total, covered = sum(end - start for start, end in exchange), 0.0
    others.sort()
    for start, end in exchange:
        last = start
        for first, stop in others:
            if stop > last and first < end:
                covered += min(stop, end) - max(first, last)
                last = max(last, min(stop, end))
    share = covered / total if total else 0.0
    return f"the exchange took {total / 1e3:.0f} ms, and other kernels ran in {share:.0%} of it"


def dearest(found: torch.profiler.profile, most: int = 14) -> str:
    """List the kernels and copies that take the most time in a step."""
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in found.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            ms[event.name] += event.time_range.elapsed_us() / 1e3
            calls[event.name] += 1
    return "".join(
        f"\n  {value:7.1f} ms  {calls[name]:5}  {name[:100]}"
        for name, value in ms.most_common(most)
    )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", action="store_true", help="of one step more")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--pull", action="store_true")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument(
        "--estimate", type=lambda text: list(map(int, text.split(","))), default=[],
        help="numbers of processes",
    )  # fmt: skip
    parser.add_argument("--size", choices=tuple(SIZES), default="qwen32b")
    parser.add_argument("--layers", type=int, help="fewer blocks")
    parser.add_argument("--base-precision", help="of the frozen weights")
    parser.add_argument("--gradient-checkpointing", default="off")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def main() -> None:
    """Print one line."""
    given = parse_options()
    size = SIZES[given.size]
    if given.layers is not None:
        size = replace(size, options=size.options | {"num_hidden_layers": given.layers})
    at = place()
    with joined(at, Stop()) as processes, TemporaryDirectory() as directory:
        device, world = processes.assign_device(torch.device(given.device)), processes.world
        size.config().save_pretrained(directory)
        config = RunConfig(
            task="custom", train_file="x", model=directory, precision="bf16", init_rank=12,
            target_rank=8, max_length=size.tokens, t_init=2, t_final=2,
            schedule_steps=WARM_UP + TIMED, shard=world > 1, base_precision=given.base_precision,
            gradient_checkpointing=given.gradient_checkpointing,
        )  # fmt: skip
        memory: dict[str, int | None] = {}
        begun = time.perf_counter()
        divide = partial(pull_blocks, slots=given.slots) if given.pull else divide_blocks
        step = build(config, processes, device, divide)
        if given.slots > 2 and not given.pull:
            fetch_ahead(step.network.module, given.slots - 1)
        ready = time.perf_counter() - begun
        if given.symmetric:
            for module in step.network.module.modules():
                if isinstance(module, FSDPModule):
                    module.set_symm_mem_for_comm()
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        feed = Feed(token_rows((size.tokens,) * size.rows * world), device)

        def one(t: int) -> None:
            rows = processes.share(torch.arange(size.rows * world), feed.counts)
            step(t, [feed.batch(rows)])

        with peak_memory_of(memory, device):
            for t in range(WARM_UP):
                one(t)
            synchronize(device)
        start = time.perf_counter()
        for t in range(WARM_UP, WARM_UP + TIMED):
            one(t)
        synchronize(device)
        seconds = (time.perf_counter() - start) / TIMED
        seen = kernels = ""
        if given.profile:  # all processes: the first one waits for the others' weights
            kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=kinds) as found:
                one(WARM_UP)
                synchronize(device)
            seen, kernels = f"; {overlap(found)}", dearest(found)
        if given.estimate:
            seen += estimated(config, size.rows, device, given.estimate)
        if processes.first:
            tokens = world * size.rows * size.tokens / seconds
            peak = (held + (memory["peak"] or 0)) / 2**30
            print(
                f"{size.name}, {world} processes: {1e3 * seconds:.0f} ms, {tokens:,.0f} tokens/s; "
                f"each {held / 2**30:.1f} GiB held, {peak:.1f} at the peak; ready in "
                f"{ready:.0f} s{seen}{kernels}", flush=True,
            )  # fmt: skip
    at.exit(0)


if __name__ == "__main__":
    main()
