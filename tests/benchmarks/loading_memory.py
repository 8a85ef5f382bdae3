"""Peak memory of the host while a causal language model of 1 GB is loaded and adapted.

    python -m tests.benchmarks.loading_memory bf16 cpu
    python -m tests.benchmarks.loading_memory bf16 cuda
    python -m tests.benchmarks.loading_memory bf16 cuda nf4     # --base-precision nf4

The model has random weights in bf16 (511 million parameters) and is made in a temporary directory.
Printed are GB above the process's memory before: private memory (RssAnon), and pages of the file
(RssFile), which the system can drop.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from tests.conftest import tiny_tokenizer

SIZES = {
    "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 13,
    "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32000,
    "tie_word_embeddings": True,
}  # fmt: skip


def held() -> dict[str, float]:
    """The process's memory in GB, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {name.rstrip(":"): int(size) * 1024 / 1e9 for name, size, _ in found}


def measure(directory: str, precision: str, device: torch.device, base: str | None = None) -> None:
    tokenizer, peak, done = load_tokenizer(directory), {}, threading.Event()
    torch.zeros(1, device=device)  # the device's own memory on the host
    before = held()

    def watch() -> None:
        while not done.is_set():
            for name, size in held().items():
                peak[name] = max(peak.get(name, 0.0), size - before[name])
            time.sleep(0.005)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    start = time.perf_counter()
    config = RunConfig(model=directory, precision=precision, base_precision=base)
    network = build_network(
        config, build_objective("causal", ()), tokenizer, posterior=False, device=device
    )
    seconds = time.perf_counter() - start
    done.set()
    watching.join()
    sizes = ", ".join(f"{name} {size:.2f} GB" for name, size in sorted(peak.items()))
    weights = sum(p.numel() * p.element_size() for p in network.module.parameters()) / 1e9
    what = precision if base is None else f"{precision}, frozen weights in {base},"
    print(f"{what} on {device.type}: {seconds:.1f} s, peak on the host {sizes}")
    print(f"weights and adapters {weights:.2f} GB")
    if device.type == "cuda":
        print(f"peak on the device {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16)
        model.save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        del model
        measure(directory, sys.argv[1], torch.device(sys.argv[2]), *sys.argv[3:4])
