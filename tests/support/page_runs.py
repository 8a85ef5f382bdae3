"""Runs with every kind of file that a page shows, made without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bayeslora_cli.runs.atomic_write import write_json, write_text
from tests.frozen_runs.kept import DATA, INPUTS, ROOT, TEXTS
from tests.support.ranked_runs import allocation, history_lines, names
from tests.support.scored_runs import write_scored


def frozen(root, name, state="finished"):
    """A copy of a run that an earlier build trained; its models and data lie in `root`."""
    shutil.copytree(INPUTS, root, dirs_exist_ok=True)
    run = Path(root) / "runs" / f"{name}-{state}" / "seed-2021"
    shutil.copytree(DATA / name / state, run)
    for path in run.rglob("*"):
        if path.suffix in TEXTS and ROOT in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(ROOT, str(root)), encoding="utf-8")
    return run


def write_shown(root, task="rte", score=0.6, *, seed=2021, steps=60, metric="accuracy", **options):
    """A finished run with learning curves, a history of ranks, scores and a posterior."""
    more = {
        "selecting": metric,
        "kept_parameters": 220_000,
        "posterior": {
            "hessian_over_h0": {"q05": 0.5, "median": 0.9, "q95": 3.0}, "sigma_ratio": 2.0,
            "snr_magnitude_correlation": 0.6, "note": options.pop("note", None),
        },
    }  # fmt: skip
    run = write_scored(root, task, score, seed=seed, more_result=more, **options)
    layers = names(2)
    report = allocation(layers, seed=seed, step=steps - 1)
    write_json(run.ranks, report.to_json())
    history = history_lines(layers, seed=seed, steps=range(10, 40, 3))
    write_text(run.ranks_history, "".join(json.dumps(line) + "\n" for line in history))
    environment = {"command": ["x", "train", "--task", task], "versions": {"torch": "2"}}
    write_json(run.environment, environment | {"start": "2026-01-01T00:00:00+00:00"})
    lines = [{"step": s, "loss": 1 / (s + 1), "lr": 0.1} for s in range(0, steps, 10)]
    lines += [
        {"step": s, "metrics": {"validation": {metric: score * s / steps, "nll": 1 - s / 100}}}
        for s in range(9, steps, 10)
    ]
    write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads(run.result.read_text())
    for at in ("best", "best_at_budget", "last"):
        result[at]["metrics"] = {"validation": {metric: result[at]["value"], "nll": 0.4321}}
    run.checksums.unlink()
    run.finish(result)
    return run
