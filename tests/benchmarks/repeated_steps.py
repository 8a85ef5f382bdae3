"""Whether 60 steps of a tiny Llama in few bits give the same bits twice, captured or not.

    python tests/benchmarks/repeated_steps.py --base-precision nf4 --gradient-checkpointing blocks

Prints, for each repetition, the first step and tensor that differ from the first repetition.
Several processes at a time on one GPU are a harder test.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from bayeslora_cli.data.batching import Feed, TrainOrder
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.models.adapters import decoder_blocks
from tests.support.decoders import CAUSAL, save_decoder, token_rows
from tests.training.test_step import TOTAL, make_step

LENGTHS = tuple(3 + (7 * i) % 13 for i in range(40))


def states(model: str, captured: bool, given: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Copies of theta, gradient and mean after each step, on the device."""
    step = make_step(
        model, "ivon", "snr", labels=CAUSAL, device=given.device, precision="bf16",
        base_precision=given.base_precision, gradient_checkpointing=given.gradient_checkpointing,
        runner=lambda noise: GraphRunner([noise]) if captured else run_eagerly,
    )  # fmt: skip
    rows = token_rows(LENGTHS)
    feed, order = Feed(rows, torch.device(given.device)), TrainOrder(len(rows), 8, seed=1)
    found = []
    for t in range(TOTAL):
        step(t, [feed.batch(part) for part in order.indices(t).tensor_split(2)])
        bank = step.network.bank
        kept = {"loss": bank.losses, "grad": bank.grad, "mean": bank.mean, "theta": bank.theta}
        found.append({name: value.clone() for name, value in kept.items()})
    return found


def compare(first: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> str:
    """Tell where two runs part."""
    for t, (one, two) in enumerate(zip(first, other, strict=True)):
        names = [name for name in one if not torch.equal(one[name], two[name])]
        if names:
            far = {n: float((one[n] - two[n]).abs().max()) for n in names}
            count = {n: int((one[n] != two[n]).sum()) for n in names}
            return f"differs from step {t} on: {far}, elements {count}"
    return "the same"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-precision", default="nf4")
    parser.add_argument("--gradient-checkpointing", default="blocks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="without the operators of the MLP")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    on_gpu = given.device == "cuda"
    stream: Any = torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext()
    without = patch.object(decoder_blocks, "is_gated_silu", lambda _: False)
    with TemporaryDirectory() as directory, stream, without if given.plain else nullcontext():
        model = save_decoder(Path(directory) / "tiny-llama", "llama")
        first: list[dict[str, Tensor]] = []
        for captured in (False, True) if on_gpu else (False,):
            for repeat in range(given.repeats):
                start = time.perf_counter()
                found = states(model, captured, given)
                first = first or found
                text = compare(first, found)
                seconds = time.perf_counter() - start
                kind = "captured" if captured else "eager"
                print(f"{kind} {repeat}: {text} ({seconds:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
