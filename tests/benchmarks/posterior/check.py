"""Computes every number of the study's page anew, from the runs' files, and compares.

    python tests/benchmarks/posterior/check.py numbers.json --runs DIR... --lines LINES... \\
        --speed FILE

DIR is where `runs.tar.xz` and `predictions.tar` of a call were unpacked. Search, ranks, posteriors
are read from the runs' own files, metrics computed from the predictions; only cuts, other rows,
causal runs and baselines, of which no more is kept, are read from the lines. It imports nothing of
the package or of the study. Exit code 1: a number differs, or could not be computed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = tomllib.loads((Path(__file__).parent / "protocol.toml").read_text())
BINS = 15


def ranks(x: Any) -> Any:
    """Return average ranks from 1."""
    x = np.asarray(x, float)
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


def pearson(x: Any, y: Any) -> float:
    x, y = np.asarray(x, float), np.asarray(y, float)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def spearman(x: Any, y: Any) -> float:
    return pearson(ranks(x), ranks(y))


def fast_ranks(x: Any) -> Any:
    """Return average ranks of many numbers."""
    values, place, count = np.unique(np.asarray(x, float), return_inverse=True, return_counts=True)
    del values
    return (np.cumsum(count) - (count - 1) / 2)[place]


def matthews(labels: Any, guess: Any) -> float:
    tp, tn = ((labels == 1) & (guess == 1)).sum(), ((labels == 0) & (guess == 0)).sum()
    fp, fn = ((labels == 0) & (guess == 1)).sum(), ((labels == 1) & (guess == 0)).sum()
    below = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return float(tp * tn - fp * fn) / math.sqrt(below) if below else 0.0


class Predictions:
    """The metrics of a file of predictions."""

    def __init__(self, path: Path, task: str) -> None:
        self.arrays, self.task = np.load(path), task
        splits = {name.split("/")[1] for name in self.arrays if name.startswith("dev/")}
        self.split = "validation_matched" if task == "mnli" else "validation"
        assert self.split in splits, (path, splits)

    def get(self, metric: str, at: str) -> float:
        y = self.arrays[f"dev/{self.split}/labels"].astype(float)
        p = self.arrays[f"dev/{self.split}/{at}"].astype(float)
        if self.task == "stsb":
            if metric == "own":
                linear = pearson(p, y)
                return 100 * (linear + pearson(fast_ranks(p), fast_ranks(y))) / 2
            variance = 0.5
            if at == "sampled":
                variance = variance + self.arrays[f"dev/{self.split}/variance"].astype(float)
            return float(np.mean(0.5 * (np.log(2 * np.pi * variance) + (p - y) ** 2 / variance)))
        y = y.astype(int)
        right, guess, sure = p[np.arange(len(y)), y], p.argmax(1), p.max(1)
        if metric == "own":
            return 100 * (matthews(y, guess) if self.task == "cola" else float((guess == y).mean()))
        if metric == "nll":
            return float(-np.log(np.maximum(right, 1e-300)).mean())
        if metric == "brier":
            return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())
        place = np.minimum(np.ceil(sure * BINS).astype(int) - 1, BINS - 1)
        gaps = [
            abs(float((guess == y)[place == b].sum()) - float(sure[place == b].sum()))
            for b in range(BINS)
        ]
        return sum(gaps) / len(y)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def with_deviation(values: Sequence[float], digits: int) -> str:
    centre = mean(values)
    if len(values) == 1:
        return f"{centre:.{digits}f}"
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    return f"{centre:.{digits}f} ± {spread:.{digits}f}"


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test by its normal approximation, zeros left
    out, ties corrected."""
    d = np.array([x for x in differences if x != 0])
    n = len(d)
    if n == 0:
        return 1.0
    r = ranks(np.abs(d))
    smaller = min(r[d > 0].sum(), r[d < 0].sum())
    _, ties = np.unique(r, return_counts=True)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48
    return math.erfc(abs(smaller - n * (n + 1) / 4) / math.sqrt(variance) / math.sqrt(2))


