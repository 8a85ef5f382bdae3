"""The page's tables of differences: tested, corrected for their number, and task by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from scipy import stats

from tests.benchmarks.posterior.judged_tables import rows_of
from tests.benchmarks.posterior.page_text import JUDGE, Page, interval, own, value
from tests.benchmarks.posterior.pool import Line

Differences = Mapping[tuple[str, int], float]
"""Task and seed -> a difference."""
TITLES = ["pairs", "difference", "95%", "tasks", "95% of tasks", "p", "Holm's"]


def pairs(rows: Mapping[str, Mapping[str, list[Line]]], rule: Line) -> Differences:
    """Return the differences of a primary comparison."""
    found = {}
    for task in JUDGE["tasks"]:
        if task == "stsb" and rule["metric"] == "ece":
            continue
        theirs = {line["seed"]: line for line in rows.get(rule["b"], {}).get(task, [])}
        for line in rows.get(rule["a"], {}).get(task, []):
            if line["seed"] in theirs:
                a, b = (value(x, rule["metric"], at) for x, at in
                        zip((line, theirs[line["seed"]]), rule["at"], strict=True))  # fmt: skip
                found[task, line["seed"]] = round(a - b, 6)  # equal differences are ties
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (Scand. J. Stat. 6, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


Row = tuple[list[str], str, Differences, int]
"""A row's first cells, the name of its numbers, the differences, and the digits to print."""


def table_of(page: Page, head: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a table of differences; Wilcoxon's p is corrected for the number of rows."""
    p_values = [float(stats.wilcoxon([*d.values()], method="approx").pvalue)
                for _, _, d, _ in rows]  # fmt: skip
    cells = []
    for (first, name, d, digits), p, fair in zip(rows, p_values, holm(p_values), strict=True):
        centre, reach = interval([*d.values()], digits)
        by_task = [fmean(x for (task, _), x in d.items() if task == one)
                   for one in dict.fromkeys(task for task, _ in d)]  # fmt: skip
        texts = {
            "pairs": str(len(d)), "difference": centre, "interval": reach,
            "tasks": f"{min(by_task):+.{digits}f} to {max(by_task):+.{digits}f}",
            "over-tasks": interval(by_task, digits)[1], "p": p_text(p), "holm": p_text(fair),
        }  # fmt: skip
        cells.append([*first, *(page.number(f"{name}/{what}", x) for what, x in texts.items())])
    page.table([*head, *TITLES], cells)


def primary(page: Page, lines: Sequence[Line]) -> None:
    """Write the primary comparisons, tested and corrected."""
    rows = rows_of(lines)
    found = [(rule, pairs(rows, rule)) for rule in JUDGE["primary"]]
    tested = [(rule, d) for rule, d in found if len(d) > 1]
    page.write("### The primary comparisons")
    page.write(
        "Here and in the tables below, 95% is Student's interval over the pairs of task and seed;",
        "tasks are the lowest and the highest mean of a task; 95% of tasks is Student's interval",
        "over the tasks' means, for those who ask about other tasks; p is that of Wilcoxon's test",
        "over the pairs, and Holm's is that p corrected for the number of rows of its table.",
    )
    table_of(page, ["question"], [
        ([rule["question"]], f"judge/primary/{number}", d, 2 if rule["metric"] == "own" else 4)
        for number, (rule, d) in enumerate(tested)
    ])  # fmt: skip


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
    rows, found = rows_of(lines), []
    for number, (a, at_a, b, at_b, metric) in enumerate(SECONDARY):
        d = pairs(rows, {"a": a, "b": b, "at": [at_a, at_b], "metric": metric})
        if len(d) < 2:
            continue
        sides = [row if at == "mean" else f"{row}, samples" for row, at in ((a, at_a), (b, at_b))]
        title = {"own": "own metric, points", "nll": "NLL", "ece": "ECE"}[metric]
        found.append(([title, " minus ".join(sides)], f"judge/secondary/{number}", d,
                      2 if metric == "own" else 4))  # fmt: skip
    page.write("Secondary, not named before the runs:")
    table_of(page, ["metric", ""], found)


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
    rows = []
    for number, (a, b) in enumerate(COMPARED):
        first = found.get(a, {})
        second = found.get((b[0], TRAINED, 0) if b[1] == TRAINED else b, {})
        d = {key: round(first[key] - second[key], 6) for key in first if key in second}
        if len(d) < 2:
            continue
        against = f"{b[0]} trained at {b[2]:g}" if b[1] == TRAINED else f"by {b[1]}"
        rows.append(([f"{a[0]} cut to {a[2]:g} by {a[1]}, minus {against}"],
                     f"judge/cut-pairs/{number}", d, 2))  # fmt: skip
    page.write("Pairs by task and seed, in points (secondary):")
    table_of(page, [""], rows)


def against_the_point(page: Page, lines: Sequence[Line]) -> None:
    """Write what each baseline changes against the point that it starts from."""
    points = {(x["task"], x["seed"]): x for x in lines if x["method"] == "point"}
    rows = []
    for method in sorted({x["method"] for x in lines} - {"point", "ensemble"}):
        for metric in ("nll", "ece"):
            d = {
                (x["task"], x["seed"]): x[metric] - points[x["task"], x["seed"]][metric]
                for x in lines
                if x["method"] == method and (x["task"], x["seed"]) in points
            }
            name = f"baselines/{method} - point/{metric}"
            rows.append(([f"{method} minus point", metric.upper()], name, d, 4))
    page.write("Paired by task and seed (secondary):")
    table_of(page, ["", "metric"], rows)
