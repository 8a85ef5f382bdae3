"""What each fused kernel of an encoder brings: whole steps with and without it, in one process.

    python tests/benchmarks/encoder_parts.py [--lengths mnli,64,256] [--variants NAME,NAME]
        [--kernels 20]
    python tests/benchmarks/encoder_parts.py --precision fp32 --variants all,all-but-halves
    python tests/benchmarks/encoder_parts.py --device cpu --tiny        # does it run at all?

DeBERTaV3-base's shape, AdaLoRA + IVON + snr or `--method`, batch 32, packed rows, captured. Each
variant is built, runs two steps and then 50 of each length, one after the other; the figures are
milliseconds per step. A line is printed as soon as it is known.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import gpu_rows
import gpu_step
import torch
from decoder_block import kernels_of
from peers import Step
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from bayeslora_cli.execution.device import set_precision
from bayeslora_cli.methods import building
from bayeslora_cli.models.encoders import relative_attention
from bayeslora_cli.models.kernels.row_attention import row_attention

VARIANTS: dict[str, tuple[bool, bool, bool, bool, bool]] = {
    # feed-forward operator (bf16), norms, joint attention, halves (fp32), compiled
    "separate": (False, False, False, False, False),
    "all": (True, True, True, True, False),
    "all-compiled": (True, True, True, True, True),
    "all-but-joint": (True, True, False, True, False),
    "all-but-halves": (True, True, True, False, False),
    "feed-forward": (True, False, False, False, False),
    "norms": (False, True, False, False, False),
    "joint": (False, False, True, False, False),
    "separate-compiled": (False, False, False, False, True),
}


METHODS: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "adalora": ("adalora", "ivon", "snr", {}),
    "adalora-adamw": ("adalora", "adamw", "sensitivity", {}),
    "blora": ("blora", "adamw", None, {}),
    "blora-base": ("blora", "adamw", None, {"quantize_base": True}),
}
"""Method, optimizer, criterion and other options of the run."""


def attend_by_parts(joint: Tensor, row_offsets: Tensor, reach: int, **options: Any) -> Tensor:
    """In place of `joint_row_attention`."""
    query, key, value = joint.unbind(1)
    value = value[: len(joint) - 2 * reach]
    return row_attention.relative_row_attention(query, key, value, row_offsets, reach, **options)


def measured(name: str, model: str, device: torch.device, options: argparse.Namespace) -> None:
    """Build a variant and print its times."""
    feed_forward, norms, joint, halves, compiled = VARIANTS[name]
    setting = gpu_rows.Setting(model=model, device=device, precision=options.precision, total=2000)
    vocabulary = (gpu_step.TINY if options.tiny else gpu_step.ARCHITECTURE)["vocab_size"]
    torch.manual_seed(0)
    begun = time.perf_counter()
    with ExitStack() as stack:
        if not feed_forward:
            stack.enter_context(patch.object(building, "join_feed_forward", lambda _: 0))
        if not norms:
            stack.enter_context(patch.object(building, "fuse_residual_norms", lambda _: 0))
            stack.enter_context(patch.object(building, "share_seeds", lambda *_: None))
        if not halves:
            stack.enter_context(patch.object(building, "_keep_halves", lambda *_: 0))
        if not joint:
            stack.enter_context(
                patch.object(relative_attention, "joint_row_attention", attend_by_parts)
            )
        method, *rest, more = METHODS[options.method]
        step = gpu_rows.engine(method, *rest, compiled=compiled, packing="on", **more)(setting)
        run(name, step, vocabulary, device, options)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"{name}: {time.perf_counter() - begun:.1f} s in all, {peak:.2f} GiB", flush=True)


def run(
    name: str, step: Step, vocabulary: int, device: torch.device, options: argparse.Namespace
) -> None:
    """Time the steps of each length."""
    done = 0
    for length in options.lengths.split(","):
        batch = gpu_step.make_batches(length, 1, 32, vocabulary, device)[0]
        for _ in range(3):
            step(done, batch)
            done += 1
        if device.type != "cuda":
            print(f"{name}, {length} tokens: runs")
            continue
        torch.cuda.synchronize()
        ready = time.perf_counter()
        for _ in range(50):
            step(done, batch)
            done += 1
        torch.cuda.synchronize()
        now = time.perf_counter()
        print(f"{name}, {length} tokens: {20 * (now - ready):.3f} ms", flush=True)
        if options.kernels:
            print(kernels_of(lambda b=batch, t=done: step(t, b), 1, options.kernels), flush=True)  # type: ignore[misc]
            done += 1


def main() -> None:
    """Measure the variants, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="mnli,64,256")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--method", choices=tuple(METHODS), default="adalora")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny backbone")
    parser.add_argument("--kernels", type=int, default=0, help="kernels of a step to list")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    options.precision = options.precision if device.type == "cuda" else "fp32"
    set_precision(options.precision)
    architecture = gpu_step.ARCHITECTURE | (gpu_step.TINY if options.tiny else {})
    with tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(
            DebertaV2Config(**architecture)
        ).save_pretrained(model)
        for name in options.variants.split(","):
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            measured(name, model, device, options)


if __name__ == "__main__":
    main()
