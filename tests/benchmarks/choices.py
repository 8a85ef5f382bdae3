"""Multiple choice by this package against lm-eval 0.4.13, row by row, in fp32.

    python -m tests.benchmarks.choices MODEL arc-easy|mmlu --data DIR [--shots 5] [--rows 500]
        [--device cuda] [--lm-eval | --against FILE] [--out FILE]

Prints the accuracies and the largest difference of a log-likelihood. --out keeps one row per line
of what this package found; --lm-eval runs lm-eval as well, which must be installed; --against reads
what it found elsewhere, from lines with place, ll, acc and acc_bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bayeslora_cli.tasks.sources.choice_tasks.choice_task import TASKS
from tests.support.choice_rows import Row, lm_eval_rows, our_rows


def compare(ours: list[Row], theirs: list[Row]) -> dict[str, float]:
    """What differs between two evaluations of the same rows."""
    assert [row.place for row in ours] == [row.place for row in theirs]
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "rows": len(pairs),
        "accuracy": sum(a.right for a in ours) / len(pairs),
        "lm-eval": sum(b.right for b in theirs) / len(pairs),
        "accuracy by bytes": sum(a.right_by_bytes for a in ours) / len(pairs),
        "lm-eval by bytes": sum(b.right_by_bytes for b in theirs) / len(pairs),
        "rows that differ": sum(a.right != b.right for a, b in pairs),
        "rows that differ by bytes": sum(a.right_by_bytes != b.right_by_bytes for a, b in pairs),
        "largest difference of a log-likelihood": max(
            abs(x - y) for a, b in pairs for x, y in zip(a.likelihoods, b.likelihoods, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("task", choices=["arc-easy", "mmlu"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lm-eval", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args()
    task, began = TASKS[typed.task], time.perf_counter()
    options = {"shots": typed.shots, "rows": typed.rows, "device": typed.device}
    ours = our_rows(typed.model, task, typed.data, **options)
    print(f"{len(ours)} rows in {time.perf_counter() - began:.0f} s, "
          f"accuracy {sum(row.right for row in ours) / len(ours):.4f}", flush=True)  # fmt: skip
    if typed.out:
        typed.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in ours))
    theirs: list[Row] = []
    if typed.lm_eval:
        began = time.perf_counter()
        folder = task.layout.find_folder(typed.data, task.folder)
        with tempfile.TemporaryDirectory() as work:
            theirs = lm_eval_rows(
                typed.model,
                task.layout.read_split(folder, "test"),
                task.layout.read_split(folder, task.shots_split),
                Path(work),
                form=task.form,
                **options,
            )
        print(f"lm-eval in {time.perf_counter() - began:.0f} s")
    elif typed.against:
        found = [json.loads(line) for line in typed.against.read_text().splitlines()]
        theirs = [
            Row(
                place=row["place"],
                label=row["answer"],
                likelihoods=row["ll"],
                right=bool(row["acc"]),
                right_by_bytes=bool(row["acc_bytes"]),
            )
            for row in sorted(found, key=lambda row: row["place"])
        ]
    if theirs:
        for name, value in compare(ours, theirs).items():
            print(f"{name:40} {value:.6g}")


if __name__ == "__main__":
    main()
