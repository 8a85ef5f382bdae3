"""The page's tables of the judge: metrics, comparisons, what the posterior has learned, cuts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean

from scipy import stats

from tests.benchmarks.posterior.page_text import (
    JUDGE,
    TITLES,
    Page,
    interval,
    own,
    spread,
    value,
)
from tests.benchmarks.posterior.pool import Line


def rows_of(lines: Sequence[Line]) -> dict[str, dict[str, list[Line]]]:
    """Return the `dev` lines by row and task, in the order of the seeds."""
    found: dict[str, dict[str, list[Line]]] = {row: defaultdict(list) for row in JUDGE["rows"]}
    for line in sorted((x for x in lines if x.get("kind") == "dev"), key=lambda x: x["seed"]):
        found[line["row"]][line["task"]].append(line)
    return {row: tasks for row, tasks in found.items() if tasks}


def judged(page: Page, lines: Sequence[Line]) -> None:
    """Write a table for each metric: rows by tasks, at the mean and over samples."""
    rows = rows_of(lines)
    page.write("### Five seeds on tasks that the search did not see")
    for metric, title, digits in (("own", "the task's own metric", 1), ("nll", "NLL", 3),
                                  ("ece", "ECE", 3), ("brier", "Brier score", 3),
                                  ("ood", "AUROC, other rows", 3),
                                  ("mutual", "the same by mutual information", 3)):  # fmt: skip
        cells = []
        for row, tasks in rows.items():
            if metric != "own" and len(tasks) < len(JUDGE["tasks"]):
                continue
            for at in ("mean", "sampled"):
                if at == "sampled" and not any("sampled" in x for t in tasks.values() for x in t):
                    continue
                if (metric, at) == ("mutual", "mean"):
                    continue
                counts = sorted({len(found) for found in tasks.values()})
                seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
                line = [row if at == "mean" else f"{row}, samples", seeds]
                for task in JUDGE["tasks"]:
                    own_lines = tasks.get(task, [])
                    absent = task == "stsb" and (
                        metric in ("ece", "brier", "mutual") or (metric, at) == ("ood", "mean")
                    )
                    line.append(
                        "–" if absent or not own_lines
                        else page.number(
                            f"judge/{row}/{task}/{at}/{metric}",
                            spread([value(x, metric, at) for x in own_lines], digits),
                        )
                    )  # fmt: skip
                if metric == "own":
                    means = [fmean(value(x, metric, at) for x in own) for own in tasks.values()]
                    whole = len(tasks) == len(JUDGE["tasks"])
                    mean = f"{fmean(means):.2f}"
                    line.append(page.number(f"judge/{row}/all/{at}/own", mean) if whole else "–")
                cells.append(line)
        titles = [title, "seeds", *(TITLES[task] for task in JUDGE["tasks"])]
        page.table([*titles, *(["mean"] if metric == "own" else [])], cells)
    page.write("\\* A subsample; MiniLM's contrastive training saw NLI and question pairs.")
    if any(len(tasks) < len(JUDGE["tasks"]) for tasks in rows.values()):
        page.write("Rows that have not been run on all tasks are in the first table only.")


def pairs(rows: Mapping[str, Mapping[str, list[Line]]], rule: Line) -> list[float]:
    """Return the differences of a primary comparison, by task and seed."""
    found = []
    for task in JUDGE["tasks"]:
        if task == "stsb" and rule["metric"] == "ece":
            continue
        theirs = {line["seed"]: line for line in rows.get(rule["b"], {}).get(task, [])}
        for line in rows.get(rule["a"], {}).get(task, []):
            if line["seed"] in theirs:
                a, b = (value(x, rule["metric"], at) for x, at in
                        zip((line, theirs[line["seed"]]), rule["at"], strict=True))  # fmt: skip
                found.append(round(a - b, 6))  # equal differences are ties
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (Scand. J. Stat. 6, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def primary(page: Page, lines: Sequence[Line]) -> None:
    """Write the primary comparisons, tested and corrected."""
    rows = rows_of(lines)
    found = [(rule, pairs(rows, rule)) for rule in JUDGE["primary"]]
    tested = [
        (rule, d, float(stats.wilcoxon(d, method="approx").pvalue))
        for rule, d in found
        if len(d) > 1
    ]
    corrected = holm([p for _, _, p in tested])
    cells = []
    for number, ((rule, d, p), fair) in enumerate(zip(tested, corrected, strict=True)):
        name, digits = f"judge/primary/{number}", 2 if rule["metric"] == "own" else 4
        centre, reach = interval(d, digits)
        cells.append([
            rule["question"],
            page.number(f"{name}/pairs", str(len(d))),
            page.number(f"{name}/difference", centre),
            page.number(f"{name}/interval", reach),
            page.number(f"{name}/p", f"{p:.3f}"),
            page.number(f"{name}/holm", f"{fair:.3f}"),
        ])  # fmt: skip
    page.write("### The primary comparisons")
    page.table(["question", "pairs", "difference", "95%", "Wilcoxon's p", "Holm's"], cells)


SECONDARY: list[tuple[str, str, str, str, str]] = [
    ("paper-snr", "mean", "adamw", "mean", "own"),
    ("adamw", "mean", "lora", "mean", "own"),
    ("paper-snr", "sampled", "adamw", "mean", "nll"),
    ("paper-snr", "sampled", "adamw", "mean", "ece"),
    ("paper-snr", "sampled", "paper-snr", "mean", "nll"),
    ("learned-snr", "sampled", "paper-snr", "sampled", "nll"),
    ("learned-snr", "sampled", "paper-snr", "sampled", "ece"),
    ("learned-snr", "sampled", "learned-snr", "mean", "ece"),
    *(
        (a, "mean", b, "mean", "own")
        for a, b in (
            *(
                (f"{family}-{criterion}", f"{family}-snr")
                for family in ("learned", "paper")
                for criterion in ("sensitivity", "precision", "snr-abs")
            ),
            ("paper-magnitude", "paper-snr"),
            ("learned-sensitivity", "adamw"),
            ("learned-snr-r4", "adamw-r4"),
            ("learned-snr-r4", "learned-snr"),
            ("adamw-r4", "adamw"),
            ("learned-snr-r1", "adamw-r1"),
        )
    ),
]
"""Row, where it is evaluated, the same of another row, and the metric."""


def secondary(page: Page, lines: Sequence[Line]) -> None:
    """Write further comparisons."""
    rows, cells = rows_of(lines), []
    for number, (a, at_a, b, at_b, metric) in enumerate(SECONDARY):
        d = pairs(rows, {"a": a, "b": b, "at": [at_a, at_b], "metric": metric})
        if len(d) < 2:
            continue
        name = f"judge/secondary/{number}"
        sides = [row if at == "mean" else f"{row}, samples" for row, at in ((a, at_a), (b, at_b))]
        centre, reach = interval(d, 2 if metric == "own" else 4)
        cells.append([
            {"own": "own metric, points", "nll": "NLL", "ece": "ECE"}[metric],
            " minus ".join(sides),
            page.number(f"{name}/pairs", str(len(d))),
            page.number(f"{name}/difference", centre),
            page.number(f"{name}/interval", reach),
        ])  # fmt: skip
    page.write("Secondary, not named before the runs and not corrected:")
    page.table(["metric", "", "pairs", "difference", "95%"], cells)


def learnt(page: Page, lines: Sequence[Line]) -> None:
    """Write how far h moved, sigma's spread, and which triplets the criteria keep."""
    runs = [line for line in lines if line.get("kind") == "run"]
    by = {(x["row"], x["task"], x["seed"]): x for x in runs}
    page.write("### What the posterior has learned")
    page.write("IVON keeps h + delta above 0, not h; the learned setting's delta is its h0.")
    facts: dict[str, Callable[[Line], float]] = {
        "h/h0, 5%": lambda p: p["hessian_over_h0"]["q05"],
        "h/h0, 95%": lambda p: p["hessian_over_h0"]["q95"],
        "sigma, 95% over 5%": lambda p: p["sigma_ratio"],
        "ρ(snr, magnitude)": lambda p: p["snr_magnitude_correlation"],
    }
    cells = []
    for row in ("paper-snr", "learned-snr"):
        for title, fact in facts.items():
            line = [f"{row}: {title}"]
            for task in JUDGE["tasks"]:
                values = [fact(x["posterior"]) for k, x in by.items() if k[:2] == (row, task)]
                name = f"judge/learnt/{row}/{task}/{title}"
                line.append(page.number(name, f"{fmean(values):.3g}") if values else "–")
            cells.append(line)
    for family in ("paper", "learned"):
        a, b = f"{family}-snr", f"{family}-magnitude"
        line = [f"{family}: triplets that snr and magnitude both keep"]
        for task in JUDGE["tasks"]:
            shares = [
                common(x["kept"], by[b, task, seed]["kept"])
                for (row, name, seed), x in by.items()
                if (row, name) == (a, task) and (b, task, seed) in by
            ]
            name = f"judge/common/{family}/{task}"
            line.append(page.number(name, f"{100 * fmean(shares):.0f}%") if shares else "–")
        cells.append(line)
    for row in JUDGE["rows"]:
        line = [f"{row}: rank correlation between seeds"]
        for task in JUDGE["tasks"]:
            kept = [x["kept"] for k, x in sorted(by.items()) if k[:2] == (row, task)]
            ranks = [[sum(matrix) for matrix in run] for run in kept]
            found = [float(stats.spearmanr(a, b).statistic) for a, b in combinations(ranks, 2)
                     if len(set(a)) > 1 and len(set(b)) > 1]  # fmt: skip
            name = f"judge/seeds/{row}/{task}"
            line.append(page.number(name, f"{fmean(found):.2f}") if found else "–")
        if set(line[1:]) != {"–"}:
            cells.append(line)
    for a, b in (("learned-snr", "adamw"), ("learned-magnitude", "adamw"), ("paper-snr", "adamw"),
                 ("learned-snr", "learned-magnitude"), ("learned-snr", "paper-snr")):  # fmt: skip
        line = [f"rank correlation of {a} and {b}, seed by seed"]
        for task in JUDGE["tasks"]:
            both = [
                [[sum(matrix) for matrix in by[row, task, seed]["kept"]] for row in (a, b)]
                for seed in JUDGE["seeds"]
                if (a, task, seed) in by and (b, task, seed) in by
            ]
            found = [float(stats.spearmanr(x, y).statistic) for x, y in both]
            name = f"judge/between/{a}/{b}/{task}"
            line.append(page.number(name, f"{fmean(found):.2f}") if found else "–")
        cells.append(line)
    page.table(["", *(TITLES[task] for task in JUDGE["tasks"])], cells)


