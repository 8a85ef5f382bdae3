"""Searches each family's setting on RTE and CoLA: `--out` gets a line for each run.

    python -m tests.benchmarks.posterior.search --model MINILM --data GLUE --out DIR

The trials and the rule are in `protocol.toml`; `page.py --write-chosen` applies the rule. GLUE's
dev files are not opened.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import bayeslora_cli as bl
from tests.benchmarks.posterior import pool
from tests.benchmarks.posterior.protocol import (
    PROTOCOL,
    Trial,
    epochs_of,
    options_of,
    trials,
    write_parts,
)

RULE: dict[str, Any] = PROTOCOL["search"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial on one task."""

    trial: Trial
    task: str

    @property
    def name(self) -> str:
        return f"{self.trial.name}-{self.task}"


def facts(run: bl.Run) -> dict[str, Any]:
    """Return what the study needs of a run's result.json, and the triplets that it kept."""
    result = run.result
    names = ("best_at_budget", "best", "last", "selecting", "posterior", "steps", "seconds",
             "train_seconds", "kept_parameters", "peak_memory_bytes")  # fmt: skip
    kept = [[int(k) for k in matrix.kept] for matrix in run.ranks.matrices]
    return {name: result[name] for name in names} | {"kept": kept, "run": str(run.path)}


def common_options(typed: argparse.Namespace, task: str) -> dict[str, Any]:
    """Return the options that all runs of the study share."""
    length = {"epochs": epochs_of(task)} if typed.steps is None else {"max_steps": typed.steps}
    return {
        "model": typed.model, "data": str(typed.out / "parts"), "output": str(typed.out / "runs"),
        "device": typed.device, "precision": typed.precision, "compile": "off",
        "packing": typed.packing, "eval_batch_size": 256, "checkpoint_every": "1h", **length,
    }  # fmt: skip


def train(job: Job, typed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train a trial's run on one task."""
    trial, task = job.trial, job.task
    options = options_of(trial.family, trial.options, task) | common_options(typed, task)
    # two trials may differ in nothing that names a run's directory, and each has its own
    options["output"] += f"/{trial.name}"
    about = {"family": trial.family, "number": trial.number, "task": task}
    run = bl.train(**options, seed=RULE["seed"])
    yield {**about, "options": dict(trial.options), **facts(run)}


def trials_left(typed: argparse.Namespace, measured: Iterable[Mapping[str, Any]]) -> list[Job]:
    """Return the trials that no line of an earlier call has, and write the data that they read."""
    write_parts(typed.data, RULE["tasks"], typed.out / "parts", RULE["share"])
    done = pool.done(measured)
    jobs = [Job(trial=trial, task=task) for trial in trials() for task in RULE["tasks"]]
    return [job for job in jobs if job.name not in done and re.search(typed.only, job.name)]


def score(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the mean of the tasks' own metrics, and of NLL, of a trial's lines."""
    best = [line["best_at_budget"] for line in lines]
    nll = [fmean(split["nll"] for split in found["metrics"].values()) for found in best]
    return fmean(found["value"] for found in best), fmean(nll)


def choose(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Apply the protocol's rule: each family's number, score, NLL and options."""
    by_trial = defaultdict(list)
    for line in lines:
        if "failed" not in line:
            by_trial[line["family"], line["number"]].append(line)
    whole = {key: own for key, own in by_trial.items() if len(own) == len(RULE["tasks"])}
    chosen = {}
    for family in PROTOCOL["families"]:
        scored = {
            number: (*score(own), own)
            for (name, number), own in sorted(whole.items())
            if name == family and (family != "learned" or differs(own))
        }
        if not scored:
            continue
        top = max(value for value, _, _ in scored.values())
        near = {n: found for n, found in scored.items() if found[0] > top - RULE["within"]}
        number = min(near, key=lambda n: near[n][1])
        value, nll, own = scored[number]
        chosen[family] = {"number": number, "value": value, "nll": nll, "of": len(scored),
                          "options": own[0]["options"]}  # fmt: skip
    return chosen


def differs(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether sigma differs between elements in all of a trial's runs."""
    return all(line["posterior"]["sigma_ratio"] >= RULE["spread"] for line in lines)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return all runs, in Markdown."""
    rows = ["| trial | task | options | metric | NLL | h/h0 | sigma 95%/5% | snr, magnitude | s |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in sorted(lines, key=lambda found: found["job"]):
        if "failed" in line:
            rows.append(f"| {line['job']} | failed: {line['failed'].splitlines()[-1]} |")
            continue
        best, posterior = line["best_at_budget"], line["posterior"]
        learnt = "– | – | –"
        if posterior is not None:
            h = posterior["hessian_over_h0"]
            agreement = posterior["snr_magnitude_correlation"]
            learnt = (f"{h['q05']:.3g} to {h['q95']:.3g} | {posterior['sigma_ratio']:.2f} "
                      f"| {agreement:.3f}")  # fmt: skip
        options = ", ".join(f"{k} {v}" for k, v in line["options"].items())
        rows.append(
            f"| {line['family']}-{line['number']:02d} | {line['task']} | {options} "
            f"| {best['value']:.4f} | {score([line])[1]:.4f} | {learnt} | {line['seconds']:.0f} |"
        )
    return "\n".join(rows)


def write_chosen(chosen: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the chosen settings as TOML."""
    lines = ["# Written by page.py: each family's setting by the rule of protocol.toml."]
    for family, found in chosen.items():
        lines += [f"\n[{family}]  # trial {found['number']:02d}; {found['of']} trials count; "
                  f"metric {found['value']:.4f}, NLL {found['nll']:.4f}"]  # fmt: skip
        for name, value in found["options"].items():
            lines.append(f"{name} = {value!r}".replace("'", '"'))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pool.arguments(parser)
    typed = parser.parse_args()
    typed.out = typed.out.resolve()
    left = trials_left(typed, pool.read_lines(typed.measured))
    pool.run_all(left, partial(train, typed=typed), typed)
    print(table(pool.read_lines([typed.out / "lines.jsonl"])))


if __name__ == "__main__":
    main()
