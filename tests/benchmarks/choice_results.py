"""Test metrics of finished runs on questions with choices, as a table with a row per setting.

    python tests/benchmarks/choice_results.py runs --samples 10 --lines measured.jsonl

Each run below the given directories is evaluated once on its test split, at the posterior's mean
and, where there is a posterior, over samples. `--lines` keeps what was measured, a JSON line for
each run, so that the command can be repeated; what `causal_results.py` has measured is read from
its lines, also if the runs were moved. Scores are means ± standard deviations over seeds.
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
    return run.evaluate("test", samples=samples if has_posterior else None).to_json()


def name_of(path: Path | str) -> tuple[str, ...]:
    """Return what a run is called wherever it lies: model, setting and seed."""
    return Path(path).parts[-3:]


def setting(path: Path) -> tuple[str, str, Path]:
    """Return a run's task, its method in words, and the directory that its seeds share."""
    config = bl.Run(path).config
    parts = [config.method, config.optimizer]
    if config.method == "adalora":
        parts.append(str(config.criterion))
    if config.method == "blora":
        parts.append(f"{config.blora_mode}, lambda rank {config.lambda_rank:g}")
    return config.task, f"{' '.join(parts)}, lr {config.lr:g}", path.parent


def operations(path: Path) -> float:
    """Return a run's bit operations in its adapters, 1 for 32 x 32 bits at the target rank."""
    run = bl.Run(path)
    cost = run.result.get("cost")
    if cost:
        return float(cost["adapter_relative"])
    sizes = [(m.rank, m.in_features + m.out_features) for m in run.ranks.matrices]
    whole = run.config.target_rank * sum(size for _, size in sizes)
    return sum(rank * size for rank, size in sizes) / whole


def spread(values: Iterable[float], percent: bool) -> str:
    """Write a mean and a standard deviation."""
    found = [100 * value if percent else value for value in values]
    digits = 1 if percent else 3
    written = f"{fmean(found):.{digits}f}"
    return written if len(found) < 2 else f"{written} ± {stdev(found):.{digits}f}"


def rows(measured: Mapping[Path, Mapping[str, Any]]) -> list[list[str]]:
    """Return the table's rows: at the mean, and below it over the samples."""
    groups: dict[tuple[str, str, Path], list[Path]] = defaultdict(list)
    for path in measured:
        groups[setting(path)].append(path)
    found = []
    for (task, name, _), paths in sorted(groups.items()):
        group = [measured[path] for path in paths]
        results = [bl.Run(path).result for path in paths]
        ranks = [fmean(r["ranks"].values()) for r in results if r.get("ranks")]
        beside = [
            f"{fmean(ranks):.1f}" if ranks else "–",
            f"{fmean(r.get('mean_bits', 32) for r in results):.1f}",
            f"{100 * fmean(map(operations, paths)):.1f}%" if ranks else "–",
            f"{fmean(r['seconds'] for r in results):.0f} s",
        ]
        for kind, title in (("metrics", name), ("sampled", f"{name}, samples")):
            if all(kind in line for line in group):
                scores = [
                    spread((line[kind]["test"][metric] for line in group), metric in IN_PERCENT)
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
    lines = [line for line in map(json.loads, kept) if line.get("split") == "test"]
    known = {name_of(line["run"]): line for line in lines if "shots" not in line}
    measured: dict[Path, dict[str, Any]] = {}
    for directory in typed.runs:
        own = [RunDir(directory)] if RunDir(directory).started else list(runs_below(directory))
        for path in [run.path for run in own if run.finished]:
            if (name := name_of(path)) not in known:
                known[name] = measure(path, typed.samples, typed.device)
                with typed.lines.open("a") as file:
                    file.write(json.dumps(known[name]) + "\n")
            measured[path] = known[name]
    title = ["task", "run", "seeds", *METRICS, "rank", "bits", "bit operations", "time"]
    for row in (title, ["---"] * len(title), *rows(measured)):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
