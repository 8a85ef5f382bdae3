"""Measures steps per second of runs side by side on one GPU, by processes and MPS's share of each.

    python -m tests.benchmarks.posterior.rate --model MINILM --data GLUE --ways 12,12:25,20,20:25

A way is a number of processes, or that and the percent of the GPU's multiprocessors that MPS lends
each. The last line is the fastest way, as options of `judge.py`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import bayeslora_cli as bl
from tests.benchmarks.posterior import pool
from tests.benchmarks.posterior.protocol import PROTOCOL, options_of


def train(seed: int, steps: int, typed: argparse.Namespace) -> float:
    """Train a run of `steps` steps; return its steps per second without evaluations."""
    options = options_of("paper", {"lr_times": 1}, typed.task)
    with tempfile.TemporaryDirectory() as output:
        run = bl.train(
            **options, model=typed.model, data=str(typed.data), output=output, seed=seed,
            device=typed.device, precision=typed.precision, compile="off", packing=typed.packing,
            max_steps=steps, checkpoint_every="1h", eval_batch_size=256,
        )  # fmt: skip
        return float(run.result["steps_per_second"])


def measured(way: str, typed: argparse.Namespace) -> float:
    """Return the steps per second of all processes of a way."""
    jobs, _, share = way.partition(":")
    places = pool.places_of(argparse.Namespace(device=typed.device, share=share or None))[:1]
    began = time.perf_counter()
    seeds = range(int(jobs))
    with pool.started(len(seeds), places, typed.start) as processes:
        processes.map(partial(train, steps=5, typed=typed), seeds, chunksize=1)
        ready = time.perf_counter()
        rates: list[float] = processes.map(
            partial(train, steps=typed.steps, typed=typed), seeds, chunksize=1
        )
    now = time.perf_counter()
    pool.stop_mps(places[0])
    whole = len(seeds) * typed.steps / (now - ready)
    print(f"{way}: {sum(rates):.0f} steps/s in training, {whole:.0f} with loading and evaluation; "
          f"ready in {ready - began:.0f} s", flush=True)  # fmt: skip
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ways", default="12,12:25,20:25,20")
    parser.add_argument("--task", default="sst2", choices=PROTOCOL["judge"]["tasks"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--packing", default="auto")
    parser.add_argument("--start", default="forkserver")
    typed = parser.parse_args()
    os.environ |= pool.ENVIRONMENT
    rates = {way: measured(way, typed) for way in typed.ways.split(",")}
    jobs, _, share = max(rates, key=rates.__getitem__).partition(":")
    print(f"--jobs {jobs}" + f" --share {share}" * bool(share))


if __name__ == "__main__":
    main()
