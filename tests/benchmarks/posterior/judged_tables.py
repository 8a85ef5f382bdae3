"""The page's tables of the judge: metrics, what the posterior has learned, cuts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

from scipy import stats

from tests.benchmarks.posterior.page_text import (
    JUDGE,
    TITLES,
    Page,
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
    page.write(
        "\\* A subsample of rows, and not unseen: MiniLM's contrastive training had MultiNLI's",
        "pairs, and SQuAD's questions, of which QNLI is made. STS-B's NLL is that of a normal",
        "distribution with variance 0.5, over samples plus their variance.",
    )
    if any(len(tasks) < len(JUDGE["tasks"]) for tasks in rows.values()):
        page.write("Rows that have not been run on all tasks are in the first table only.")


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