def common(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Return the share of kept triplets that both runs keep."""
    both = sum(x * y for m, n in zip(a, b, strict=True) for x, y in zip(m, n, strict=True))
    return 2 * both / (sum(map(sum, a)) + sum(map(sum, b)))


def agreement(page: Page, lines: Sequence[Line]) -> None:
    """Write how criteria order the kept triplets of one run, and what sigma agrees with."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if line.get("kind") == "agreement":
            for pair, rho in line["spearman"].items():
                if rho is not None:  # None: a criterion's scores are all equal
                    found[line["row"], pair].append(rho)
            if line.get("precision_and_squared_gradient") is not None:
                name = "1/sigma², squared gradients of A and B"
                found[line["row"], name].append(line["precision_and_squared_gradient"])
    page.write("Rank correlations within a run, means over tasks and seeds:")
    page.table(
        ["run", "of", "ρ"],
        [
            [row, pair, page.number(f"judge/agreement/{row}/{pair}", f"{fmean(values):.2f}")]
            for (row, pair), values in sorted(found.items())
        ],
    )


def cuts(page: Page, lines: Sequence[Line]) -> None:
    """Write the mean over tasks and seeds of the metric after cutting, by rank and criterion."""
    found: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    # the last line of a run's cuts; without it a call was cut off among them
    whole = {line["job"] for line in lines if line.get("by") == "none"}
    for line in lines:
        if line.get("kind") == "cut" and line["job"] in whole:
            value_of = 100 * own(line["task"], line["metrics"])
            found[line["row"], line["by"]][line["rank"]].append(value_of)
    ranks = sorted({rank for by in found.values() for rank in by}, reverse=True)
    page.write("### Cutting afterwards")
    page.write("Means over tasks and seeds of the tasks' own metrics.")
    page.table(
        ["run, by", *(f"rank {rank:g}" for rank in ranks)],
        [
            [f"{row}, {by}", *(
                page.number(f"judge/cut/{row}/{by}/{rank:g}", f"{fmean(values[rank]):.1f}")
                if values.get(rank) else "–" for rank in ranks
            )]
            for (row, by), values in sorted(found.items())
        ],
    )  # fmt: skip


Measured = tuple[str, str, float]
"""A row, what it was cut by (`TRAINED`: not at all) and the rank that is kept."""
TRAINED = "trained"
COMPARED: list[tuple[Measured, Measured]] = [
    *((("learned-snr", "snr", rank), ("learned-snr", by, rank))
      for rank in (1, 0.5)
      for by in ("magnitude", "precision", "singular-values", "sensitivity")),
    *((("adamw", "sensitivity", rank), ("adamw", "singular-values", rank)) for rank in (1, 0.5)),
    *(((row, by, rank), (trained, TRAINED, rank))
      for row, trained, rank, criterion in (
          ("learned-snr-r4", "learned-snr", 2, "snr"), ("learned-snr", "learned-snr-r1", 1, "snr"),
          ("adamw-r4", "adamw", 2, "sensitivity"), ("adamw", "adamw-r1", 1, "sensitivity"))
      for by in (criterion, "singular-values")),
    (("learned-snr-r4", "sensitivity", 2), ("learned-snr", TRAINED, 2)),
    (("learned-snr", "sensitivity", 1), ("learned-snr-r1", TRAINED, 1)),
]  # fmt: skip


def cut_pairs(page: Page, lines: Sequence[Line]) -> None:
    """Write differences between orders, and between cut runs and runs trained at that rank."""
    found: dict[Measured, dict[tuple[str, int], float]] = defaultdict(dict)
    for line in lines:
        if line.get("kind") not in ("cut", "dev"):
            continue
        cut = (line["by"], line["rank"]) if line["kind"] == "cut" else (TRAINED, 0)
        value_of = 100 * own(line["task"], line["metrics"])
        found[line["row"], *cut][line["task"], line["seed"]] = value_of
    cells = []
    for number, (a, b) in enumerate(COMPARED):
        first = found.get(a, {})
        second = found.get((b[0], TRAINED, 0) if b[1] == TRAINED else b, {})
        d = [first[key] - second[key] for key in first if key in second]
        if len(d) < 2:
            continue
        against = f"{b[0]} trained at {b[2]:g}" if b[1] == TRAINED else f"by {b[1]}"
        (centre, reach), name = interval(d, 2), f"judge/cut-pairs/{number}"
        cells.append([
            f"{a[0]} cut to {a[2]:g} by {a[1]}, minus {against}",
            page.number(f"{name}/pairs", str(len(d))),
            page.number(f"{name}/difference", centre),
            page.number(f"{name}/interval", reach),
        ])  # fmt: skip
    page.write("Pairs by task and seed, in points (secondary, not corrected):")
    page.table(["", "pairs", "difference", "95%"], cells)
