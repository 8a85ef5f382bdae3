"""Run directories with made-up results, for what makes tables of them: no model is trained."""

from __future__ import annotations

from pathlib import Path

from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.runs.atomic_write import write_json, write_text
from bayeslora_cli.runs.directory import RunDir, run_name


def write_scored(
    root, task, score, *, seed=2021, method="adalora", optimizer="ivon", criterion="snr", rank=2,
    seconds=60.0, best=None, more_result=None, weights=None, kind=None, **typed,
):  # fmt: skip
    """A finished run under `root` whose own metric is `score` (a share) at the final budget.

    `more_result`: what else result.json has. `weights`: the checksum of the model's weights.
    `kind`: that of its task, as the run has recorded it.
    """
    row = {"task": task, "method": method, "optimizer": optimizer, "seed": seed}
    if method == "adalora":
        row["criterion"] = criterion
    if method == "blora":
        row["init_rank"] = rank
    elif method != "full":
        row["target_rank"] = rank
    resolved = resolve({**row, **typed})
    run = RunDir(Path(root) / run_name(resolved))
    run.path.mkdir(parents=True)
    write_text(run.config, to_toml(resolved.config))
    write_json(run.task, {} if kind is None else {"objective": kind})
    if weights is not None:
        write_json(run.environment, {"identity": {"weights": weights}})
    entries = {"best_at_budget": score, "last": score - 0.01, "best": best or score}
    result = {name: {"step": 9, "metrics": {}, "value": value} for name, value in entries.items()}
    more = {
        "task": task, "steps": 10, "seconds": seconds, "steps_per_second": 5.0,
        "trainable_parameters": 330_000, "kept_parameters": 220_000,
        "ranks": {} if method == "full" else {"a": rank},
    }  # fmt: skip
    run.finish(result | more | (more_result or {}))
    return run


def gated(ranks, bits, share):
    """What a B-LoRA run's result.json says besides."""
    cost = {"adapter_relative": share, "with_base_relative": 0.99}
    return {"ranks": ranks, "mean_bits": bits, "cost": cost}


ROWS = {
    "full": {"method": "full", "optimizer": "adamw"},
    "lora": {"method": "lora", "optimizer": "adamw"},
    "sensitivity": {"optimizer": "adamw", "criterion": "sensitivity"},
    "snr": {},
}
TASKS = ("rte", "mrpc", "cola", "stsb")
SEEDS = (1, 2, 3)


def score(row, task, seed):
    """Different everywhere: the later rows are better, seeds vary by half a percent."""
    base = 0.6 + 0.02 * list(ROWS).index(row) + 0.05 * TASKS.index(task)
    return round(base + 0.005 * (seed % 3) + 0.001 * (seed * TASKS.index(task) % 2), 4)


def write_sweep(root, rows=tuple(ROWS), tasks=TASKS, seeds=SEEDS):
    """A sweep over rows, tasks and seeds."""
    for row in rows:
        for task in tasks:
            for seed in seeds:
                write_scored(root, task, score(row, task, seed), seed=seed, **ROWS[row])
    return root
