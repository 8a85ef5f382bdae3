"""Accuracy and NLL of adapters that are trained on frozen weights in few bits, on ARC-Easy.

    python tests/benchmarks/quantized_results.py --model MODEL.gguf --data DIR --out DIR --jobs 12

One line for each precision of the frozen weights and seed: the test rows on the weights that a run
was trained on, and on the checkpoint's own in bf16. The settings are the preset's, with AdaLoRA,
IVON and snr; DIR holds LLM-Adapters' ARC-Easy. `--out` gets the runs and a JSON line for each
measurement, of which a table is printed; a second call goes on where the first one stopped.
`--jobs` runs share the GPU, under MPS if it can be started; `--limit` stops them in time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causal_results import start_mps

import bayeslora_cli as bl

SEEDS = (2021, 2022, 2023)
BASES = ("bf16", "int8", "nf4", "fp8")


Key = tuple[str, str, int]
"""Precision of the frozen weights in training and in the test, and seed."""


def keys(base: str, seed: int) -> list[Key]:
    """Return what is measured of a run."""
    return [(base, on, seed) for on in dict.fromkeys((base, "bf16"))]


def lines_of(out: Path) -> dict[Key, dict[str, Any]]:
    """Return what has been measured so far."""
    written = out / "lines.jsonl"
    done = written.read_text(encoding="utf-8").splitlines() if written.exists() else []
    return {(x["trained"], x["on"], x["seed"]): x for x in map(json.loads, done)}


def work(base: str, seed: int, options: argparse.Namespace) -> None:
    """Train one run, or find it trained, and write the lines that are not there yet."""
    steps = {} if options.max_steps is None else {"max_steps": options.max_steps}
    start = time.perf_counter()
    run = bl.train(
        task=options.task, model=options.model, data=options.data, seed=seed, compile="off",
        precision="bf16", base_precision=base, output=str(options.out / "runs"),
        device=options.device, **steps,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    for trained, on, _ in [key for key in keys(base, seed) if key not in lines_of(options.out)]:
        found = run.evaluate("test", base_precision=on)
        line = {
            "trained": trained, "on": on, "seed": seed, "seconds": round(seconds, 1),
            "metrics": found.facts["metrics"],
        }  # fmt: skip
        with (options.out / "lines.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def run_all(left: list[tuple[str, int]], options: argparse.Namespace) -> None:
    """Do each run in a process of its own, `--jobs` at a time, for at most `--limit` seconds."""
    began, environment = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": "1"}
    side_by_side = options.jobs > 1 and start_mps(environment)
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while (left or running) and time.monotonic() - began < options.limit:
        while left and len(running) < options.jobs:
            base, seed = left.pop(0)
            with (options.out / f"{base}-{seed}.txt").open("wb") as log:
                command = [sys.executable, *sys.argv, "--work", base, str(seed)]
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                running[base, seed] = process
        time.sleep(0.5)
        for (base, seed), process in list(running.items()):
            if process.poll() is not None:
                after = time.monotonic() - began
                print(f"{base}, {seed}: exit code {process.returncode} after {after:.0f} s")
                del running[base, seed]
    for (base, seed), process in running.items():
        process.kill()
        process.wait()
        print(f"{base}, {seed}: no time left")
    if side_by_side:
        subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", env=environment, check=False,
                       timeout=20)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="arc-easy")
    parser.add_argument("--bases", type=lambda text: text.split(","), default=BASES)
    parser.add_argument("--seeds", type=lambda text: list(map(int, text.split(","))), default=SEEDS)
    parser.add_argument("--max-steps", type=int, help="fewer steps, to see whether it runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], int(options.work[1]), options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    known = lines_of(options.out).keys()
    runs = [(base, seed) for seed in options.seeds for base in options.bases]
    run_all([run for run in runs if not known >= set(keys(*run))], options)
    print(table(list(lines_of(options.out).values())))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, in brackets the least and the most, as a Markdown table."""
    rows = ["| frozen weights | measured on | accuracy | NLL | seeds |", "|---|---|---|---|---|"]
    for trained, on in dict.fromkeys((line["trained"], line["on"]) for line in lines):
        found = [x["metrics"]["test"] for x in lines if (x["trained"], x["on"]) == (trained, on)]
        cells = []
        for name in ("accuracy", "nll"):
            values = [metrics[name] for metrics in found]
            mean, ends = statistics.mean(values), (min(values), max(values))
            cells.append(f"{mean:.4f} ({ends[0]:.4f} to {ends[1]:.4f})")
        rows.append(f"| {trained} | {on} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
