"""Test metrics of finished runs on questions with choices, as a table with a row per setting.

    python tests/benchmarks/choice_results.py runs --samples 10 --lines measured.jsonl

Each run below the given directories is evaluated once on its test split, at the posterior's mean
and, where there is a posterior, over samples. `--lines` keeps what was measured, a JSON line for
each run, so that the command can be repeated. Scores are means ± standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import bayeslora_cli as bl
from bayeslora_cli.runs.directory import RunDir, runs_below

METRICS = ("accuracy", "accuracy_norm", "nll", "ece", "brier")
IN_PERCENT = ("accuracy", "accuracy_norm")


def measure(path: Path, samples: int, device: str) -> dict[str, Any]:
    """Evaluate a run on its test split."""
    run = bl.Run(path, device=device)
    has_posterior = run.result.get("posterior") is not None
    found = run.evaluate("test", samples=samples if has_posterior else None)
    names = ("metrics", "sampled")
    return {"run": str(path), **{n: found.facts[n]["test"] for n in names if n in found.facts}}


def setting(path: Path) -> tuple[str, str, Path]:
    """Return a run's task, its method in words, and the directory that its seeds share."""
    config = bl.Run(path).config
    parts = [config.method, config.optimizer]
    if config.method == "adalora":
        parts.append(str(config.criterion))
    if config.method == "blora":
        parts.append(config.blora_mode)
    return config.task, f"{' '.join(parts)}, lr {config.lr:g}", path.parent


def spread(values: Iterable[float], percent: bool) -> str:
    """Write a mean and a standard deviation."""
    found = [100 * value if percent else value for value in values]
    digits = 1 if percent else 3
    written = f"{fmean(found):.{digits}f}"
    return written if len(found) < 2 else f"{written} ± {stdev(found):.{digits}f}"


def rows(lines: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table's rows: at the mean, and below it over the samples."""
    groups: dict[tuple[str, str, Path], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[setting(Path(line["run"]))].append(line)
    found = []
    for (task, name, _), group in sorted(groups.items()):
        results = [bl.Run(line["run"]).result for line in group]
        ranks = [fmean(r["ranks"].values()) for r in results if r.get("ranks")]
        costs = [r["cost"]["adapter_relative"] for r in results if r.get("cost")]
        beside = [
            f"{fmean(ranks):.1f}" if ranks else "–",
            f"{fmean(r['mean_bits'] for r in results):.1f}" if costs else "32",
            f"{100 * fmean(costs):.1f}%" if costs else "–",
            f"{fmean(r['seconds'] for r in results):.0f} s",
        ]
        for kind, title in (("metrics", name), ("sampled", f"{name}, samples")):
            if all(kind in line for line in group):
                scores = [
                    spread((line[kind][metric] for line in group), metric in IN_PERCENT)
                    for metric in METRICS
                ]
                found.append([task, title, str(len(group)), *scores, *beside])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--lines", type=Path, default=Path("measured.jsonl"))
    parser.add_argument("--device", default="auto")
    typed = parser.parse_args()
    kept = typed.lines.read_text().splitlines() if typed.lines.exists() else []
    measured = {line["run"]: line for line in map(json.loads, kept)}
    for directory in typed.runs:
        own = [RunDir(directory)] if RunDir(directory).started else list(runs_below(directory))
        for run in own:
            if run.finished and str(run.path) not in measured:
                measured[str(run.path)] = measure(run.path, typed.samples, typed.device)
                with typed.lines.open("a") as file:
                    file.write(json.dumps(measured[str(run.path)]) + "\n")
    title = ["task", "run", "seeds", *METRICS, "rank", "bits", "bit operations", "time"]
    for row in (title, ["---"] * len(title), *rows(measured.values())):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