def student(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t, found by integrating its density."""
    constant = math.gamma((degrees + 1) / 2) / (
        math.gamma(degrees / 2) * math.sqrt(degrees * math.pi)
    )
    step, area, x = 1e-4, 0.5, 0.0
    while area < 0.975:
        middle = x + step / 2
        area += step * constant * (1 + middle**2 / degrees) ** (-(degrees + 1) / 2)
        x += step
    return x


class Files:
    """The runs, predictions and lines of all calls."""

    def __init__(self, folders: Sequence[Path], lines: Sequence[Path], speed: Path | None) -> None:
        self.speed = "" if speed is None else speed.read_text()
        self.results: dict[tuple[str, str, int], Any] = {}
        self.kept: dict[tuple[str, str, int], Any] = {}
        self.predictions: dict[tuple[str, str, int], Path] = {}
        for folder in folders:
            for path in folder.glob("runs/*/*/*/seed-*/result.json"):
                result = json.loads(path.read_text())
                name, seed = path.parts[-5], int(path.parts[-2].removeprefix("seed-"))
                key = name, result["task"], seed
                self.results[key] = result
                found = json.loads((path.parent / "ranks.json").read_text())
                self.kept[key] = [m["kept"] for m in found["matrices"]]
            for path in folder.glob("predictions/*.npz"):
                row, task, seed_text = path.stem.rsplit("-", 2)
                self.predictions[row, task, int(seed_text)] = path
        self.lines = [json.loads(line) for path in lines for line in path.read_text().splitlines()]
        again = {x["job"]: i for i, x in enumerate(self.lines) if x.get("kind") == "run"}
        self.lines = [x for i, x in enumerate(self.lines) if i >= again.get(x.get("job", ""), 0)]

    def of(self, row: str, task: str) -> list[int]:
        """Return the seeds of a row's runs on a task that have predictions."""
        return sorted(s for r, t, s in self.predictions if (r, t) == (row, task))

    def metric(self, row: str, task: str, seed: int, metric: str, at: str) -> float:
        return Predictions(self.predictions[row, task, seed], task).get(metric, at)


def of_search(files: Files, trial: str, task: str, what: str) -> str:
    result = files.results[trial, task, PROTOCOL["search"]["seed"]]
    best, posterior = result["best_at_budget"]["metrics"]["validation"], result["posterior"]
    if what == "own":
        return f"{100 * best['matthews' if task == 'cola' else 'accuracy']:.1f}"
    if what == "nll":
        return f"{best['nll']:.3f}"
    name = "sigma_ratio" if what == "sigma" else "snr_magnitude_correlation"
    return f"{posterior[name]:.2f}"


def chosen(files: Files, family: str) -> str:
    rule, found = PROTOCOL["search"], {}
    for number in range(len(PROTOCOL["trials"][family])):
        keys = [(f"{family}-{number:02d}", task, rule["seed"]) for task in rule["tasks"]]
        if not all(key in files.results for key in keys):
            continue
        runs = [files.results[key] for key in keys]
        if (
            family == "learned"
            and min(r["posterior"]["sigma_ratio"] for r in runs) < rule["spread"]
        ):
            continue
        metrics = [r["best_at_budget"]["metrics"]["validation"] for r in runs]
        score = mean([m["matthews"] if "matthews" in m else m["accuracy"] for m in metrics])
        found[number] = score, mean([m["nll"] for m in metrics])
    top = max(score for score, _ in found.values())
    near = [(nll, number) for number, (score, nll) in found.items() if score > top - rule["within"]]
    return f"{min(near)[1]:02d}"


def differences(files: Files, rule: Any) -> dict[tuple[str, int], float]:
    found = {}
    for task in PROTOCOL["judge"]["tasks"]:
        if task == "stsb" and rule["metric"] == "ece":
            continue
        for seed in files.of(rule["a"], task):
            if seed in files.of(rule["b"], task):
                a, b = (
                    files.metric(rule[side], task, seed, rule["metric"], at)
                    for side, at in zip(("a", "b"), rule["at"], strict=True)
                )
                found[task, seed] = round(a - b, 6)
    return found


SECONDARY = (
    "own paper-snr mean adamw mean", "own adamw mean lora mean",
    "nll paper-snr sampled adamw mean", "ece paper-snr sampled adamw mean",
    "nll paper-snr sampled paper-snr mean", "nll learned-snr sampled paper-snr sampled",
    "ece learned-snr sampled paper-snr sampled", "ece learned-snr sampled learned-snr mean",
    "own learned-sensitivity mean learned-snr mean", "own learned-precision mean learned-snr mean",
    "own learned-snr-abs mean learned-snr mean", "own paper-sensitivity mean paper-snr mean",
    "own paper-precision mean paper-snr mean", "own paper-snr-abs mean paper-snr mean",
    "own paper-magnitude mean paper-snr mean", "own learned-sensitivity mean adamw mean",
    "own learned-snr-r4 mean adamw-r4 mean", "own learned-snr-r4 mean learned-snr mean",
    "own adamw-r4 mean adamw mean", "own learned-snr-r1 mean adamw-r1 mean",
)  # fmt: skip


def summary(d: Sequence[float], digits: int, what: str) -> str:
    """Write differences' number, mean or interval."""
    centre = mean(d)
    if what == "pairs":
        return str(len(d))
    if what == "difference":
        return f"{centre:+.{digits}f}"
    error = math.sqrt(sum((x - centre) ** 2 for x in d) / (len(d) - 1) / len(d))
    reach = student(len(d) - 1) * error
    return f"{centre - reach:+.{digits}f} to {centre + reach:+.{digits}f}"


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


@functools.cache
def corrected(files: Files, family: str) -> list[tuple[float, float]]:
    """Return the p of each comparison of a table, and the p corrected by Holm's method."""
    p = [wilcoxon([*d.values()]) for d in FAMILIES[family](files)]
    fair = []
    for own in p:
        smaller = [x for x in sorted(p) if x <= own]
        fair.append(max(min(1.0, (len(p) - place) * x) for place, x in enumerate(smaller)))
    return [*zip(p, fair, strict=True)]


@functools.cache
def compared(files: Files, family: str) -> list[dict[tuple[str, int], float]]:
    return FAMILIES[family](files)


def of_compared(files: Files, family: str, number: int, digits: int, what: str) -> str:
    """Compute a cell of a table of differences."""
    if what in ("p", "holm"):
        return p_text(corrected(files, family)[number][what == "holm"])
    d = compared(files, family)[number]
    if what in ("tasks", "over-tasks"):
        tasks = {task for task, _ in d}
        means = [mean([x for (task, _), x in d.items() if task == one]) for one in tasks]
        if what == "tasks":
            return f"{min(means):+.{digits}f} to {max(means):+.{digits}f}"
        return summary(means, digits, "interval")
    return summary([*d.values()], digits, what)


def of_primary(files: Files) -> list[dict[tuple[str, int], float]]:
    return [differences(files, rule) for rule in PROTOCOL["judge"]["primary"]]


def of_secondary(files: Files) -> list[dict[tuple[str, int], float]]:
    found = []
    for text in SECONDARY:
        metric, a, at_a, b, at_b = text.split()
        found.append(differences(files, {"metric": metric, "a": a, "b": b, "at": [at_a, at_b]}))
    return found


CUT_PAIRS = (
    "learned-snr snr 1 - learned-snr magnitude 1", "learned-snr snr 1 - learned-snr precision 1",
    "learned-snr snr 1 - learned-snr singular-values 1",
    "learned-snr snr 1 - learned-snr sensitivity 1",
    "learned-snr snr 0.5 - learned-snr magnitude 0.5",
    "learned-snr snr 0.5 - learned-snr precision 0.5",
    "learned-snr snr 0.5 - learned-snr singular-values 0.5",
    "learned-snr snr 0.5 - learned-snr sensitivity 0.5",
    "adamw sensitivity 1 - adamw singular-values 1",
    "adamw sensitivity 0.5 - adamw singular-values 0.5",
    "learned-snr-r4 snr 2 - learned-snr", "learned-snr-r4 singular-values 2 - learned-snr",
    "learned-snr snr 1 - learned-snr-r1", "learned-snr singular-values 1 - learned-snr-r1",
    "adamw-r4 sensitivity 2 - adamw", "adamw-r4 singular-values 2 - adamw",
    "adamw sensitivity 1 - adamw-r1", "adamw singular-values 1 - adamw-r1",
    "learned-snr-r4 sensitivity 2 - learned-snr", "learned-snr sensitivity 1 - learned-snr-r1",
)  # fmt: skip


def of_cut_pair(files: Files, text: str) -> dict[tuple[str, int], float]:
    sides: list[dict[tuple[str, int], float]] = []
    for part in text.split(" - "):
        row, *cut = part.split()
        side = {}
        for x in files.lines:
            if x.get("row") != row or x.get("kind") != ("cut" if cut else "dev"):
                continue
            if cut and (x["by"] != cut[0] or x["rank"] != float(cut[1])):
                continue
            m = x["metrics"]["validation_matched" if x["task"] == "mnli" else "validation"]
            is_score = x["task"] == "stsb"
            side[x["task"], x["seed"]] = (
                50 * (m["pearson"] + m["spearman"]) if is_score else 100 * m["accuracy"]
            )
        sides.append(side)
    return {k: round(x - sides[1][k], 6) for k, x in sides[0].items() if k in sides[1]}


def of_cut_pairs(files: Files) -> list[dict[tuple[str, int], float]]:
    return [of_cut_pair(files, text) for text in CUT_PAIRS]


BASELINES = [
    (m, x) for m in ("ivon", "laplace", "mc-dropout", "temperature") for x in ("nll", "ece")
]


def of_points(files: Files) -> list[dict[tuple[str, int], float]]:
    found = []
    for method, metric in BASELINES:
        sides: list[dict[tuple[str, int], float]] = [{}, {}]
        for x in files.lines:
            for side, name in zip(sides, (method, "point"), strict=True):
                if x.get("method") == name:
                    side[x["task"], x["seed"]] = x[metric]
        found.append({k: value - sides[1][k] for k, value in sides[0].items() if k in sides[1]})
    return found


FAMILIES = {
    "primary": of_primary, "secondary": of_secondary, "cut-pairs": of_cut_pairs,
    "baselines": of_points,
}  # fmt: skip
"""A table of differences -> its comparisons."""


def of_judge(files: Files, parts: Sequence[str]) -> str:
    kind, seeds = parts[0], PROTOCOL["judge"]["seeds"]
    if kind in FAMILIES:
        metric = "own"
        if kind == "primary":
            metric = PROTOCOL["judge"]["primary"][int(parts[1])]["metric"]
        elif kind == "secondary":
            metric = SECONDARY[int(parts[1])].split()[0]
        return of_compared(files, kind, int(parts[1]), 2 if metric == "own" else 4, parts[2])
    if kind == "between":
        a, b, task = parts[1:]
        both = [(files.kept[a, task, s], files.kept[b, task, s]) for s in seeds
                if (a, task, s) in files.kept and (b, task, s) in files.kept]  # fmt: skip
        return f"{mean([spearman(*([sum(m) for m in x] for x in xy)) for xy in both]):.2f}"
    if kind == "learnt":
        _, row, task, title = parts[0], parts[1], parts[2], "/".join(parts[3:])
        pick: dict[str, Callable[[Any], float]] = {
            "h/h0, 5%": lambda p: p["hessian_over_h0"]["q05"],
            "h/h0, 95%": lambda p: p["hessian_over_h0"]["q95"],
            "sigma, 95% over 5%": lambda p: p["sigma_ratio"],
            "ρ(snr, magnitude)": lambda p: p["snr_magnitude_correlation"],
        }
        values = [
            pick[title](files.results[row, task, s]["posterior"])
            for s in seeds
            if (row, task, s) in files.results
        ]
        return f"{mean(values):.3g}"
    if kind == "common":
        family, task = parts[1:]
        shares = []
        for s in seeds:
            keys = [(f"{family}-{c}", task, s) for c in ("snr", "magnitude")]
            if all(key in files.kept for key in keys):
                one, other = (
                    {(i, j) for i, m in enumerate(files.kept[k]) for j, x in enumerate(m) if x}
                    for k in keys
                )
                shares.append(2 * len(one & other) / (len(one) + len(other)))
        return f"{100 * mean(shares):.0f}%"
    if kind == "seeds":
        row, task = parts[1:]
        runs = [files.kept[row, task, s] for s in seeds if (row, task, s) in files.kept]
        sums = [[sum(map(bool, matrix)) for matrix in run] for run in runs]
        varied = [x for x in sums if len(set(x)) > 1]
        return f"{mean([spearman(a, b) for a, b in combinations(varied, 2)]):.2f}"
    if kind == "cut":
        row, by, rank = parts[1:]
        values = []
        whole = {x["job"] for x in files.lines if x.get("by") == "none"}
        for line in files.lines:
            if (line.get("kind"), line.get("row"), line.get("by")) == ("cut", row, by) and (
                f"{line['rank']:g}" == rank and line["job"] in whole
            ):
                split = "validation_matched" if line["task"] == "mnli" else "validation"
                m = line["metrics"][split]
                values.append(50 * (m["pearson"] + m["spearman"]) if line["task"] == "stsb"
                              else 100 * m["accuracy"])  # fmt: skip
        return f"{mean(values):.1f}"
    if kind == "agreement":
        row, pair = parts[1], "/".join(parts[2:])
        rows = [x for x in files.lines if (x.get("kind"), x.get("row")) == ("agreement", row)]
        if pair.startswith("1/sigma"):
            gradients = [x["precision_and_squared_gradient"] for x in rows]
            return f"{mean([x for x in gradients if x is not None]):.2f}"
        found = [x["spearman"].get(pair) for x in rows]
        return f"{mean([rho for rho in found if rho is not None]):.2f}"
    row, task, at, metric = parts
    if task == "all":
        by_task = [
            mean([files.metric(row, t, s, "own", at) for s in files.of(row, t)])
            for t in PROTOCOL["judge"]["tasks"]
        ]
        return f"{mean(by_task):.2f}"
    if metric in ("ood", "mutual"):  # the other rows' predictions are not kept
        aurocs = []
        for x in files.lines:
            if (x.get("kind"), x.get("row"), x.get("task")) == ("dev", row, task):
                split = "validation_matched" if task == "mnli" else "validation"
                by = x["ood"][at][split]
                name = "mutual_information" if metric == "mutual" else "entropy"
                aurocs.append(by["variance" if task == "stsb" else name])
        return with_deviation(aurocs, 3)
    values = [files.metric(row, task, s, metric, at) for s in files.of(row, task)]
    return with_deviation(values, 1 if metric == "own" else 3)


def causal_difference(files: Files, pair: str, at: str, metric: str, what: str) -> str:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line in files.lines:
        for side, name in enumerate(pair.split(" - ")):
            if line.get("job") == f"{line.get('task')}-{name}" and line.get("split") == "test":
                key = line["task"], line["run"][-4:]
                value = line["metrics" if side else at]["test"][metric]
                found.setdefault(key, {})[str(side)] = value * (100 if metric == "accuracy" else 1)
    d = [sides["0"] - sides["1"] for sides in found.values() if len(sides) == 2]
    if what == "above":
        return f"{sum(x > 0 for x in d)} of {len(d)}"
    return summary(d, 1 if metric == "accuracy" else 3, what)


def of_causal(files: Files, job: str, at: str, metric: str, *rest: str) -> str:
    if rest:
        return causal_difference(files, job, at, metric, *rest)
    rows = [
        line[at]["test"][metric]
        for line in files.lines
        if line.get("job") == job and line.get("split") == "test" and "shots" not in line
        and re.search(r"seed-\d+$", line["run"])
    ]  # fmt: skip
    percent = metric == "accuracy"
    return with_deviation([100 * v if percent else v for v in rows], 1 if percent else 3)


def of_baselines(files: Files, method: str, task: str, metric: str) -> str:
    if method.endswith(" - point"):  # then `task` is the metric, and `metric` what is asked of it
        number = BASELINES.index((method.removesuffix(" - point"), task))
        return of_compared(files, "baselines", number, 4, metric)
    rows = [x[metric] for x in files.lines if (x.get("method"), x.get("task")) == (method, task)]
    return with_deviation(rows, {"seconds": 1, "megabytes": 1}.get(metric, 3))


def of_speed(files: Files, when: str, *rest: str) -> str:
    """Compute a number of the step's time from the times of the turns."""
    ending = {"at each step": "", "every 100 steps": "-seldom"}[when]
    rows = {x["row"]: x for x in json.loads(files.speed)["results"]}

    def turns(side: str) -> list[float]:
        return rows[f"peft-adalora-{side}{ending}"]["ms"]

    side, *what = rest
    if what == ["kernels"]:
        return str(rows[f"peft-adalora-{side}{ending}"]["work"]["kernels"])
    values, digits = turns("adamw" if side == "ratio" else side), 0
    if side == "ratio":
        values, digits = [b / a for a, b in zip(values, turns("ivon-snr"), strict=True)], 2
    if what == ["turns"]:
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
    return f"{np.median(values):.{digits}f}"


def again(files: Files, name: str) -> str:
    """Compute the number of a name anew."""
    part, *rest = name.split("/")
    if rest == ["failed"]:
        failed = {line["job"] for line in files.lines if "failed" in line}
        trials = {job for job in failed if re.search(r"-\d\d-(rte|cola)$", job)}
        return str(len(trials if part == "search" else failed - trials))
    if part == "search":
        return chosen(files, rest[1]) if rest[0] == "chosen" else of_search(files, *rest)
    if part == "judge":
        return of_judge(files, rest)
    of_part = {"causal": of_causal, "baselines": of_baselines, "speed": of_speed}[part]
    return of_part(files, *rest)


def same(printed: str, found: str) -> bool:
    """Tell whether two texts agree, but for one in the last digit: predictions are kept in fp32."""
    if printed == found:
        return True
    pattern = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
    a, b = re.findall(pattern, printed), re.findall(pattern, found)
    if re.sub(pattern, "#", printed) != re.sub(pattern, "#", found) or len(a) != len(b):
        return False
    return all(
        abs(float(x) - float(y)) <= 1.01 * 10.0 ** -len(x.partition(".")[2].partition("e")[0])
        for x, y in zip(a, b, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--lines", type=Path, nargs="*", default=[])
    parser.add_argument("--speed", type=Path)
    typed = parser.parse_args()
    files, differ, rounded = Files(typed.runs, typed.lines, typed.speed), 0, 0
    numbers: dict[str, str] = json.loads(typed.numbers.read_text())
    for name, printed in numbers.items():
        try:
            found = again(files, name)
        except (KeyError, ZeroDivisionError, ValueError) as error:
            found = f"cannot be computed: {type(error).__name__} {error}"
        rounded += printed != found and same(printed, found)
        if not same(printed, found):
            differ += 1
            print(f"{name}: the page has {printed}, the files {found}")
    print(f"{len(numbers)} numbers, {differ} differ; {rounded} by one in the last digit")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
