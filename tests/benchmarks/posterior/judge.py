"""Trains and measures the judged rows: five seeds on tasks that the search has not seen.

    python -m tests.benchmarks.posterior.judge --model MINILM --data GLUE --out DIR \\
        --search LINES [--measured LINES...]

Rows, tasks and comparisons are in `protocol.toml`. Trials that the search's lines do not have are
done first. `--out` gets lines, and for each run a file of predictions; `predictions.tar` holds
these, from which `baselines.py` goes on. GLUE has MNLI and QNLI beside the other folders.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bayeslora_cli as bl
from bayeslora_cli.tasks.sources.glue import TASKS
from tests.benchmarks.posterior import baselines, pool, search
from tests.benchmarks.posterior.cut import BATCH, CutRun, cut
from tests.benchmarks.posterior.protocol import (
    BASELINE,
    PROTOCOL,
    epochs_of,
    options_of,
    write_parts,
)

JUDGE: dict[str, Any] = PROTOCOL["judge"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run: a row on a task with a seed."""

    row: str
    task: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-{self.task}-{self.seed}"


def save_predictions(parts: Mapping[str, bl.Evaluation], path: Path) -> None:
    """Write the predictions and labels of `parts`: "dev" and, for the baselines, "held-out" rows.

    For STS-B's samples also the scores' variance.
    """
    arrays: dict[str, Any] = {}
    for name, found in parts.items():
        for split, labels in found.labels.items():
            arrays[f"{name}/{split}/labels"] = labels
            arrays[f"{name}/{split}/mean"] = found.at_mean[split].values.float()
            if found.over_samples is not None:
                sampled = found.over_samples[split]
                arrays[f"{name}/{split}/sampled"] = sampled.values.float()
                if "variance" in (kinds := sampled.uncertainty(sampled=True)):
                    arrays[f"{name}/{split}/variance"] = kinds["variance"].float()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: value.numpy() for name, value in arrays.items()})


def chosen_setting(family: str, typed: argparse.Namespace) -> dict[str, Any]:
    """Return a family's setting by the rule, from the trials of all calls and of this one."""
    lines = pool.read_lines([*typed.search, *typed.measured, typed.out / "lines.jsonl"])
    found: dict[str, Any] = search.choose([x for x in lines if "family" in x])[family]["options"]
    return found


def steps_of(task: str, typed: argparse.Namespace) -> float:
    """Return about how many steps a task's run has."""
    if typed.steps is not None:
        return float(typed.steps)
    rows = (typed.out / "parts" / TASKS[task].folder / "train.tsv").read_bytes().count(b"\n")
    return epochs_of(task) * float(rows) / 32


def measure(job: Job | search.Job, typed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Do a job, if there is time."""
    with pool.paced(steps_of(job.task, typed), typed) as fits:
        if fits:
            yield from judge(job, typed) if isinstance(job, Job) else search.train(job, typed)


def judge(job: Job, typed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train a run; evaluate it on the dev rows, once; cut it, if its row is to be cut."""
    setting = dict(JUDGE["rows"][job.row])
    family = setting.pop("family")
    options = options_of(family, chosen_setting(family, typed) | setting, job.task)
    options |= search.common_options(typed, job.task)
    options["output"] += f"/{job.row}"
    about = {"row": job.row, "task": job.task, "seed": job.seed}
    run = bl.train(**options, seed=job.seed)
    yield {"kind": "run", **about, **search.facts(run)}
    samples = None if run.result["posterior"] is None else JUDGE["samples"]
    # a score's uncertainty is the samples' variance: without samples there is none
    ood = JUDGE["ood"][job.task] if samples or job.task != "stsb" else None
    dev = run.evaluate(data=str(typed.data), samples=samples, ood=ood, batch_size=BATCH)
    parts = {"dev": dev}
    if job.row == BASELINE:
        parts["held-out"] = run.evaluate(batch_size=BATCH)
    save_predictions(parts, typed.out / "predictions" / f"{job.name}.npz")
    measured = dev.to_json()
    measured.pop("posterior", None)
    yield {**measured, "kind": "dev", **about}
    if job.row not in JUDGE["cut"]:
        return
    held = CutRun(run, typed.data)
    yield {"kind": "pace", **about, **held.pace(samples)}
    for found in cut(held, **({} if typed.steps is None else {"batches": 2})):
        yield {**about, **found}
    if job.row == BASELINE and job.task in baselines.TASKS:
        for found in baselines.of_run(held):
            yield {**about, **found}


def jobs_left(typed: argparse.Namespace) -> list[Job]:
    """Return the jobs that no earlier call has measured, of the baseline with its Laplace.

    First the rows that the primary comparisons need, then the baseline, then all others; of these
    one seed after the other, and of a seed the longest tasks first.
    """
    lines = pool.read_lines(typed.measured)
    done = pool.done(line for line in lines if line.get("kind") != "run")
    measured = {line["job"] for line in lines if line.get("method") == "laplace"}
    done = {
        name for name in done
        if name in measured or not name.startswith(f"{BASELINE}-") or "-stsb-" in name
    }  # fmt: skip
    needed = {row for pair in JUDGE["primary"] for row in (pair["a"], pair["b"])}
    blocks = (
        [row for row in JUDGE["rows"] if row in needed],
        [BASELINE],
        [row for row in JUDGE["rows"] if row not in needed and row != BASELINE],
    )
    jobs = [
        Job(row=row, task=task, seed=seed)
        for block in blocks
        for seed in JUDGE["seeds"][: typed.seeds]
        for task in JUDGE["tasks"]
        for row in block
    ]
    return [job for job in jobs if job.name not in done and re.search(typed.only, job.name)]


def pack(out: Path) -> None:
    """Write the predictions into one file."""
    with tarfile.open(out / "predictions.tar", "w") as tar:
        for path in sorted((out / "predictions").glob("*.npz")):
            tar.add(path, path.relative_to(out))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pool.arguments(parser)
    parser.add_argument("--search", type=Path, nargs="+", required=True, help="the search's lines")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    typed = parser.parse_args()
    typed.out, typed.data = typed.out.resolve(), typed.data.resolve()
    write_parts(typed.data, JUDGE["tasks"], typed.out / "parts", PROTOCOL["search"]["share"])
    trials = search.trials_left(typed, pool.read_lines([*typed.search, *typed.measured]))
    pool.run_all([*trials, *jobs_left(typed)], partial(measure, typed=typed), typed)
    pack(typed.out)


if __name__ == "__main__":
    main()
