"""Accuracy and NLL of adapters that are trained on frozen weights in few bits, on ARC-Easy.

    python tests/benchmarks/quantized_results.py --model MODEL.gguf --data DIR --out DIR

One line for each precision of the frozen weights and seed: the test rows on the weights that a run
was trained on, and on the checkpoint's own in bf16. The settings are the preset's, with AdaLoRA,
IVON and snr; DIR holds LLM-Adapters' ARC-Easy. `--out` gets the runs and a JSON line for each
measurement; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

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
    with (options.out / "lines.jsonl").open("a", encoding="utf-8") as lines:
        for base in options.bases:
            for seed in options.seeds:
                start = time.perf_counter()
                run = bl.train(
                    task=options.task, model=options.model, data=options.data, seed=seed,
                    precision="bf16", base_precision=base, output=str(options.out / "runs"),
                    device=options.device, **steps,
                )  # fmt: skip
                seconds = time.perf_counter() - start
                for on in dict.fromkeys((base, "bf16")):
                    found = run.evaluate("test", base_precision=on)
                    line = {"trained": base, "on": on, "seed": seed, "seconds": round(seconds, 1),
                            "metrics": found.facts["metrics"]}  # fmt: skip
                    print(json.dumps(line), file=lines, flush=True)
                    print(f"trained on {base}, seed {seed}, on {on}: {found.facts['metrics']}")


if __name__ == "__main__":
    main()
