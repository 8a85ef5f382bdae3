"""The dry run's estimate of a step's peak against what a real step takes, for a dozen settings.

python tests/benchmarks/memory_estimates.py [--sizes llama-3.2-1b,qwen2.5-7b-8] [--eager]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[2]))

from drawn_weights import drawn_backbone

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed, largest_batch
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.methods import building
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.memory.estimate import Estimate, estimate
from bayeslora_cli.training.step import TrainStep
from tests.support.decoders import token_rows

GPU, META, GIB = torch.device("cuda"), torch.device("meta"), 2**30
SIZES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama-3.2-1b": ("llama", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True, "max_position_embeddings": 4096,
    }, 8),
    "qwen2.5-7b-8": ("qwen2", {  # 8 of its 28 blocks
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 8,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False, "max_position_embeddings": 4096,
    }, 4),
}  # fmt: skip
"""Architecture, sizes, and rows of 1,024 tokens per step."""
BASES = {"llama-3.2-1b": (None, "nf4"), "qwen2.5-7b-8": (None, "fp8")}
TOKENS, STEPS = 1024, 9


def network_of(config: RunConfig, device: torch.device) -> Any:
    return building.build_network(
        config, build_objective("causal", ()), SimpleNamespace(pad_token_id=0),
        posterior=True, device=device,
    )  # fmt: skip


def estimated(config: RunConfig, rows: int) -> Estimate:
    batch = largest_batch(token_rows((TOKENS,) * rows), rows, GPU)
    batch.pop("count", None)
    return estimate(network_of(config, META), config, batch=batch, device=GPU, whole_step=True)


def measured(config: RunConfig, rows: int, *, eager: bool) -> int:
    """Peak of torch's allocator over a few steps, the weights included."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with patch.object(building, "load_backbone", drawn_backbone):
        network = network_of(config, GPU)
    noise = torch.Generator(GPU).manual_seed(0)
    step = TrainStep(
        network, build_optimizer(config, network.bank, 10_000, noise),
        find_method(config.method).allocator(config, network, noise),
        learning_rate=lambda t: 1e-3, orth_reg=0.1, samples=1,
        runner=run_eagerly if eager else GraphRunner([noise]),
    )  # fmt: skip
    network.module.train()
    feed = Feed(token_rows((TOKENS,) * rows), GPU)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for t in range(STEPS):
        step(t, [feed.batch(torch.arange(rows))])
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: `{' '.join(sys.argv)}`\n")
    print("| size | base | recomputed | estimate GiB | real GiB | error | seconds |")
    print("|---|---|---|---|---|---|---|")
    for size in given.sizes.split(","):
        kind, sizes, rows = SIZES[size]
        with TemporaryDirectory() as directory:
            AutoConfig.for_model(kind, **sizes).save_pretrained(directory)
            for base in BASES[size]:
                for what in ("off", "selective", "blocks"):
                    start = time.perf_counter()
                    config = RunConfig(
                        task="custom", train_file="x", model=directory, precision="bf16",
                        base_precision=base, gradient_checkpointing=what, init_rank=12,
                        target_rank=8, max_length=TOKENS, t_init=2, t_final=2, max_steps=STEPS,
                        schedule_steps=STEPS,
                    )  # fmt: skip
                    found = estimated(config, rows)
                    real = measured(config, rows, eager=given.eager)
                    assert found.peak is not None, "the pass does not run on fake tensors"
                    print(
                        f"| {size} | {base or 'bf16'} | {what} | {found.peak / GIB:.2f} | "
                        f"{real / GIB:.2f} | {found.peak / real - 1:+.1%} | "
                        f"{time.perf_counter() - start:.1f} |", flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    main()
