"""Rows per second of `bayeslora predict`, and of the plain merged model in torch, in one run.

    python tests/benchmarks/predict_speed.py RUN ROWS.csv [--repeats 3] [--device cpu]

RUN is a finished run of texts and a label; ROWS.csv has its text columns. The plain side is what
one writes by hand: it opens the merged export with transformers, reads the file, tokenizes and pads
each batch in the file's order, and writes csv. `sorted` is the same with all rows of the file
sorted by length first, which no stream can do. All sides read and write files; loading is not
timed. They take turns.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import environment, synchronize
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import bayeslora_cli as bl


def plain(
    model: Any, tokenizer: Any, rows: Path, columns: tuple[str, ...], output: Path, limit: int,
    batch_size: int, *, in_order: bool,
) -> None:  # fmt: skip
    """Predict a csv file as a script would."""
    with rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    order = list(range(len(found)))
    if not in_order:
        order.sort(key=lambda row: sum(len(found[row][name]) for name in columns))
    shares: list[Any] = [None] * len(found)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        texts = [[found[row][name] for row in part] for name in columns]
        batch = tokenizer(
            *texts, truncation=True, max_length=limit, padding=True, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            logits = model(**batch).logits.float()
        for row, share in zip(part, logits.softmax(-1).tolist(), strict=True):
            shares[row] = share
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*found[0], "prediction", *names])
        for row, share in zip(found, shares, strict=True):
            writer.writerow([*row.values(), names[share.index(max(share))], *share])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    run = bl.Run(asked.run, device=asked.device)
    columns, limit = run.task.text_columns, run.config.max_length
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bl.Run(asked.run, device="cpu").export("merged", place / "merged", check_inputs="random")
        model = AutoModelForSequenceClassification.from_pretrained(place / "merged")
        model = model.to(device, run.loaded.network.compute_dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(place / "merged")

        def by_hand(name: str, *, in_order: bool) -> None:
            plain(
                model, tokenizer, asked.rows, columns, place / f"{name}.csv", limit,
                asked.batch_size, in_order=in_order,
            )  # fmt: skip

        sides = {
            "bayeslora predict": lambda: run.predict_file(
                asked.rows, place / "ours.csv", batch_size=asked.batch_size
            ),
            "plain": lambda: by_hand("plain", in_order=True),
            "plain, sorted": lambda: by_hand("sorted", in_order=False),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(asked.repeats + 1):
            for name, side in sides.items():
                began, cpu = time.perf_counter(), time.process_time()
                side()
                synchronize(device)
                if turn:  # the first one warms up
                    used = time.perf_counter() - began, time.process_time() - cpu
                    times[name].append(used)
        with (place / "ours.csv").open(newline="") as file:
            ours = [row["prediction"] for row in csv.DictReader(file)]
        with (place / "plain.csv").open(newline="") as file:
            theirs = [row["prediction"] for row in csv.DictReader(file)]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(", ".join(f"{k} {v}" for k, v in environment(device).items()))
    print(f"{len(ours):,} rows, {same:,} predictions are the same")
    least = {n: tuple(statistics.median(x) for x in zip(*t, strict=True)) for n, t in times.items()}
    for name, (wall, cpu) in least.items():
        print(
            f"{name:20} {len(ours) / wall:9,.0f} rows/s  {len(ours) / cpu:9,.0f} rows per CPU "
            f"second  {least['plain'][0] / wall:5.2f} ({least['plain'][1] / cpu:.2f}) of plain"
        )


if __name__ == "__main__":
    main()
