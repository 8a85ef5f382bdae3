"""Accuracy and NLL of adapters that are trained on frozen weights in few bits, on ARC-Easy.

    python tests/benchmarks/quantized_results.py --model MODEL.gguf --data DIR --out DIR

One line for each precision of the frozen weights and seed: the test rows on the weights that a run
was trained on, and on the checkpoint's own in bf16. The settings are the preset's, with AdaLoRA,
IVON and snr; DIR holds LLM-Adapters' ARC-Easy. `--out` gets the runs and a JSON line for each
measurement, of which a table is printed; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bayeslora_cli as bl

SEEDS = (2021, 2022, 2023)
BASES = ("bf16", "int8", "nf4", "fp8")


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
    options = parser.parse_args()
    steps = {} if options.max_steps is None else {"max_steps": options.max_steps}
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "lines.jsonl"
    done = written.read_text(encoding="utf-8").splitlines() if written.exists() else []
    known = {(x["trained"], x["on"], x["seed"]): x for x in map(json.loads, done)}
    for base in options.bases:
        for seed in options.seeds:
            wanted = [(base, on, seed) for on in dict.fromkeys((base, "bf16"))]
            if known.keys() >= set(wanted):
                continue
            start = time.perf_counter()
            run = bl.train(
                task=options.task, model=options.model, data=options.data, seed=seed,
                precision="bf16", base_precision=base, output=str(options.out / "runs"),
                device=options.device, **steps,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            for key in wanted:
                found = run.evaluate("test", base_precision=key[1])
                known[key] = {
                    "trained": base, "on": key[1], "seed": seed, "seconds": round(seconds, 1),
                    "metrics": found.facts["metrics"],
                }  # fmt: skip
                with written.open("a", encoding="utf-8") as lines:
                    print(json.dumps(known[key]), file=lines)
    print(table(list(known.values())))


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
